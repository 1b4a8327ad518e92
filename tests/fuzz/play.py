"""Environments under a fuzz: single and vector ones, made, stepped and misused in any order."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

import wisp_gym
from tests.fuzz.calls import Fault, attempt, described
from tests.fuzz.values import SMALL, a_controller_name, an_array, anything
from wisp_gym.controllers.policy import load_policy

METHODS = ("reset", "step", "action_masks", "render", "set_policy", "close")
GAME = 30  # calls of one environment


def settings(rng: random.Random) -> dict[str, Any]:
    """Arguments of an environment, some of them wrong."""
    made: dict[str, Any] = {"scenario": SMALL, "devices": rng.choice([1, 3]), "horizon_s": rng.choice([0.5, 2.0])}
    if rng.random() < 0.3:
        made["randomise"] = rng.choice(
            [{"jitter": (0.5, 2.0)}, {"devices": (1, 3)}, {"jitter": anything(rng)}, anything(rng)]
        )
    if rng.random() < 0.3:
        made["controller"] = a_controller_name(rng)
    if rng.random() < 0.3:
        made[
            rng.choice([*made, "slo", "average_reward", "reward_weights", "others", "visible_requests", "nothing"])
        ] = anything(rng)
    return made


def options(rng: random.Random, n: int) -> Any:
    """Of a reset."""
    mask = np.array([rng.random() < 0.5 for _ in range(n)])
    choices = [
        None,
        {},
        {"reset_mask": mask},
        {"reset_mask": an_array(rng)},
        {"devices": rng.choice([1, 2, 99])},
        {"device": 0},
        {"jitter": anything(rng)},
    ]
    return rng.choice([*choices, anything(rng)])


def action(env: Any, rng: random.Random) -> Any:
    """Of a step, mostly a possible one."""
    return env.action_space.sample() if rng.random() < 0.7 else anything(rng)


def arguments(method: str, env: Any, n: int, rng: random.Random) -> tuple[list[Any], dict[str, Any]]:
    """Of a method."""
    if method == "reset":
        seed = rng.choice([None, 0, 7, [1] * n, anything(rng)])
        return [], {"seed": seed, "options": options(rng, n)}
    if method == "step":
        return [action(env, rng)], {}
    if method == "set_policy":
        return [load_policy("speculation-v1") if rng.random() < 0.6 else anything(rng)], {}
    return [], {}


def play(
    rng: random.Random, vector: bool, note: Callable[[str], None], fail: Callable[[Fault], None], calls: int
) -> int:
    """Make an environment and call its methods; returns how many calls were made."""
    name = rng.choice(sorted(wisp_gym.ENVIRONMENTS))
    named = settings(rng)
    if vector:
        named["num_envs"] = rng.choice([1, 2, 3]) if rng.random() < 0.9 else anything(rng)
        named["threads"] = rng.choice([None, 1, 2]) if rng.random() < 0.9 else anything(rng)
    else:
        named["render_mode"] = rng.choice([None, None, "ansi"])
    note(described(f"make {name}", [], named))
    made: list[Any] = []
    builder = gym.make_vec if vector else gym.make
    found = attempt(f"make {name}", None, lambda: made.append(builder(name, **named).unwrapped), [], {}, True)
    if found:
        fail(found)
    if not made:
        return 1
    env, n = made[0], getattr(made[0], "num_envs", 1)
    for _ in range(min(calls - 1, GAME)):
        method = rng.choices(METHODS, [4, 20, 2, 1, 1, 0.3])[0]
        if not hasattr(env, method):
            continue
        positional, given = arguments(method, env, n, rng)
        label = f"{'vector ' if vector else ''}{name}.{method}"
        note(described(label, positional, given))
        found = attempt(label, env, getattr(env, method), positional, given, True)
        if found:
            fail(found)
    return min(calls - 1, GAME) + 1
