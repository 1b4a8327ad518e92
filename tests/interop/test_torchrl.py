"""TorchRL: rollouts of single and of many worlds are those of single environments, masks and infos too, and PPO trains on them."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from tests.interop.replay import Replay, cut, run_page

pytest.importorskip("torchrl.collectors")
import torch
from tensordict.nn import TensorDictModule
from torchrl.collectors import Collector
from torchrl.envs import GymEnv, GymWrapper, check_env_specs
from torchrl.modules import MLP, MaskedCategorical, ProbabilisticActor, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

NAME, WORLD = "wisp_gym/Speculation-v1", {"devices": 4, "horizon_s": 3.0}
SEEDS = (5, 6, 7)


def replayed(data: Any, seeds: Any, name: str = NAME, **world: Any) -> list[dict[str, Any]]:
    """Play the complete episodes of (worlds, T) steps again; what each says at its end."""
    replay, ends = Replay(name, seeds, **world), []
    for world, steps in enumerate(data):
        columns = {
            "seen": steps["observation"], "next": steps["next", "observation"], "action": steps["action"],
            "reward": steps["next", "reward"][..., 0],
        }  # fmt: skip
        for episode in cut({key: part.numpy() for key, part in columns.items()}, steps["next", "done"][..., 0].numpy()):
            seen = [episode["seen"][0], *episode["next"]]
            ends.append(replay.check(seen, episode["action"], episode["reward"], world))
    return ends


def test_one_world() -> None:
    env = GymEnv(f"wisp_gym:{NAME}", categorical_action_encoding=True, **WORLD)
    check_env_specs(env)
    data = env.auto_register_info_dict().rollout(20, break_when_any_done=False)
    assert data["next", "dt"].shape[0] == 20
    assert data["next", "action_mask"].shape == (20, 4)


@pytest.mark.parametrize("mode", ["SameStep", "Disabled"])
def test_many_worlds_give_the_episodes_of_single_ones(mode: str) -> None:
    envs = gym.make_vec(NAME, num_envs=3, autoreset_mode=mode, **WORLD)
    env = GymWrapper(envs, categorical_action_encoding=True)
    envs.np_random = [np.random.default_rng(seed) for seed in SEEDS]  # TorchRL has played already, to see the infos
    data = env.rollout(100, break_when_any_done=False)
    assert len(replayed(data, SEEDS, **WORLD)) >= 6
    if mode == "SameStep":  # the infos of a last step are those of the episode that ended
        assert (data["next", "time_s"][data["next", "done"][..., 0]] == WORLD["horizon_s"]).all()


def test_it_refuses_the_mode_that_it_cannot_read() -> None:
    with pytest.raises(RuntimeError, match="SAME_STEP or DISABLED"):
        GymWrapper(gym.make_vec(NAME, num_envs=2, autoreset_mode="NextStep", **WORLD))


def test_the_pages_lines_mind_the_masks_and_train() -> None:
    found = run_page("TorchRL")
    env, envs = found["env"], found["envs"]
    size, actions = envs.single_observation_space.shape[0], int(envs.single_action_space.n)
    torch.manual_seed(0)
    logits = TensorDictModule(MLP(size, actions, num_cells=[64]), in_keys=["observation"], out_keys=["logits"])
    policy = ProbabilisticActor(
        logits, in_keys={"logits": "logits", "mask": "action_mask"}, distribution_class=MaskedCategorical,
        return_log_prob=True, spec=env.action_spec,
    )  # fmt: skip
    value = ValueOperator(MLP(size, 1, num_cells=[64]), in_keys=["observation"])
    loss, gae = ClipPPOLoss(policy, value), GAE(gamma=0.99, lmbda=0.95, value_network=value)
    optimizer, steps = torch.optim.Adam(loss.parameters(), 3e-4), 0
    for data in Collector(env, policy, frames_per_batch=1_000, total_frames=3_000):
        gae(data)
        losses = loss(data.reshape(-1))
        total = losses["loss_objective"] + losses["loss_critic"] + losses["loss_entropy"]
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        steps += data.numel()
        assert torch.isfinite(total)
        assert data["action_mask"].gather(-1, data["action"][..., None]).bool().all()
    assert steps == 3_000
    assert (envs.task.told()["invalid_actions"] == 0).all()


def test_random_play_through_the_mask_is_valid() -> None:
    env, world = run_page("TorchRL")["env"], {"devices": 8, "visible": 8, "horizon_s": 5.0}
    env.base_env._env.unwrapped.np_random = [np.random.default_rng(seed) for seed in range(4)]
    ends = replayed(data := env.rollout(1_000, break_when_any_done=False), range(4), "wisp_gym/Batching-v1", **world)
    assert ends
    assert all(info["invalid_actions"] == 0 for info in ends)
    assert np.isfinite(data["next", "reward"].numpy()).all()
