"""Every registered environment: Gymnasium's and stable-baselines3's rules, and what the manual promises.

The tests walk the registry, so that a new environment is held to the same promises.
"""

from __future__ import annotations

import copy
import inspect
import json
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

import wisp_gym
from wisp_gym.contract import device, request, server
from wisp_gym.contract.actions import HAND_OVER, SEND
from wisp_gym.controllers.predict import SpeculationPredictor
from wisp_gym.controllers.resolve import resolve
from wisp_gym.engine import gather
from wisp_gym.engine.state import LOG_DELIVER, OVER
from wisp_gym.engine.worlds import Worlds
from wisp_gym.envs.episodes import RANDOMISABLE
from wisp_gym.envs.shells import DecisionEnv, DecisionVectorEnv
from wisp_gym.scenario import Scenario, load, with_

ROOT = Path(__file__).resolve().parents[2]
IDS = list(wisp_gym.ENVIRONMENTS)
SPECULATION, LENGTH, BATCHING, JOINT = IDS
SCENARIO = load("wisp-a100-qwen3-32b")
SMALL = {"devices": 8, "horizon_s": 4.0}
MANUAL = (ROOT / "docs" / "guide" / "environments.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", MANUAL, re.DOTALL)
EVERY_ID = pytest.mark.parametrize("name", IDS)
SPECULATION_IDS = pytest.mark.parametrize("name", [SPECULATION, LENGTH])


def changed_links(**fields: float) -> dict[str, float]:
    """Changes of every device class's link, as `with_` takes them."""
    return {f"devices.{i}.link.{key}": value for i in range(len(SCENARIO.devices)) for key, value in fields.items()}


BAD_LINKS = with_(SCENARIO, **changed_links(loss=0.4, outages_per_s=0.1, outage_s=1.0, jitter=1.0, wake_s=0.3))
CHUNKED = with_(SCENARIO, **{"server.prefill_chunk_tokens": 64, "server.noise": 0.5, "server.max_batch_requests": 4})
OPEN = with_(SCENARIO, **{"workload.arrivals": "open", "workload.requests_per_s": 0.5})
# name: (arguments, options of reset); each at the edge of what the observation must bear.
EXTREMES: dict[str, tuple[dict[str, Any], dict[str, float]]] = {
    "one device": ({"devices": 1}, {}),
    "one token": ({"scenario": with_(SCENARIO, max_draft_tokens=1)}, {}),
    "long drafts": ({"scenario": with_(SCENARIO, max_draft_tokens=32)}, {}),
    "bad links": ({"scenario": BAD_LINKS}, {"jitter": 3.0}),
    "slow GPU": ({"horizon_s": 60.0}, {"verification_time": 30.0}),
    "fast GPU": ({"horizon_s": 1.5}, {"verification_time": 0.01}),
    "overload": ({"devices": 300}, {}),
    "open overload": ({"devices": 100, "scenario": OPEN}, {}),
    "chunks and noise": ({"devices": 30, "scenario": CHUNKED}, {}),
    "fast service class": ({"slo": 1000.0}, {}),
    "slow service class": ({"slo": 0.01}, {}),
    "useless predictor": ({}, {"separation": 0.0}),
    "perfect predictor": ({}, {"separation": 10.0}),
}


def make(name: str, **arguments: Any) -> DecisionEnv:
    """The environment itself, without wrappers."""
    env = gym.make(name, **{**SMALL, **arguments}).unwrapped
    assert isinstance(env, DecisionEnv)
    return env


def make_vec(name: str, n: int, **arguments: Any) -> DecisionVectorEnv:
    """`n` worlds at once."""
    settings = {**SMALL, "threads": 1, **arguments}
    envs = gym.make_vec(name, num_envs=n, vectorization_mode="vector_entry_point", **settings)
    assert isinstance(envs, DecisionVectorEnv)
    return envs


def random_valid(mask: np.ndarray, rng: np.random.Generator) -> int:
    """A valid action, drawn uniformly."""
    return int(rng.choice(np.flatnonzero(mask)))


