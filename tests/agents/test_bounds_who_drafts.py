"""Bounds where the server drafts as well, or devices draft on while a round is away: valid, and tight where an optimum is known."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.bounds import bounds
from agents.bounds.fluid import fluid_bound, named_bound
from agents.bounds.fluid_parts import batch_s, waits_of
from agents.bounds.frontier import LONGEST_RUN, cheapest_plan
from agents.bounds.joint import (
    AHEAD,
    AT_SERVER,
    COLD,
    WARM,
    WAYS,
    cheapest_joint_cuts,
    cheapest_joint_plan,
    logit_correlation,
)
from agents.bounds.kinds import KINDS, NAMES, WHO, kind_of
from tests.support.bounded_worlds import (
    assert_held,
    random_scenario,
    server_draft,
    with_random_draft,
)
from tests.support.small_worlds import BASE, CONSTANT_ACCEPTANCE, horizon, memory_for, plain
from wisp_gym.cli import run as run_command
from wisp_gym.controllers.resolve import resolve
from wisp_gym.scenario import Scenario, ServerDraft, save, with_
from wisp_gym.simulation import simulate

K = np.arange(BASE.max_draft_tokens + 1)
COSTS = np.stack([1.0 + 0.1 * K + 0.2 * (K > 0), 1.0 + 0.1 * K, 0.9 + 0.03 * K, 1.5 + 0.02 * K])  # of each way
ENDLESS = {
    "workload.output": {"median_tokens": 50_000.0, "log_std": 0.0, "min_tokens": 1, "max_tokens": 50_000},
    "workload.prompt": {"median_tokens": 10.0, "log_std": 0.0, "min_tokens": 1, "max_tokens": 10},
    "verification.cached_token_s": 0.0, "verification.pair_s": 0.0,
    "workload.start_window_s": 0.0, "workload.think_s": 0.0,
}  # fmt: skip
BLIND = CONSTANT_ACCEPTANCE | {"draft.statistics.auc": 0.5}


def drafting(scenario: Scenario, **changes: Any) -> Scenario:
    """The scenario with a server that can draft, and room for all that it keeps."""
    given = server_draft(scenario, **changes)
    return with_(scenario, server_drafts=[given])


def draft_of(scenario: Scenario = BASE, **changes: Any) -> ServerDraft:
    """A server draft of the scenario."""
    return drafting(scenario, **changes).server_drafts[0]


def cost_of(scenario: Scenario, kind: str, draft: ServerDraft | None, costs: np.ndarray = COSTS) -> float:
    """Cost of a committed token under the cheapest plan."""
    return float((cheapest_joint_plan(scenario, kind_of(kind), draft)(costs) * costs).sum())


# --- what acceptance allows ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("knows", ["predictor", "confidence", "perfect", "oracle"])
def test_a_single_way_costs_what_devices_alone_pay(knows: str) -> None:
    scenario = with_(BASE, **{"draft.acceptance.after_rejection_logit": 0.5})
    alone = float(cheapest_plan(scenario, knows)(COSTS[COLD]) @ COSTS[COLD])
    assert cost_of(scenario, knows, None) == pytest.approx(alone, rel=2e-6)
    assert cost_of(scenario, knows, None) <= alone * (1 + 1e-9), "a round told of a hit may only help"


def test_more_who_may_draft_cost_less() -> None:
    scenario = with_(BASE, **{"draft.acceptance.after_rejection_logit": 0.5})
    draft = draft_of(scenario)
    for knows in ("predictor", "perfect", "oracle"):
        alone, overlap, server, both = (cost_of(scenario, knows + who, draft) for who in WHO)
        assert alone > max(overlap, server)
        assert min(overlap, server) > both


def test_the_server_alone_is_a_device_of_its_costs() -> None:
    """Same source, same evidence: only what a round costs differs."""
    draft = draft_of()
    assert cost_of(BASE, "colocated", draft) == pytest.approx(
        float(cheapest_plan(BASE, "predictor")(COSTS[AT_SERVER]) @ COSTS[AT_SERVER]), rel=2e-6
    )
    assert cost_of(BASE, "colocated", None) == pytest.approx(1.5 * (1 - 0.005)), "without a draft a token a round"


def test_the_plan_takes_what_it_says() -> None:
    """Rounds commit a token for each of their drafts that is right, and one: as many rounds as that leaves, whatever the way."""
    rounds = cheapest_joint_plan(BASE, kind_of("predictor+server+overlap"), draft_of())(COSTS)
    assert rounds.min() >= 0.0
    assert (rounds * (1.0 + K)).sum() >= 0.995 - 1e-9, "no more tokens than drafts and rounds"
    assert rounds[AHEAD, 0] == 0.0
    assert {way for way in WAYS if rounds[way].sum() > 0.0} >= {COLD, AHEAD}
    assert rounds[[WARM, AHEAD]].sum() < rounds[[COLD, WARM, AHEAD]].sum(), "not every round of a device is a hit"


def test_hits_come_no_oftener_than_everything_is_accepted() -> None:
    """Constant acceptance α without evidence, k drafts: a share α^(k+1) of rounds is followed by a hit."""
    scenario = plain(**BLIND, **{"draft.acceptance.logit_mean": math.log(3.0)})
    fixed = np.where(K == 3, 1.0, 50.0)
    rounds = cheapest_joint_plan(scenario, kind_of("predictor+overlap"), None)(
        np.stack([fixed, fixed, 0.9 * fixed, fixed])
    )
    hits = rounds[[WARM, AHEAD]].sum() / rounds.sum()
    assert hits == pytest.approx(0.75**4, rel=1e-4)


def test_offers_only_of_what_is_right_save_drafts() -> None:
    """A source that drafts nothing where its first token is wrong costs less; it has drawn no more than what it is asked for."""
    other = {"correlation": 0.0}
    costs = np.stack([COSTS[COLD]] * 3 + [1.0 + 0.3 * K])
    always, half, never = (cost_of(BASE, "colocated", draft_of(offer=o, **other), costs) for o in (1.0, 0.5, 0.0))
    assert always > half > never
    same = draft_of(offer=0.0)
    assert cost_of(BASE, "colocated", same, costs) == pytest.approx(
        float(cheapest_plan(BASE, "predictor")(costs[AT_SERVER]) @ costs[AT_SERVER]), rel=2e-6
    ), "the devices' own source offers always"


@pytest.mark.parametrize(("after_rejection_logit", "told"), [(0.0, 0.005), (0.324, 0.05)])
def test_two_sources_of_one_process_are_worth_more_the_less_they_agree(
    after_rejection_logit: float, told: float
) -> None:
    """Near correlation 1 they cost what one source costs, but for what is told of the one that did not draft."""
    scenario = with_(BASE, **{"draft.acceptance.after_rejection_logit": after_rejection_logit})
    costs = np.stack([1.0 + 0.1 * K] * 4)
    one = cost_of(scenario, "predictor+server", draft_of(scenario), costs)
    near, half, none = (
        cost_of(scenario, "predictor+server", draft_of(scenario, correlation=rho), costs) for rho in (0.9999, 0.5, 0.0)
    )
    assert one >= near > half > none
    assert near == pytest.approx(one, rel=told)


def test_correlation_of_logits_is_that_of_two_drifts() -> None:
    """The engine's recursion, by simulation: innovations of correlation ρ, each drift with a memory of its own."""
    a = replace(BASE.draft.acceptance, request_std=0.0, drift_std=0.8, drift_tokens=30.0)
    b = replace(a, drift_tokens=200.0)
    rng, rho = np.random.default_rng(0), 0.7
    keep = np.exp([-8.0 / 30.0, -8.0 / 200.0])
    x = rng.normal(size=(20_000, 2)) @ np.linalg.cholesky([[1, rho], [rho, 1]]).T
    w = np.zeros_like(x)
    for n in range(1, len(x)):
        w[n] = keep * w[n - 1] + np.sqrt(1.0 - keep**2) * x[n]
    assert logit_correlation(a, b, rho) == pytest.approx(np.corrcoef(w[500:].T)[0, 1], abs=0.04)
    assert logit_correlation(a, a, rho) == pytest.approx(rho)


