"""What a server or a device imports to run an exported policy: numpy and onnxruntime, nothing else (docs/serving/serving.md)."""

from wisp_gym.serving.bundle.bundle import Bundle, load_bundle
from wisp_gym.serving.bundle.schema import BundleError
from wisp_gym.serving.device.controller import DeviceProfile, Reply, SpeculationController, Token
from wisp_gym.serving.estimator import VerificationTimeEstimator
from wisp_gym.serving.scheduler.features import Request
from wisp_gym.serving.scheduler.scheduler import Batch, BatchScheduler, ServerLimits

__all__ = [
    "Batch", "BatchScheduler", "Bundle", "BundleError", "DeviceProfile", "Reply", "Request", "ServerLimits", "SpeculationController", "Token",
    "VerificationTimeEstimator", "load_bundle",
]  # fmt: skip
