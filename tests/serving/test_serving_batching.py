"""The server's scheduler composes the batches that the engine composes, keeps every limit, and never stops the loop."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.bundles import SCENARIO
from wisp_gym.contract.tables import TABLES
from wisp_gym.controllers.resolve import find_batching
from wisp_gym.engine.build import empty_arrays, fill_world
from wisp_gym.engine.compose import begin_batch, compose
from wisp_gym.engine.line import enqueue
from wisp_gym.serving.bundle.bundle import Bundle, from_bytes, load_bundle
from wisp_gym.serving.bundle.schema import BundleError
from wisp_gym.serving.estimator import TERMS, VerificationTimeEstimator
from wisp_gym.serving.export.policies import batching_bundle
from wisp_gym.serving.scheduler.base import ServerLimits
from wisp_gym.serving.scheduler.fcfs import FirstComeFirstServed
from wisp_gym.serving.scheduler.features import QUANTITIES, Request
from wisp_gym.serving.scheduler.scheduler import BatchScheduler

RULES = ("fcfs", "edf", "edf-demoted", "edf-demoted:0.2", "least-laxity", "wisp", "wisp:0.2,0.5")
MEAN_S = 0.09
LIMITS = ServerLimits(kv_tokens=40_000, requests=48, prefill_tokens=300)
NUMBERS = st.one_of(st.none(), st.text(max_size=2), st.floats(), st.integers(-(10**20), 10**20), st.just([]))


def bundle_of(name: str) -> Bundle:
    """A batching rule, exported and loaded."""
    return from_bytes(batching_bundle(name, SCENARIO))


def estimator() -> VerificationTimeEstimator:
    """The scenario's own four-term prediction."""
    return VerificationTimeEstimator({name: float(getattr(SCENARIO.estimator, name)) for name in TERMS})


def scheduler_of(name: str, limits: ServerLimits = LIMITS) -> BatchScheduler:
    """A scheduler whose mean batch time is MEAN_S."""
    scheduler = BatchScheduler(bundle_of(name), estimator(), limits)
    scheduler.mean_batch_s = MEAN_S
    return scheduler


def waiting(rng: np.random.Generator, n: int, now_s: float) -> list[Request]:
    """n requests in order of arrival: rounds, cold prompts and evicted prefixes, on time and late."""
    arrived = np.sort(now_s - rng.uniform(0.0, 0.5, n))
    requests = []
    for k in range(n):
        context = int(rng.integers(50, 1500))
        cached = 0 if rng.random() < 0.1 else context - 1 - (int(rng.integers(0, 40)) if rng.random() < 0.1 else 0)
        draft = int(rng.integers(0, 9)) if cached else 0
        deadline = now_s + float(rng.uniform(-0.2, 0.8))
        requests.append(
            Request(
                k, float(arrived[k]), deadline, context, cached, draft, 1.0 + draft * float(rng.uniform(0.2, 1.0)), 8.0
            )
        )
    return requests


def composed_by_the_engine(
    name: str, requests: list[Request], now_s: float, admit_share: float = 0.0, used: int = 0
) -> tuple[list[int], list[int]]:
    """Members and their new tokens."""
    kind, parameters, _ = find_batching(name, SCENARIO)
    n = len(requests)
    w = empty_arrays(1, n)
    fill_world(w, 0, SCENARIO, 0, n)
    c, s, d = w.config[0, 0], w.server[0, 0], w.device[0]
    c["batching"], c["max_batch_requests"], c["kv_capacity_tokens"] = kind, LIMITS.requests, LIMITS.kv_tokens
    c["chunk_tokens"], c["admit_share"], s["kv_tokens"] = LIMITS.prefill_tokens, admit_share, used
    s["now_s"], s["mean_batch_s"] = now_s, MEAN_S
    for k, r in enumerate(requests):
        d[k]["arrived_s"], d[k]["deadline_s"], d[k]["prompt_tokens"] = r.arrived_s, r.deadline_s, r.context_tokens
        d[k]["cached_tokens"], d[k]["drafted"], d[k]["expected_tokens"] = (
            r.cached_tokens,
            r.draft_tokens,
            r.expected_tokens,
        )
        d[k]["slo_tokens_per_s"] = r.slo_tokens_per_s
    w.batching_parameters[0, : len(parameters)] = parameters
    for k in range(n):
        enqueue(w.server[0, 0], d[k], w.line[0], w.places[0], w.queue[0], k)
    begin_batch(w.at(0))
    compose(w.at(0))
    members = w.batch[0, : int(s["n_batch"])].tolist()
    return members, d["take_tokens"][members].tolist()


