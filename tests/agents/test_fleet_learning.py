"""Fleets learn: cases whose optimum is known by value iteration, and the same policy from the same seed."""

import json
from argparse import ArgumentTypeError
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

from agents.bounds.toy import Toy, solve, toy_scenario
from agents.training import ablation, rewards
from agents.training.fleet import Fleet, FleetSettings
from agents.training.fleet_ppo import FleetPPO
from agents.training.networks import Standardise, engine_policy, uniform_policy
from wisp_gym.controllers.resolve import with_policy
from wisp_gym.sb3 import DecisionVecEnv
from wisp_gym.simulation import simulate

ALONE = Toy(devices=1, draft_ticks=1, link_ticks=1, batch_ticks=4, token_ticks=1, acceptance=0.75, max_draft_tokens=6)
THREE = Toy(devices=3, draft_ticks=1, link_ticks=1, batch_ticks=4, token_ticks=1, acceptance=0.75, max_draft_tokens=5)


def trained(toy: Toy, externality: float, total: int, seed: int = 0) -> FleetPPO:
    """A policy of round lengths trained in a toy."""
    torch.set_num_threads(1)
    scenario = toy_scenario(toy)
    envs = gym.make_vec(
        "wisp_gym/SpeculationLength-v1", num_envs=1, vectorization_mode="vector_entry_point", scenario=scenario
    )
    actions = toy.max_draft_tokens + 1
    worlds = FleetSettings([scenario], worlds=8, weights={"externality": externality})
    fleet = Fleet(worlds, uniform_policy(actions, "length"), 4096, seed)
    model = FleetPPO(
        "MlpPolicy", DecisionVecEnv(envs, seed), fleet=fleet, decisions=4096, decision="length", batch_size=1024, n_epochs=8,
        ent_coef=0.02, learning_rate=lambda left: 3e-3 * max(left, 0.05), seed=seed, device="cpu", gamma=1.0,
        policy_kwargs={"features_extractor_class": Standardise, "net_arch": [32, 32], "activation_fn": torch.nn.ReLU},
    )  # fmt: skip
    extractor = model.policy.features_extractor
    assert isinstance(extractor, Standardise)
    extractor.fit(fleet.collect(uniform_policy(actions, "length")).observations)
    return model.learn(total)


@pytest.mark.parametrize(("toy", "externality"), [(ALONE, 0.0), (THREE, 1.0)])  # alone, a device costs nobody else time
def test_a_toy_is_solved_to_within_one_percent(toy: Toy, externality: float) -> None:
    scenario = toy_scenario(toy, measure_s=1000.0)
    policy = engine_policy(trained(toy, externality, 160_000).policy, "length")
    (metrics,) = simulate(scenario, with_policy("learned", policy, "fcfs", scenario), seeds=[0])
    assert metrics.throughput_tokens_per_s > 0.99 * solve(toy).tokens_per_s


def test_same_seed_same_policy() -> None:
    one, two, other = (engine_policy(trained(ALONE, 0.0, 8192, seed).policy, "length").weights for seed in (0, 0, 1))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)


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
