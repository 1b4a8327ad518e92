"""DiP-SD's plan against closed forms and brute force, and the pipelined rule against runs computed by hand."""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import asdict, replace

import numpy as np
import pytest

from agents.bounds.toy import TICK_S, Toy, solve, toy_scenario
from tests.support.small_worlds import BASE, CONSTANT_ACCEPTANCE, horizon, log_of, plain, run
from wisp_gym.controllers.names import ControllerError
from wisp_gym.controllers.plan import Costs, improve, make_plan, rate_of, starts
from wisp_gym.controllers.predict_batching import BatchingPredictor
from wisp_gym.controllers.resolve import resolve
from wisp_gym.engine.state import TRACE_ROW
from wisp_gym.engine.worlds import NO_TRACE, Worlds
from wisp_gym.rules.controller import Controller, Plan
from wisp_gym.scenario import Scenario, with_

PAIR = Toy(devices=2, draft_ticks=2, link_ticks=2, batch_ticks=8, token_ticks=1, acceptance=0.8, max_draft_tokens=6)
QUICK = Toy(devices=2, draft_ticks=1, link_ticks=1, batch_ticks=4, token_ticks=1, acceptance=0.75, max_draft_tokens=4)


# --- the plan --------------------------------------------------------------------------------------------------------


def test_the_plan_is_optimal_among_equal_devices() -> None:
    """One class, groups of one size: of all lengths and numbers of groups, those with the most tokens a cycle."""
    scenario = plain(n_devices=24, **CONSTANT_ACCEPTANCE | {"draft.acceptance.logit_mean": 0.0})
    plan = make_plan(scenario)
    d, e = scenario.devices[0], scenario.estimator
    context = scenario.workload.prompt.median_tokens + scenario.workload.output.median_tokens / 2

    def rate(k: int, m: int) -> float:
        away_s = 2 * d.link.one_way_s + k / d.draft_tokens_per_s
        work_s = 24 * ((k + 1) * (e.new_token_s + e.pair_s * (context + k + 1)) + e.cached_token_s * context)
        return 24 * (2 - 0.5**k) / max(m * e.launch_s + work_s, away_s + e.launch_s + work_s / m)

    best = max(rate(k, m) for k in range(scenario.max_draft_tokens + 1) for m in (1, 2, 3, 4, 6, 8))
    assert best <= plan.tokens_per_s < 1.02 * best  # unequal groups and lengths may gain a little
    assert plan.tokens_per_s * plan.cycle_s == pytest.approx(sum(2 - 0.5**k for k in plan.lengths))


def test_the_plan_gives_faster_classes_no_less() -> None:
    plan = make_plan(BASE)
    kinds = run(BASE, "dipsd", [0]).device["class_id"][0]
    mean = [np.array(plan.lengths)[kinds == c].mean() for c in range(len(BASE.devices))]
    wired = [c for c, d in enumerate(BASE.devices) if d.link.name == "wifi-good"]
    ordered = [mean[c] for c in sorted(wired, key=lambda c: BASE.devices[c].draft_tokens_per_s)]
    assert ordered == sorted(ordered)


def best_of_all(costs: Costs) -> float:
    """Rate of the best plan, by trying every assignment and every length."""
    n, lengths = costs.away_s.shape
    firsts = (
        g
        for g in itertools.product(range(n), repeat=n)
        if all(x <= max(g[:i], default=-1) + 1 for i, x in enumerate(g))
    )
    every = itertools.product(firsts, itertools.product(range(lengths), repeat=n))
    return max(rate_of(costs, np.array(g), np.array(k), n) for g, k in every)


@pytest.mark.parametrize("seed", range(20))
def test_no_plan_of_a_small_case_does_better(seed: int) -> None:
    """Up to four devices of any speeds, links and acceptance, against all their plans."""
    rng = np.random.default_rng(seed)
    n, k = int(rng.integers(1, 5)), np.arange(int(rng.integers(2, 5)))
    speeds, delays = rng.choice([3.0, 8.0, 20.0, 60.0, 150.0], n), rng.choice([0.005, 0.02, 0.1], n)
    costs = Costs(
        np.cumsum(rng.uniform(0.4, 0.95) ** k), (k + 1) * rng.uniform(1e-4, 0.02),
        2 * delays[:, None] + k / speeds[:, None], rng.uniform(0.005, 0.1))  # fmt: skip
    found = max(improve(costs, *start, m)[0] for m in range(1, n + 1) for start in starts(costs, m))
    assert found == pytest.approx(best_of_all(costs), rel=1e-9)


