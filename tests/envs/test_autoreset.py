"""What becomes of a world at its horizon, in each of Gymnasium's modes, and Gymnasium's wrappers around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import wrappers as single_wrappers
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers import vector as vector_wrappers

import wisp_gym
from wisp_gym.envs.mask import MaskInVectorObservation

IDS = list(wisp_gym.ENVIRONMENTS)
SPECULATION, LENGTH, BATCHING, JOINT = IDS
SHORT = {"devices": 4, "horizon_s": 2.0, "randomise": {"devices": (2, 4)}}
EVERY_ID = pytest.mark.parametrize("name", IDS)
MODES = list(AutoresetMode)
EVERY_MODE = pytest.mark.parametrize("mode", MODES, ids=[mode.name for mode in MODES])


def ours(name: str, mode: AutoresetMode | str, n: int = 3, **arguments: Any) -> VectorEnv:
    return gym.make_vec(name, num_envs=n, threads=1, autoreset_mode=mode, **{**SHORT, **arguments})


def gymnasiums(name: str, mode: AutoresetMode, n: int = 3) -> VectorEnv:
    return SyncVectorEnv([lambda: gym.make(name, **SHORT) for _ in range(n)], autoreset_mode=mode)


def assert_same(mine: Any, theirs: Any, which: np.ndarray | None = None, place: str = "") -> None:
    """All that Gymnasium's vector environment returns, ours returns; where worlds are marked, of the marked ones."""
    if isinstance(theirs, dict):
        assert mine.keys() == theirs.keys(), place
        for key, value in theirs.items():
            marked = which if key.startswith("_") else theirs.get(f"_{key}", which)
            assert_same(mine[key], value, marked, f"{place}/{key}")
        return
    assert mine.dtype == theirs.dtype, place
    for index in range(len(theirs)) if which is None else np.flatnonzero(which):
        assert np.array_equal(mine[index], theirs[index]), f"{place}[{index}]"


@EVERY_ID
@EVERY_MODE
def test_every_mode_is_that_of_gymnasiums_vector_environment(name: str, mode: AutoresetMode) -> None:
    mine, theirs, rng = ours(name, mode), gymnasiums(name, mode), np.random.default_rng(0)
    assert mine.metadata["autoreset_mode"] is mode
    assert mine.autoreset_mode is mode  # type: ignore[attr-defined] # where TorchRL looks for it
    (seen, infos), (other, others) = mine.reset(seed=5), theirs.reset(seed=5)
    ended = 0
    for _ in range(400):
        assert_same(seen, other)
        assert_same(infos, others)
        actions = rng.integers(mine.single_action_space.n, size=3)
        seen, *numbers, infos = mine.step(actions)
        other, *expected, others = theirs.step(actions)
        for one, two in zip(numbers, expected, strict=True):
            assert_same(one, two)
        over = numbers[2]
        ended += int(over.sum())
        if mode is AutoresetMode.SAME_STEP and over.any():
            # the terms of the step just paid, not those of the reset, which are zero (docs/guide/rl-library.md)
            for name in (name for name in others if name.startswith("reward_")):
                others[name] = np.where(over, others["final_info"][name], others[name])
        if mode is AutoresetMode.DISABLED and over.any():
            assert_same(infos, others)
            with pytest.raises(ResetNeeded, match="over"):
                mine.step(actions)
            options = {"reset_mask": over, "verification_time": 1.5}
            (seen, infos), (other, others) = mine.reset(options=dict(options)), theirs.reset(options=dict(options))
            assert mine.action_masks().shape == infos["action_mask"].shape
        if ended >= 6:
            return
    pytest.fail("no episodes ended")


def test_a_reset_of_some_worlds_tells_of_all_and_marks_those() -> None:
    envs, over = ours(SPECULATION, "NextStep"), np.array([False] * 3)
    envs.reset(seed=0)
    for _ in range(4):
        seen, _, _, _, before = envs.step(np.ones(3, int))
    mask = np.array([True, False, False])
    again, infos = envs.reset(options={"reset_mask": mask})
    assert np.array_equal(again[1:], seen[1:])
    assert infos["_time_s"].tolist() == mask.tolist()
    assert np.array_equal(infos["time_s"][1:], before["time_s"][1:])
    assert not over.any()