@pytest.mark.parametrize("name", RULES)
def test_batches_are_those_of_the_engine(name: str) -> None:
    scheduler, sizes = scheduler_of(name), set()
    for seed in range(60):
        rng = np.random.default_rng(seed)
        requests = waiting(rng, int(rng.integers(1, 80)), 7.0)
        batch = scheduler.compose(requests, 7.0)
        members, taken = composed_by_the_engine(name, requests, 7.0)
        assert (batch.members, batch.new_tokens) == (members, taken)
        sizes.add(len(members))
    assert not scheduler.fallbacks
    assert len(sizes) > 5


@pytest.mark.parametrize("name", RULES)
def test_admission_is_that_of_the_engine(name: str) -> None:
    limits, kept_out = replace(LIMITS, admit_share=0.6), 0
    scheduler = scheduler_of(name, limits)
    for seed in range(40):
        rng = np.random.default_rng(seed)
        requests, used = waiting(rng, int(rng.integers(1, 60)), 7.0), int(rng.choice([0, 15_000, 36_000]))
        batch = scheduler.compose(requests, 7.0, used)
        assert (batch.members, batch.new_tokens) == composed_by_the_engine(name, requests, 7.0, 0.6, used)
        kept_out += batch.members != scheduler_of(name).compose(requests, 7.0, used).members
    assert kept_out > 5
    with pytest.raises(ValueError, match="allowed is 0 to 1"):
        scheduler_of(name, replace(LIMITS, admit_share=1.5))


@pytest.mark.parametrize("name", ["wisp", "wisp:0.2,0.5"])
def test_the_fallback_is_the_rule_that_the_bundle_would_be(name: str) -> None:
    scheduler = scheduler_of("fcfs")
    settings = dict(zip(("margin", "window"), find_batching(name, SCENARIO)[1], strict=True))
    schema = replace(scheduler.bundle.schema, fallback=settings)

    class Broken:
        def run(self, *_: Any) -> None:
            raise RuntimeError("no memory")

    scheduler.bundle = replace(scheduler.bundle, schema=schema, session=Broken())
    for seed in range(20):
        requests = waiting(np.random.default_rng(seed), 50, 7.0)
        assert scheduler.compose(requests, 7.0).members == composed_by_the_engine(name, requests, 7.0)[0]
    assert scheduler.fallbacks == {"failed": 20}


@settings(deadline=None)  # the machine may be busy
@given(st.integers(0, 2**32), st.integers(0, 300), st.integers(1, 60), st.integers(1, 50_000), st.integers(0, 800))
def test_no_batch_passes_a_limit(seed: int, n: int, most: int, kv_tokens: int, chunk: int) -> None:
    limits = ServerLimits(kv_tokens, most, chunk)
    requests = waiting(np.random.default_rng(seed), n, 0.0)
    batch = scheduler_of("wisp", limits).compose(requests, 0.0)
    picked = [requests[q] for q in batch.members]
    assert len(set(batch.members)) == len(batch.members) <= most
    assert all(take >= 1 for take in batch.new_tokens)
    assert sum(r.cached_tokens + take for r, take in zip(picked, batch.new_tokens, strict=True)) <= kv_tokens
    prefill = sum(take - min(take, r.draft_tokens + 1) for r, take in zip(picked, batch.new_tokens, strict=True))
    assert chunk == 0 or prefill <= chunk
    predicted = estimator().predict(sum(batch.new_tokens), batch.pairs, batch.cached_tokens)
    assert batch.predicted_s == pytest.approx(predicted if picked else 0.0)


