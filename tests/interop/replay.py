"""What is true of an episode, whatever library played it: single environments play it again."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import wisp_gym  # noqa: F401 - registers the environments

PAGE = Path(__file__).resolve().parents[2] / "docs" / "guide" / "works-with.md"


def blocks(heading: str, language: str = "python") -> list[str]:
    """The code of a section of the page."""
    section = PAGE.read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)


def run_page(heading: str, *, also: str = "") -> dict[str, Any]:
    """Run the Python code of a section of the page, then `also`; its names."""
    found: dict[str, Any] = {"__name__": "page"}
    exec(compile("\n".join([*blocks(heading), also]), PAGE.name, "exec"), found)
    return found


class Replay:
    """Plays complete episodes again and compares all that a library saw.

    Args:
        name: id of the environment. seeds: of each of the library's worlds. arguments: of the environment.
    """

    def __init__(self, name: str, seeds: Iterable[int], **arguments: Any):
        self.envs = [gym.make(name, **arguments) for _ in seeds]
        self.firsts = [env.reset(seed=seed)[0] for env, seed in zip(self.envs, seeds, strict=True)]
        self.episodes = 0

    def begun(self, first: np.ndarray, world: int | None) -> int:
        """The world whose episode begins with this observation; where it is known, some libraries reset it twice."""
        if world is None:
            return next(k for k, other in enumerate(self.firsts) if np.array_equal(other, first))
        if not np.array_equal(self.firsts[world], first):
            self.firsts[world] = self.envs[world].reset()[0]
        assert np.array_equal(self.firsts[world], first)
        return world

    def check(
        self, observations: Sequence[Any], actions: Sequence[Any], rewards: Sequence[Any], world: int | None = None
    ) -> dict[str, Any]:
        """One episode of n steps with its n + 1 observations; what a world says at its end."""
        index = self.begun(np.asarray(observations[0]), world)
        env = self.envs[index]
        for seen, action, reward in zip(observations[1:], actions, rewards, strict=True):
            expected, paid, terminated, truncated, info = env.step(int(action))
            assert np.array_equal(np.asarray(seen), expected)
            assert float(reward) == pytest.approx(paid, rel=1e-5, abs=1e-5)
            assert not terminated
        assert truncated, "the library ended an episode before its horizon"
        self.firsts[index] = env.reset()[0]
        self.episodes += 1
        return info


def cut(steps: dict[str, np.ndarray], done: np.ndarray) -> Iterable[dict[str, np.ndarray]]:
    """Complete episodes of one world's (T, …) steps, which end where `done`."""
    start = 0
    for end in np.flatnonzero(done) + 1:
        yield {name: values[start:end] for name, values in steps.items()}
        start = end