def play(
    env: gym.Env, seed: int | None = 0, options: dict[str, Any] | None = None, steps: int = 100_000, choices: int = 0
) -> Iterator[tuple[np.ndarray, float, bool, dict[str, Any]]]:
    """(observation, reward, truncated, info) of one episode of random valid play, the reset included."""
    rng = np.random.default_rng(choices)
    seen, info = env.reset(seed=seed, options=options)
    yield seen, 0.0, False, info
    truncated = False
    while not truncated and steps > 0:
        seen, reward, terminated, truncated, info = env.step(random_valid(info["action_mask"], rng))
        assert not terminated
        yield seen, float(reward), truncated, info
        steps -= 1


def same(one: Any, other: Any) -> bool:
    """Equality of nested results to the last bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(np.array_equal(one, other))


# The rules of Gymnasium and stable-baselines3. pytest turns every warning into a failure.


@EVERY_ID
def test_gymnasiums_checker_passes(name: str) -> None:
    check_env(make(name))


@EVERY_ID
def test_stable_baselines3s_checker_passes(name: str) -> None:
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    checker.check_env(make(name))


@EVERY_ID
def test_the_wrapped_environment_runs_past_the_end_of_an_episode(name: str) -> None:
    env = gym.make(name, **SMALL)  # with Gymnasium's passive checker and its guard of the order of calls
    for seed in (0, None):
        assert [over for _, _, over, _ in play(env, seed)][-1]


@EVERY_ID
def test_gymnasium_finds_the_module_by_the_id(name: str) -> None:
    code = f"""
import gymnasium
env = gymnasium.make("wisp_gym:{name}", devices=4, horizon_s=2.0)
envs = gymnasium.make_vec("wisp_gym:{name}", num_envs=2, devices=4, horizon_s=2.0)
print(env.reset(seed=0)[0].shape, envs.reset(seed=0)[0].shape, type(envs.unwrapped).__name__)
"""
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    size, vector = make(name).observation_space.shape[0], wisp_gym.ENVIRONMENTS[name][1] + "VectorEnv"  # type: ignore[index]
    assert (done.stdout.strip(), done.stderr) == (f"({size},) (2, {size}) {vector}", "")


@EVERY_ID
def test_arguments_survive_json_and_the_environment_survives_pickling(name: str) -> None:
    more = {"reward_weights": {"time": 0.5}, "randomise": {"devices": [2, 8]}, "average_reward": 3.0}
    spec = make(name, horizon_s=60.0, **more).spec
    assert spec is not None
    again = EnvSpec.from_json(spec.to_json())
    assert json.loads(spec.to_json())["kwargs"]["randomise"] == {"devices": [2, 8]}
    env = again.make().unwrapped
    assert isinstance(env, DecisionEnv)
    list(play(env, seed=4, steps=20))
    twin = pickle.loads(pickle.dumps(env))
    mask = env.action_masks()
    assert same(env.step(int(mask.argmax())), twin.step(int(mask.argmax())))
    assert same(env.reset(), twin.reset())


# Observations: the tables are the space, and everything seen lies in it.


def rows(text: str) -> list[tuple[str, str, float, float, str]]:
    """(name, unit, low, high, meaning) of the lines of observation tables; the manual's have owner and age behind them."""
    line = r"^ *\| \d+ \| (\w+) \| ([^|]+) \| (\S+) \| (\S+) \| ([^|]+) \|(?:[^|]+\|[^|]+\|)?$"
    found = re.findall(line, text, re.MULTILINE)
    return [(n, u, float(low), float(high), m) for n, u, low, high, m in found]


def entries(*tables: Any) -> list[tuple[str, str, float, float, str]]:
    """The same of the engine's tables."""
    return [(e.name, e.unit, e.low, e.high, e.meaning) for table in tables for e in table]


def test_tables_of_docstring_manual_and_space_agree() -> None:
    speculation = entries(device.ENTRIES)
    batching = entries(server.ENTRIES, request.ENTRIES)
    assert rows(MANUAL) == speculation + batching
    for name, table in ((SPECULATION, speculation), (BATCHING, batching), (JOINT, batching)):
        assert rows(make(name).__doc__ or "") == table
    assert len({row[0] for row in speculation}) == len(speculation)