def test_requests_whose_facts_cannot_be_used_are_refused_and_the_others_served() -> None:
    scheduler = scheduler_of("edf")
    requests = waiting(np.random.default_rng(0), 6, 0.0)
    requests[1] = replace(requests[1], deadline_s=float("nan"))
    requests[2] = replace(requests[2], context_tokens=None)  # type: ignore[arg-type]
    requests[3] = replace(requests[3], cached_tokens=requests[3].context_tokens)
    batch = scheduler.compose(requests, 0.0)
    assert batch.refused == [1, 2, 3]
    assert sorted(batch.members) == [0, 4, 5]
    assert scheduler.fallbacks == {"out of range": 1}


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.lists(NUMBERS, min_size=8, max_size=8), max_size=6), NUMBERS, NUMBERS)
def test_nothing_that_it_is_given_stops_the_loop(rows: list[list[Any]], now_s: Any, seconds: Any) -> None:
    scheduler = scheduler_of("wisp")
    batch = scheduler.compose([Request(*row) for row in rows], now_s)
    assert scheduler.finished(batch, seconds) in (True, False)
    assert scheduler.compose(None, 0.0).members == []  # type: ignore[arg-type]
    requests = waiting(np.random.default_rng(1), 5, 0.0)
    assert len(scheduler.compose(requests, 0.0).members) > 0


def test_the_scheduler_learns_how_long_batches_take() -> None:
    scheduler, slower = scheduler_of("fcfs"), estimator()
    rng = np.random.default_rng(0)
    for _ in range(300):
        batch = scheduler.compose(waiting(rng, int(rng.integers(1, 40)), 0.0), 0.0)
        clean_s = slower.predict(sum(batch.new_tokens), batch.pairs, batch.cached_tokens)
        scheduler.finished(batch, 1.5 * clean_s * float(np.exp(0.03 * rng.standard_normal())))
    batch = scheduler.compose(waiting(rng, 30, 0.0), 0.0)
    clean_s = slower.predict(sum(batch.new_tokens), batch.pairs, batch.cached_tokens)
    assert batch.predicted_s == pytest.approx(1.5 * clean_s, rel=0.05)
    assert scheduler.estimator.alarms > 0


@pytest.mark.parametrize("limits", [LIMITS, replace(LIMITS, admit_share=0.6), replace(LIMITS, prefill_tokens=0)])
def test_without_a_bundle_first_come_first_served_is_the_rule(limits: ServerLimits) -> None:
    plain, bundled = FirstComeFirstServed(estimator(), limits), scheduler_of("fcfs", limits)
    for seed in range(40):
        rng = np.random.default_rng(seed)
        requests, used = waiting(rng, int(rng.integers(0, 70)), 7.0), int(rng.choice([0, 15_000, 36_000]))
        ours, theirs = plain.compose(requests, 7.0, used), bundled.compose(requests, 7.0, used)
        assert (ours.members, ours.new_tokens) == (theirs.members, theirs.new_tokens)
        assert ours.predicted_s == pytest.approx(theirs.predicted_s)
        assert (ours.wait_s > 0.0) == (theirs.wait_s > 0.0) == (bool(requests) and not ours.members)


def test_memory_is_given_out_in_blocks() -> None:
    limits, estimated = ServerLimits(kv_tokens=640, prefill_tokens=0, block_tokens=64), estimator()
    requests = [Request(k, 0.0, 1.0, 65 + k, 0, 0) for k in range(8)]  # two blocks each
    for scheduler in (FirstComeFirstServed(estimated, limits), BatchScheduler(bundle_of("fcfs"), estimated, limits)):
        assert scheduler.compose(requests, 0.0).members == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="block"):
        FirstComeFirstServed(estimated, replace(limits, block_tokens=0))


def test_features_are_those_of_the_documented_observation() -> None:
    for table, quantities in QUANTITIES.items():
        assert list(quantities) == list(TABLES[table])


def test_what_is_given_once_is_checked() -> None:
    with pytest.raises(BundleError, match="a server needs a policy of order, batching, joint"):
        BatchScheduler(load_bundle("speculation-wisp.onnx"), estimator(), LIMITS)
    with pytest.raises(ValueError, match="limits: given"):
        BatchScheduler(bundle_of("fcfs"), estimator(), replace(LIMITS, requests=0))
