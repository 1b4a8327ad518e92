"""The mask in the observation: the same decisions, one key more, for every environment."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import wisp_gym
from wisp_gym.envs.mask import MaskInObservation, MaskInVectorObservation

SMALL = {"devices": 3, "horizon_s": 2.0}
EVERY_ID = pytest.mark.parametrize("name", sorted(wisp_gym.ENVIRONMENTS))


@EVERY_ID
def test_an_observation_holds_its_mask(name: str) -> None:
    plain, wrapped = gym.make(name, **SMALL), MaskInObservation(gym.make(name, **SMALL))
    rng = np.random.default_rng(0)
    seen, info = plain.reset(seed=3)
    shown, _ = wrapped.reset(seed=3)
    for _ in range(200):
        assert wrapped.observation_space.contains(shown)
        assert np.array_equal(shown["observation"], seen)
        assert np.array_equal(shown["action_mask"], info["action_mask"])
        action = int(rng.choice(np.flatnonzero(info["action_mask"])))
        seen, reward, _, over, info = plain.step(action)
        shown, paid, _, ended, _ = wrapped.step(action)
        assert (reward, over) == (paid, ended)
        if over:
            break
    assert shown.keys() == {"observation", "action_mask"}


@EVERY_ID
@pytest.mark.filterwarnings("error", "ignore:.*environment.*wrapped:UserWarning")
def test_gymnasiums_checker_accepts_it(name: str) -> None:
    check_env(MaskInObservation(gym.make(name, **SMALL).unwrapped), skip_render_check=True)


def test_the_key_of_the_observation_can_be_another() -> None:
    env = MaskInObservation(gym.make("wisp_gym/Speculation-v1", **SMALL), name="observations")
    assert env.reset(seed=0)[0].keys() == {"observations", "action_mask"} == set(env.observation_space.spaces)
    many = MaskInVectorObservation(
        gym.make_vec("wisp_gym/Speculation-v1", num_envs=2, **SMALL), name="obs", mask="mask"
    )
    assert many.reset(seed=0)[0].keys() == {"obs", "mask"} == set(many.single_observation_space.spaces)
    assert many.autoreset_mode is many.metadata["autoreset_mode"]
    assert gym.make(env.spec).observation_space == env.observation_space  # the wrapper is a part of the specification


def test_many_worlds_and_what_they_end_with() -> None:
    name = "wisp_gym/SpeculationLength-v1"
    plain, wrapped = (gym.make_vec(name, num_envs=3, threads=1, **SMALL) for _ in range(2))
    wrapped = MaskInVectorObservation(wrapped)
    seen, infos = plain.reset(seed=7)
    shown, _ = wrapped.reset(seed=7)
    ended = 0
    for k in range(60):
        assert wrapped.observation_space.contains(shown)
        assert np.array_equal(shown["observation"], seen)
        assert np.array_equal(shown["action_mask"], infos["action_mask"])
        actions = np.full(3, k % 3)
        seen, _, _, over, infos = plain.step(actions)
        shown, _, _, _, more = wrapped.step(actions)
        for index in np.flatnonzero(over):
            last = more["final_obs"][index]
            assert wrapped.single_observation_space.contains(last)
            assert np.array_equal(last["observation"], infos["final_obs"][index])
            assert np.array_equal(last["action_mask"], infos["final_info"]["action_mask"][index])
            ended += 1
    assert ended >= 3