def test_a_world_that_is_over_may_be_reset_by_hand_in_every_mode() -> None:
    for mode in (AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED):
        envs, over = ours(SPECULATION, mode), np.zeros(3, bool)
        envs.reset(seed=0)
        while not over.any():
            *_, over, _ = envs.step(np.zeros(3, int))
        _, infos = envs.reset(options={"reset_mask": over})
        begun_s = infos["time_s"].copy()
        *_, again, infos = envs.step(np.zeros(3, int))
        assert (infos["dt"][over] > 0).all() or (infos["time_s"][over] >= begun_s[over]).all()  # no second reset
        assert not again[over].any()


@pytest.mark.parametrize("mode", [word for mode in MODES for word in (mode, mode.value, mode.name)], ids=str)
def test_a_mode_is_given_by_itself_its_value_or_its_name(mode: AutoresetMode | str) -> None:
    envs = ours(SPECULATION, mode)
    assert envs.metadata["autoreset_mode"] in (
        mode,
        AutoresetMode.__members__.get(str(mode)),
        *(m for m in MODES if m.value == mode),
    )
    assert type(envs).metadata["autoreset_mode"] is AutoresetMode.SAME_STEP  # the class's own stays


def test_threads_change_nothing_at_the_next_step() -> None:
    results = []
    for threads in (1, 2):
        envs, rng = (
            gym.make_vec(LENGTH, num_envs=5, threads=threads, autoreset_mode="NextStep", **SHORT),
            np.random.default_rng(1),
        )
        envs.reset(seed=1)
        results.append([envs.step(rng.integers(2, size=5))[:4] for _ in range(150)])
    assert any(step[3].any() for step in results[0])
    for one, two in zip(*results, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def test_stable_baselines3_is_refused_other_modes() -> None:
    sb3 = pytest.importorskip("wisp_gym.sb3")
    for mode in ("NextStep", "Disabled"):
        with pytest.raises(ValueError, match="allowed is 'SameStep'"):
            sb3.DecisionVecEnv(ours(SPECULATION, mode), seed=0)


# The mask in the observation.


@EVERY_ID
@EVERY_MODE
def test_the_mask_in_the_observation_works_in_every_mode(name: str, mode: AutoresetMode) -> None:
    plain, wrapped, rng = ours(name, mode), MaskInVectorObservation(ours(name, mode)), np.random.default_rng(0)
    (seen, infos), (shown, _) = plain.reset(seed=7), wrapped.reset(seed=7)
    ended = 0
    while ended < 4:
        assert wrapped.observation_space.contains(shown)
        assert np.array_equal(shown["observation"], seen)
        assert np.array_equal(shown["action_mask"], infos["action_mask"])
        actions = rng.integers(plain.single_action_space.n, size=3)
        seen, rewards, _, over, infos = plain.step(actions)
        shown, paid, _, ending, more = wrapped.step(actions)
        assert np.array_equal(rewards, paid)
        assert np.array_equal(over, ending)
        assert ("final_obs" in more) == (mode is AutoresetMode.SAME_STEP and bool(over.any()))
        ended += int(over.sum())
        if mode is AutoresetMode.DISABLED and over.any():
            (seen, infos), (shown, _) = (envs.reset(options={"reset_mask": over}) for envs in (plain, wrapped))


# Gymnasium's wrappers. Those that are missing here are of another kind of observation or action, each with its reason.

CONTINUOUS = "of continuous actions; ours are discrete"
IMAGES = "of pictures as observations; ours are vectors"
DICTIONARIES = "of Dict or Tuple observations"
RENDERING = "shows or records pictures, which a vector environment does not draw: render a single one"
EXTRA = "needs an array library that this package does without"
LOW, HIGH = -1.0, 1.0

SINGLE: dict[str, Callable[[gym.Env], gym.Env] | str] = {
    "AtariPreprocessing": IMAGES,
    "DelayObservation": lambda env: single_wrappers.DelayObservation(env, 2),
    "DtypeObservation": lambda env: single_wrappers.DtypeObservation(env, np.float64),
    "DiscretizeObservation": lambda env: single_wrappers.DiscretizeObservation(env, 3),
    "FilterObservation": DICTIONARIES,
    "FlattenObservation": single_wrappers.FlattenObservation,
    "FrameStackObservation": lambda env: single_wrappers.FrameStackObservation(env, 3),
    "GrayscaleObservation": IMAGES,
    "TransformObservation": lambda env: single_wrappers.TransformObservation(
        env, lambda o: o * 0.5, env.observation_space
    ),
    "MaxAndSkipObservation": lambda env: single_wrappers.MaxAndSkipObservation(env, 2),
    "NormalizeObservation": single_wrappers.NormalizeObservation,
    "AddRenderObservation": lambda env: single_wrappers.AddRenderObservation(env, render_only=False),
    "ResizeObservation": IMAGES,
    "ReshapeObservation": lambda env: single_wrappers.ReshapeObservation(env, (*env.observation_space.shape, 1)),
    "RescaleObservation": lambda env: single_wrappers.RescaleObservation(env, np.float32(LOW), np.float32(HIGH)),
    "TimeAwareObservation": lambda env: single_wrappers.TimeAwareObservation(single_wrappers.TimeLimit(env, 1000)),
    "ClipAction": CONTINUOUS,
    "DiscretizeAction": CONTINUOUS,
    "TransformAction": lambda env: single_wrappers.TransformAction(env, lambda action: action, env.action_space),
    "RescaleAction": CONTINUOUS,
    "StickyAction": lambda env: single_wrappers.StickyAction(env, 0.3),
    "RepeatAction": lambda env: single_wrappers.RepeatAction(env, 2),
    "ClipReward": lambda env: single_wrappers.ClipReward(env, LOW, HIGH),
    "TransformReward": lambda env: single_wrappers.TransformReward(env, lambda reward: 2 * reward),
    "NormalizeReward": single_wrappers.NormalizeReward,
    "TimeLimit": lambda env: single_wrappers.TimeLimit(env, 20),
    "Autoreset": single_wrappers.Autoreset,
    "PassiveEnvChecker": single_wrappers.PassiveEnvChecker,
    "OrderEnforcing": single_wrappers.OrderEnforcing,
    "RecordEpisodeStatistics": single_wrappers.RecordEpisodeStatistics,
    "AddWhiteNoise": IMAGES,
    "ObstructView": IMAGES,
    "RenderCollection": single_wrappers.RenderCollection,
    "RecordVideo": "needs moviepy",
    "HumanRendering": "needs pygame",
    "ArrayConversion": EXTRA,
    "JaxToNumpy": EXTRA,
    "JaxToTorch": EXTRA,
    "NumpyToTorch": EXTRA,
}
DRAWN = ("AddRenderObservation", "RenderCollection")


def vectorised(wrapper: str, *arguments: Any, **named: Any) -> Callable[[VectorEnv], VectorEnv]:
    return lambda envs: getattr(vector_wrappers, wrapper)(envs, *arguments, **named)


VECTOR: dict[str, Callable[[VectorEnv], VectorEnv] | str] = {
    "VectorizeTransformObservation": vectorised(
        "VectorizeTransformObservation",
        single_wrappers.TransformObservation,
        func=lambda o: o * 0.5,
        observation_space=None,
    ),
    "VectorizeTransformAction": vectorised(
        "VectorizeTransformAction", single_wrappers.TransformAction, func=lambda action: action, action_space=None
    ),
    "VectorizeTransformReward": vectorised(
        "VectorizeTransformReward", single_wrappers.TransformReward, func=lambda r: 2 * r
    ),
    "DictInfoToList": vectorised("DictInfoToList"),
    "TransformObservation": vectorised("TransformObservation", lambda o: o * 0.5, None, None),
    "FilterObservation": DICTIONARIES,
    "FlattenObservation": vectorised("FlattenObservation"),
    "GrayscaleObservation": IMAGES,
    "ResizeObservation": IMAGES,
    "ReshapeObservation": vectorised("ReshapeObservation", (4, 9)),
    "RescaleObservation": vectorised("RescaleObservation", np.float32(LOW), np.float32(HIGH)),
    "DtypeObservation": vectorised("DtypeObservation", np.float64),
    "NormalizeObservation": vectorised("NormalizeObservation"),
    "TransformAction": vectorised("TransformAction", lambda actions: actions, None),
    "ClipAction": CONTINUOUS,
    "RescaleAction": CONTINUOUS,
    "TransformReward": vectorised("TransformReward", lambda rewards: 2 * rewards),
    "ClipReward": vectorised("ClipReward", LOW, HIGH),
    "NormalizeReward": vectorised("NormalizeReward"),
    "RecordEpisodeStatistics": vectorised("RecordEpisodeStatistics"),
    "RecordVideo": RENDERING,
    "HumanRendering": RENDERING,
    "ArrayConversion": EXTRA,
    "JaxToNumpy": EXTRA,
    "JaxToTorch": EXTRA,
    "NumpyToTorch": EXTRA,
}
# Which modes Gymnasium's own wrappers take; they refuse others by themselves.
NEXT_STEP_ALONE = {"NormalizeObservation"}
NOT_SAME_STEP = {name for name in VECTOR if name.endswith("Observation")}
# Gymnasium's Box compares its bounds with the range of a wider type, cast to the narrower one.
OVERFLOW = pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")


def test_every_wrapper_of_gymnasium_is_run_or_has_its_reason() -> None:
    assert set(single_wrappers.__all__) - {"vector"} <= SINGLE.keys()
    assert set(vector_wrappers.__all__) <= VECTOR.keys()


@OVERFLOW
@pytest.mark.parametrize("wrapper", [name for name, made in SINGLE.items() if callable(made)])
def test_a_wrapper_runs_over_several_episodes(wrapper: str) -> None:
    if wrapper in DRAWN:
        pytest.importorskip("matplotlib")
    plain = gym.make(SPECULATION, render_mode="rgb_array" if wrapper in DRAWN else None, devices=2, horizon_s=1.0)
    env, ended, steps = SINGLE[wrapper](plain), 0, 0  # type: ignore[operator]
    seen, _ = env.reset(seed=0)
    while ended < 2 and steps < 300 and not (wrapper in DRAWN and steps > 5):
        assert env.observation_space.contains(seen)
        seen, reward, _, truncated, info = env.step(env.action_space.sample())
        assert np.isfinite(reward)
        assert not (wrapper == "RecordEpisodeStatistics" and truncated) or info["episode"]["l"] > 0
        ended, steps = ended + truncated, steps + 1
        if truncated and wrapper != "Autoreset":
            seen, _ = env.reset()
    assert ended == 2 or wrapper in DRAWN


@OVERFLOW
@EVERY_MODE
@pytest.mark.parametrize("wrapper", [name for name, made in VECTOR.items() if callable(made)])
def test_a_vector_wrapper_runs_in_every_mode_that_gymnasium_lets_it(wrapper: str, mode: AutoresetMode) -> None:
    made: Any = VECTOR[wrapper]
    allowed = (
        [AutoresetMode.NEXT_STEP] if wrapper in NEXT_STEP_ALONE else [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED]
    )
    if mode not in allowed and wrapper in NEXT_STEP_ALONE | NOT_SAME_STEP:
        with pytest.raises(ValueError, match="autoreset_mode"):
            made(ours(SPECULATION, mode))
        return
    mine, theirs, ended = made(ours(SPECULATION, mode)), made(gymnasiums(SPECULATION, mode)), 0
    (seen, _), (other, _) = mine.reset(seed=0), theirs.reset(seed=0)
    rng = np.random.default_rng(0)
    while ended < 4:
        assert mine.observation_space.contains(seen)
        assert np.array_equal(seen, other)
        actions = rng.integers(2, size=3)
        seen, rewards, _, over, infos = mine.step(actions)
        other, paid, _, ending, others = theirs.step(actions)
        assert np.array_equal(rewards, paid)
        assert np.array_equal(over, ending)
        ended += int(over.sum())
        if wrapper == "RecordEpisodeStatistics" and over.any():
            assert all(np.array_equal(infos["episode"][key], others["episode"][key]) for key in ("r", "l"))
        if mode is AutoresetMode.DISABLED and over.any():
            (seen, _), (other, _) = (envs.reset(options={"reset_mask": np.ones(3, bool)}) for envs in (mine, theirs))


# Gymnasium's own ways to make environments.


def test_a_limit_of_steps_ends_an_episode_of_one_environment() -> None:
    env = gym.make(SPECULATION, max_episode_steps=5, **SHORT)
    for seed in (0, None):
        env.reset(seed=seed)
        assert [env.step(0)[3] for _ in range(5)] == [False] * 4 + [True]


def test_gymnasiums_vector_environments_take_ours() -> None:
    seen = []
    for mode in ("vector_entry_point", "sync"):
        envs = gym.make_vec(SPECULATION, num_envs=2, vectorization_mode=mode, **SHORT)
        seen.append(envs.reset(seed=3)[0])
        assert envs.spec is not None
        assert envs.unwrapped.spec.id == SPECULATION
        envs.close()
    assert np.array_equal(*seen)


def test_skrl_and_torchrl_find_what_they_look_for() -> None:
    for name in IDS:
        envs = ours(name, "SameStep")
        assert VectorEnv in type(envs).__bases__  # skrl knows an environment by its direct bases
        assert gym.Env in type(gym.make(name, **SHORT).unwrapped).__bases__
        assert envs.reset(seed=0)[0].shape == envs.observation_space.shape
        single = gym.make(name, **SHORT)
        for told in (single.reset(seed=0)[1], single.step(0)[4], envs.step(np.zeros(3, int))[-1]):
            assert all(hasattr(value, "dtype") for value in told.values())
            assert not {"device", "episode"} & told.keys()  # names of TorchRL's and Gymnasium's own
