"""Schedulers on the real server: rules and learned policies see every fact, and what they say reaches the devices."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("grpc")
pytest.importorskip("transformers")

from tests.support.testbed_world import (
    COEFFICIENTS,
    SlowTarget,
    World,
    answer_all,
    controllers,
    prompt,
    right,
    scheduled,
)
from wisp_gym.contract.ladders import PRICES, WAIT_SHARE
from wisp_gym.errors import InputError
from wisp_gym.serving import (
    Batch,
    BundleError,
    FirstComeFirstServed,
    Scheduler,
    ServerLimits,
    VerificationTimeEstimator,
)
from wisp_gym.serving import Reply as Outcome
from wisp_gym.serving import Request as Waiting
from wisp_gym.testbed.client import Request
from wisp_gym.testbed.connection import Link
from wisp_gym.testbed.controlling import FixedLength
from wisp_gym.testbed.engine import Engine
from wisp_gym.testbed.scheduling import batch_limits, find_bundle
from wisp_gym.testbed.settings import NEVER_S, Limits

LIMITS = Limits(prefill_chunk_tokens=32, kv_tokens=512)


def watched(name: str, seen: list[tuple[list[Waiting], float, int, Batch]]) -> Callable[[Engine, Limits], Scheduler]:
    """Makes the scheduler of a name, which keeps all that it is handed and answers."""

    def make(engine: Engine, limits: Limits) -> Scheduler:
        scheduler = scheduled(name)(engine, limits)
        compose = scheduler.compose

        def watch(queue: Any, now_s: float, kv_used_tokens: int = 0) -> Batch:
            batch = compose(queue, now_s, kv_used_tokens)
            seen.append((list(queue), now_s, kv_used_tokens, batch))
            return batch

        scheduler.compose = watch  # type: ignore[method-assign]
        return scheduler

    return make


class Listening(FixedLength):
    """Keeps the replies."""

    def __init__(self, k: int, told: list[Outcome]) -> None:
        super().__init__(k)
        self.told = told

    def receive(self, reply: Outcome, now_s: float, uplink_s: Any = None, downlink_s: Any = None) -> None:
        self.told.append(reply)
        super().receive(reply, now_s, uplink_s, downlink_s)


@pytest.mark.parametrize("name", ["batching-wisp.onnx", "edf-demoted", "wisp"])
def test_batching_rules_run_from_bundles(name: str) -> None:
    with World(limits=LIMITS, scheduler=scheduled(name)) as world:
        devices = [world.device(c) for c in controllers()]
        requests = [Request(prompt(i, 20 + 10 * i), 16, slo_tokens_per_s=4.0 * (i % 2), ttft_s=2.0) for i in range(6)]
        assert [a.tokens for a in answer_all(devices, requests)] == [right(r) for r in requests]
        scheduler = world.server.verifier.scheduler
        assert scheduler.decisions > 20
        assert not scheduler.fallbacks
        assert scheduler.estimator.observed > 20
        assert scheduler.estimator.ignored == 0


@pytest.mark.parametrize("name", ["batching-v1", "joint-v1"])
def test_learned_policies_compose_every_batch_themselves(name: str) -> None:
    """Memory is short, prompts come in chunks, half of the requests have a service class: no fact is ever missing."""
    told: list[Outcome] = []
    limits = Limits(prefill_chunk_tokens=32, kv_tokens=640, admit_share=0.95)
    with World(limits=limits, scheduler=scheduled(name)) as world:
        scheduler = world.server.verifier.scheduler
        devices = [world.device(Listening(k % 4, told)) for k in range(6)]
        number = 0
        while scheduler.estimator.observed < 200:
            requests = [
                Request(prompt(number + i, 20 + 10 * (i % 5)), 24, slo_tokens_per_s=4.0 * (i % 2), ttft_s=2.0 * (i % 3))
                for i in range(12)
            ]
            assert [a.tokens for a in answer_all(devices, requests)] == [right(r) for r in requests]
            number += 12
        assert scheduler.decisions >= 200
        assert scheduler.fallbacks == {}
        assert not [s for s in world.server.metrics.fallbacks.collect()[0].samples if s.name.endswith("_total")]
        assert scheduler.tokens_per_s > 0.0
        assert 0.0 < scheduler.utilisation < 1.0
        assert {round(reply.price, 3) for reply in told} <= set(PRICES)


def test_the_price_of_a_joint_policy_reaches_the_devices() -> None:
    told: list[Outcome] = []
    with World(limits=LIMITS, scheduler=scheduled("joint-v1")) as world:
        scheduler = world.server.verifier.scheduler
        pick = scheduler.pick  # type: ignore[attr-defined]

        def priced(*arguments: Any) -> Batch:
            batch: Batch = pick(*arguments)
            if batch.price is not None:
                scheduler.price = PRICES[3]  # whatever the policy thinks of this small load
            return batch

        scheduler.pick = priced  # type: ignore[attr-defined]
        answer_all([world.device(Listening(3, told)) for _ in range(3)], [Request(prompt(i), 16) for i in range(3)])
        assert scheduler.fallbacks == {}
        assert told[-1].price == pytest.approx(PRICES[3])
        assert world.count("wisp_price_tokens") == PRICES[3]


def test_facts_of_a_request_are_those_of_the_model() -> None:
    """Times of docs/model/model.md, §6, on the server's clock: made, due by the service class, due by the first token's target."""
    seen: list[tuple[list[Waiting], float, int, Batch]] = []
    with World(limits=LIMITS, scheduler=watched("batching-v1", seen), target=SlowTarget(0.02)) as world:
        begun_s = time.monotonic()
        world.device(FixedLength(2)).answer(Request(prompt(1, 30), 12, slo_tokens_per_s=5.0, ttft_s=1.5))
        world.device(FixedLength(2)).answer(Request(prompt(2, 30), 4))
    rounds = [queue[0] for queue, _, _, _ in seen]
    classed, free = [r for r in rounds if r.slo_tokens_per_s == 5.0], [r for r in rounds if r.slo_tokens_per_s < 1.0]
    first, later = classed[0], [r for r in classed if r.committed_tokens > 0]
    assert first.requested_s == pytest.approx(begun_s, abs=1.0)
    assert {r.requested_s for r in classed} == {first.requested_s}
    assert first.due_s == first.deadline_s
    assert first.due_s == pytest.approx(first.requested_s + 1.5, abs=0.05)  # less the mean delay of the way back
    first_left_s = later[0].due_s - later[0].committed_tokens / 5.0
    assert first.arrived_s + 0.02 < first_left_s <= later[0].arrived_s
    assert [r.due_s for r in later] == pytest.approx([first_left_s + r.committed_tokens / 5.0 for r in later])
    assert [r.committed_tokens for r in later] == sorted({int(r.committed_tokens) for r in later})
    assert all(r.context_tokens == 30 + r.committed_tokens and r.uncached_tokens == 0 for r in later)
    assert all(r.due_s == r.deadline_s == r.arrived_s + NEVER_S for r in free)
    assert max(used for _, _, used, _ in seen) >= 64  # memory in use, in whole blocks


def test_a_rebuilt_session_keeps_its_age_and_what_is_due() -> None:
    """A server that knows a session no more learns from its device when the request was made and the first token came."""
    seen: list[tuple[list[Waiting], float, int, Batch]] = []
    request = Request(prompt(3), 24, slo_tokens_per_s=5.0, ttft_s=1.5)
    with World(scheduler=watched("fcfs", seen), target=SlowTarget(0.02)) as world:

        class Forgotten(Link):
            """After the fifth message the server has forgotten everything."""

            sent = 0

            def send(self, message: Any) -> None:
                self.sent += 1
                if self.sent == 5:
                    time.sleep(2.0)
                    world.loop.call_soon_threadsafe(world.server.table.forget, ("anyone", request.session))
                    time.sleep(0.1)
                super().send(message)

        channel = world.channel()
        device = world.device(FixedLength(1), connect=lambda: Forgotten(channel))
        answer = device.answer(request)
        assert answer.tokens == right(request)
        assert answer.refusals == 1
    rounds = [queue[0] for queue, _, _, _ in seen]
    assert max(r.requested_s for r in rounds) - min(r.requested_s for r in rounds) == pytest.approx(0.0, abs=1.0)
    left_s = [r.due_s - r.committed_tokens / 5.0 for r in rounds if r.committed_tokens > 0]
    assert max(left_s) > min(left_s)  # told anew
    assert max(left_s) - min(left_s) < 1.0


class Patient(FirstComeFirstServed):
    """Waits for a second request, at most so long."""

    most_s = 0.4
    asked: list[tuple[float, int]]

    def compose(self, queue: Any, now_s: float, kv_used_tokens: int = 0) -> Batch:
        self.asked.append((now_s, len(queue)))
        waited_s = now_s - queue[0].arrived_s
        if len(queue) < 2 and waited_s < self.most_s - 1e-3:
            return Batch(waits=True, wait_s=self.most_s - waited_s)
        return super().compose(queue, now_s, kv_used_tokens)


def patient(engine: Engine, limits: Limits) -> Patient:
    scheduler = Patient(VerificationTimeEstimator(COEFFICIENTS), batch_limits(engine, limits))
    scheduler.asked = []
    return scheduler


def test_a_wait_is_obeyed_to_its_end_or_the_next_arrival() -> None:
    with World(scheduler=patient) as world:
        scheduler: Any = world.server.verifier.scheduler
        begun_s = time.monotonic()
        world.device().answer(Request(prompt(1), 1))
        assert time.monotonic() - begun_s > 0.4
        assert [n for _, n in scheduler.asked] == [1, 1]  # once at its arrival, once when the time was over
        assert scheduler.asked[1][0] - scheduler.asked[0][0] > 0.39
        scheduler.asked.clear()
        scheduler.most_s, begun_s = 20.0, time.monotonic()
        first = threading.Thread(target=world.device().answer, args=(Request(prompt(2), 1),))
        first.start()
        time.sleep(0.2)
        world.device().answer(Request(prompt(3), 1))  # its arrival ends the wait
        first.join(10)
        assert time.monotonic() - begun_s < 15.0
        assert [n for _, n in scheduler.asked] == [1, 2]


def test_a_policy_that_composes_nothing_says_how_long_to_wait() -> None:
    with World(scheduler=scheduled("batching-v1")) as world:
        scheduler = world.server.verifier.scheduler
        scheduler.mean_batch_s = 0.2
        assert scheduler.compose([], 0.0).wait_s == 0.0
        too_long = Waiting(0, 0.0, 1.0, 10**6, 0, 0, requested_s=0.0, committed_tokens=0, due_s=1.0)
        scheduler.limits = ServerLimits(64, prefill_tokens=0)
        batch = scheduler.compose([too_long], 0.0)
        assert (batch.members, batch.wait_s) == ([], pytest.approx(WAIT_SHARE * 0.2))


def test_fallbacks_are_counted_by_reason() -> None:
    with World(scheduler=scheduled("batching-v1")) as world:
        scheduler: Any = world.server.verifier.scheduler
        scheduler.bundle = None  # nothing to decide with
        request = Request(prompt(1), 4)
        assert world.device().answer(request).tokens == right(request)
        count = world.count("wisp_scheduler_fallbacks_total", reason="failed")
        assert count == scheduler.fallbacks["failed"] > 0


@pytest.mark.parametrize(
    ("name", "near"), [("batching-v2", "'batching-v1'"), ("wosp", "'wisp'"), ("aligned", "allowed: ")]
)
def test_an_unknown_scheduler_is_refused_with_the_nearest_name(name: str, near: str) -> None:
    with pytest.raises(InputError, match=near):
        find_bundle(name)


def test_a_devices_bundle_is_no_scheduler() -> None:
    with pytest.raises(BundleError, match="a server needs a policy of"), World(scheduler=scheduled("speculation-v1")):
        pass
