"""What can be learned is learned: rules beat random play, PPO finds optima that are known, the engine runs the policy."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from wisp_gym.controllers.predict import SpeculationPredictor
from wisp_gym.jit import jit
from wisp_gym.rules.mlp import argmax_action
from wisp_gym.rules.speculation import POLICY
from wisp_gym.scenario import Scenario, load, with_

torch = pytest.importorskip("torch")
sb3 = pytest.importorskip("stable_baselines3")

from agents.training.networks import Standardise, engine_policy
from wisp_gym.sb3 import DecisionVecEnv

SCENARIO = load("wisp-a100-qwen3-32b")
SPECULATION, LENGTH = "wisp_gym/Speculation-v1", "wisp_gym/SpeculationLength-v1"
ALWAYS, NEVER = 8.0, -8.0  # logits of acceptance: 0.9997 and 0.0003
CAP = 4


def toy(logit: float) -> Scenario:
    """One kind of device, 50 tokens/s, 50 ms each way on a calm link; at most CAP tokens a round; steady acceptance."""
    device = asdict(SCENARIO.devices[2]) | {"throttle_ratio": 1.0, "predictor_s": 0.0, "round_overhead_s": 0.0}
    device["draft_tokens_per_s"] = 50.0
    device["link"] |= {"one_way_s": 0.05, "jitter": 0.0, "loss": 0.0, "outages_per_s": 0.0, "wake_s": 0.0}
    acceptance = {"logit_mean": logit, "request_std": 0.0, "drift_std": 0.0, "after_rejection_logit": 0.0}
    changes = {f"draft.acceptance.{name}": value for name, value in acceptance.items()}
    return with_(SCENARIO, devices=[device], max_draft_tokens=CAP, **{"server.noise": 0.0}, **changes)


def mean_return(env: gym.Env, act: Callable[[np.ndarray, dict[str, Any]], int], seeds: range) -> float:
    """Mean return of a policy over episodes of given seeds."""
    total = 0.0
    for seed in seeds:
        seen, info = env.reset(seed=seed)
        over = False
        while not over:
            seen, reward, _, over, info = env.step(act(seen, info))
            total += float(reward)
    return total / len(seeds)


def make(name: str, **arguments: Any) -> gym.Env:
    """An environment without wrappers, whose rounds end in one way."""
    return gym.make(name, ways=False, **arguments).unwrapped


def test_wisps_rule_beats_random_play_by_a_quarter() -> None:
    # A fixed rate makes returns of different policies comparable; against its own rate every policy earns about nothing.
    env = make(SPECULATION, devices=16, horizon_s=30.0, average_reward=2.0)
    model, rng = SpeculationPredictor("wisp", SCENARIO), np.random.default_rng(0)
    rule = mean_return(env, lambda seen, _: int(model.predict(seen)[0]), range(12))
    random = mean_return(env, lambda seen, _: int(rng.integers(2)), range(12))
    assert rule > 1.25 * random > 0.0


def test_two_tokens_beat_none_and_twelve() -> None:
    # With acceptance 1/2 a round of k tokens commits 2 − 2^−k on average: 1, 1.75 and 2 tokens for k = 0, 2, 12. The way to
    # the server and back takes 0.1 s and more, two tokens 0.04 s, twelve 0.24 s.
    half = with_(toy(0.0), max_draft_tokens=12)
    env = make(LENGTH, scenario=half, devices=1, horizon_s=60.0, average_reward=2.0)
    none, two, twelve = (mean_return(env, lambda seen, _, k=k: k, range(4)) for k in (0, 2, 12))
    assert two > 1.3 * none > 0.0
    assert two > 1.3 * twelve


def test_the_manuals_own_loop_learns() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "guide" / "rl-library.md").read_text(encoding="utf-8")
    loop = next(code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "BETA_PER_S" in code)
    assert loop.count("seed=0") == loop.count("default_rng(0)") == 1
    env = make(SPECULATION, devices=4, horizon_s=30.0, average_reward=3.0)
    rng = np.random.default_rng(0)
    random = mean_return(env, lambda seen, _: int(rng.integers(2)), range(500, 512))
    sending = mean_return(env, lambda *_: 0, range(500, 512))
    for seed in range(3):  # not by the luck of one seed
        found: dict[str, Any] = {}
        seeded = loop.replace("seed=0", f"seed={seed}").replace("default_rng(0)", f"default_rng({seed})")
        exec(compile(seeded, "rl-library.md", "exec"), found)
        scale, weights = found["features"], found["weights"]
        learned = mean_return(
            env, lambda seen, _, s=scale, w=weights: int((s(seen[None]) @ w.T).argmax()), range(500, 512)
        )
        assert learned > 1.05 * random
        assert learned > 1.3 * sending


def learner(scenario: Scenario, seed: int, **arguments: Any) -> Any:
    """PPO on rounds that pay at once (gamma 0): a toy whose optimum is known."""
    envs = gym.make_vec(
        LENGTH, num_envs=16, scenario=scenario, ways=False, devices=1, horizon_s=20.0, threads=1, **arguments
    )
    settings = {"gamma": 0.0, "gae_lambda": 0.0, "n_steps": 32, "batch_size": 128, "n_epochs": 6, "learning_rate": 3e-3}
    small = {"net_arch": [16], "features_extractor_class": Standardise}
    torch.set_num_threads(1)
    return sb3.PPO(
        "MlpPolicy", DecisionVecEnv(envs, seed), seed=seed, device="cpu", policy_kwargs=small, **settings
    )  # fmt: skip


@pytest.mark.parametrize(("logit", "optimum"), [(ALWAYS, CAP), (NEVER, 0)])
def test_ppo_finds_the_known_optimum(logit: float, optimum: int) -> None:
    # All accepted: every token more pays for a longer share of the round trip. All rejected: every token only costs time.
    model = learner(toy(logit), seed=1, average_reward=4.0)
    model.learn(10_240)
    env = make(LENGTH, scenario=toy(logit), devices=1, horizon_s=60.0, average_reward=4.0)
    seen, info = env.reset(seed=1_000)
    over, right, asked = False, 0, 0
    while not over:
        action = int(model.predict(seen, deterministic=True)[0])
        longest = int(np.flatnonzero(info["action_mask"])[-1])  # less than CAP where fewer tokens are wanted
        right, asked = right + (min(action, longest) == min(optimum, longest)), asked + 1
        seen, _, _, over, info = env.step(action)
    assert right > 0.95 * asked > 30


def test_the_same_seed_trains_the_same_weights() -> None:
    weights = []
    for seed in (5, 5, 6):
        model = learner(toy(ALWAYS), seed)  # seeds torch: build and train one after another
        model.learn(1_024)
        weights.append(torch.cat([p.detach().flatten() for p in model.policy.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_the_vector_environment_as_stable_baselines3_sees_it() -> None:
    plain = gym.make_vec(LENGTH, num_envs=3, ways=False, devices=4, horizon_s=2.0, threads=1)
    wrapped = DecisionVecEnv(gym.make_vec(LENGTH, num_envs=3, ways=False, devices=4, horizon_s=2.0, threads=1), seed=7)
    seen, _ = plain.reset(seed=7)
    assert np.array_equal(wrapped.reset(), seen)
    returns, ended = np.zeros(3), 0
    for k in range(200):
        actions = np.full(3, k % 3)
        seen, rewards, _, over, infos = plain.step(actions)
        again, paid, done, each = wrapped.step(actions)
        returns += rewards
        assert np.array_equal(again, seen)
        assert np.array_equal(done, over)
        assert np.allclose(paid, rewards)
        for i in np.flatnonzero(over):
            assert each[i]["TimeLimit.truncated"]
            assert np.array_equal(each[i]["terminal_observation"], infos["final_obs"][i])
            assert each[i]["episode"]["r"] == pytest.approx(returns[i])
            assert each[i]["episode"]["t"] == 2.0
            returns[i], ended = 0.0, ended + 1
    assert ended >= 6
    assert [mask.shape for mask in wrapped.env_method("action_masks")] == [(SCENARIO.max_draft_tokens + 1,)] * 3


def test_stable_baselines3_is_told_no_attribute_that_is_not_there() -> None:
    wrapped = DecisionVecEnv(gym.make_vec(SPECULATION, num_envs=2, devices=2, horizon_s=1.0, threads=1), seed=0)
    assert wrapped.has_attr("action_masks")
    assert wrapped.get_attr("num_envs", 1) == [2]
    assert not wrapped.has_attr("no_such_attribute")
    with pytest.raises(AttributeError, match="no_such_method"):
        wrapped.env_method("no_such_method")
    with pytest.raises(ValueError, match="allowed is None: all worlds share"):
        wrapped.set_attr("begun", False, indices=0)


def test_options_of_stable_baselines3_hold_for_one_reset() -> None:
    wrapped = DecisionVecEnv(gym.make_vec(SPECULATION, num_envs=2, devices=4, horizon_s=1.0, threads=1), seed=0)
    wrapped.set_options({"device": 3})
    wrapped.reset()
    assert wrapped.envs.task.device.tolist() == [3, 3]
    wrapped.set_options([{"device": 3}, {"device": 2}])
    with pytest.raises(ValueError, match="allowed are the same for all"):
        wrapped.reset()
    wrapped.set_options(None)
    drawn = [wrapped.reset() is not None and wrapped.envs.task.device.tolist() for _ in range(5)]
    assert any(devices != [3, 3] for devices in drawn)


def test_stable_baselines3s_evaluation_reads_whole_episodes() -> None:
    evaluation = pytest.importorskip("stable_baselines3.common.evaluation")
    wrapped = DecisionVecEnv(gym.make_vec(SPECULATION, num_envs=2, devices=2, horizon_s=20.0, threads=1), seed=0)
    model = sb3.PPO("MlpPolicy", wrapped, seed=0, device="cpu")
    returns, lengths = evaluation.evaluate_policy(model, wrapped, n_eval_episodes=4, return_episode_rewards=True)
    assert len(returns) == 4
    assert sum(lengths) > 20


@jit
def engine_actions(weights, observations, actions):  # type: ignore[no-untyped-def]
    """(n,) actions of the engine's perceptron for (n, SIZE) observations."""
    for row in range(len(observations)):
        actions[row] = argmax_action(weights, observations[row])