def test_joint_cuts_against_enumeration() -> None:
    """Every cover of a run by cold, warm, ahead and server rounds."""
    costs = np.array([[1.0, 1.3, 1.7], [1.0, 1.1, 1.5], [9.0, 0.9, 1.2], [1.15, 1.2, 1.4]])

    def least(n: int, hit: bool) -> float:
        ways = (WARM, AHEAD, AT_SERVER) if hit else (COLD, AT_SERVER)
        options = ((way, k) for way in ways for k in range(min(n, 3)) if not (way == AHEAD and k == 0))
        return min(
            (costs[way, k] + least(n - k - 1, way != AT_SERVER and k > 0) for way, k in options), default=0.0
        ) if n else 0.0  # fmt: skip

    rounds = cheapest_joint_cuts(costs, kind_of("oracle+server+overlap"), 2)
    assert len(rounds) == LONGEST_RUN + 1
    for n in range(9):
        assert (rounds[n] * costs).sum() == pytest.approx(least(n, hit=False))
        assert (rounds[n] * np.arange(1, 4)).sum() == n


# --- tightness ---------------------------------------------------------------------------------------------------------


def closed_form(scenario: Scenario, k: int) -> float:
    """`B·E[N(k)]/(overhead + k·step(B) + t(B(k+1)))` of identical sequences that never end."""
    time, a = scenario.server_drafts[0].time, scenario.draft.acceptance
    alpha, batch = 1.0 / (1.0 + math.exp(-a.logit_mean)), scenario.n_devices
    tokens = (1.0 - alpha ** (k + 1)) / (1.0 - alpha)
    step_s = time.launch_s + batch * (time.sequence_s + time.token_s)
    return batch * tokens / (time.overhead_s * (k > 0) + k * step_s + batch_s(scenario, batch * (k + 1.0)))


