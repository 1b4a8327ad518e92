"""Trimming at launch: each rule on a batch computed by hand, and what trimming may not change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from tests.support.homes import at_home
from tests.support.small_worlds import BASE, CONSTANT_ACCEPTANCE, SmallWorld, horizon, log_of, plain, run, small_worlds
from wisp_gym.engine.state import World
from wisp_gym.engine.trim import trim
from wisp_gym.engine.worlds import NO_TRACE, Worlds
from wisp_gym.evaluation.metrics import measure
from wisp_gym.rules import trimming
from wisp_gym.scenario import with_

LOG_ROWS = 40_000
some_worlds = settings(derandomize=True, deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))


def world_of_batch(drafts: list[list[float]], launch_s: float = 0.1, token_s: float = 0.01) -> World:
    """A composed batch at time 0: member k has drafted tokens of these survivals and takes them all, its context is cached."""
    w = Worlds(1, len(drafts), threads=1).arrays.with_rows(survivals=len(drafts)).at(0)
    c, s = w.config[0], w.server[0]
    c["est_launch_s"], c["est_new_token_s"] = launch_s, token_s
    s["n_batch"] = len(drafts)
    for k, survivals in enumerate(drafts):
        d = w.device[k]
        w.batch[k], w.survivals[k, : len(survivals)] = k, survivals
        d["drafted"] = d["verified"] = len(survivals)
        d["take_tokens"], d["completes"] = 1 + len(survivals), 1
        d["expected_tokens"], d["slo_tokens_per_s"] = 1.0 + sum(survivals), 10.0
        s["sum_new"] += d["take_tokens"]
        s["sum_pairs"] += d["take_tokens"] ** 2
        s["sum_kv"] += d["take_tokens"]
    return w


def trimmed(w: World, kind: int, tokens: int = 0) -> list[int]:
    """Verified tokens of each member after a rule has trimmed the batch, whose sums must follow."""
    w.config[0]["trim"], w.config[0]["trim_tokens"] = kind, tokens
    at_home(trim, w)
    d, s = w.device, w.server[0]
    assert (s["sum_new"], s["sum_kv"]) == (d["take_tokens"].sum(), d["take_tokens"].sum())
    assert s["sum_pairs"] == (d["take_tokens"] * (d["cached_tokens"] + d["take_tokens"])).sum()
    assert (d["take_tokens"] == 1 + d["verified"]).all()
    return list(d["verified"])


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [(0, [0, 0]), (1, [1, 0]), (2, [1, 1]), (3, [1, 2]), (4, [2, 2]), (5, [3, 2]), (99, [3, 2])],
)
def test_tetris_verifies_the_most_likely(tokens: int, expected: list[int]) -> None:
    # in falling order: .9 (first), .8 (second), .7 (second), .5 (first), .2 (first)
    assert trimmed(world_of_batch([[0.9, 0.5, 0.2], [0.8, 0.7]]), trimming.TETRIS, tokens) == expected


def test_equal_tokens_go_to_the_member_that_joined_first() -> None:
    assert trimmed(world_of_batch([[0.5], [0.5, 0.5], [0.5]]), trimming.TETRIS, 2) == [1, 1, 0]


def test_dspark_maximises_tokens_per_second() -> None:
    # 100 ms + 10 ms for each token; without drafts 2 tokens in 120 ms, 16.7/s; then in falling order of survival
    # 2.9/130 ms = 22.3, 3.7/140 = 26.4, 4.2/150 = 28.0, 4.4/160 = 27.5, 4.5/170 = 26.5: three drafted tokens
    assert trimmed(world_of_batch([[0.9, 0.5, 0.2], [0.8, 0.1]]), trimming.DSPARK) == [2, 1]


def test_dspark_trims_nothing_where_tokens_are_free_and_all_where_they_are_dear() -> None:
    drafts = [[0.9, 0.5, 1e-6], [0.8, 0.0]]
    assert trimmed(world_of_batch(drafts, token_s=0.0), trimming.DSPARK) == [3, 2]
    assert trimmed(world_of_batch(drafts, token_s=100.0), trimming.DSPARK) == [0, 0]


@pytest.mark.parametrize(("tokens", "expected"), [(1, [0, 1]), (2, [0, 2]), (3, [1, 2]), (4, [2, 2]), (6, [3, 3])])
def test_adaserve_verifies_first_what_speeds_need(tokens: int, expected: list[int]) -> None:
    # untrimmed the batch ends at 100 + 8·10 = 180 ms. At 10 tokens/s the first is 250 ms early: it needs 3.4 − 2.5 = 0.9,
    # and the target's own token gives 1; the second is 20 ms early and needs 1.6 − 0.2 = 1.4: .3 (1.3), then .2 (1.5)
    w = world_of_batch([[0.9, 0.8, 0.7], [0.3, 0.2, 0.1]])
    w.device["deadline_s"] = 0.43, 0.20
    assert trimmed(w, trimming.ADASERVE, tokens) == expected


def test_a_part_of_a_prompt_is_no_member_to_trim() -> None:
    w = world_of_batch([[0.9], [0.8]])
    w.device[0]["completes"], w.device[0]["take_tokens"] = 0, 2
    w.config[0]["trim"], w.config[0]["trim_tokens"] = trimming.TETRIS, 0
    at_home(trim, w)
    assert list(w.device["take_tokens"]) == [2, 1]


def test_a_trimmed_round_by_hand() -> None:
    """Every token would be accepted; five are drafted, two verified: the round commits three and wastes three."""
    scenario = plain(
        n_devices=1, horizon=horizon(0.0, 20.0), **CONSTANT_ACCEPTANCE, **{"draft.acceptance.logit_mean": 20.0},
        **{"workload.output": {"median_tokens": 500, "log_std": 0.0, "min_tokens": 500, "max_tokens": 500}},
    )  # fmt: skip
    arrays = run(scenario, "fixed:5+fcfs+tetris:2", [1], LOG_ROWS)
    t, m, log = arrays.totals[0, 0], measure(arrays, 0, scenario), log_of(arrays)
    assert t["rounds"] > 20
    assert (t["accepted"], t["rejected"], t["trimmed"]) == (2 * t["rounds"], 0, 3 * t["rounds"])
    assert {value for _, kind, _, value in log if kind == "deliver"} == {1.0, 3.0}
    assert (m.acceptance, m.trimmed_share, m.committed_per_round) == pytest.approx((0.4, 0.6, 3.0))
    assert m.wasted_drafting_share == pytest.approx(0.6)  # three of five tokens


def delivered(world: SmallWorld, controller: str, **changes: float) -> tuple[list, np.void]:
    """Log and totals of a small world under another controller."""
    arrays = run(with_(world.scenario, **changes), controller, [world.seed], LOG_ROWS, world.trace)
    return log_of(arrays), arrays.totals[0, 0]


@some_worlds
@given(small_worlds())
def test_a_capacity_above_everything_trims_nothing(world: SmallWorld) -> None:
    untrimmed, _ = delivered(world, "wisp:0.3+wisp")
    for rule in ("tetris:100000", "adaserve:100000"):
        log, totals = delivered(world, f"wisp:0.3+wisp+{rule}")
        assert log == untrimmed
        assert totals["trimmed"] == 0


@some_worlds
@given(small_worlds())
def test_free_tokens_are_all_verified(world: SmallWorld) -> None:
    free: dict[str, Any] = {"estimator.new_token_s": 0.0, "estimator.pair_s": 0.0, "estimator.sizes": ()}
    assert delivered(world, "wisp:0.3+edf+dspark", **free)[0] == delivered(world, "wisp:0.3+edf", **free)[0]


def test_dear_tokens_are_not_verified_at_all() -> None:
    """Alone with its context cached, a round of one token costs c, and each drafted one c more for a chance below one."""
    lone = SmallWorld(plain(n_devices=1, horizon=horizon(0.0, 20.0)), "", 5, NO_TRACE)
    totals = delivered(lone, "fixed:6+fcfs+dspark", **{"estimator.new_token_s": 1e3})[1]
    assert totals["accepted"] == totals["rejected"] == 0
    assert totals["trimmed"] > 100


def fates_known(log: list, device: int, sure_below: int) -> dict[tuple[int, int], int]:
    """(request, position) → fate: 1 where an accepted token was delivered, 0 where a round of less than so many ended."""
    fates, request, position = {}, -1, 0
    for _, kind, d, value in log:
        if d == device and kind == "request":
            request, position = request + 1, 0
        elif d == device and kind == "verify":
            fates |= {(request, position + n): 1 for n in range(int(value))}
            position += int(value) + 1
            if value < sure_below:
                fates[request, position - 1] = 0
        elif d == device and kind == "done":
            fates.pop((request, int(value) - 1), None)  # a round that the output's length cut
    return fates


@pytest.mark.parametrize("rule", ["dspark", "tetris:6", "adaserve:6"])
def test_trimming_changes_no_fate_and_no_length(rule: str) -> None:
    """What is accepted under trimming the oracle finds accepted too; responses have the same lengths."""
    scenario = with_(BASE, n_devices=5, horizon=horizon(0.0, 150.0))
    oracle = log_of(run(scenario, "oracle+fcfs", [11], LOG_ROWS))  # stops before a rejection, or at the cap
    log = log_of(run(scenario, f"fixed:8+fcfs+{rule}", [11], LOG_ROWS))
    for device in range(5):
        true, found = fates_known(oracle, device, scenario.max_draft_tokens), fates_known(log, device, 0)
        both = true.keys() & found.keys()
        assert len(both) > 100
        assert 0 in [true[place] for place in true]
        assert all(true[place] == found[place] for place in both)
        done = [[value for _, kind, d, value in each if kind == "done" and d == device] for each in (oracle, log)]
        n = min(map(len, done))
        assert n > 1
        assert done[0][:n] == done[1][:n]
