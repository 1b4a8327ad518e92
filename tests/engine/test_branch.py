"""Branches are the world itself until they decide otherwise; what is drawn afresh keeps the law and what has been seen."""

from __future__ import annotations

import math

import gymnasium as gym
import numpy as np
import pytest

from tests.support.small_worlds import CONSTANT_ACCEPTANCE
from wisp_gym.controllers.resolve import resolve
from wisp_gym.engine.branch import Branches
from wisp_gym.engine.in_turn import InTurn
from wisp_gym.engine.loop import DONE, SPECULATION
from wisp_gym.engine.pausing import Pausing
from wisp_gym.engine.run import AS_RULED
from wisp_gym.engine.session import EVERY_DEVICE
from wisp_gym.engine.slo import token_deadline_s
from wisp_gym.engine.state import QUEUED, VERIFYING
from wisp_gym.engine.worlds import Worlds
from wisp_gym.errors import InputError
from wisp_gym.scenario import Scenario, load, with_

SCENARIO = with_(load("wisp-study"), n_devices=16)
CONTROLLERS = (
    "wisp+wisp", "speculation-v1+fcfs", "speculation-v1+batching-v1", "aligned+edf", "fixed:3+fcfs+overlap", "wisp+wisp+dspark",
    "aligned+wisp+colocated:2+by-load:6",
)  # fmt: skip
DRAWS = 24


def filled(controller: str, seed: int = 0, scenario: Scenario = SCENARIO, log_rows: int = 0) -> Worlds:
    worlds = Worlds(1, scenario.n_devices, log_rows, threads=1)
    worlds.fill(0, scenario, seed, resolve(controller, scenario))
    return worlds


def asked_until(world: InTurn, time_s: float) -> InTurn:
    while world.kind != DONE and world.worlds.arrays.server["now_s"][0, 0] < time_s:
        world.act()
    assert world.kind == SPECULATION
    return world


def in_place(
    worlds: Worlds, index: int, left_out: tuple[str, ...] = ("config", "totals", "slo_totals", "histogram", "log")
) -> list[bytes]:
    arrays = worlds.arrays.own()
    return [array[index].tobytes() for name, array in arrays.items() if name not in left_out]


@pytest.mark.parametrize("controller", CONTROLLERS)
def test_asked_in_turn_a_controller_does_what_it_does_alone(controller: str) -> None:
    alone, asked = filled(controller, log_rows=400_000), filled(controller, log_rows=400_000)
    alone.run()
    world, decisions = InTurn(asked), 0
    while world.kind != DONE:
        world.act()
        decisions += 1
    n = int(alone.arrays.server["log_length"][0, 0])
    assert decisions > 5_000
    assert n == asked.arrays.server["log_length"][0, 0] <= 400_000
    assert np.array_equal(alone.arrays.log[0, :n], asked.arrays.log[0, :n])
    assert alone.arrays.totals.tobytes() == asked.arrays.totals.tobytes()


@pytest.mark.parametrize("controller", ["wisp+wisp", "speculation-v1+batching-v1", "centralized:0"])
def test_a_world_run_in_pieces_is_the_same_world(controller: str) -> None:
    whole, pieces = filled(controller), filled(controller)
    whole.run()
    pausing, end_s = Pausing(pieces), float(pieces.arrays.config["end_s"][0, 0])
    for time_s in (*np.linspace(0.3, end_s - 0.1, 97), end_s):
        pausing.run_until(float(time_s))
    assert whole.arrays.totals["busy_s"] == pytest.approx(pieces.arrays.totals["busy_s"], rel=1e-12)
    pieces.arrays.totals["busy_s"] = whole.arrays.totals["busy_s"]
    assert in_place(whole, 0, ("config", "log")) == in_place(pieces, 0, ("config", "log"))