@SPECULATION_IDS
def test_the_speculation_space_is_its_table(name: str) -> None:
    space = make(name).observation_space
    assert space == gym.spaces.Box(np.float32(device.LOW), np.float32(device.HIGH))
    assert f"Box(({device.SIZE},), float32)" in (make(SPECULATION).__doc__ or "")
    lengths = SCENARIO.max_draft_tokens + 1
    assert make(name).action_space == gym.spaces.Discrete(4 if name == SPECULATION else 3 * lengths)
    assert make(name, ways=False).action_space == gym.spaces.Discrete(2 if name == SPECULATION else lengths)


@pytest.mark.parametrize("visible", [1, 5])
@pytest.mark.parametrize(("name", "others"), [(BATCHING, 14), (JOINT, 19)])
def test_the_batching_space_is_its_table_repeated(name: str, others: int, visible: int) -> None:
    env = make(name, visible=visible)
    table = [*server.ENTRIES, *(request.ENTRIES * visible)]
    low, high = np.array([[e.low, e.high] for e in table], np.float32).T
    assert env.observation_space == gym.spaces.Box(low, high, dtype=np.float32)
    assert env.observation_space.shape == (21 + 28 * visible,)
    assert env.action_space == gym.spaces.Discrete(visible + others + 9 + visible)
    assert make(name, visible=visible, hosting=False).action_space == gym.spaces.Discrete(visible + others)


@EVERY_ID
@pytest.mark.parametrize("case", EXTREMES)
def test_observations_masks_and_clock_keep_their_promises_in_extreme_worlds(name: str, case: str) -> None:
    arguments, options = EXTREMES[case]
    env = make(name, **arguments)
    clock_s: float | None = None
    for seen, reward, over, info in play(env, seed=1, options=options, steps=3_000):
        assert env.observation_space.contains(seen)
        assert np.isfinite(reward)
        assert info["action_mask"].dtype == np.int8
        assert info["action_mask"].any()
        assert info["dt"] >= 0.0
        clock_s = info["time_s"] if clock_s is None else clock_s + info["dt"]
        assert info["time_s"] == pytest.approx(clock_s, abs=1e-9)
        assert over == (int(env.task.episodes.arrays.server[0, 0]["stage"]) == OVER)
        assert not over or info["time_s"] == env.task.episodes.arrays.config[0, 0]["end_s"]
        assert "episode" not in info  # Gymnasium's and SB3's wrappers write it
    assert info["invalid_actions"] == 0


@EVERY_ID
def test_the_mask_is_the_method_and_a_masked_action_is_clamped_and_counted(name: str) -> None:
    env, rng, wrong = make(name, horizon_s=600.0, devices=2), np.random.default_rng(0), 0
    _, info = env.reset(seed=3)
    for _ in range(400):
        mask = env.action_masks()
        assert mask.dtype == bool
        assert np.array_equal(mask, info["action_mask"])
        action = int(rng.integers(env.task.actions))
        wrong += not mask[action]
        _, _, _, over, info = env.step(action)
        assert info["invalid_actions"] == wrong
        if over:
            break
    assert wrong > 0


# Rewards.


@EVERY_ID
def test_the_reward_is_the_weighted_sum_of_its_terms(name: str) -> None:
    terms = make(name).task.weights
    weights = {term: float(k) - 1.3 for k, term in enumerate(terms)}
    env = make(name, reward_weights=weights, average_reward=2.0)
    given = 0.0
    for _, reward, _, info in play(env):
        assert {name for name in info if name.startswith("reward_")} == {f"reward_{term}" for term in weights}
        assert reward == pytest.approx(sum(weights[term] * info[f"reward_{term}"] for term in weights), abs=1e-9)
        given += abs(reward)
    assert given > 0.0


