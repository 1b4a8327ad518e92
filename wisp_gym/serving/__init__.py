"""What a server or a device imports to run an exported policy: numpy and onnxruntime, nothing else (docs/serving.md)."""

from wisp_gym.serving.batch_features import Request
from wisp_gym.serving.batching import Batch, BatchScheduler, ServerLimits
from wisp_gym.serving.bundle import Bundle, load_bundle
from wisp_gym.serving.schema import BundleError
from wisp_gym.serving.speculation import DeviceProfile, Reply, SpeculationController, Token
from wisp_gym.serving.verification_time import VerificationTimeEstimator

__all__ = [
    "Batch", "BatchScheduler", "Bundle", "BundleError", "DeviceProfile", "Reply", "Request", "ServerLimits", "SpeculationController", "Token",
    "VerificationTimeEstimator", "load_bundle",
]  # fmt: skip
