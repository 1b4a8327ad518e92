"""Copies, and objects in other processes, go on to the same numbers; nothing of this is an exchange format."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import wisp_gym
from wisp_gym import policies
from wisp_gym.contract import device, request, server
from wisp_gym.controllers.policy import load_policy
from wisp_gym.controllers.predict import SpeculationPredictor
from wisp_gym.controllers.predict_batching import BatchingPredictor
from wisp_gym.controllers.resolve import resolve
from wisp_gym.controllers.scorer_policy import load_scorer
from wisp_gym.engine import state
from wisp_gym.engine.run import run
from wisp_gym.envs.mask import MaskInVectorObservation
from wisp_gym.scenario import load
from wisp_gym.simulation import simulate

IDS = list(wisp_gym.ENVIRONMENTS)
SPECULATION, LENGTH, BATCHING, JOINT = IDS
SMALL = {"devices": 4, "horizon_s": 3.0, "randomise": {"devices": (2, 4)}}
EVERY_ID = pytest.mark.parametrize("name", IDS)
COPIES: dict[str, Callable[[Any], Any]] = {
    "pickled": lambda given: pickle.loads(pickle.dumps(given)),
    "deep": copy.deepcopy,
}
EVERY_COPY = pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)


def played(env: gym.Env, steps: int = 120) -> list[Any]:
    """What comes of the first valid actions from here on, episodes that begin again included."""
    seen: list[Any] = []
    for k in range(steps):
        valid = np.flatnonzero(env.unwrapped.action_masks())
        *numbers, over, info = env.step(int(valid[k % len(valid)]))
        seen += [*numbers, over, info["time_s"]]
        seen += [env.reset()[0]] if over else []
    return seen


def played_together(envs: gym.vector.VectorEnv, steps: int = 80) -> list[Any]:
    """The same of many."""
    seen: list[Any] = []
    for k in range(steps):
        actions = envs.unwrapped.action_masks().argmax(axis=1) if k % 3 else np.zeros(envs.num_envs, int)
        *numbers, infos = envs.step(actions)
        seen += [*numbers, infos["time_s"]]
    return seen


def same(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) and all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def digest_elsewhere(kind: str, pickled: bytes) -> list[Any]:
    """The job of another process."""
    return (played if kind == "single" else played_together)(pickle.loads(pickled))


@EVERY_ID
@EVERY_COPY
def test_a_copied_environment_goes_on_to_the_same_numbers(name: str, copied: Callable[[Any], Any]) -> None:
    env = gym.make(name, **SMALL)
    env.reset(seed=4)
    played(env, 30)
    twin = copied(env)
    mine = played(env)
    assert same(mine, played(twin))  # which the original's going on has not touched
    assert not same(mine[: len(mine) // 2], played(env)[: len(mine) // 2])


@EVERY_ID
@EVERY_COPY
@pytest.mark.parametrize("mode", ["SameStep", "NextStep"])
def test_a_copied_vector_environment_goes_on_to_the_same_numbers(
    name: str, copied: Callable[[Any], Any], mode: str
) -> None:
    envs = gym.make_vec(name, num_envs=3, threads=2, autoreset_mode=mode, **SMALL)
    envs.reset(seed=4)
    played_together(envs, 30)
    twin = copied(envs)
    assert twin.metadata == envs.metadata
    assert same(played_together(envs), played_together(twin))


def test_a_shallow_copy_is_the_same_environment() -> None:
    env = gym.make(SPECULATION, **SMALL).unwrapped
    env.reset(seed=4)
    twin = copy.copy(env)
    assert twin.task is env.task
    assert env.observation_space.contains(twin.step(1)[0])


@EVERY_COPY
def test_a_copy_runs_as_fast_as_the_original(copied: Callable[[Any], Any]) -> None:
    env = gym.make(SPECULATION, **SMALL).unwrapped
    env.reset(seed=0)
    env.step(1)
    compiled = len(run.signatures)
    twin = copied(env)
    twin.step(1)
    assert len(run.signatures) == compiled
    arrays = twin.task.episodes.arrays  # numba knows these structures by sight, equal ones by comparing all fields
    assert (arrays.device.dtype, arrays.config.dtype) == (state.DEVICE, state.CONFIG)
    assert arrays.device.dtype is state.DEVICE
    assert arrays.config.dtype is state.CONFIG


def test_environments_go_on_in_a_spawned_process() -> None:
    env, envs = gym.make(SPECULATION, **SMALL), gym.make_vec(BATCHING, num_envs=2, threads=1, **SMALL)
    env.reset(seed=1), envs.reset(seed=1)
    wrapped = MaskInVectorObservation(envs)
    played(env, 20), played_together(wrapped.env, 20)
    jobs = [("single", pickle.dumps(env)), ("vector", pickle.dumps(wrapped.env))]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        theirs = pool.starmap(digest_elsewhere, jobs)
    assert same(played(env), theirs[0])
    assert same(played_together(envs), theirs[1])


@EVERY_COPY
def test_scenarios_controllers_and_policies_can_be_copied(copied: Callable[[Any], Any]) -> None:
    scenario = load("wisp-a100-qwen3-32b")
    assert copied(scenario) == scenario
    for name in ("wisp", "fixed:4+fcfs", "centralized", "dipsd+pipelined", "batching-v1"):
        controller = resolve(name, scenario)
        twin = copied(controller)
        assert twin == controller
        assert simulate(scenario, twin, [3], n_devices=4) == simulate(scenario, controller, [3], n_devices=4)
    for policy in (load_policy("speculation-v1"), load_scorer("batching-v1")):
        assert np.array_equal(copied(policy).weights, policy.weights)
    assert copied(policies.load("speculation-v1")) == policies.load("speculation-v1")


@EVERY_COPY
def test_predictors_can_be_copied(copied: Callable[[Any], Any]) -> None:
    rng = np.random.default_rng(0)
    for predictor, size in (
        (SpeculationPredictor("random:0.5", "wisp-a100-qwen3-32b"), device.SIZE),
        (SpeculationPredictor("speculation-v1", "wisp-a100-qwen3-32b"), device.SIZE),
        (BatchingPredictor("wisp", "wisp-a100-qwen3-32b"), server.SIZE + request.SIZE * 4),
        (BatchingPredictor("batching-v1", "wisp-a100-qwen3-32b"), server.SIZE + request.SIZE * 4),
    ):
        seen = rng.uniform(size=(50, size))
        twin = copied(predictor)
        assert np.array_equal(twin.predict(seen)[0], predictor.predict(seen)[0])