def played(name: str, n: int) -> np.ndarray:
    """(n, SIZE) float32 observations of random play."""
    envs = gym.make_vec(
        name, num_envs=20, ways=False, devices=8, horizon_s=20.0, randomise={"devices": (1, 8)}, threads=1
    )
    rng, rows = np.random.default_rng(0), [envs.reset(seed=0)[0]]
    while len(rows) * 20 < n:
        rows.append(envs.step(rng.integers(envs.single_action_space.n, size=20))[0])
    return np.concatenate(rows)[:n]


@pytest.mark.parametrize(("name", "decision"), [(SPECULATION, "token"), (LENGTH, "length")])
def test_the_engine_runs_the_policy_of_torch(name: str, decision: str) -> None:
    envs = DecisionVecEnv(gym.make_vec(name, num_envs=1, ways=False, devices=4, threads=1), seed=0)
    small = {"features_extractor_class": Standardise, "net_arch": [32, 32], "ortho_init": False}
    policy = sb3.PPO("MlpPolicy", envs, seed=3, device="cpu", policy_kwargs=small).policy
    observations = played(name, 2_000)
    policy.features_extractor.fit(observations)
    with torch.no_grad():  # an untrained actor answers the same everywhere: make it take sides
        policy.action_net.weight.mul_(20.0)
        policy.action_net.bias.zero_()
    by_torch = policy.predict(observations, deterministic=True)[0]
    by_engine = np.empty(2_000, np.int64)
    copied = engine_policy(policy, decision)
    engine_actions(copied.weights, observations, by_engine)
    assert np.array_equal(by_torch, by_engine)
    assert len(np.unique(by_torch)) > 1
    assert (copied.kind == POLICY) == (decision == "token")


def test_a_learned_policy_drives_the_other_devices() -> None:
    envs = DecisionVecEnv(gym.make_vec(SPECULATION, num_envs=1, ways=False, devices=4, threads=1), seed=0)
    policy = sb3.PPO("MlpPolicy", envs, seed=0, device="cpu", policy_kwargs={"net_arch": [8]}).policy
    drafted = []
    for bias in (-100.0, 100.0):  # always send, always continue
        with torch.no_grad():
            policy.action_net.bias.copy_(torch.tensor([0.0, bias]))
        env = make(SPECULATION, devices=4, horizon_s=20.0)
        env.set_policy(engine_policy(policy, "token"))
        env.reset(seed=0)
        while not env.step(0)[3]:  # the deciding device itself never drafts
            pass
        drafted.append(int(env.task.episodes.arrays.totals[0, 0]["drafted"]))
    assert drafted[0] == 0
    assert drafted[1] > 100


def test_gymnasiums_vector_environment_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gym.make_vec(SPECULATION, num_envs=2, devices=2, vectorization_mode="vector_entry_point").close()