def test_the_pairs_plan_by_hand() -> None:
    """Away 2·2 + 2·5 = 14 ticks, a batch 8 + 6 = 14: two groups of one, 2·E[N(5)] in 28 ticks."""
    plan = make_plan(toy_scenario(PAIR))
    assert (plan.groups, plan.lengths, plan.n_groups, plan.cycle_s) == ((0, 1), (5, 5), 2, 28 * TICK_S)
    assert plan.tokens_per_s == pytest.approx(2 * (1 - 0.8**6) / 0.2 / (28 * TICK_S)) == pytest.approx(16.86528)


def test_a_plan_covers_every_device_and_repeats_itself() -> None:
    for n in (1, 7, 150):
        scenario = with_(BASE, n_devices=n)
        plan = make_plan(scenario)
        make_plan.cache_clear()
        assert make_plan(scenario) == plan
        assert len(plan.groups) == len(plan.lengths) == n
        assert set(plan.groups) <= set(range(plan.n_groups))
        assert all(0 <= k <= scenario.max_draft_tokens for k in plan.lengths)


def test_lengths_are_followed_by_each_device() -> None:
    scenario = plain(n_devices=8, horizon=horizon(0.0, 10.0), **{"draft.acceptance.logit_mean": 4.0})
    slow = asdict(scenario.devices[0]) | {"name": "slow", "draft_tokens_per_s": 4.0}
    scenario = with_(scenario, devices=[asdict(scenario.devices[0]), slow])
    lengths = resolve("dipsd+fcfs", scenario).plan.lengths
    assert len(set(lengths)) > 1
    for name in ("dipsd+fcfs", "dipsd"):
        sent = [
            (device, value) for _, kind, device, value in log_of(run(scenario, name, [0], 20_000)) if kind == "send"
        ]
        assert all(value <= lengths[device] for device, value in sent)
        assert {(device, lengths[device]) for device in range(8)} <= set(sent)


# --- groups in turn --------------------------------------------------------------------------------------------------


def launches(
    scenario: Scenario, controller: Controller | str, n: int, trace: np.ndarray = NO_TRACE
) -> list[tuple[float, list[int]]]:
    """(ticks, members) of the first n batches."""
    found = resolve(controller, scenario) if isinstance(controller, str) else controller
    worlds = Worlds(1, scenario.n_devices, log_rows=200_000, trace=trace, threads=1)
    worlds.fill(0, scenario, 1, found)
    worlds.run()
    batches: list[tuple[float, list[int]]] = []
    for time_s, kind, device, _ in log_of(worlds.arrays):
        if kind == "launch":
            batches.append((time_s / TICK_S, []))
        elif kind == "member":
            batches[-1][1].append(device)
    return batches[:n]


def planned(scenario: Scenario, plan: Plan, patience: float = 1.0) -> Controller:
    """Fixed lengths in groups that a test makes up."""
    found = resolve("dipsd", scenario)
    return replace(found, plan=plan, batching_parameters=(patience, plan.cycle_s, float(plan.n_groups)))


def test_the_pair_is_taken_out_of_step_and_kept_so() -> None:
    """Prompts arrive together at tick 2 and take 9 ticks each; rounds are away for 14 and verified in 14."""
    batches = launches(toy_scenario(PAIR), "dipsd", 8)
    assert batches == [(2, [0]), (11, [1]), (25, [0]), (39, [1]), (53, [0]), (67, [1]), (81, [0]), (95, [1])]


@pytest.mark.parametrize("toy", [PAIR, QUICK, Toy(3, 2, 1, 6, 1, 0.85, 5)])
def test_the_plan_reaches_the_optimum_of_the_toy(toy: Toy) -> None:
    """From a common start, where a fixed length alone keeps the devices in step."""
    scenario, optimum = toy_scenario(toy, 600.0), solve(toy).tokens_per_s
    found = run(scenario, "dipsd", [1, 2, 3, 4]).totals["tokens"][:, 0] / 600.0
    assert found.mean() == pytest.approx(optimum, rel=0.01)
    assert found.mean() > 1.02 * max(solve(toy, (k,)).tokens_per_s for k in range(toy.max_draft_tokens + 1))


def unequal() -> tuple[Scenario, Plan]:
    """Two devices of one group, a token drafted in 1 and in 16 ticks, two and one of them; a cycle of 15 ticks."""
    scenario = toy_scenario(QUICK)
    slow = asdict(scenario.devices[0]) | {"name": "slow", "draft_tokens_per_s": 1.0 / (16 * TICK_S)}
    return with_(scenario, devices=[asdict(scenario.devices[0]), slow]), Plan((0, 0), (2, 1), 1, 15 * TICK_S, 0.0)


