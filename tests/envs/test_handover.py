"""Another controller or policy takes over while requests are under way, at the devices and at the server."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from tests.support.invariants import memory_adds_up
from wisp_gym.contract import device
from wisp_gym.controllers.policy import load_policy
from wisp_gym.controllers.resolve import resolve
from wisp_gym.envs.shells import DecisionEnv

MIXED = "+by-load:5+colocated:3"


def made(name: str, controller: str) -> DecisionEnv:
    """A crowded environment whose sessions move between devices and server."""
    env = gym.make(name, devices=40, horizon_s=20.0, controller=controller).unwrapped
    assert isinstance(env, DecisionEnv)
    env.reset(seed=3)
    return env


def play(env: DecisionEnv, steps: int) -> int:
    """Random possible actions; memory adds up after each. Returns how many sessions the server drafted for at most."""
    rng, most = np.random.default_rng(0), 0
    arrays = env.task.episodes.arrays
    for _ in range(steps):
        over = env.step(int(rng.choice(np.flatnonzero(env.action_masks()))))[3]
        memory_adds_up(arrays)
        most = max(most, int(arrays.server["n_at_server"][0, 0]))
        if over:
            env.reset()
    return most


@pytest.mark.parametrize(
    ("name", "controller"),
    [("wisp_gym/Speculation-v1", f"wisp+wisp{MIXED}"), ("wisp_gym/Batching-v1", f"wisp+wisp{MIXED}")],
)
def test_a_policy_takes_over_in_the_middle(name: str, controller: str) -> None:
    env = made(name, controller)
    assert play(env, 150) > 0
    arrays = env.task.episodes.arrays
    before = arrays.device["at_server"].copy(), arrays.sessions.copy(), arrays.server["n_at_server"].copy()
    assert before[2][0, 0] > 0
    env.set_policy(load_policy("speculation-v1"))
    after = arrays.device["at_server"], arrays.sessions, arrays.server["n_at_server"]
    assert all((a == b).all() for a, b in zip(after, before, strict=True))
    assert play(env, 300) > 0


def test_a_choice_that_is_gone_is_seen_no_more() -> None:
    env = made("wisp_gym/Speculation-v1", f"wisp+wisp{MIXED}")
    play(env, 150)
    episodes = env.task.episodes
    assert episodes.arrays.observation[0, :, device.DRAFTS_ON :].any()
    episodes.set_controller(resolve("wisp+wisp", episodes.scenario))
    for _ in range(100):
        play(env, 1)
        assert not episodes.arrays.observation[0, :, device.DRAFTS_ON :].any()
        assert not env.action_masks()[2:].any()


@pytest.mark.parametrize("first", ["wisp+wisp", "fixed:4+fcfs+overlap"])
def test_a_mixed_controller_takes_over_from_one_that_is_not(first: str) -> None:
    env: Any = made("wisp_gym/Speculation-v1", first)
    assert play(env, 150) == 0
    env.task.episodes.set_controller(resolve(f"wisp+wisp{MIXED}", env.task.episodes.scenario))
    assert play(env, 300) > 0