@pytest.mark.parametrize("devices", [1, 8, 64, 250])
def test_identical_sequences_at_the_server_have_a_closed_form(devices: int) -> None:
    long = horizon(5.0, max(100.0, 3000.0 / devices))
    scenario = plain(**BLIND, **ENDLESS, n_devices=devices, horizon=long, **memory_for(30_000_000))
    scenario = drafting(scenario, weights_bytes=0, kv_bytes_per_token=0, time={"cached_token_s": 0.0})
    forms = [closed_form(scenario, k) for k in range(scenario.max_draft_tokens + 1)]
    k, bound = int(np.argmax(forms)), fluid_bound(scenario, "colocated").tokens_per_s
    assert max(forms) * (1 - 1e-3) <= bound <= max(forms) * (1 + 5e-3)
    (engine,) = simulate(scenario, f"centralized:0+colocated:{k}", [1], threads=1)
    assert engine.throughput_tokens_per_s == pytest.approx(max(forms), rel=0.01)


def test_without_a_draft_the_server_alone_is_centralized_serving() -> None:
    for devices in (16, 128):
        scenario = with_(BASE, n_devices=devices, server_drafts=[])
        found = fluid_bound(scenario, "colocated").tokens_per_s
        assert found == pytest.approx(fluid_bound(scenario, "centralized").tokens_per_s * 1.0, rel=6e-3)


@pytest.mark.parametrize(("speed", "tokens"), [(400.0, 5), (25.0, 5)])
def test_a_device_that_is_always_right_drafts_on_without_pause(speed: float, tokens: int) -> None:
    """Every guess holds: a round takes links and a batch alone, or its drafting where that takes longer."""
    scenario = plain(
        **BLIND, **ENDLESS, **memory_for(30_000_000), n_devices=1, max_draft_tokens=tokens - 1, horizon=horizon(5.0, 100.0),
    )  # fmt: skip
    scenario = with_(scenario, **{"devices.0.draft_tokens_per_s": speed, "draft.acceptance.logit_mean": 20.0})
    link = scenario.devices[0].link
    away_s = 2.0 * link.one_way_s + (256 + 24 * (tokens - 1)) / link.uplink_bytes_per_s + batch_s(scenario, tokens)
    away_s += (256 + 4 * tokens) / link.downlink_bytes_per_s
    closed = tokens / max(away_s, tokens / speed)
    bound = fluid_bound(scenario, "predictor+overlap").tokens_per_s
    (engine,) = simulate(scenario, f"fixed:{tokens - 1}+fcfs+overlap:32", [1], threads=1)
    assert engine.throughput_tokens_per_s <= bound * (1 + 1e-3)
    assert bound == pytest.approx(closed, rel=0.01)
    assert bound > 1.04 * fluid_bound(scenario, "predictor").tokens_per_s


# --- validity ----------------------------------------------------------------------------------------------------------


HELD_TO = {
    "colocated": ("centralized:0+colocated:2", "centralized:0+colocated-turbospec"),
    "information+server": ("survival:0.6+fcfs+colocated:2+by-speed:40", "wisp+wisp+by-price", "fixed:0+fcfs+colocated:3+by-load:99"),
    "information+overlap": ("wisp+wisp+overlap", "fixed:3+fcfs+overlap:12"),
    "perfect+overlap": ("perfect+fcfs+overlap",),
    "perfect+server": ("perfect+fcfs+colocated:2+by-load:10",),
    "oracle+overlap": ("oracle+fcfs+overlap:32",),
    "oracle+server": ("centralized:0+colocated:4+dspark",),
    "information+server+overlap": ("fixed:2+edf+overlap+colocated-survival:0.7+by-speed:60",),
    "oracle+server+overlap": ("oracle+fcfs+overlap+colocated:4+by-load:6",),
}  # fmt: skip


