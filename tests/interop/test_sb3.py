"""stable-baselines3: its own vector environment and ours play the same episodes, and PPO trains on ours."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from tests.interop.replay import Replay, run_page

pytest.importorskip("stable_baselines3")
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from wisp_gym.sb3 import DecisionVecEnv

NAME, WORLD = "wisp_gym/Speculation-v1", {"devices": 4, "horizon_s": 3.0}


def ours() -> VecEnv:
    return DecisionVecEnv(gym.make_vec(NAME, num_envs=2, **WORLD), seed=3)


def its_own() -> VecEnv:
    envs = DummyVecEnv([lambda: gym.make(NAME, **WORLD)] * 2)
    envs.seed(3)
    return envs


@pytest.mark.parametrize("make", [ours, its_own])
def test_episodes_are_those_of_single_environments(make: Any) -> None:
    envs, replay = make(), Replay(NAME, (3, 4), **WORLD)
    rng, seen = np.random.default_rng(0), envs.reset()
    played: list[Any] = [([seen[k]], [], []) for k in range(2)]
    while replay.episodes < 6:
        actions = rng.integers(4, size=2)
        seen, rewards, over, infos = envs.step(actions)
        for k in range(2):
            observations, taken, paid = played[k]
            observations.append(infos[k]["terminal_observation"] if over[k] else seen[k])
            taken.append(actions[k])
            paid.append(rewards[k])
            if over[k]:
                assert infos[k]["TimeLimit.truncated"]
                replay.check(observations, taken, paid)
                played[k] = ([seen[k]], [], [])


def test_the_pages_lines_train() -> None:
    model = run_page("stable-baselines3")["model"]
    assert model.num_timesteps >= 3_000
    assert {info["t"] for info in model.ep_info_buffer} == {10.0}  # whole episodes
    returns, lengths = evaluate_policy(model, ours(), n_eval_episodes=4, return_episode_rewards=True)
    assert len(returns) == 4
    assert np.isfinite(returns).all()
    assert sum(lengths) > 4


def test_its_wrappers_take_it() -> None:
    envs = VecNormalize(ours())
    assert envs.reset().shape == (2, 36)
    assert np.isfinite(envs.step(np.zeros(2, int))[1]).all()
