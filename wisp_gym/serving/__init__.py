"""What a server or a device imports to run an exported policy: numpy and onnxruntime, nothing else (docs/serving.md)."""

from wisp_gym.serving.bundle import Bundle, load_bundle
from wisp_gym.serving.schema import BundleError
from wisp_gym.serving.speculation import DeviceProfile, Reply, SpeculationController, Token

__all__ = ["Bundle", "BundleError", "DeviceProfile", "Reply", "SpeculationController", "Token", "load_bundle"]