@SPECULATION_IDS
def test_committed_tokens_are_those_delivered_to_the_device(name: str) -> None:
    env = make(name, render_mode="ansi", horizon_s=20.0, average_reward=2.0)  # rendering keeps the log of events
    episode = play(env, seed=5, options={"device": 3})
    next(episode)
    before = env.task.outcomes[0, gather.TERMS]  # delivered before the first decision, in nobody's reward
    steps = [info for *_, info in episode]
    terms = {term: sum(step[f"reward_{term}"] for step in steps) for term in env.task.weights}
    world = env.task.episodes.arrays
    log = world.log[0, : world.server[0, 0]["log_length"]]
    mine = log[(log["kind"] == LOG_DELIVER) & (log["device"] == 3)]
    assert len(log) < len(world.log[0])
    assert mine["value"].sum() == terms["committed_tokens"] + before > 50
    assert 0 <= terms["on_time_tokens"] <= terms["committed_tokens"]
    assert -terms["time"] / 2.0 <= 20.0 + 1.0  # its rounds do not overlap
    assert terms["externality"] < 0
    assert terms["wasted_tokens"] <= 0


@SPECULATION_IDS
def test_drafting_beyond_rejections_is_wasted(name: str) -> None:
    env = make(name, ways=False, horizon_s=20.0)
    assert sum(info["reward_wasted_tokens"] for *_, info in list(play(env, seed=5))[1:]) < 0


def test_steps_at_the_server_are_paid_for() -> None:
    """A device that hands its session over has no drafts of its own, but its steps make batches longer for others."""
    env = make(SPECULATION, horizon_s=30.0)
    _, info = env.reset(seed=1)
    over, paid = False, 0.0
    while not over:
        _, _, _, over, info = env.step(HAND_OVER if info["action_mask"][HAND_OVER] else SEND)
        paid += info["reward_externality"]
    assert paid < 0.0


# Seeds.


@EVERY_ID
def test_the_same_seed_gives_the_same_numbers(name: str) -> None:
    first, second = (list(play(make(name), seed=11)) for _ in range(2))
    assert same(first, second)
    assert not same(first[-1], list(play(make(name), seed=12))[-1])


@EVERY_ID
def test_no_seed_goes_on_with_the_same_generator(name: str) -> None:
    env, twin = make(name), make(name)
    chain = [[env.reset(seed=seed)[0] for seed in (7, None, None)] for env in (env, twin)]
    assert same(chain[0], chain[1])
    worlds = [
        env.reset(seed=seed) and int(env.task.episodes.arrays.config[0, 0]["seed"]) for seed in (7, None, None, 7)
    ]
    assert len(set(worlds)) == 3
    assert worlds[0] == worlds[3]


# The vector environment.


@EVERY_ID
def test_the_vector_environment_gives_the_numbers_of_single_ones(name: str) -> None:
    arguments = {"horizon_s": 2.0, "randomise": {"devices": (2, 8), "jitter": (0.5, 2.0)}}
    envs, singles = make_vec(name, 3, **arguments), [make(name, **arguments) for _ in range(3)]
    assert envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    seen, infos = envs.reset(seed=20)
    expected = [env.reset(seed=20 + i) for i, env in enumerate(singles)]
    rng, ended = np.random.default_rng(0), 0
    for _ in range(900):
        for i, (row, info) in enumerate(expected):
            assert np.array_equal(seen[i], row)
            assert np.array_equal(infos["action_mask"][i], info["action_mask"])
            assert all(
                infos[key][i] == info[key] for key in ("time_s", "deciding_device", "drafted_tokens", "invalid_actions")
            )
        actions = np.array([random_valid(mask, rng) for mask in infos["action_mask"]])
        seen, rewards, terminated, over, infos = envs.step(actions)
        assert not terminated.any()
        for i, env in enumerate(singles):
            row, reward, _, truncated, info = env.step(int(actions[i]))
            assert (rewards[i], over[i]) == (reward, truncated)
            assert all(infos[name][i] == info[name] for name in envs.task.earned if name != "dt")
            if truncated:
                final = infos["final_info"]
                assert np.array_equal(infos["final_obs"][i], row)
                assert all(final[key][i] == info[key] for key in ("dt", "time_s", "deciding_device"))
                row, info = env.reset()
                ended += 1
            assert infos["dt"][i] == info["dt"]
            expected[i] = row, info
        assert ("final_obs" in infos) == over.any()
    assert ended >= 3