@pytest.mark.parametrize("controller", CONTROLLERS)
def test_a_branch_becomes_what_the_world_becomes(controller: str) -> None:
    world = asked_until(InTurn(filled(controller)), 30.0)
    copies, tokens = Branches(world.worlds, 3, threads=2), world.worlds.arrays.totals["tokens_on_time"]
    copies.take(0, world.kind)
    copies.act([AS_RULED] * 3)
    found = copies.on_time_tokens([2.0, 4.0])
    assert (found == found[0]).all()
    assert in_place(copies.worlds, 0) == in_place(copies.worlds, 2)

    before, end_s = int(tokens[0, 0]), copies.begun_s + 4.0
    c = world.worlds.arrays.config
    c["external_device"], c["window_end_s"] = -1, end_s
    Pausing(world.worlds, begun=True).run_until(end_s)
    assert tokens[0, 0] - before == found[0, 1] > 20
    assert in_place(world.worlds, 0) == in_place(copies.worlds, 1)


def test_both_actions_go_apart_and_one_of_them_is_the_rule_s() -> None:
    world = asked_until(InTurn(filled("speculation-v1+fcfs")), 25.0)
    copies = Branches(world.worlds, 4)
    for _ in range(20):
        copies.take(0, world.kind)
        copies.act([0, 1, AS_RULED, 1])
        d = copies.worlds.arrays.device["drafted"][:, world.device].copy()
        assert d[1] == d[3] == d[0] + 1
        assert d[2] in (d[0], d[1])
        tokens = copies.on_time_tokens([1.0])
        assert tokens[2] == tokens[int(d[2] - d[0])]
        world.act()
    assert len({*tokens.ravel().tolist()}) >= 1


def test_a_device_is_decided_for_until_it_sends() -> None:
    world = asked_until(InTurn(filled("fixed:6+fcfs")), 25.0)
    while world.worlds.arrays.device["drafted"][0, world.device] != 2:
        world.act()
    copies, i = Branches(world.worlds, 3), world.device
    copies.take(0, world.kind)
    copies.act([0, 1, 1])
    copies.act([1, 0, 1])  # the first has sent: nothing more is done in it
    assert copies.worlds.arrays.device["drafted"][:, i].tolist() == [2, 3, 4]
    assert copies.worlds.arrays.server["mid_draft"][:, 0].tolist() == [0, 0, 1]
    for _ in range(12):
        copies.act([AS_RULED, 0, 1])
        if copies.worlds.arrays.device["drafted"][2, i] == copies.worlds.arrays.device["cap"][2, i]:
            break
    with pytest.raises(InputError, match=r"^act: given copies that wait for no decision"):
        copies.act([1, 1, 1])  # at the cap there is nothing to decide
    assert (copies.on_time_tokens([1.0]) > 0).all()


def test_copies_of_one_seed_are_alike_and_of_others_are_not() -> None:
    world = asked_until(InTurn(filled("wisp+wisp")), 25.0)
    copies = Branches(world.worlds, 4)
    copies.take(0, world.kind)
    as_it_was = copies.worlds.arrays.device[0].copy()
    copies.afresh([5, 5, 6, 7])
    assert in_place(copies.worlds, 0, ()) == in_place(copies.worlds, 1, ())
    assert in_place(copies.worlds, 0) != in_place(copies.worlds, 2)
    seen = (
        "drafted",
        "committed",
        "survival",
        "expected_tokens",
        "cached_tokens",
        "phase",
        "accepted_sum",
        "prompt_tokens",
    )
    begun = as_it_was["arrival_s"] <= copies.begun_s
    for name in seen:  # what has happened and been observed stays
        assert (copies.worlds.arrays.device[:, begun][name] == as_it_was[begun][name]).all()
    assert copies.on_time_tokens([3.0])[0, 0] == copies.worlds.arrays.totals["tokens_on_time"][1, 0]


