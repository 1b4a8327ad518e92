"""Bundles, device controllers and schedulers can be copied and sent to other processes by who owns them."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from wisp_gym.serving import load_bundle
from wisp_gym.serving.bundle.bundle import Bundle
from wisp_gym.serving.device.controller import SpeculationController
from wisp_gym.serving.device.facts import DeviceProfile, Reply, Token
from wisp_gym.serving.estimator import VerificationTimeEstimator
from wisp_gym.serving.scheduler.base import ServerLimits
from wisp_gym.serving.scheduler.fcfs import FirstComeFirstServed
from wisp_gym.serving.scheduler.features import Request
from wisp_gym.serving.scheduler.scheduler import BatchScheduler

COPIES: dict[str, Callable[[Any], Any]] = {
    "pickled": lambda given: pickle.loads(pickle.dumps(given)),
    "deep": copy.deepcopy,
    "shallow": copy.copy,
}
EVERY_COPY = pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
PROFILE = DeviceProfile(slo_tokens_per_s=8.0, draft_token_s=0.02, one_way_s=0.01, accept_share=0.8, batch_s=0.05)


def decided(bundle: Bundle) -> list[Any]:
    """What a bundle answers to some inputs."""
    rng = np.random.default_rng(0)
    inputs = {name: rng.uniform(size=(1, len(rows))).astype(np.float32) for name, rows in bundle.schema.inputs.items()}
    return [output.tolist() for output in bundle.decide(inputs)]


def on_device() -> SpeculationController:
    """In the middle of a round."""
    controller = SpeculationController(load_bundle("speculation-v1"), PROFILE)
    controller.begin_request(0.0, 500, 100)
    controller.sent(0.0)
    controller.receive(Reply(2, 1, 2, True, 0.03, 0.06, 0.01, 0.7, 0.06), 0.1)
    controller.begin_round(0.1)
    controller.wants_more(0.1)
    controller.drafted(Token(0.9, 0.9, 0.4, 0.6, 1.0), 0.12)
    return controller


def drafted_on(controller: SpeculationController) -> list[Any]:
    """What it decides from here on, and what it has counted."""
    answers = []
    for k in range(6):
        now_s = 0.13 + 0.02 * k
        answers.append(controller.wants_more(now_s))
        controller.drafted(Token(0.95 - 0.1 * k, 0.9, 0.4, 0.6, 1.0), now_s)
    return [*answers, controller.decisions, dict(controller.fallbacks), controller.row]


def on_server(kind: str) -> BatchScheduler | FirstComeFirstServed:
    """After a batch."""
    estimator, limits = VerificationTimeEstimator.load("a100-80gb--qwen3-32b"), ServerLimits(10_000, 4, 512)
    scheduler = (
        FirstComeFirstServed(estimator, limits)
        if kind == "fcfs"
        else BatchScheduler(load_bundle(kind), estimator, limits)
    )
    scheduler.finished(scheduler.compose(queue(), 0.0), 0.05, 4)
    return scheduler


def queue() -> list[Request]:
    rows = [
        (k, -0.1 * k, 0.5 - 0.1 * k, 100 + 50 * k, 0 if k == 2 else 99 + 50 * k, 2, 2.0, 8.0, -1.0, 3, 0.2)
        for k in range(5)
    ]
    return [Request(*row) for row in rows]


@EVERY_COPY
@pytest.mark.parametrize("name", ["speculation-v1", "batching-v1", "joint-v1", "batching-wisp"])
def test_a_bundle_can_be_copied(name: str, copied: Callable[[Any], Any]) -> None:
    bundle = load_bundle(name)
    twin = copied(bundle)
    assert decided(twin) == decided(bundle)
    assert (twin.sha256, twin.schema, twin.data) == (bundle.sha256, bundle.schema, bundle.data)


@EVERY_COPY
def test_a_device_controller_goes_on_as_the_original(copied: Callable[[Any], Any]) -> None:
    twin = copied(on_device())
    assert drafted_on(twin) == drafted_on(on_device())


@EVERY_COPY
@pytest.mark.parametrize("kind", ["fcfs", "batching-v1", "batching-wisp"])
def test_a_scheduler_goes_on_as_the_original(kind: str, copied: Callable[[Any], Any]) -> None:
    scheduler = on_server(kind)
    twin = copied(scheduler)
    assert twin.compose(queue(), 1.0, 100) == scheduler.compose(queue(), 1.0, 100)
    assert twin.mean_batch_s == scheduler.mean_batch_s


def elsewhere(device: SpeculationController, server: BatchScheduler) -> list[Any]:
    """The job of another process."""
    return [drafted_on(device), server.compose(queue(), 1.0, 100)]


def test_they_go_on_in_a_spawned_process() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        theirs = pool.apply(elsewhere, (on_device(), on_server("batching-v1")))
    server = on_server("batching-v1")
    assert theirs == [drafted_on(on_device()), server.compose(queue(), 1.0, 100)]
