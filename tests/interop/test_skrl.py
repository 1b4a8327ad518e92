"""skrl: it knows both forms by themselves, its steps are those of single environments, and PPO trains on many worlds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from tests.interop.replay import Replay, run_page

pytest.importorskip("skrl")
import torch
from skrl.agents.torch.ppo import PPO, PPO_CFG
from skrl.envs.wrappers.torch import wrap_env
from skrl.memories.torch import RandomMemory
from skrl.models.torch import CategoricalMixin, DeterministicMixin, Model
from skrl.trainers.torch import SequentialTrainer

NAME, WORLD = "wisp_gym/Speculation-v1", {"devices": 4, "horizon_s": 3.0}


class Policy(CategoricalMixin, Model):  # type: ignore[misc]
    """Chances of actions."""

    def __init__(self, **spaces: Any):
        Model.__init__(self, **spaces)
        CategoricalMixin.__init__(self, unnormalized_log_prob=True)
        self.net = torch.nn.Sequential(
            torch.nn.Linear(self.num_observations, 64), torch.nn.Tanh(), torch.nn.Linear(64, self.num_actions)
        )

    def compute(self, inputs: Any, role: str = "") -> tuple[Any, dict[str, Any]]:
        return self.net(inputs["observations"]), {}


class Value(DeterministicMixin, Model):  # type: ignore[misc]
    """What is to come."""

    def __init__(self, **spaces: Any):
        Model.__init__(self, **spaces)
        DeterministicMixin.__init__(self)
        self.net = torch.nn.Sequential(
            torch.nn.Linear(self.num_observations, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1)
        )

    def compute(self, inputs: Any, role: str = "") -> tuple[Any, dict[str, Any]]:
        return self.net(inputs["observations"]), {}


def test_many_worlds_give_the_episodes_of_single_ones() -> None:
    envs = gym.make_vec(NAME, num_envs=3, **WORLD)
    env, rng = wrap_env(envs), np.random.default_rng(0)
    seen, _ = env.reset()
    replay = Replay(NAME, envs.np_random_seed, **WORLD)
    played: list[Any] = [([row], [], []) for row in seen.numpy()]
    while replay.episodes < 6:
        actions = rng.integers(4, size=3)
        seen, rewards, terminated, truncated, infos = env.step(torch.as_tensor(actions)[:, None])
        assert not terminated.any()
        for k in range(3):
            observations, taken, paid = played[k]
            observations.append(infos["final_obs"][k] if truncated[k] else seen[k].numpy())
            taken.append(actions[k])
            paid.append(rewards[k, 0])
            if truncated[k]:
                replay.check(observations, taken, paid)
                played[k] = ([seen[k].numpy()], [], [])


def test_it_knows_a_single_world_by_its_class() -> None:
    env = wrap_env(gym.make(NAME, **WORLD))
    assert env.reset()[0].shape == (1, 36)


def test_the_pages_lines_train(tmp_path: Path) -> None:
    env = run_page("skrl")["env"]
    torch.manual_seed(0)
    spaces = {"observation_space": env.observation_space, "state_space": None, "action_space": env.action_space}
    models = {"policy": Policy(**spaces, device="cpu"), "value": Value(**spaces, device="cpu")}
    before = [p.detach().clone() for p in models["policy"].parameters()]
    settings = PPO_CFG(rollouts=64, learning_epochs=2, mini_batches=4)
    settings.experiment.write_interval = settings.experiment.checkpoint_interval = 0
    settings.experiment.directory = str(tmp_path)
    memory = RandomMemory(memory_size=64, num_envs=env.num_envs, device="cpu")
    agent = PPO(models=models, memory=memory, cfg=settings, **spaces, device="cpu")
    trainer = {"timesteps": 768, "headless": True, "disable_progressbar": True, "close_environment_at_exit": False}
    SequentialTrainer(cfg=trainer, env=env, agents=agent).train()  # 4 worlds: 3,072 steps
    after = [p.detach() for p in models["policy"].parameters()]
    assert all(torch.isfinite(p).all() for p in after)
    assert any(not torch.equal(one, other) for one, other in zip(before, after, strict=True))
