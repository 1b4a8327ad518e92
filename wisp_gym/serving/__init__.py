"""What a server or a device imports to run an exported policy: numpy and onnxruntime, nothing else (docs/serving/serving.md)."""

from wisp_gym.serving.build import build_bundle
from wisp_gym.serving.bundle.bundle import Bundle, load_bundle
from wisp_gym.serving.bundle.schema import BundleError
from wisp_gym.serving.device.controller import SpeculationController
from wisp_gym.serving.device.facts import DeviceProfile, Reply, Token
from wisp_gym.serving.estimator import VerificationTimeEstimator
from wisp_gym.serving.scheduler.base import Batch, Scheduler, ServerLimits
from wisp_gym.serving.scheduler.fcfs import FirstComeFirstServed
from wisp_gym.serving.scheduler.features import Request
from wisp_gym.serving.scheduler.scheduler import BatchScheduler

__all__ = [
    "Batch", "BatchScheduler", "Bundle", "BundleError", "DeviceProfile", "FirstComeFirstServed", "Reply", "Request", "Scheduler",
    "ServerLimits", "SpeculationController", "Token", "VerificationTimeEstimator", "build_bundle", "load_bundle",
]  # fmt: skip