def redrawn(scenario: Scenario, controller: str, seeds: range) -> dict[str, np.ndarray]:
    """Of each of some worlds: what was there, less the mean of what was drawn afresh in its place."""
    found: dict[str, list[float]] = {name: [] for name in ("accepted", "arrival_s", "tokens")}
    for seed in seeds:
        world = asked_until(InTurn(filled(controller, seed, scenario)), 21.0 + 0.37 * seed)
        copies = Branches(world.worlds, DRAWS)
        copies.take(0, world.kind)
        truth = copies.worlds.arrays.device[0].copy()
        tokens = copies.on_time_tokens([2.0])[0, 0]
        copies.take(0, world.kind)
        copies.afresh(np.arange(DRAWS))
        drawn = copies.worlds.arrays.device
        here = truth["arrival_s"] <= copies.begun_s
        groups = {"accepted": here & (truth["drafted"] > 0), "arrival_s": ~here}
        for name, group in groups.items():
            if group.any():
                found[name].append(float(truth[name][group].mean() - drawn[:, group][name].mean()))
        assert (drawn["accepted"] <= drawn["drafted"]).all()
        assert (drawn["output_tokens"][:, here] == truth["output_tokens"][here]).all()
        found["tokens"].append(tokens - copies.on_time_tokens([2.0]).mean())
    return {name: np.array(values) for name, values in found.items()}


def test_what_is_drawn_afresh_has_the_law_of_what_was_there() -> None:
    """Exactly so where all requests are alike, so that nothing of their odds has to be inferred."""
    differences = redrawn(with_(SCENARIO, **CONSTANT_ACCEPTANCE), "wisp+wisp", range(60))
    for name, values in differences.items():
        error = values.std(ddof=1) / math.sqrt(len(values))
        assert abs(values.mean()) < 4.0 * error, name
        assert error > 0.0


def test_evidence_is_weighed_by_bayes() -> None:
    """One drafted token: it is accepted with the odds of its prior times e^(d'·x)."""
    scenario = with_(SCENARIO, **CONSTANT_ACCEPTANCE)
    world = asked_until(InTurn(filled("fixed:3+fcfs", 1, scenario)), 25.0)
    while world.worlds.arrays.device["drafted"][0, world.device] != 1:
        world.act()
    i, copies = world.device, Branches(world.worlds, 4_000)
    copies.take(0, world.kind)
    copies.afresh(np.arange(4_000))
    d, c = world.worlds.arrays.device[0, i], world.worlds.arrays.config[0, 0]
    prior = c["logit_mean"]
    posterior = 1.0 / (1.0 + math.exp(-(prior + c["separation"] * d["evidence"])))
    share = copies.worlds.arrays.device["accepted"][:, i].mean()
    assert abs(share - posterior) < 4.0 * math.sqrt(posterior * (1.0 - posterior) / 4_000) + 1e-9


def test_copies_of_the_future_differ_more_than_coupled_ones() -> None:
    world = asked_until(InTurn(filled("speculation-v1+fcfs")), 25.0)
    copies = Branches(world.worlds, 64)
    copies.take(0, world.kind)
    copies.afresh(np.repeat(np.arange(32), 2))
    copies.act([0, 1] * 32)
    tokens = copies.on_time_tokens([1.0]).reshape(32, 2)
    assert (tokens[:, 0] - tokens[:, 1]).var() < 0.2 * tokens.var(axis=0).sum()


def test_what_rounds_under_way_are_worth_is_their_device_s_rate_times_their_age() -> None:
    """Less, of those at the server, what the running batch still takes."""
    world = asked_until(InTurn(filled("wisp+wisp")), 25.0)
    copies = Branches(world.worlds, 2)
    copies.take(0, world.kind)
    worth = copies.worth_tokens([0.5, 1.0])
    d, s, end_s = copies.worlds.arrays.device[0], copies.worlds.arrays.server[0, 0], copies.begun_s + 1.0
    waiting_s = max(float(s["batch_end_s"]) - end_s, 0.0) if s["busy"] else 0.0
    assert waiting_s > 0.0
    under_way, expected = (d["arrival_s"] <= end_s) & (d["committed"] < d["output_tokens"]), 0.0
    for row in d[under_way]:
        begun_s = row["delivered_s"] if row["committed"] else row["arrival_s"]
        on_schedule = end_s <= (
            token_deadline_s(row, row["committed"]) if row["committed"] else begun_s + row["ttft_s"]
        )
        age_s = end_s - begun_s - (waiting_s if row["phase"] in (QUEUED, VERIFYING) else 0.0)
        expected += row["token_sum"] / row["time_sum_s"] * age_s if on_schedule else 0.0
    assert expected > 5.0
    assert worth[0, 1] == pytest.approx(copies.worlds.arrays.totals["tokens_on_time"][0, 0] + expected, rel=1e-9)
    copies.take(0, world.kind)
    assert (worth[:, 1:] == copies.worth_tokens([1.0])).all()


