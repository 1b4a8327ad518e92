"""What the environments refuse: one line that says what was given and what is allowed, before anything is touched."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import Error, InvalidAction, ResetNeeded

import wisp_gym
from wisp_gym.controllers.policy import load_policy
from wisp_gym.controllers.scorer_policy import load_scorer
from wisp_gym.engine.exchange import Exchange
from wisp_gym.engine.run import BEGIN, run
from wisp_gym.engine.worlds import Worlds
from wisp_gym.envs.shells import DecisionEnv, DecisionVectorEnv
from wisp_gym.errors import InputError
from wisp_gym.scenario import load, save

IDS = list(wisp_gym.ENVIRONMENTS)
SPECULATION, LENGTH, BATCHING, JOINT = IDS
SMALL = {"devices": 4, "horizon_s": 3.0}
EVERY_ID = pytest.mark.parametrize("name", IDS)
HUGE = 10**5000  # more digits than Python writes
NAN, INF = float("nan"), float("inf")


def single(name: str = SPECULATION, **arguments: Any) -> DecisionEnv:
    env = gym.make(name, **{**SMALL, **arguments}).unwrapped
    assert isinstance(env, DecisionEnv)
    return env


def vector(name: str = SPECULATION, **arguments: Any) -> DecisionVectorEnv:
    envs = gym.make_vec(name, **{"num_envs": 3, "threads": 1, **SMALL, **arguments})
    assert isinstance(envs, DecisionVectorEnv)
    return envs


def refused(call: Callable[[], Any], *kinds: type[Exception]) -> str:
    """The message of the error that a call raises, which is one line, an InputError and of all other kinds."""
    with pytest.raises(kinds[0] if kinds else InputError) as raised:
        call()
    for kind in (InputError, *kinds) if ResetNeeded not in kinds else kinds:
        assert isinstance(raised.value, kind), raised.value
    message = str(raised.value)
    assert "\n" not in message
    return message


def state(env: DecisionEnv | DecisionVectorEnv) -> str:
    """Everything that decides what comes next, as a digest."""
    digest, task = hashlib.sha256(), env.task
    rngs = env.rngs if isinstance(env, DecisionVectorEnv) else [env.np_random]
    arrays = [
        *task.episodes.arrays.own().values(),
        task.kinds,
        task.observations,
        task.outcomes,
        task.masks,
        task.device,
    ]
    for array in arrays:
        digest.update(array.tobytes())
    digest.update(repr([rng.bit_generator.state for rng in rngs]).encode())
    return digest.hexdigest()


# Order of calls.


@EVERY_ID
def test_a_step_needs_a_reset_before_the_first_episode_and_after_the_horizon(name: str) -> None:
    env, envs = single(name, render_mode="ansi"), vector(name)
    for call in (
        lambda: env.step(0),
        env.action_masks,
        env.render,
        lambda: envs.step(np.zeros(3, int)),
        envs.action_masks,
    ):
        refused(call, ResetNeeded)
    env.reset(seed=0)
    while not env.step(int(env.action_masks().argmax()))[3]:
        pass
    before = state(env)
    refused(lambda: env.step(0), ResetNeeded)
    assert state(env) == before
    assert env.action_masks().any()  # what it was at the end
    env.reset()
    env.step(0)


def test_a_mask_that_leaves_out_worlds_that_never_began_needs_a_reset() -> None:
    envs = vector()
    refused(lambda: envs.reset(options={"reset_mask": np.array([True, False, True])}), ResetNeeded)
    envs.reset(options={"reset_mask": np.ones(3, bool)})
    envs.step(np.zeros(3, int))


def test_closing_twice_is_fine_and_a_closed_environment_goes_on() -> None:
    for env in (single(), vector()):
        env.reset(seed=0)
        env.close()
        env.close()
        env.step(env.action_space.sample())  # it holds nothing that a close would release


def test_a_horizon_before_every_decision_is_refused_and_needs_another_reset() -> None:
    env = single(horizon_s=1e-6)
    assert "longer horizon_s" in refused(lambda: env.reset(seed=0))
    refused(lambda: env.step(0), ResetNeeded)


# Actions.

NO_ACTIONS = [1.0, 0.9, NAN, None, "1", -1, 2**70, [1], np.array([1]), np.float32(1), np.bool_(True), (), {}]
NO_ROWS = [
    np.zeros(2, int), np.zeros(4, int), np.zeros((3, 1), int), np.zeros(3), np.array([0.9, 1.9, 0.2]), np.zeros(3, bool), [0.0, 1.0, 0.0],
    [0, 1], [[0], [1, 0], [1]], [None] * 3, ["0", "1", "0"], np.array([0, 1, -1]), np.array([0, 1, 2**63], np.uint64), [0, 1, 2**70], None, 1,
]  # fmt: skip


@EVERY_ID
def test_what_is_no_action_is_refused(name: str) -> None:
    env, envs = single(name), vector(name)
    env.reset(seed=0), envs.reset(seed=0)
    before = state(env), state(envs)
    for action in [*NO_ACTIONS, env.task.actions]:
        assert "allowed are 0 to" in refused(lambda: env.step(action), InvalidAction)  # noqa: B023 - called at once
    for actions in [*NO_ROWS, np.full(3, env.task.actions)]:
        assert "whole numbers from 0 to" in refused(lambda: envs.step(actions), InvalidAction)  # noqa: B023
    assert before == (state(env), state(envs))


def test_whatever_memory_actions_lie_in_they_are_the_same_and_nothing_is_compiled() -> None:
    results, compiled = [], None
    read_only = np.array([0, 1, 0])
    read_only.flags.writeable = False
    rows: list[Any] = [[0, 1, 0], (0, 1, 0), np.array([0, 1, 0], np.uint8), np.array([0, 1, 0], ">i8"), read_only]
    for actions in [np.array([0, 1, 0]), *rows, np.array([[0, 9], [1, 9], [0, 9]])[:, 0], np.array([0, 1, 0])[::-1]]:
        envs = vector()
        envs.reset(seed=0)
        results.append(envs.step(actions)[0])
        compiled = compiled or len(run.signatures)
        assert len(run.signatures) == compiled
    assert all(np.array_equal(one, results[0]) for one in results)


def test_every_action_of_the_space_is_taken() -> None:
    env = single()
    for action in (1, np.int64(1), np.uint8(1), np.array(1), True):
        assert env.action_space.contains(action)
        env.reset(seed=0)
        assert env.step(action)[4]["drafted_tokens"] == 1


def test_rewards_are_the_callers_own() -> None:
    envs = vector(LENGTH, reward_weights=dict.fromkeys(single(LENGTH).task.weights, 0.0))
    envs.reset(seed=0)
    rewards = envs.step(np.zeros(3, int))[1]
    rewards += 1.0
    assert rewards.tolist() == [1.0] * 3


# Seeds, masks and options of reset.

NO_SEEDS = [-1, 1.0, NAN, "1", True, np.bool_(True), np.float64(1), b"1", {}]
NO_ROWS_OF_SEEDS = [
    [1, 2], [1, 2, 3, 4], (1, 2), [], np.arange(2), np.zeros(3), np.zeros((3, 1), int), [1, 2, -3], [1, 2, 3.0], [1, True, 2], ["1", "2", "3"],
    [[1], [2], [3]],
]  # fmt: skip
NO_MASKS = [
    np.ones(2, bool), np.ones(4, bool), np.ones((3, 1), bool), np.array(True), np.array([0.0, 1.0, 0.0]), np.array([0, 1, 0]), np.zeros(3, bool),
    [True] * 3, (True,) * 3, True, None, "mask",
]  # fmt: skip
NO_OPTIONS: list[Any] = [
    5, "devices", [("devices", 2)], {"devises": 2}, {5: 2}, {None: 2}, {("devices",): 2}, {"devices": True}, {"devices": "2"}, {"devices": None},
    {"devices": 2.5}, {"devices": 0}, {"devices": 5}, {"devices": [2]}, {"devices": NAN}, {"devices": HUGE}, {"device": 4}, {"device": -1},
    {"jitter": np.array([1.0])}, {"jitter": INF}, {"jitter": 1j}, {"verification_time": np.True_},
]  # fmt: skip


def test_what_is_no_seed_is_refused() -> None:
    env, envs = single(), vector()
    env.reset(seed=0), envs.reset(seed=0)
    before = state(env), state(envs)
    for seed in NO_SEEDS:
        assert "seed: given" in refused(lambda: env.reset(seed=seed), Error)  # noqa: B023
        assert "seed: given" in refused(lambda: envs.reset(seed=seed), Error)  # noqa: B023
    for seeds in NO_ROWS_OF_SEEDS:
        assert "seed: given" in refused(lambda: envs.reset(seed=seeds), Error)  # noqa: B023
    assert before == (state(env), state(envs))


def test_every_form_of_a_seed_is_the_same_seed() -> None:
    env, envs = single(), vector()
    one, three = env.reset(seed=3)[0], envs.reset(seed=3)[0]
    for seed in (np.int64(3), np.uint8(3)):
        assert np.array_equal(env.reset(seed=seed)[0], one)
        assert np.array_equal(envs.reset(seed=seed)[0], three)
    for seeds in ([3, 4, 5], (3, 4, 5), np.arange(3, 6), range(3, 6), [np.int64(3), 4, 5]):
        assert np.array_equal(envs.reset(seed=seeds)[0], three)
    for seed in (2**63, 2**64 + 3, HUGE):  # Gymnasium takes them all
        assert env.observation_space.contains(env.reset(seed=seed)[0])
        assert envs.observation_space.contains(envs.reset(seed=[seed, None, 0])[0])


def test_the_generators_are_at_hand() -> None:
    envs, twin = vector(), vector()
    assert len(envs.np_random) == len(envs.np_random_seed) == 3
    envs.reset(seed=[7, 8, 9])
    assert envs.np_random_seed == (7, 8, 9)
    twin.np_random = [np.random.default_rng(seed) for seed in (7, 8, 9)]
    assert twin.np_random_seed == (-1, -1, -1)
    assert np.array_equal(twin.reset()[0], envs.reset(seed=[7, 8, 9])[0])
    for wrong in ([np.random.default_rng()] * 2, [1, 2, 3], 5):
        refused(lambda: setattr(twin, "np_random", wrong))  # noqa: B023


def test_what_is_no_mask_is_refused() -> None:
    envs = vector()
    envs.reset(seed=0)
    before = state(envs)
    for mask in NO_MASKS:
        options = {"reset_mask": mask}
        assert "reset_mask given" in refused(lambda: envs.reset(seed=1, options=options), TypeError)  # noqa: B023
        assert options == {"reset_mask": mask} or isinstance(mask, np.ndarray)  # the caller's own stays as it was
    assert state(envs) == before


@EVERY_ID
def test_what_is_no_option_is_refused(name: str) -> None:
    env, envs = single(name), vector(name)
    env.reset(seed=0), envs.reset(seed=0)
    before = state(env), state(envs)
    for options in NO_OPTIONS:
        assert "options" in refused(lambda: env.reset(seed=1, options=options))  # noqa: B023
        assert "options" in refused(lambda: envs.reset(seed=1, options=options))  # noqa: B023
    assert before == (state(env), state(envs))


def test_a_device_that_some_episodes_lack_is_refused_in_all() -> None:
    env = single(devices=8, randomise={"devices": (3, 8)})
    assert "device given 3, allowed is 0 to 2" in refused(lambda: env.reset(seed=0, options={"device": 3}))
    assert env.reset(seed=0, options={"device": 3, "devices": 5})[1]["deciding_device"] == 3


# Arguments.

EVERYWHERE: dict[str, list[Any]] = {
    "scenario": [5, None, b"wisp-study", "", True, {}, "x" * 5000, "a\0b", "wisp-stud", Path("wisp-stud")],
    "devices": [2.0, True, "4", 0, -1, HUGE, NAN, [4], np.array([4]), np.float64(4), 10**9],
    "controller": [5, b"wisp", "", ["wisp"], "wips+fcfs", "fixed:4", Path("nowhere.json")],
    "horizon_s": ["60", True, 0, -1.0, NAN, INF, None, [60], HUGE, 1j],
    "average_reward": ["won", True, -1, NAN, INF, None, [1.0]],
    "reward_weights": [5, "time", ["time"], {"tme": 1}, {"time": "1"}, {"time": None}, {"time": NAN}, {"time": True}, {5: 1}],
    "randomise": [
        5, "jitter", ["jitter"], {"jiter": (1, 2)}, {5: (1, 2)}, {"jitter": 2}, {"jitter": "12"}, {"jitter": (1, 2, 3)}, {"jitter": ("1", "2")},
        {"jitter": (2, 1)}, {"jitter": (0, NAN)}, {"jitter": {1, 2}}, {"devices": (0, 4)}, {"devices": (1, 1e9)}, {"jitter": (False, True)},
    ],
    "slo": ["8", True, 0, -1, NAN, INF, [8]],
    "render_mode": ["rgb", 5, ["ansi"]],
    "horizon": [5.0],
}  # fmt: skip
IN_SPECULATION: dict[str, list[Any]] = {
    "others": [5, b"x", "", "nowhere.json", Path("nowhere"), "fixed:4"],
    "reveal_fates": [1, "yes", None],
}
IN_BATCHING: dict[str, list[Any]] = {"visible": [0, 1025, 4.0, True, "4", None], "responses_join": [1, "no", None]}
IN_VECTORS: dict[str, list[Any]] = {
    "num_envs": [0, -1, 2.0, True, "2", None, HUGE],
    "threads": [0, -1, "2", 2.0, True, HUGE],
    "autoreset_mode": ["next", 5, None, ["NextStep"], True],
    "max_episode_steps": [5],
}


def arguments_of(name: str) -> dict[str, list[Any]]:
    own = IN_SPECULATION if name in (SPECULATION, LENGTH) else IN_BATCHING
    own_average = [] if name in (SPECULATION, LENGTH) else ["own"]
    return {**EVERYWHERE, **own, "average_reward": [*EVERYWHERE["average_reward"], *own_average]}


@EVERY_ID
def test_wrong_arguments_of_one_environment_are_refused(name: str) -> None:
    cls = type(single(name))
    for argument, values in arguments_of(name).items():
        for value in values:
            message = refused(lambda: cls(**{argument: value}))  # noqa: B023
            assert argument in message or str(value)[:40] in message, message


@EVERY_ID
def test_wrong_arguments_of_many_environments_are_refused(name: str) -> None:
    cls = type(vector(name))
    for argument, values in {**arguments_of(name), **IN_VECTORS}.items():
        for value in values:
            refused(lambda: cls(**{argument: value}))  # noqa: B023


def test_an_unknown_argument_is_pythons_type_error_too() -> None:
    assert "did you mean 'horizon_s'" in refused(lambda: single(horizon=5.0), TypeError)


def test_numpys_numbers_are_numbers_and_paths_are_names(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    save(load("wisp-a100-qwen3-32b"), path)
    given = {"devices": np.int64(4), "horizon_s": np.float32(3), "slo": np.int64(8), "average_reward": 2}
    plain = {"devices": 4, "horizon_s": 3, "slo": 8.0, "average_reward": 2.0}
    ranges: list[Any] = [{"jitter": np.array([0, 1])}, {"jitter": [0, 1.0]}]
    seen = [
        single(scenario=scenario, randomise=each, **arguments).reset(seed=0)[0]
        for scenario in (path, str(path))
        for arguments, each in zip((given, plain), ranges, strict=True)
    ]
    assert all(np.array_equal(one, seen[0]) for one in seen)
    policy = Path(wisp_gym.__file__).parent / "data" / "policies" / "speculation-v1.json"
    others = [single(others=others).reset(seed=0)[0] for others in (policy, str(policy), "speculation-v1")]
    assert np.array_equal(others[0], others[1])
    assert np.array_equal(others[0], others[2])
    single(controller=policy).reset(seed=0)


def test_what_is_no_policy_of_devices_is_refused() -> None:
    for env in (single(), vector()):
        env.reset(seed=0)
        before = state(env)
        for wrong in ("speculation-v1", None, 5, load_scorer("batching-v1")):
            assert "policy: given" in refused(lambda: env.set_policy(wrong))  # noqa: B023
        assert state(env) == before
        env.set_policy(load_policy("speculation-v1"))


# The boundary of compiled code.


def test_compiled_code_is_handed_arrays_of_its_own_length_alone() -> None:
    task = vector().task
    worlds, e = task.episodes.worlds, task.exchange
    for wrong in (np.ones(2, bool), np.ones(4, bool)):
        refused(lambda: worlds.spread(BEGIN, **{**e.arrays(), "which": wrong}))  # noqa: B023
        refused(lambda: e.begin(wrong))  # noqa: B023
    for wrong in (e.observations[:2], e.observations.astype(float), e.observations[:, ::2], e.observations.ravel()):
        refused(lambda: worlds.spread(BEGIN, **{**e.arrays(), "observations": wrong}))  # noqa: B023
    refused(lambda: e.begin(np.ones(3)))
    assert isinstance(e, Exchange)


def test_worlds_are_refused_what_they_have_no_room_for() -> None:
    for wrong in (
        {"n_worlds": 0},
        {"n_worlds": -1},
        {"n_devices": 0},
        {"n_devices": 2.0},
        {"threads": -1},
        {"threads": 0},
    ):
        refused(lambda: Worlds(**{"n_worlds": 1, "n_devices": 4, **wrong}))  # noqa: B023
    scenario, worlds = load("wisp-a100-qwen3-32b"), Worlds(1, 4, threads=1)
    controller = single().task.episodes.controller
    assert "devices: given" in refused(lambda: worlds.fill(0, scenario, 0, controller))  # the scenario's are more
    for devices in (0, 5, True):
        refused(lambda: worlds.fill(0, scenario, 0, controller, devices))  # noqa: B023
    for index in (-1, 1, True):
        refused(lambda: worlds.fill(index, scenario, 0, controller, 4))  # noqa: B023