@EVERY_ID
def test_threads_change_nothing(name: str) -> None:
    results = []
    for threads in (1, 2):
        envs, rng = make_vec(name, 5, threads=threads, horizon_s=1.0), np.random.default_rng(1)
        _, infos = envs.reset(seed=1)
        for _ in range(100):
            step = envs.step(np.array([random_valid(mask, rng) for mask in infos["action_mask"]]))
            infos = step[4]
        results.append(step[:4])
    assert same(*results)


@EVERY_ID
def test_every_return_is_fresh(name: str) -> None:
    env, envs = make(name), make_vec(name, 3, horizon_s=1.0)
    returned: list[Any] = [env.reset(seed=0), envs.reset(seed=0)]
    kept = copy.deepcopy(returned)
    for _ in range(150):
        returned += [env.step(0), envs.step(np.zeros(3, np.int64))]
        returned += [env.reset()] if env.over else []
        kept += copy.deepcopy(returned[len(kept) :])
    for now, then in zip(returned, kept, strict=True):
        assert same(flat(now), flat(then))


def flat(value: Any) -> list[np.ndarray]:
    """Every number of a nested result."""
    if isinstance(value, dict):
        return [leaf for key in sorted(value) for leaf in flat(value[key])]
    if isinstance(value, tuple) or (isinstance(value, np.ndarray) and value.dtype == object):
        return [leaf for part in value for leaf in flat(part)]
    return [np.asarray(-1e9 if value is None else value, dtype=np.float64).ravel()]


@EVERY_ID
def test_marked_worlds_alone_are_reset(name: str) -> None:
    envs = make_vec(name, 3)
    envs.reset(seed=0)
    for _ in range(5):
        seen, _, _, _, infos = envs.step(np.zeros(3, np.int64))
    again, after = envs.reset(seed=[9, None, None], options={"reset_mask": np.array([True, False, False])})
    assert np.array_equal(again[1:], seen[1:])
    assert np.array_equal(after["time_s"][1:], infos["time_s"][1:])
    assert np.array_equal(again[0], make(name).reset(seed=9)[0])


# Arguments and options.


@EVERY_ID
def test_options_fix_the_episode(name: str) -> None:
    env = make(name, randomise={"devices": (1, 8)})
    base = SCENARIO.verification.weights_s
    for devices in (1, 3, 8):
        chosen = {"devices": devices, "device": devices - 1, "verification_time": 2.0, "jitter": 0.0, "separation": 3.0}
        _, info = env.reset(seed=0, options=chosen)
        world = env.task.episodes.arrays
        assert world.config[0, 0]["n_devices"] == devices
        assert world.config[0, 0]["weights_s"] == pytest.approx(2.0 * base)
        assert world.config[0, 0]["separation"] == pytest.approx(
            3.0 * env.task.episodes.template.arrays.config[0, 0]["separation"]
        )
        assert not world.device[0, :devices]["jitter"].any()
        assert info["deciding_device"] == (-1 if name in (BATCHING, JOINT) else devices - 1)
    drawn = {env.reset()[0] is not None and int(env.task.episodes.arrays.config[0, 0]["n_devices"]) for _ in range(40)}
    assert len(drawn) > 3
    assert drawn <= set(range(1, 9))


@EVERY_ID
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"devises": 3}, "did you mean 'devices'"),
        ({"verification_times": 3}, "did you mean 'verification_time'"),
        ({"devices": 9}, "devices given 9, allowed is 1 to 8"),
        ({"devices": 2.5}, "devices given 2.5"),
        ({"device": 8}, "device given 8, allowed is 0 to 7"),
        ({"devices": 2, "device": 2}, "device given 2, allowed is 0 to 1"),
        ({"verification_time": -1.0}, "verification_time given -1.0, allowed is 0.01 to 100"),
        ({"jitter": float("nan")}, "jitter given nan"),
        ({"separation": "much"}, "separation given 'much'"),
    ],
)
def test_wrong_options_are_named(name: str, options: dict[str, Any], message: str) -> None:
    for env in (make(name), make_vec(name, 2)):
        with pytest.raises(ValueError, match=re.escape(message)):
            env.reset(seed=0, options=options)


