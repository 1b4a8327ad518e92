"""RL Zoo: its training command finds the package by `--gym-packages`, and writes a model that plays."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from tests.interop.replay import PAGE, blocks

pytest.importorskip("rl_zoo3")
from stable_baselines3 import PPO


def test_the_pages_command_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = blocks("RL Zoo", "bash")
    command = [sys.executable, *shlex.split(line)[1:], "--log-folder", str(tmp_path), "--eval-freq", "-1"]
    monkeypatch.setenv("PYTHONPATH", str(PAGE.parents[2]))
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (zipped,) = tmp_path.rglob("wisp_gym-Speculation-v1.zip")
    model = PPO.load(zipped, device="cpu")
    assert model.num_timesteps >= 3_000
    env = gym.make("wisp_gym/Speculation-v1", devices=4, horizon_s=10.0)
    (seen, _), over = env.reset(seed=0), False
    while not over:
        action, _ = model.predict(seen)
        seen, reward, _, over, _ = env.step(int(action))
        assert np.isfinite(reward)
