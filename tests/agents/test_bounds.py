"""Bounds hold for every controller that is simulated, are tight where the optimum is known, and rest on exact parts."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import norm

from agents.bounds import bounds
from agents.bounds.fluid import fluid_bound, information_bound, named_bound
from agents.bounds.fluid_parts import batch_s, heat, length_points, message_s, put, tangent
from agents.bounds.frontier import (
    DRIFT_MARGIN,
    Stopping,
    cheapest_cuts,
    cheapest_plan,
    first_and_later,
    survival_grid,
    tokens_per_round,
    transition,
)
from agents.bounds.identical import best_periodic, capacity_at_speed, periodic
from agents.bounds.kinds import KNOWN
from tests.support.bounded_worlds import WINDOW_SHARE, assert_held, random_scenario
from tests.support.small_worlds import BASE, CONSTANT_ACCEPTANCE, horizon, memory_for, plain, run
from wisp_gym.cli import run as run_command
from wisp_gym.engine.build import separation
from wisp_gym.engine.verification import batch_time_s
from wisp_gym.scenario import Scenario, with_
from wisp_gym.scenario.fields import ScenarioError
from wisp_gym.simulation import simulate

ENDLESS = {
    "workload.output": {"median_tokens": 50_000.0, "log_std": 0.0, "min_tokens": 1, "max_tokens": 50_000},
    "workload.prompt": {"median_tokens": 10.0, "log_std": 0.0, "min_tokens": 1, "max_tokens": 10},
} | memory_for(10_000_000)
BLIND = CONSTANT_ACCEPTANCE | {"draft.statistics.auc": 0.5}


def logit_of(alpha: float) -> float:
    """Log odds."""
    return math.log(alpha / (1.0 - alpha))


# --- what acceptance allows ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.3, 0.8])
def test_without_information_the_plan_is_the_best_fixed_length(alpha: float) -> None:
    """`min_k (1 + κ·k)·(1 − α)/(1 − α^(k+1))`, here by enumeration."""
    scenario = plain(**BLIND, **{"draft.acceptance.logit_mean": logit_of(alpha)})
    k = np.arange(scenario.max_draft_tokens + 1)
    for price in (0.01, 0.1, 0.4):
        cost = 1.0 + price * k
        best = (cost * (1 - alpha) / (1 - alpha ** (k + 1))).min()
        assert cheapest_plan(scenario, "predictor")(cost) @ cost == pytest.approx(best, rel=4e-3)
        assert cheapest_plan(scenario, "predictor")(cost) @ cost <= best * (1 + 1e-9), "coarse grids may only help"


def test_oracle_pays_one_round_for_each_rejected_position() -> None:
    scenario = plain(**CONSTANT_ACCEPTANCE, **{"draft.acceptance.logit_mean": logit_of(0.6), "max_draft_tokens": 32})
    plan = cheapest_plan(scenario, "oracle")(1.0 + 0.001 * np.arange(33))
    assert plan.sum() == pytest.approx(0.4, rel=1e-6)
    assert plan @ np.arange(33) == pytest.approx(0.6, rel=1e-6)


def test_cheapest_cuts_against_enumeration() -> None:
    cost = np.array([1.0, 1.2, 1.9])

    def least(n: int) -> float:
        return 0.0 if n == 0 else min(cost[k] + least(n - k - 1) for k in range(min(n, 3)))

    rounds = cheapest_cuts(cost, 9)
    assert rounds @ cost == pytest.approx([least(n) for n in range(10)])
    assert rounds @ np.arange(1, 4) == pytest.approx(np.arange(10))


def test_posteriors_keep_their_mean_on_the_grid() -> None:
    grid, prior = np.array([0.0, 0.1, 0.4, 0.8, 1.0]), np.array([0.05, 0.5, 0.9])
    weights = transition(prior, grid, 1.034)
    assert weights.sum(axis=-1) == pytest.approx(np.ones(3))
    assert weights @ grid == pytest.approx(prior)
    assert (weights >= 0.0).all()


def test_more_information_costs_less() -> None:
    cost = 1.0 + 0.15 * np.arange(BASE.max_draft_tokens + 1)
    blind = with_(BASE, **{"draft.statistics.auc": 0.5})
    costs = [cheapest_plan(blind, "predictor")(cost) @ cost]
    costs += [cheapest_plan(BASE, kind)(cost) @ cost for kind in ("confidence", "predictor", "perfect", "oracle")]
    assert (np.diff(costs) < 0.0).all()


def test_a_finer_grid_of_survival_costs_hardly_more(monkeypatch: pytest.MonkeyPatch) -> None:
    cost = 1.0 + 0.15 * np.arange(BASE.max_draft_tokens + 1)
    coarse = Stopping(BASE, 1.034).plan(cost) @ cost
    monkeypatch.setattr("agents.bounds.frontier.SURVIVAL_POINTS", 241)
    fine = Stopping(BASE, 1.034).plan(cost) @ cost
    assert coarse <= fine * (1 + 1e-9)
    assert fine <= coarse * 1.005


@pytest.mark.parametrize("k", [0, 1, 4, 12])
def test_tokens_of_a_fixed_length_are_those_of_the_engine(k: int) -> None:
    scenario = plain(**ENDLESS, n_devices=64, horizon=horizon(50.0, 1000.0))
    scenario = with_(scenario, **{"workload.output.max_tokens": 400, "workload.output.median_tokens": 400})
    t = run(scenario, f"fixed:{k}+fcfs", [1, 2]).totals[:, 0]
    assert t["tokens"].sum() / (t["rounds"].sum() + t["ttft_n"].sum()) == pytest.approx(
        tokens_per_round(scenario, k), rel=0.02
    )


def logit_paths(scenario: Scenario, requests: int, positions: int) -> np.ndarray:
    """(blocks, requests) logits of random requests, one for each block of eight positions."""
    a, rng = scenario.draft.acceptance, np.random.default_rng(0)
    keep = math.exp(-8.0 / a.drift_tokens)
    drift = [rng.normal(size=requests)]
    for _ in range(positions // 8):
        drift.append(keep * drift[-1] + math.sqrt(1.0 - keep**2) * rng.normal(size=requests))
    return a.logit_mean + a.request_std * rng.normal(size=requests) + a.drift_std * np.array(drift)


def cost_of_known_paths(scenario: Scenario, cost: np.ndarray, d: float, z: np.ndarray, positions: int) -> np.ndarray:
    """(positions + 1, 2, requests) least cost to the end for a controller that knows all logits, by backward induction.

    Axes: position where a round starts, fate of the one before (accepted, rejected), request.
    """
    grid, p = survival_grid(), expit(z)
    first = [p, expit(z - scenario.draft.acceptance.after_rejection_logit)]
    moves = [transition(grid * row[:, None], grid, d) for row in p]
    left = np.zeros((positions + 1, 2, z.shape[1]))
    for n in reversed(range(positions)):
        bonus = left[:, 0] - left[:, 1]  # worth of a position that starts after an accepted one
        one_more = np.diff(left[:, 1], axis=0)  # of ending a position later
        cap = min(len(cost), positions - n) - 1
        ahead = np.zeros((z.shape[1], len(grid)))
        for k in range(cap, 0, -1):
            on = grid * p[(n + k) // 8][:, None]
            stop = on * bonus[n + k + 1][:, None]
            if k == cap:
                ahead = stop
                continue
            more = (
                on * one_more[n + k + 1][:, None]
                + cost[k + 1]
                - cost[k]
                + (moves[(n + k) // 8] @ ahead[..., None])[..., 0]
            )
            ahead = np.minimum(stop, more)
        for fate, chance in enumerate(row[n // 8] for row in first):
            send = chance * bonus[n + 1]
            if cap > 0:
                draft = (
                    (transition(chance, grid, d) * ahead).sum(axis=-1) + chance * one_more[n + 1] + cost[1] - cost[0]
                )
                send = np.minimum(send, draft)
            left[n, fate] = cost[0] + left[n + 1, 1] + send
    return left


@pytest.mark.parametrize("price", [0.02, 0.15])
def test_drift_within_a_round_is_worth_less_than_its_margin(price: float) -> None:
    """The same paths with all logits known beforehand, and with the best constant-logit plan at every position."""
    scenario = with_(BASE, **{"draft.acceptance.drift_tokens": 30.0, "draft.acceptance.after_rejection_logit": 0.5})
    cost, d, positions, counted = 1.0 + price * np.arange(13), separation(BASE.draft.statistics.auc), 112, 80
    z = logit_paths(scenario, 24, positions)
    left = cost_of_known_paths(scenario, cost, d, z, positions)
    known = (left[0, 0] - left[counted, 0]).mean() / counted
    logits = np.linspace(z.min() - 0.1, z.max() + 0.1, 31)
    still = {"draft.acceptance.request_std": 0.0, "draft.acceptance.drift_std": 0.0}
    constant = [
        Stopping(with_(scenario, **still, **{"draft.acceptance.logit_mean": float(one)}), d).plan(cost) @ cost
        for one in logits
    ]
    held = np.interp(z, logits, constant)[np.arange(counted) // 8].mean()
    assert known == pytest.approx(held, rel=DRIFT_MARGIN)


def test_acceptance_of_positions_is_a_probability() -> None:
    first, later, shares = first_and_later(BASE)
    assert shares.sum() == pytest.approx(1.0)
    assert (first[0] == later).all()
    assert (first[1] < first[0]).all()


# --- parts of the programme --------------------------------------------------------------------------------------------


def test_a_concave_batch_time_has_no_bound() -> None:
    with pytest.raises(ScenarioError, match="a convex batch time"):
        fluid_bound(with_(BASE, **{"verification.sharpness": 0.5}))


@pytest.mark.parametrize("sharpness", [1.0, 2.22, 40.0])
def test_tangents_lie_below_the_batch_time_and_touch_it(sharpness: float) -> None:
    scenario = with_(BASE, **{"verification.sharpness": sharpness, "server.noise": 0.0})
    coefficients = asdict(scenario.verification) | {"cached_token_s": 0.0, "pair_s": 0.0}

    def true_s(new_tokens: float) -> float:
        return float(
            batch_time_s(scenario.server.host_s, **coefficients, new_tokens=new_tokens, pairs=0, cached_tokens=0)
        )

    for at in (1.0, 100.0, 132.0, 3000.0):
        a, s = tangent(scenario, at)
        assert a + s * at == pytest.approx(true_s(at), rel=1e-9)
        assert all(a + s * t <= true_s(t) * (1 + 1e-12) for t in (0.0, 1.0, 50.0, 130.0, 500.0, 5000.0))
        assert a >= 0.0 <= s


def test_noise_raises_the_mean_batch_time() -> None:
    noisy = with_(BASE, **{"server.noise": 0.3})
    calm = with_(BASE, **{"server.noise": 0.0})
    assert batch_s(noisy, 100.0) == pytest.approx(batch_s(calm, 100.0) * math.exp(0.3**2 / 2))


def test_means_of_links_and_lengths() -> None:
    draws = 0.01 * np.exp(0.5 * norm.ppf((np.arange(100_000) + 0.5) / 100_000))
    assert put(0.012, 0.01, 0.5) == pytest.approx(np.maximum(0.012 - draws, 0.0).mean(), rel=1e-3)
    assert put(0.012, 0.01, 0.0) == pytest.approx(0.002)
    link = with_(
        BASE, **{"devices.0.link.jitter": 0.5, "devices.0.link.loss": 0.1, "devices.0.link.one_way_s": 0.01}
    ).devices[0].link  # fmt: skip
    expected = draws.mean() + link.timeout_s * 0.1 / 0.9 + 256.0 / 1e6
    assert message_s(link, 1e6) == pytest.approx(expected, rel=1e-3)
    lengths = length_points(BASE.workload.prompt)
    assert np.median(lengths) == BASE.workload.prompt.median_tokens
    assert lengths.min() >= BASE.workload.prompt.min_tokens


def test_a_hot_device_drafts_no_more_than_heat_allows() -> None:
    """A device that drafts all the time, in the engine: its drafted tokens per second against row 4."""
    changes = {
        "devices.0.throttle_ratio": 0.4, "devices.0.throttle_s": 15.0, "devices.0.link.one_way_s": 0.0005,
        "verification.weights_s": 1e-4, "verification.launch_s": 0.0, "server.host_s": 0.0,
    }  # fmt: skip
    scenario = plain(**ENDLESS, **changes, n_devices=1, horizon=horizon(0.0, 120.0))
    t = run(scenario, "fixed:12+fcfs", [1]).totals[0, 0]
    heating, error = heat(scenario.devices[0], scenario)
    v, drafted = scenario.devices[0].draft_tokens_per_s, t["window_drafted"] / 120.0
    most = max(v * (b * (1.0 + error) - heating * b * b) for b in np.linspace(0.0, 1.0, 1001))
    assert drafted <= most
    assert drafted >= 0.75 * most


# --- tightness ---------------------------------------------------------------------------------------------------------


def periodic_case(groups: int, size: int) -> Scenario:
    """Identical devices for which the periodic schedule of four drafts exists exactly (as in test_engine.py)."""
    k, a_s, w_s, drafting_s = 4, 0.040, 0.002, 0.03
    one_way_s = ((groups - 1) * (a_s + w_s * size) - drafting_s) / 2 - 1e-6
    changes = BLIND | ENDLESS | {
        "n_devices": groups * size, "server.host_s": 0.0, "server.max_batch_requests": size, "verification.launch_s": 0.0,
        "verification.weights_s": a_s, "verification.token_s": w_s / (k + 1), "verification.sharpness": 1.0,
        "verification.cached_token_s": 0.0, "verification.pair_s": 0.0, "devices.0.draft_tokens_per_s": k / drafting_s,
        "devices.0.link.one_way_s": one_way_s, "devices.0.link.uplink_bytes_per_s": 1e12,
        "devices.0.link.downlink_bytes_per_s": 1e12, "draft.acceptance.logit_mean": logit_of(0.7),
    }  # fmt: skip
    return plain(**changes, horizon=horizon(60.0, 300.0))


@pytest.mark.parametrize(("groups", "size"), [(2, 8), (3, 8), (4, 5)])
def test_programme_closed_form_and_engine_agree_on_identical_devices(groups: int, size: int) -> None:
    scenario = periodic_case(groups, size)
    engine = run(scenario, f"fixed:4+static:{size},1000", [1]).totals[0, 0]["tokens"] / 300.0
    closed, bound = periodic(scenario, 4), fluid_bound(scenario)
    assert closed.tokens_per_s == pytest.approx(engine, rel=0.01)
    assert closed.batch_requests == pytest.approx(size, rel=1e-3)
    assert bound.tokens_per_s >= engine * 0.99
    assert bound.tokens_per_s == pytest.approx(best_periodic(scenario).tokens_per_s, rel=0.01)


def test_the_closed_form_solves_its_equation() -> None:
    """`R·(k/v + RTT + a) + w·R²·a/(1 − R·w) = n` of a batch time a + w·B."""
    scenario = with_(periodic_case(3, 8), n_devices=40)
    for k in (1, 4, 9):
        a, w = 0.040, 0.002 / 5 * (k + 1)
        found = periodic(scenario, k)
        rate = found.tokens_per_s / tokens_per_round(scenario, k)
        link = scenario.devices[0].link
        away_s = k / scenario.devices[0].draft_tokens_per_s + 2 * link.one_way_s
        assert rate * (away_s + a) + w * rate**2 * a / (1 - rate * w) == pytest.approx(40, rel=1e-6)


def test_capacity_at_a_speed_is_the_last_population_that_keeps_it() -> None:
    scenario = with_(periodic_case(3, 8), **{"server.max_batch_requests": 256})
    n, k = capacity_at_speed(scenario, 8.0)
    fits, too_many = (periodic(with_(scenario, n_devices=m), k).tokens_per_s / m for m in (n, n + 1))
    assert fits >= 8.0 > too_many
    assert capacity_at_speed(scenario, 1e4) == (0, 0)
    small = with_(scenario, **memory_for(112_000))  # for about four members of 25,000 tokens
    assert capacity_at_speed(small, 8.0)[0] < n, "memory for few members binds first"


def test_centralized_serving_reaches_its_bound() -> None:
    scenario = plain(n_devices=40, horizon=horizon(100.0, 600.0), **{"workload.think_s": 0.0})
    reached = np.mean([m.throughput_tokens_per_s for m in simulate(scenario, "centralized:0", range(2), threads=1)])
    bound = fluid_bound(scenario, "centralized").tokens_per_s
    assert 0.8 * bound < reached < bound * (1 + WINDOW_SHARE)


# --- validity ----------------------------------------------------------------------------------------------------------


HELD_TO = {
    "oracle": ("oracle+fcfs", "oracle+wisp"),
    "perfect": ("perfect+fcfs",),
    "information": ("wisp+wisp", "survival:0.7+edf", "fixed:3+fcfs", "fixed:0+fcfs", "confidence:0.5+static:4,0.05"),
    "centralized": ("centralized:0",),
}


@pytest.mark.parametrize("seed", range(10))
def test_no_controller_exceeds_its_bound(seed: int) -> None:
    scenario = random_scenario(np.random.default_rng(seed))
    for kind, names in HELD_TO.items():
        bound = information_bound(scenario) if kind == "information" else fluid_bound(scenario, kind)
        for name in names:
            assert_held(scenario, name, bound)


def test_bounds_are_ordered_by_what_is_known() -> None:
    scenario = with_(BASE, n_devices=24)
    found = {kind: fluid_bound(scenario, kind).tokens_per_s for kind in KNOWN}
    assert found["confidence"] < found["perfect"] < found["oracle"]
    assert found["predictor"] < found["perfect"]


def test_a_fairness_floor_costs_tokens_until_it_is_out_of_reach() -> None:
    scenario = with_(BASE, n_devices=64)
    found = [fluid_bound(scenario, "predictor", floor).tokens_per_s for floor in (0.0, 13.0, 500.0)]
    assert found[0] > found[1] > 0.0
    assert found[2] == 0.0


@pytest.mark.parametrize(
    ("kind", "tokens_per_s"), [("oracle", 1416), ("perfect", 1300), ("information", 1210), ("centralized", 1030)]
)
def test_bounds_of_devices_alone_are_those_published(kind: str, tokens_per_s: float) -> None:
    """The default preset with 64 devices, in docs/results/bounds.md."""
    assert named_bound(with_(BASE, n_devices=64), kind).tokens_per_s == pytest.approx(tokens_per_s, rel=5e-4)


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(ValueError, match="given 'psychic', allowed: predictor"):
        fluid_bound(BASE, "psychic")


# --- the command -------------------------------------------------------------------------------------------------------


def test_the_command_writes_what_it_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from wisp_gym.scenario import save

    small = plain(n_devices=4, max_draft_tokens=3, horizon=horizon(1.0, 10.0))
    save(small, tmp_path / "small.toml")
    words = ["--scenario", str(tmp_path / "small.toml"), "--seeds", "2", "--controllers", "wisp,oracle+fcfs"]
    words += [
        "--fairness",
        "1",
        "--capacity",
        "4",
        "--json",
        str(tmp_path / "b.json"),
        "--csv",
        str(tmp_path / "b.csv"),
    ]
    assert run_command(bounds.main, bounds.PROGRAM, words) == 0
    shown = capsys.readouterr().out
    rows = json.loads((tmp_path / "b.json").read_text())
    assert [row["name"] for row in rows[:4]] == ["information", "perfect", "oracle", "centralized"]
    bounds_of_servers = ["colocated", "information+server", "perfect+server", "oracle+server"]
    assert [row["name"] for row in rows[4:8]] == bounds_of_servers
    assert [row["name"] for row in rows[8:10]] == ["wisp", "oracle+fcfs"]
    assert rows[10]["name"].startswith("best fixed (fixed:")
    assert rows[8]["bound"] == "information"
    assert rows[9]["bound"] == "oracle"
    assert "periodic schedule of identical devices" in shown
    assert "devices can get 4 tokens/s each" in shown
    assert f"{rows[0]['bound_tokens_per_s']:,.1f}" in shown
    assert len((tmp_path / "b.csv").read_text().splitlines()) == 12


def test_the_command_names_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(bounds.main, bounds.PROGRAM, ["--controllers", "wsip"]) == 2
    assert "wisp" in capsys.readouterr().err
    with pytest.raises(SystemExit) as left:
        bounds.main(["--fairness", "-1"])
    assert left.value.code == 2
