"""Schedulers of a server by name: first come first served, or a bundle's policy or rule, with an estimator of batch times that learns."""

from wisp_gym import serving
from wisp_gym.serving import Bundle, Scheduler, ServerLimits
from wisp_gym.testbed.engine import Engine
from wisp_gym.testbed.settings import Limits

FCFS = "fcfs"


def find_bundle(name: str) -> Bundle | None:
    """The bundle of a scheduler's name (`wisp_gym.serving.load_bundle`); none of `fcfs`, which needs no bundle.

    Raises:
        BundleError: unknown name, or a bundle that cannot be used; one line.
    """
    return None if name == FCFS else serving.load_bundle(name, "batching")


def make_scheduler(
    bundle: Bundle | None, engine: Engine, limits: Limits, coefficients: dict[str, float] | None = None
) -> Scheduler:
    """The scheduler of a bundle, without one first come first served.

    Args:
        coefficients: with which the estimator of batch times begins; None: what the engine measures now.

    Raises:
        BundleError: a device's bundle.
    """
    estimator = serving.VerificationTimeEstimator(coefficients or engine.first_coefficients())
    kept = batch_limits(engine, limits)
    return serving.BatchScheduler(bundle, estimator, kept) if bundle else serving.FirstComeFirstServed(estimator, kept)


def batch_limits(engine: Engine, limits: Limits) -> ServerLimits:
    """What a batch of an engine must keep to."""
    kept = (limits.max_batch_rounds, limits.prefill_chunk_tokens, limits.admit_share)
    return ServerLimits(engine.kv_capacity_tokens, *kept, engine.block_tokens)