def test_a_late_member_is_waited_for_until_the_planned_time() -> None:
    """After the prompts (1 to 7) device 0 is back at 11, device 1 at 25: from 16 on the turn goes on without it.

    That batch of three tokens ends at 23. Device 1 waits from 25 for device 0, which is back at 27, before the turn's time,
    31. So it goes on: five tokens end at 36, and at 27 + 15 = 42 device 0 is taken alone again.
    """
    scenario, plan = unequal()
    assert launches(scenario, planned(scenario, plan), 5) == [
        (1, [0, 1]),
        (16, [0]),
        (27, [1, 0]),
        (42, [0]),
        (54, [0, 1]),
    ]


def test_without_patience_nobody_is_waited_for() -> None:
    """Device 0 is taken at 11; its batch ends at 18 and it is back at 22 and 33. Device 1, back at 25, is taken at 29."""
    scenario, plan = unequal()
    found = launches(scenario, planned(scenario, plan, patience=0.0), 4)
    assert found == [(1, [0, 1]), (11, [0]), (22, [0]), (29, [1])]


def test_an_absent_member_is_not_waited_for() -> None:
    """Device 1 has one token to ask for and never comes again: device 0 is taken whenever it is back."""
    scenario, plan = unequal()
    traced = {"workload.arrivals": "trace", "workload.trace": "given", "workload.trace_format": "azure"}
    trace = np.array([(0.0, 1, 100_000), (0.0, 1, 1)], TRACE_ROW)
    late = planned(scenario, replace(plan, cycle_s=100 * TICK_S))
    assert launches(with_(scenario, **traced), late, 4, trace) == [(1, [0, 1]), (11, [0]), (22, [0]), (33, [0])]


def test_a_prompt_joins_the_turn_of_another_group() -> None:
    """Devices 0 and 1 take turns of 7 ticks; a prompt of ten tokens for group 0 comes at 28 and goes with group 1, at 32.

    That batch takes 4 + 3 + 10 = 17 ticks. Device 1's first prompt has no context to compute: it waits for its turn, at 6.
    """
    plan = Plan((0, 1, 0), (2, 2, 2), 2, 15 * TICK_S, 0.0)
    traced = {"workload.arrivals": "trace", "workload.trace": "given", "workload.trace_format": "azure"}
    scenario = with_(toy_scenario(replace(QUICK, devices=3)), **traced, **{"workload.prompt.max_tokens": 64})
    trace = np.array([(0.0, 1, 100_000), (0.0, 1, 100_000), (27 * TICK_S, 10, 100_000)], TRACE_ROW)
    found = launches(scenario, planned(scenario, plan), 7, trace)
    assert found == [(1, [0]), (6, [1]), (11, [0]), (18, [1]), (25, [0]), (32, [1, 2]), (49, [0])]


def test_nothing_starves_whoever_comes_and_goes() -> None:
    """Thinking devices, jitter, chunked prompts, devices beyond the plan: all are launched within a few cycles."""
    scenario = with_(BASE, n_devices=40, horizon=horizon(0.0, 40.0))
    plan = make_plan(with_(scenario, n_devices=30))  # ten devices are of no group
    worlds = Worlds(1, 40, log_rows=200_000, threads=1)
    worlds.fill(0, scenario, 5, planned(scenario, plan))
    worlds.run()
    assert (worlds.arrays.device["group"][0] == -1).sum() == 10
    arrived: dict[int, float] = {}
    waits: dict[int, list[float]] = defaultdict(list)
    for time_s, kind, device, _ in log_of(worlds.arrays):
        if kind == "arrive":
            arrived[device] = time_s
        if kind == "member" and device in arrived:
            waits[device].append(time_s - arrived.pop(device))
    assert set(waits) == set(range(40))
    assert max(map(max, waits.values())) < 5 * plan.cycle_s
    assert all(time_s > 40.0 - 5 * plan.cycle_s for time_s in arrived.values())  # nobody was left waiting at the end


def test_the_environment_of_batches_shows_no_groups() -> None:
    for name in ("pipelined", "dipsd", "wisp+pipelined:2"):
        with pytest.raises(ControllerError, match="the group of every device, which Batching-v1 does not show"):
            BatchingPredictor(name, BASE)
