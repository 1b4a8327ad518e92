"""The engine and the plain reference simulator agree, event by event and measure by measure, on random small worlds."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.reference import Reference
from tests.support.small_worlds import (
    BASE,
    CENTRALIZED,
    SmallWorld,
    horizon,
    log_of,
    plain,
    run,
    small_worlds,
    speculation_traces,
)
from tests.support.twins import LOG_ROWS, assert_same, grouped
from wisp_gym.controllers.resolve import resolve
from wisp_gym.engine.worlds import NO_TRACE
from wisp_gym.rules.catalogue import SPECULATION
from wisp_gym.rules.rejection_predictor import make_predictor, save_predictor
from wisp_gym.scenario import with_
from wisp_gym.traces.speculation import write_speculation_trace

DEFAULT_CONTROLLERS = (
    *(f"{name}+fcfs" for name in SPECULATION if name != "random"),
    "wisp+wisp", "dipsd", "wisp+pipelined:2", "survival+edf", "oracle+static:2,0.1", "fixed:8+fcfs+dspark", "fixed:8+edf+tetris:9+chunk:64",
    "wisp+aged:2+chunk:8,0.4+admit:0.8",
    "survival+wisp+adaserve:12", "wisp+aged:2+admit:0.5", "wisp+fcfs+admit:0.8+pace:0.1,1,2,1.3,0.5", "centralized:0+pace:0.08,0.5,1,2,0.3",
    *CENTRALIZED,
)  # fmt: skip

WHO_DRAFTS = (
    "sled", "sled-confidence", "wisp+wisp+overlap:4,0.3", "colocated:3", "colocated:5,1+dspark", "colocated-table:4,4", "colocated-turbospec",
    "colocated-ema(draft=1)", "colocated-throughput", "colocated-survival:0.6,7,1+tetris:12", "centralized:3,5+colocated:2+chunk:64+admit:0.8",
    "centralized-paced+colocated-turbospec:1.1,1", "fixed:4+fcfs+by-load:3+colocated:3,1", "wisp+wisp+by-class:6+colocated-survival",
    "wisp+edf+by-speed:40,3", "wisp+wisp+by-price:8+colocated-turbospec+overlap", "vllm-dynamic+aged:2+by-price:3,4+colocated-ema",
    "dipsd+pipelined+by-load:2+colocated:2", "goodspeed:12+fcfs+adaserve:12+by-speed:100,3+colocated:4",
    "speculation-v1+aged:2+admit:0.95+by-load:3+colocated:3", "speculation-v1+edf+by-speed:60+colocated-survival+overlap",
)  # fmt: skip
DRAFT_TIME = {"overhead_s": 0.002, "launch_s": 0.004, "sequence_s": 1e-4, "token_s": 2e-5, "cached_token_s": 5e-8}


@settings(derandomize=True, deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(small_worlds())
def test_engine_and_reference_tell_the_same_story(world: SmallWorld) -> None:
    assert_same(world)


@pytest.mark.parametrize("controller", DEFAULT_CONTROLLERS)
def test_same_story_in_the_default_scenario(controller: str) -> None:
    scenario = with_(BASE, n_devices=6, horizon=horizon(2.0, 10.0, 2.0))
    assert assert_same(SmallWorld(scenario, controller, 7, NO_TRACE)) > 500


@pytest.mark.parametrize("controller", WHO_DRAFTS)
def test_same_story_whoever_drafts(controller: str) -> None:
    """With a server that can load the devices' draft, or a lighter one with fates of its own."""
    acceptance = asdict(BASE.draft.acceptance)
    same = {"name": "same", "weights_bytes": 12 * 10**8, "kv_bytes_per_token": 10**5, "offer": 1.0, "correlation": 1.0}
    other = {"name": "other", "weights_bytes": 0, "kv_bytes_per_token": 0, "offer": 0.4, "correlation": 0.5}
    drafts = [
        same | {"acceptance": acceptance, "time": DRAFT_TIME},
        other
        | {
            "acceptance": acceptance | {"logit_mean": 0.3},
            "time": DRAFT_TIME | {"launch_s": 0.001, "cached_token_s": 0.0},
        },
    ]
    scenario = with_(BASE, n_devices=6, horizon=horizon(2.0, 10.0, 2.0), server_drafts=drafts)
    assert assert_same(SmallWorld(scenario, controller, 7, NO_TRACE)) > 500


@pytest.mark.parametrize("controller", ["wisp+wisp", "fixed:4+edf"])
def test_same_story_where_few_may_join(controller: str) -> None:
    """With room for two in a batch of sixteen devices, the order of priority decides."""
    scenario = with_(BASE, n_devices=16, horizon=horizon(2.0, 20.0, 2.0), **{"server.max_batch_requests": 2})
    assert assert_same(SmallWorld(scenario, controller, 3, NO_TRACE)) > 500


@settings(derandomize=True, deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
@given(small_worlds(), st.data())
def test_same_story_on_a_recorded_trace(tmp_path: Path, world: SmallWorld, data: st.DataObject) -> None:
    """Random answers, greedy or sampled, with and without a rejection predictor; some worlds have a predictor alone."""
    changes: dict[str, object] = {"server.memory_bytes": BASE.server.memory_bytes}
    plain_draft = True
    if data.draw(st.integers(0, 3)):
        trace = data.draw(speculation_traces(world.scenario.max_draft_tokens))
        plain_draft = trace.statistics is not None
        write_speculation_trace(trace, tmp_path / "t.npz")
        changes["draft.trace"] = str(tmp_path / "t.npz")
    if plain_draft and data.draw(st.booleans()):
        layers = [(np.array([[2.0, -0.5, 1.0, -0.1]], np.float32), np.array([0.1], np.float32))]
        save_predictor(make_predictor(layers, 0.6), tmp_path / "p.json")
        changes["draft.predictor"] = str(tmp_path / "p.json")
    assert_same(replace(world, scenario=with_(world.scenario, **changes)))


def test_the_comparison_sees_a_small_difference() -> None:
    """A reference that is a little off must not pass."""
    scenario = plain(n_devices=2, horizon=horizon(0.0, 4.0, 0.0))
    arrays = run(scenario, "fixed:4+fcfs", [3], LOG_ROWS)
    slower = with_(scenario, **{"server.host_s": scenario.server.host_s + 1e-5})
    reference = Reference(slower, 3, resolve("fixed:4+fcfs", slower)).run()
    ours, theirs = grouped(log_of(arrays), 4.0)["end", -1], grouped(reference.log, 4.0)["end", -1]
    assert not np.allclose(ours[:5], theirs[:5], rtol=1e-9, atol=1e-9)