@pytest.mark.parametrize("seed", range(10))
def test_no_controller_exceeds_its_bound(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scenario = with_random_draft(random_scenario(rng), rng)
    for kind, names in HELD_TO.items():
        bound = named_bound(scenario, kind)
        for name in names:
            assert bounds.bound_for(resolve(name, scenario)) == kind
            assert_held(scenario, name, bound)


def test_bounds_rise_with_what_is_known_and_with_who_may_draft() -> None:
    scenario = drafting(plain(n_devices=24, max_draft_tokens=6))
    found = {name: named_bound(scenario, name).tokens_per_s for name in NAMES}
    for knows in ("information", "perfect", "oracle"):
        alone, overlap, server, both = (found[knows + who] for who in WHO)
        assert alone < overlap <= both * (1 + 1e-3)
        assert alone < server <= both * (1 + 1e-3)
    for who in WHO:
        assert found["information" + who] < found["perfect" + who] < found["oracle" + who]
    assert found["centralized"] < found["colocated"] <= found["information+server"] * (1 + 1e-3)


def test_a_draft_without_room_is_not_loaded() -> None:
    scenario = with_(BASE, n_devices=8, server_drafts=[])
    large = drafting(scenario, weights_bytes=10**12)
    assert fluid_bound(large, "colocated") == fluid_bound(scenario, "colocated")
    assert fluid_bound(drafting(scenario), "colocated").tokens_per_s > fluid_bound(scenario, "colocated").tokens_per_s


def test_a_choice_of_messages_saves_what_the_one_before_tells() -> None:
    """The half of an autocorrelated link's messages that looks best beforehand, against the rows."""
    link = replace(BASE.devices[0].link, one_way_s=0.05, jitter=0.6, autocorrelation=0.8)
    rng, x = np.random.default_rng(0), np.zeros(200_001)
    for n in range(1, len(x)):
        x[n] = 0.8 * x[n - 1] + 0.6 * rng.normal()
    delays = 0.05 * np.exp(0.6 * x)
    chosen = x[:-1] < np.median(x)
    waited, m, n = delays[1:][chosen].sum(), chosen.sum(), len(chosen)
    assert waited < 0.9 * m * delays.mean()
    mean = 0.05 * math.exp(0.18)
    limits = [m * mean - less * m - early * n for less, early in waits_of(link)]
    assert max(limits) <= waited * 1.01
    assert max(limits) >= 0.9 * waited
    assert waits_of(replace(link, autocorrelation=0.0)) == ((0.0, 0.0),)


# --- names and the command -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("wisp+wisp", "information"), ("oracle+fcfs", "oracle"), ("centralized", "centralized"), ("fixed:3+fcfs+by-load:5", "information+server"),
        ("fixed:8+fcfs+dspark", "oracle"), ("sled", "information+overlap"), ("sled-plain", "information"),
        ("centralized:0+colocated:0", "centralized"),
        ("wisp+wisp+overlap:0", "information"),
    ],
)  # fmt: skip
def test_a_controller_is_held_to_what_it_knows_and_to_who_drafts(name: str, kind: str) -> None:
    assert bounds.bound_for(resolve(name, drafting(BASE))) == kind


def test_names_of_bounds_are_kinds_or_the_larger_of_two() -> None:
    assert len(set(NAMES)) == len(NAMES) == 14
    assert {name.replace("information", "predictor") for name in NAMES} <= set(KINDS)
    assert all(kind_of(a + b).overlap == ("overlap" in b) for a, b in itertools.product(("perfect", "oracle"), WHO))
    with pytest.raises(ValueError, match=r"given 'perfect\+psychic', allowed: predictor"):
        fluid_bound(BASE, "perfect+psychic")


def test_the_command_shows_bounds_of_a_server_that_drafts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = drafting(plain(n_devices=4, max_draft_tokens=3, horizon=horizon(1.0, 10.0)))
    save(small, tmp_path / "small.toml")
    words = ["--scenario", str(tmp_path / "small.toml"), "--seeds", "2", "--json", str(tmp_path / "b.json")]
    words += ["--controllers", "wisp,centralized:0+colocated:2,wisp+wisp+overlap"]
    assert run_command(bounds.main, bounds.PROGRAM, words) == 0
    shown, rows = capsys.readouterr().out, json.loads((tmp_path / "b.json").read_text())
    names = ["information", "perfect", "oracle", "centralized", "colocated", "information+overlap"]
    names += ["information+server", "perfect+server", "oracle+server"]
    assert [row["name"] for row in rows if row["row"] == "bound"] == names
    held = {row["name"]: row["bound"] for row in rows if row["row"] == "measured"}
    assert held["centralized:0+colocated:2"] == "colocated"
    assert held["wisp+wisp+overlap"] == "information+overlap"
    assert "at the server" in shown
