"""The toy's optimum against closed forms, enumeration, the fluid bound, and the engine on the same case."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from agents.bounds.fluid import fluid_bound
from agents.bounds.toy import TICK_S, Choices, State, Toy, follow, solve, toy_scenario
from tests.support.small_worlds import log_of, run
from wisp_gym.engine.state import TRACE_ROW
from wisp_gym.scenario import dumps, loads, with_

PAIR = Toy(devices=2, draft_ticks=1, link_ticks=1, batch_ticks=4, token_ticks=1, acceptance=0.75, max_draft_tokens=4)
CASES = (
    Toy(1, 2, 3, 6, 1, 0.8, 6),
    PAIR,
    Toy(2, 2, 2, 8, 1, 0.8, 6),
    Toy(3, 1, 1, 4, 1, 0.75, 4),
    Toy(3, 2, 1, 6, 1, 0.85, 4),
)
HOSTS = (  # cases in which the server drafts: cheaply, dearly, for sessions far from it
    Toy(1, 2, 3, 6, 1, 0.8, 6, step_ticks=1),
    Toy(2, 1, 1, 4, 1, 0.75, 4, step_ticks=2),
    Toy(3, 2, 1, 6, 1, 0.85, 4, step_ticks=4),
    Toy(3, 1, 4, 6, 1, 0.8, 4, step_ticks=4),
    Toy(2, 1, 1, 2, 1, 0.8, 6, step_ticks=8),
)


def test_one_device_follows_the_ratio_rule() -> None:
    """`max_k E[tokens] / (2·link + k·draft + batch)` (arXiv 2211.17192, 2606.20591)."""
    toy = CASES[0]
    rates = [toy.tokens(k) / (2 * 3 + 2 * k + 6 + (k + 1)) / TICK_S for k in range(7)]
    found = solve(toy)
    assert found.tokens_per_s == pytest.approx(max(rates), rel=1e-8)
    assert found.lengths(toy.start) == (int(np.argmax(rates)),)


def cycle_gain(toy: Toy, policy: dict[State, Choices]) -> float:
    """Tokens per second of the cycle of a policy."""
    steps = [toy.step(state, lengths) for state, lengths in follow(toy, policy)]
    return sum(tokens for _, _, tokens in steps) / sum(ticks for _, ticks, _ in steps) / TICK_S


@pytest.mark.parametrize("toy", CASES + HOSTS)
def test_the_policy_reaches_the_gain_that_is_stated(toy: Toy) -> None:
    found = solve(toy)
    assert cycle_gain(toy, found.policy) == pytest.approx(found.tokens_per_s, rel=1e-6)
    assert found.low <= found.tokens_per_s <= found.high
    assert found.high - found.low <= 1e-8 * found.high


def test_no_stationary_policy_of_a_tiny_case_does_better() -> None:
    """Every policy of a case with one draft at most, by enumeration."""
    toy = Toy(2, 1, 1, 3, 1, 0.7, 1)
    states = list(solve(toy).policy)
    every = itertools.product(*(toy.actions(state) for state in states))
    gains = [cycle_gain(toy, dict(zip(states, choice, strict=True))) for choice in every]
    assert len(gains) > 10
    assert max(gains) == pytest.approx(solve(toy).tokens_per_s, rel=1e-6)


@pytest.mark.parametrize("toy", CASES)
def test_fixed_lengths_do_no_better_and_the_fluid_bound_is_no_lower(toy: Toy) -> None:
    best = solve(toy).tokens_per_s
    assert max(solve(toy, (k,)).tokens_per_s for k in range(toy.max_draft_tokens + 1)) <= best * (1 + 1e-9)
    bound = fluid_bound(toy_scenario(toy)).tokens_per_s
    assert best * (1 - 1e-3) <= bound <= best * 1.03


@pytest.mark.parametrize("toy", CASES)
def test_the_engine_gives_every_fixed_length_its_gain(toy: Toy) -> None:
    scenario = toy_scenario(toy, measure_s=600.0)
    for k in range(toy.max_draft_tokens + 1):
        tokens = run(scenario, f"fixed:{k}+fcfs", [1, 2]).totals["tokens"][:, 0] / 600.0
        assert tokens.mean() == pytest.approx(solve(toy, (k,)).tokens_per_s, rel=0.015)


def test_the_engine_reaches_the_optimum_of_a_pair_out_of_step() -> None:
    """The optimal cycle keeps one device in the batch and one outside; a start out of step falls into it."""
    best = solve(PAIR)
    (((state, lengths),),) = (follow(PAIR, best.policy),)
    k = lengths[0]
    assert state == ((0, k),)
    assert best.tokens_per_s > 1.02 * max(solve(PAIR, (j,)).tokens_per_s for j in range(5))
    traced = {"workload.arrivals": "trace", "workload.trace": "given", "workload.trace_format": "azure"}
    scenario = with_(toy_scenario(PAIR, 600.0), **traced)
    trace = np.array([(0.0, 1, 100_000), (5 * TICK_S, 1, 100_000)], TRACE_ROW)
    tokens = run(scenario, f"fixed:{k}+fcfs", [1, 2, 3, 4], trace=trace).totals["tokens"][:, 0] / 600.0
    assert tokens.mean() == pytest.approx(best.tokens_per_s, rel=0.01)


# --- who drafts --------------------------------------------------------------------------------------------------------


def of_server(toy: Toy) -> Choices:
    """All choices in which the server has the session."""
    return tuple(toy.at_server(k) for k in range(toy.max_draft_tokens + 1))


def test_no_stationary_policy_of_a_tiny_case_with_a_server_that_drafts_does_better() -> None:
    """Every policy of a lone pair with one draft at most, here or there, by enumeration."""
    toy = Toy(2, 1, 1, 3, 1, 0.7, 1, step_ticks=1)
    states = list(solve(toy).policy)
    tried = [toy.actions(state) for state in states]
    gains = [cycle_gain(toy, dict(zip(states, choice, strict=True))) for choice in itertools.product(*tried)]
    assert len(gains) > 100
    assert max(gains) == pytest.approx(solve(toy).tokens_per_s, rel=1e-6)


@pytest.mark.parametrize("toy", HOSTS)
def test_a_choice_of_who_drafts_is_worth_no_less_and_the_fluid_bound_is_no_lower(toy: Toy) -> None:
    best = solve(toy).tokens_per_s
    devices = replace(toy, step_ticks=0)
    alone = [solve(devices).tokens_per_s, solve(toy, of_server(toy)).tokens_per_s]
    assert best >= max(alone) * (1 - 1e-9)
    scenario = toy_scenario(toy)
    for kind, reached in (("predictor+server", best), ("predictor", alone[0]), ("colocated", alone[1])):
        bound = fluid_bound(scenario, kind).tokens_per_s
        assert reached * (1 - 1e-3) <= bound <= reached * 1.03, kind


@pytest.mark.parametrize("toy", HOSTS)
def test_the_server_alone_has_a_closed_form(toy: Toy) -> None:
    """`n·E[tokens]/(k·step + batch + n·(k + 1))`: sessions at the server are in every batch."""
    n = toy.devices
    rates = [
        n * toy.tokens(k) / (k * toy.step_ticks + toy.batch_ticks + n * (k + 1) * toy.token_ticks) / TICK_S
        for k in range(toy.max_draft_tokens + 1)
    ]
    assert solve(toy, of_server(toy)).tokens_per_s == pytest.approx(max(rates), rel=1e-8)
    assert [solve(toy, (choice,)).tokens_per_s for choice in of_server(toy)] == pytest.approx(rates, rel=1e-8)


def ends_of(toy: Toy, k: int, at_server: Sequence[int]) -> list[float]:
    """Seconds between batches where the server drafts `at_server` tokens, one entry for each of its sessions, and the devices k."""
    kept = tuple(toy.at_server(tokens) for tokens in at_server)
    state, times = toy.start, []
    for _ in range(200):
        answered = toy.devices - len(state)  # those of the server are in every batch
        state, ticks, _ = toy.step(state, (*kept, *[k] * (answered - len(kept))))
        times.append(ticks * TICK_S)
    return times


@pytest.mark.parametrize(
    ("toy", "k", "n"), [(HOSTS[0], 0, 1), (HOSTS[1], 3, 1), (HOSTS[2], 2, 2), (HOSTS[3], 4, 1), (HOSTS[3], 4, 0)]
)
def test_the_engine_has_the_toys_times_to_the_bit(toy: Toy, k: int, n: int) -> None:
    """The server drafts for n sessions, the devices of the others k tokens each round."""
    for tokens in (0, 1, toy.max_draft_tokens):
        world = run(toy_scenario(toy), f"fixed:{k}+fcfs+colocated:{tokens}+by-load:{n}", [1], log_rows=20_000)
        ends = [time for time, kind, _, _ in log_of(world)[:15_000] if kind == "end"][:200]
        assert np.diff(ends).tolist() == ends_of(toy, k, [tokens] * n)[:199]


@pytest.mark.parametrize("toy", HOSTS)
def test_the_engine_gives_every_choice_for_all_its_gain(toy: Toy) -> None:
    scenario = toy_scenario(toy, measure_s=600.0)
    for k in range(toy.max_draft_tokens + 1):
        for name in (f"centralized:0+colocated:{k}", f"fixed:0+fcfs+colocated:{k}+by-load:9"):
            tokens = run(scenario, name, [1, 2]).totals["tokens"][:, 0] / 600.0
            assert tokens.mean() == pytest.approx(solve(toy, (toy.at_server(k),)).tokens_per_s, rel=0.015)


def test_controllers_of_the_engine_that_choose_who_drafts_stay_below_the_optimum() -> None:
    for toy in HOSTS[1:4]:
        scenario, best = toy_scenario(toy, 600.0), solve(toy).tokens_per_s
        for name in (
            "survival:0.5+fcfs+colocated:2+by-load:1",
            "fixed:2+fcfs+colocated-turbospec+by-price",
            "wisp+wisp+by-load:1",
        ):
            tokens = run(scenario, name, [1, 2]).totals["tokens"][:, 0] / 600.0
            assert tokens.mean() <= best * 1.01


def test_other_controllers_of_the_engine_stay_below_the_optimum() -> None:
    scenario, best = toy_scenario(PAIR, 600.0), solve(PAIR).tokens_per_s
    for name in ("survival:0.5+fcfs", "survival:0.8+edf", "wisp+wisp", "random:0.6+fcfs"):
        tokens = run(scenario, name, [1, 2]).totals["tokens"][:, 0] / 600.0
        assert tokens.mean() <= best * 1.01


def test_a_toy_is_a_file_like_any_scenario() -> None:
    for toy in (PAIR, HOSTS[0]):
        scenario = toy_scenario(toy)
        assert loads(dumps(scenario)) == scenario


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("devices", 4),
        ("draft_ticks", 3),
        ("link_ticks", 0),
        ("acceptance", 1.0),
        ("max_draft_tokens", 0),
        ("step_ticks", 3),
    ],
)
def test_an_impossible_toy_names_the_field(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field}: given {value}, allowed"):
        Toy(**({**vars(PAIR), field: value}))


def test_solving_with_no_length_is_refused() -> None:
    with pytest.raises(ValueError, match="allowed: some of 0 to 4"):
        solve(PAIR, (9,))
