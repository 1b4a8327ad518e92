"""The page of libraries: its versions are those that the tests run with."""

from __future__ import annotations

import re
from pathlib import Path

from tests.interop.replay import PAGE

PINS = dict(
    re.findall(
        r"^([\w-]+)(?:\[\w+\])?==([\d.]+)",
        Path(__file__).with_name("requirements.txt").read_text(encoding="utf-8"),
        re.M,
    )
)
PACKAGES = {
    "stable-baselines3": "stable_baselines3", "sb3-contrib": "sb3-contrib", "RL Zoo": "rl_zoo3", "RLlib": "ray", "TorchRL": "torchrl",
    "Tianshou": "tianshou", "skrl": "skrl", "Minari": "minari", "PettingZoo": "pettingzoo",
}  # fmt: skip


def test_the_table_has_the_versions_that_are_pinned() -> None:
    text = PAGE.read_text(encoding="utf-8")
    table = dict(re.findall(r"^\| \[([^]]+)\]\([^)]+\) \| ([\d.]+) \|", text, re.M))
    assert table == {library: PINS[package] for library, package in PACKAGES.items()}
    assert f"Gymnasium {PINS['gymnasium']}" in text
    assert f"torch {PINS['torch']}" in text
