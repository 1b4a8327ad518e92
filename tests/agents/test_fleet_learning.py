"""Fleets learn: cases whose optimum is known by value iteration, and the same policy from the same seed."""

import json
from argparse import ArgumentTypeError
from pathlib import Path

import numpy as np
import pytest

from agents.batching.toys import TOYS, Learned, alone, cells, learned, learned_hosting, learned_lengths
from agents.bounds.toy import Toy, solve, toy_scenario
from agents.training import ablation, rewards
from wisp_gym.controllers.resolve import with_policy
from wisp_gym.simulation import simulate

ALONE = Toy(devices=1, draft_ticks=1, link_ticks=1, batch_ticks=4, token_ticks=1, acceptance=0.75, max_draft_tokens=6)
THREE = Toy(devices=3, draft_ticks=1, link_ticks=1, batch_ticks=4, token_ticks=1, acceptance=0.75, max_draft_tokens=5)


@pytest.mark.parametrize(("toy", "externality"), [(ALONE, 0.0), (THREE, 1.0)])  # alone, a device costs nobody else time
def test_a_toy_is_solved_to_within_one_percent(toy: Toy, externality: float) -> None:
    scenario = toy_scenario(toy, measure_s=1000.0)
    policy = learned_lengths(toy, externality, 160_000)
    (metrics,) = simulate(scenario, with_policy("learned", policy, "fcfs", scenario), seeds=[0])
    assert metrics.throughput_tokens_per_s > 0.99 * solve(toy).tokens_per_s


def test_same_seed_same_policy() -> None:
    one, two, other = (learned_lengths(ALONE, 0.0, 8192, seed).weights for seed in (0, 0, 1))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)


# --- who drafts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "server_share"), [("two, the server drafts in 1 tick", 1.0), ("two, in 4", 0.0)])
def test_who_drafts_is_learned_to_within_one_percent(name: str, server_share: float) -> None:
    toy = TOYS[name]
    found = learned(toy, seed=1, fleet_decisions=122_880, server_decisions=20_480)
    assert found.trained > 0.99
    assert found.server_share == pytest.approx(server_share, abs=0.01)
    assert min(alone(toy)) < 0.92  # the other way is worse


def test_same_seed_same_server() -> None:
    toy = TOYS["two, in 4"]
    lengths = learned_lengths(toy, 1.0, 8192)
    one, two, other = (learned_hosting(toy, lengths, 5120, seed)[-1].weights for seed in (0, 0, 1))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)


def test_a_row_says_how_many_seeds_solve_the_case() -> None:
    found = [Learned(0.5, 0.995, 1.0), Learned(0.7, 0.9, 0.5)]
    row = cells("case", TOYS["two, in 4"], found)
    assert row == ["case", "17.52", "1.000", "0.913", "0.600", "0.948", "0.900", "0.750", "1 of 2"]


# --- rewards -----------------------------------------------------------------------------------------------------------


def test_rewards_are_trained_and_held_against_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rewards, "LOADS", (8, 16))
    monkeypatch.setattr(ablation, "TEST_SEEDS", range(1_000_000, 1_000_003))
    monkeypatch.setattr(ablation, "HORIZON", {"warmup_s": 5.0, "measure_s": 10.0, "drain_s": 1.0})
    words = ["--rewards", "1.5:0,0:0,1.5:2:1", "--seeds", "1", "-n", "65536", "--out", str(tmp_path / "a")]
    rewards.main(words)
    first, selfish, pressed = json.loads((tmp_path / "a" / "rewards.json").read_text())
    assert (first["more_8_percent"], first["more_16_percent"], first["more_percent"]) == (0.0, 0.0, 0.0)
    assert (selfish["externality"], pressed["pressure"], pressed["deadlines"]) == (0.0, 2.0, 1.0)
    assert selfish["more_8_low"] <= selfish["more_8_percent"] <= selfish["more_8_high"]
    assert selfish["seeds_8_percent"] == [pytest.approx(selfish["more_8_percent"])]
    policies = [path.read_bytes() for path in sorted((tmp_path / "a").glob("externality-*.json"))]
    assert len(set(policies)) == 3  # each learned from its own reward
    assert "externality  pressure  deadlines" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["1.5", "1.5:", "1.5:a", "-1:0", "", "1:0:0:0"])
def test_rewards_without_their_weights_are_refused(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="allowed"):
        rewards.rewards(text)
    assert rewards.rewards("1.5:0,2:1:0.5") == ((1.5, 0.0, 0.0), (2.0, 1.0, 0.5))
