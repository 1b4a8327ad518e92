"""Tianshou: collected episodes are those of single environments, masks are minded, and DQN trains."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.interop.replay import Replay, cut, run_page

pytest.importorskip("tianshou.trainer")
import torch
from tianshou.algorithm import DQN
from tianshou.algorithm.modelfree.dqn import DiscreteQLearningPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Collector, VectorReplayBuffer
from tianshou.trainer import OffPolicyTrainerParams
from tianshou.utils.net.common import Net

NAME, WORLD = "wisp_gym/Batching-v1", {"devices": 8, "visible": 8, "horizon_s": 5.0}


def learner(env: Any) -> Any:
    """DQN of an environment with masks."""
    torch.manual_seed(0)
    net = Net(
        state_shape=env.observation_space["obs"].shape, action_shape=(int(env.action_space.n),), hidden_sizes=[64]
    )
    policy = DiscreteQLearningPolicy(model=net, action_space=env.action_space, eps_training=0.2, eps_inference=0.5)
    return DQN(policy=policy, optim=AdamOptimizerFactory(lr=1e-3), target_update_freq=100)


def test_episodes_are_those_of_single_environments_and_mind_the_masks() -> None:
    found = run_page("Tianshou")
    envs, buffer = found["envs"], VectorReplayBuffer(8_000, 4)
    collector = Collector(learner(found["make"]()), envs, buffer)
    envs.seed(3)
    collector.collect(n_episode=8, reset_before_collect=True)
    replay = Replay(NAME, (3, 4, 5, 6), **WORLD)
    for world, part in enumerate(buffer.buffers):
        steps = {name: np.asarray(value) for name, value in {
            "seen": part.obs.obs, "mask": part.obs.mask, "next": part.obs_next.obs, "action": part.act, "reward": part.rew,
        }.items()}  # fmt: skip
        n = len(part)
        for episode in cut({name: value[:n] for name, value in steps.items()}, np.asarray(part.done)[:n]):
            assert episode["mask"][np.arange(len(episode["action"])), episode["action"]].all()
            seen = [episode["seen"][0], *episode["next"]]
            info = replay.check(seen, episode["action"], episode["reward"], world)
            assert info["invalid_actions"] == 0
    assert replay.episodes >= 8


def test_it_trains() -> None:
    found = run_page("Tianshou")
    algorithm = learner(found["make"]())
    collector = Collector(algorithm, found["envs"], VectorReplayBuffer(8_000, 4))
    collector.reset()
    before = [p.detach().clone() for p in algorithm.policy.parameters()]
    result = algorithm.run_training(OffPolicyTrainerParams(
        training_collector=collector, max_epochs=1, epoch_num_steps=3_000, collection_step_num_env_steps=200,
        update_step_num_gradient_steps_per_sample=0.05, show_progress=False, verbose=False,
    ))  # fmt: skip
    assert result.train_step >= 3_000
    after = [p.detach() for p in algorithm.policy.parameters()]
    assert all(torch.isfinite(p).all() for p in after)
    assert any(not torch.equal(one, other) for one, other in zip(before, after, strict=True))