@EVERY_ID
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scenario": "wisp-a100-qwen3-32"}, "wisp-a100-qwen3-32b"),
        ({"controller": "wips+wisp"}, "did you mean 'wisp'"),
        ({"reward_weights": {"tme": 1.0}}, "did you mean 'time'"),
        ({"reward_weights": {"time": float("nan")}}, "time given nan"),
        ({"randomise": {"device": (1, 2)}}, "did you mean 'devices'"),
        ({"randomise": {"jitter": (2.0, 1.0)}}, "jitter given (2.0, 1.0), allowed is an increasing pair"),
        ({"randomise": {"jitter": 2.0}}, "jitter given 2.0, allowed is an increasing pair"),
        ({"average_reward": -1.0}, "average_reward: given -1.0"),
        ({"devices": 0}, "devices: given 0, allowed is a whole number from 1"),
        ({"devices": 2.5}, "devices: given 2.5"),
        ({"horizon_s": float("inf")}, "horizon_s: given inf"),
        ({"slo": -2.0}, "-2"),
        ({"render_mode": "rgb"}, "'rgb_array'"),
    ],
)
def test_wrong_arguments_are_named(name: str, arguments: dict[str, Any], message: str) -> None:
    cls = type(make(name))
    with pytest.raises(ValueError, match=re.escape(message)):
        cls(**arguments)


def test_arguments_of_one_environment_are_checked_too() -> None:
    with pytest.raises(ValueError, match="'own'"):
        make(SPECULATION, average_reward="won")
    with pytest.raises(ValueError, match="drafts nothing"):
        make(LENGTH, controller="centralized")
    with pytest.raises(ValueError, match="allowed is a whole number from 1 to 1024"):
        make(BATCHING, visible=0)
    with pytest.raises(ValueError, match="no decision falls before the horizon"):
        make(SPECULATION, horizon_s=1e-6).reset(seed=0)


@EVERY_ID
def test_an_action_outside_the_space_is_refused(name: str) -> None:
    env, envs = make(name), make_vec(name, 2)
    env.reset(seed=0)
    envs.reset(seed=0)
    for action in (-1, env.task.actions):
        with pytest.raises(ValueError, match=f"given {action}, allowed are 0 to {env.task.actions - 1}"):
            env.step(action)
        with pytest.raises(ValueError, match=f"from 0 to {env.task.actions - 1}"):
            envs.step(np.array([0, action]))


@EVERY_ID
@pytest.mark.parametrize("mode", ["ansi", "rgb_array"])
def test_render(name: str, mode: str) -> None:
    env = make(name, render_mode=mode)
    assert env.spec is not None
    for _ in play(env, seed=0, steps=60):
        pass
    picture = env.render()
    if mode == "ansi":
        assert isinstance(picture, str)
        assert len(picture.splitlines()) > SMALL["devices"]
    else:
        assert isinstance(picture, np.ndarray)
        assert (picture.dtype, picture.shape[2]) == (np.uint8, 3)
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 3  # not blank
    assert make(name).render() is None
    with pytest.raises(ValueError, match="render a single environment"):
        make_vec(name, 2, render_mode=mode)


def test_rendering_outlives_its_log() -> None:
    env = make(LENGTH, devices=200, horizon_s=40.0, render_mode="ansi")
    for _ in play(env, seed=0):
        length = int(env.task.episodes.arrays.server[0, 0]["log_length"])
    assert length < len(env.task.episodes.arrays.log[0])
    assert str(env.render()).strip()


# The engine and the environment run the same physics.


def engine_run(env: DecisionEnv, scenario: Scenario, controller: str) -> np.void:
    """Totals of a world that a controller inside the engine drives alone, from the environment's seed and horizon."""
    template = env.task.episodes.arrays.config[0, 0]
    n = int(template["n_devices"])
    worlds = Worlds(1, n, threads=1)
    worlds.fill(0, scenario, int(template["seed"]), resolve(controller, scenario), n)
    c = worlds.arrays.config[0, 0]
    c["warmup_s"], c["window_end_s"], c["end_s"] = 0.0, template["end_s"], template["end_s"]
    worlds.run()
    return worlds.arrays.totals[0, 0]


