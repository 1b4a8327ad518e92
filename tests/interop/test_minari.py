"""Minari: recorded episodes, infos included, are those of the environment, and a network learns the recorded rule from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.interop.replay import Replay, run_page

pytest.importorskip("minari")
pytest.importorskip("jax")  # its recorder needs it
import torch

from wisp_gym.contract.device import NAMES

EPISODES = 12


def rule(seen: np.ndarray) -> int:
    """Draft on while all drafted tokens are likely accepted."""
    return int(seen[NAMES.index("survival")] > 0.5)


def test_recorded_episodes_are_right_and_can_be_learnt_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    env = run_page("Minari")["collector"]
    for k in range(EPISODES):
        (seen, _), over = env.reset(seed=k), False
        while not over:
            seen, _, _, over, _ = env.step(rule(seen))
    dataset = env.create_dataset("wisp/rule-v0", eval_env=None)
    rows, actions = [], []
    for k, episode in enumerate(dataset.iterate_episodes()):
        replay = Replay("wisp_gym/Speculation-v1", [k], devices=4, horizon_s=10.0)
        info = replay.check(episode.observations, episode.actions, episode.rewards)
        assert episode.infos["time_s"][-1] == info["time_s"] == 10.0
        assert np.array_equal(episode.infos["action_mask"][-1], info["action_mask"])
        rows.append(episode.observations[:-1])
        actions.append(episode.actions)
    assert len(rows) == EPISODES
    assert cloned(torch.as_tensor(np.concatenate(rows)), torch.as_tensor(np.concatenate(actions))) > 0.9


def cloned(seen: torch.Tensor, actions: torch.Tensor) -> float:
    """The share of recorded actions that a network says after 2,000 steps of imitation."""
    torch.manual_seed(0)
    seen = (seen - seen.mean(0)) / (seen.std(0) + 1e-6)
    net = torch.nn.Sequential(torch.nn.Linear(seen.shape[1], 32), torch.nn.Tanh(), torch.nn.Linear(32, 2))
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(2_000):
        batch = torch.randint(len(seen), (64,))
        loss = torch.nn.functional.cross_entropy(net(seen[batch]), actions[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float((net(seen).argmax(1) == actions).float().mean())