def test_another_controller_drives_some_copies() -> None:
    worlds = filled("wisp+wisp")
    Pausing(worlds).run_until(25.0)
    copies = Branches(worlds, 3)
    copies.take(0)
    copies.follow([resolve(name, SCENARIO) for name in ("wisp+wisp", "fixed:0+fcfs", "fixed:0+fcfs")])
    tokens = copies.on_time_tokens([5.0])[:, 0]
    assert copies.worlds.arrays.totals["window_drafted"][0, 0] > copies.worlds.arrays.totals["window_drafted"][1, 0]
    assert tokens[1] == tokens[2] != tokens[0]


@pytest.mark.parametrize("name", ["Speculation", "SpeculationLength", "Batching"])
def test_an_environment_can_be_branched(name: str) -> None:
    env = gym.make(f"wisp_gym/{name}-v1", devices=8).unwrapped
    env.reset(seed=3)
    copies = env.branches(6)
    before = in_place(env.task.episodes.worlds, 0, ())
    tokens = copies.on_time_tokens([4.0]) if name != "Batching" else None
    assert before == in_place(env.task.episodes.worlds, 0, ())
    assert tokens is None or (tokens == tokens[0]).all()


def test_before_its_first_episode_an_environment_has_no_world_to_branch() -> None:
    env = gym.make("wisp_gym/Speculation-v1", devices=4).unwrapped
    with pytest.raises(gym.error.ResetNeeded, match="branches: no episode has begun"):
        env.branches(2)


def test_what_cannot_be_is_refused_in_one_line() -> None:
    world = asked_until(InTurn(filled("wisp+wisp")), 22.0)
    copies = Branches(world.worlds, 2)
    copies.take(0)
    with pytest.raises(InputError, match=r"^act: given copies that wait for no decision"):
        copies.act([0, 1])
    copies.take(0, world.kind)
    for actions in ([0], [0, -2], [0, 2], [0.5, 1.0], None):
        with pytest.raises(InputError, match=r"^actions: given .*, allowed are 2 whole numbers from -1 to 1"):
            copies.act(actions)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"^seeds: given "):
        copies.afresh([-1, 0])
    for horizons_s in ([], [2.0, 1.0], [0.0], [math.nan]):
        with pytest.raises(InputError, match=r"^horizons_s: given .*, allowed are seconds that increase"):
            copies.on_time_tokens(horizons_s)
    with pytest.raises(InputError, match=r"^world: given 1"):
        copies.take(1)
    world.worlds.arrays.config["external_device"] = EVERY_DEVICE
    with pytest.raises(InputError, match=r"^world: given one whose devices are all decided for together"):
        copies.take(0)
    with pytest.raises(InputError, match=r"^action: given 2, allowed are 0, 1 and -1"):
        world.act(2)
    with pytest.raises(InputError, match=r"^worlds: given 2, allowed is one"):
        InTurn(Worlds(2, 4))


def test_what_is_recorded_is_not_drawn_afresh() -> None:
    loops = with_(SCENARIO, **{"draft.acceptance.loop_enter": 0.01})
    world = asked_until(InTurn(filled("wisp+wisp", scenario=loops)), 22.0)
    copies = Branches(world.worlds, 2)
    copies.take(0, world.kind)
    with pytest.raises(InputError, match=r"^afresh: given a draft with loops"):
        copies.afresh([0, 1])
    assert copies.on_time_tokens([1.0])[0, 0] > 0
