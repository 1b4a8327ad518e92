"""RLlib: sampled episodes are those of single environments in every way to make many, masks too, and PPO trains on them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.interop.replay import Replay, run_page

pytest.importorskip("ray.rllib.algorithms.ppo", exc_type=ImportError)
import ray
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.examples.rl_modules.classes.action_masking_rlm import ActionMaskingTorchRLModule

NAME, WORLD = "wisp_gym/SpeculationLength-v1", {"devices": 4, "horizon_s": 3.0}
MODES = {"sync": {}, "vector_entry_point": {"autoreset_mode": "NextStep"}}


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """One local Ray for all tests."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()


def sampled(mode: str, arguments: dict[str, Any]) -> list[Any]:
    """Complete episodes of an untrained policy that does what it thinks best, each played again."""
    config = PPOConfig().environment(f"wisp_gym:{NAME}", env_config=WORLD | arguments).debugging(seed=5)
    config.env_runners(num_env_runners=0, num_envs_per_env_runner=2, gym_env_vectorize_mode=mode)
    runner = SingleAgentEnvRunner(config=config, worker_index=0)
    episodes = [episode for episode in runner.sample(num_episodes=6, explore=False) if episode.is_done]
    replay = Replay(NAME, runner.env.unwrapped.np_random_seed, **WORLD)
    for episode in episodes:
        assert float(episode.get_infos(-1)["time_s"]) == 3.0
        replay.check(episode.get_observations(), episode.get_actions(), episode.get_rewards())
    return episodes


def test_many_worlds_give_the_episodes_of_single_ones() -> None:
    ways = [sampled(mode, arguments) for mode, arguments in MODES.items()]
    assert [len(episodes) for episodes in ways] == [6, 6]
    for one, other in zip(*ways, strict=True):  # the same seeds, so the same worlds and weights
        assert np.array_equal(one.get_observations(), other.get_observations())
        assert np.allclose(one.get_rewards(), other.get_rewards())


def test_the_pages_lines_train() -> None:
    algorithm = run_page("RLlib")["config"].debugging(seed=0).build_algo()
    results = [algorithm.train() for _ in range(2)]
    runners = results[-1]["env_runners"]
    assert runners["num_env_steps_sampled_lifetime"] >= 3_000
    assert np.isfinite(runners["episode_return_mean"])
    assert runners["episode_len_mean"] > 5
    algorithm.stop()


def test_masks_in_the_observation_are_minded() -> None:
    run_page("RLlib")
    config = PPOConfig().environment("batching", env_config={"devices": 8, "horizon_s": 3.0}).debugging(seed=0)
    config.env_runners(num_env_runners=0, num_envs_per_env_runner=2, gym_env_vectorize_mode="vector_entry_point")
    config.training(train_batch_size=1_000, minibatch_size=128, num_epochs=2)
    config.rl_module(rl_module_spec=RLModuleSpec(module_class=ActionMaskingTorchRLModule))
    algorithm = config.build_algo()
    assert np.isfinite(algorithm.train()["env_runners"]["episode_return_mean"])
    episodes = [episode for episode in algorithm.env_runner.sample(num_episodes=4) if episode.is_done]
    assert len(episodes) >= 4
    for episode in episodes:
        assert int(episode.get_infos(-1)["invalid_actions"]) == 0
        masks = episode.get_observations(slice(0, len(episode)))["action_mask"]
        assert masks[np.arange(len(episode)), episode.get_actions()].all()
    algorithm.stop()