@pytest.mark.parametrize("controller", ["wisp", "fixed:3", "survival:0.7", "confidence:0.6", "perfect", "oracle"])
def test_predict_outside_equals_the_rule_inside(controller: str) -> None:
    # The device that decides outside always pays for its predictor, a fixed rule in the engine does not: no one pays here.
    free = with_(SCENARIO, **{f"devices.{i}.predictor_s": 0.0 for i in range(len(SCENARIO.devices))})
    both = f"{controller}+wisp"
    env = make(SPECULATION, scenario=free, controller=both, ways=False, reveal_fates=True, horizon_s=20.0, devices=12)
    model = SpeculationPredictor(both, free)
    for seed in range(3):
        seen, info = env.reset(seed=seed)
        over, steps = False, 0
        while not over:
            action, _ = model.predict(seen, info=info)
            seen, _, _, over, info = env.step(int(action))
            steps += 1
        inside, outside = engine_run(env, free, both), env.task.episodes.arrays.totals[0, 0]
        assert steps > 20
        assert inside.tobytes() == outside.tobytes(), [k for k in inside.dtype.names if inside[k] != outside[k]]


def test_a_fixed_length_is_the_same_decided_once_a_round() -> None:
    free = with_(SCENARIO, **{f"devices.{i}.predictor_s": 0.0 for i in range(len(SCENARIO.devices))})
    env = make(LENGTH, scenario=free, controller="fixed:3+fcfs", horizon_s=20.0)
    env.reset(seed=2)
    while not env.step(3)[3]:  # longer than the cap of a request's last rounds: clamped
        pass
    inside, outside = engine_run(env, free, "fixed:3+fcfs"), env.task.episodes.arrays.totals[0, 0]
    assert all(inside[k] == outside[k] for k in inside.dtype.names if k != "decisions")


def test_fates_are_revealed_on_request_alone() -> None:
    assert not {"last_fate", "next_fate"} & make(SPECULATION).reset(seed=0)[1].keys()
    *_, (_, _, _, info) = play(make(SPECULATION, reveal_fates=True), steps=50)
    assert info["last_fate"] in (0, 1)
    assert info["next_fate"] in (0, 1)


# The manual.


@pytest.mark.parametrize("code", EXAMPLES, ids=[f"example {k + 1}" for k in range(len(EXAMPLES))])
def test_the_manuals_examples_run(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    if "stable_baselines3" in code:
        pytest.importorskip("stable_baselines3")
    exec(compile(code, "environments.md", "exec"), {"__name__": "example"})
    assert capsys.readouterr().out or "learn(" in code


@EVERY_ID
def test_an_unknown_argument_is_refused_with_the_nearest(name: str) -> None:
    for vectorised in (gym.make, gym.make_vec):
        with pytest.raises(TypeError, match=r"unexpected keyword argument 'horizon'.*horizon_s"):
            vectorised(name, horizon=5.0)


def test_the_manual_names_every_argument_option_term_and_key() -> None:
    keys = set(make(SPECULATION, reveal_fates=True).reset(seed=0)[1]) | set(make(BATCHING).reset(seed=0)[1])
    keys = {key.removeprefix("reward_") for key in keys}  # the table has `reward_…`, and each term a row of its own
    named = set(re.findall(r"`(\w+)`", MANUAL))
    for name in IDS:
        env = make(name)
        arguments = {field.name for field in fields(env.task.settings_type)}
        arguments |= {"render_mode", "num_envs", "threads", "autoreset_mode"}
        assert keys | arguments | set(env.task.weights) | {"device"} | set(RANDOMISABLE) <= named
        assert f"`{name}`" in MANUAL
        for weight in (f"| `{term}` | {value:g} |" for term, value in env.task.weights.items()):
            assert weight in MANUAL


@EVERY_ID
def test_the_docstring_is_the_specification(name: str) -> None:
    text = inspect.getdoc(type(make(name))) or ""
    wanted = ["Description", "Action Space", "Observation Space", "Starting State", "Rewards", "Episode End"]
    found = re.findall(r"^\s*## (.+)$", text, re.MULTILINE)
    assert found == [*wanted, "Information", "Arguments", "Version History"]
