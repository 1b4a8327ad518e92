"""PettingZoo: its API and seed tests pass, a fleet outside has the totals of one inside, and one policy trains for all devices."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import numpy as np
import pytest

from tests.interop.replay import run_page
from wisp_gym.controllers.resolve import resolve
from wisp_gym.engine.worlds import Worlds
from wisp_gym.errors import InputError
from wisp_gym.scenario import load, with_

pytest.importorskip("pettingzoo")
torch = pytest.importorskip("torch")
from pettingzoo.test import parallel_api_test, parallel_seed_test

from wisp_gym.pettingzoo import SpeculationParallelEnv, parallel_env

FORMS = [{}, {"ways": False}, {"by_length": False}, {"by_length": False, "ways": False}]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_its_api_test_passes_without_a_warning(form: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parallel_api_test(parallel_env(devices=5, horizon_s=8.0, **form), num_cycles=2_000)


def test_its_seed_test_passes() -> None:
    parallel_seed_test(lambda: parallel_env(devices=4, horizon_s=5.0))


def test_episodes_may_differ_in_their_agents() -> None:
    env = parallel_env(devices=4, horizon_s=2.0, randomise={"devices": (1, 6)})
    counts = {len(env.reset(seed=seed)[0]) for seed in range(20)}
    assert env.possible_agents == [f"device_{i}" for i in range(6)]
    assert len(counts) > 2
    assert max(counts) <= 6
    assert list(env.reset(options={"devices": 3})[0]) == ["device_0", "device_1", "device_2"]


def test_a_fleet_that_drafts_alike_outside_has_the_totals_of_the_rule_inside() -> None:
    scenario = load("wisp-a100-qwen3-32b")
    free = with_(scenario, **{f"devices.{i}.predictor_s": 0.0 for i in range(len(scenario.devices))})
    env = parallel_env(scenario=free, devices=12, controller="fixed:3+fcfs", ways=False, horizon_s=20.0)
    env.reset(seed=2)
    delivered = np.zeros(12)
    before = env.episodes.arrays.device["window_tokens"][0].copy()  # before the first decision
    while env.agents:
        _, rewards, terminated, _, _ = env.step(
            dict.fromkeys(env.agents, 3)
        )  # cut to the cap of a response's last rounds
        delivered += list(rewards.values())
        assert not any(terminated.values())
    c = env.episodes.template.arrays.config[0, 0]
    worlds = Worlds(1, 12, threads=1)
    worlds.fill(0, free, int(env.episodes.arrays.config[0, 0]["seed"]), resolve("fixed:3+fcfs", free), 12)
    inside = worlds.arrays.config[0, 0]
    inside["warmup_s"], inside["window_end_s"], inside["end_s"] = 0.0, c["end_s"], c["end_s"]
    worlds.run()
    outside, expected = env.episodes.arrays.totals[0, 0], worlds.arrays.totals[0, 0]
    assert all(outside[k] == expected[k] for k in expected.dtype.names if k != "decisions")
    assert np.array_equal(delivered + before, worlds.arrays.device["window_tokens"][0])
    assert delivered.sum() > 500


def test_what_does_not_decide_changes_nothing_and_wrong_actions_are_refused() -> None:
    one, other = (parallel_env(devices=4, horizon_s=5.0) for _ in range(2))
    (_, infos), _ = one.reset(seed=0), other.reset(seed=0)
    waiting = [agent for agent in one.agents if not infos[agent]["decides"]]
    deciding = [agent for agent in one.agents if infos[agent]["decides"]]
    assert waiting
    assert all(infos[agent]["action_mask"].sum() == 1 for agent in waiting)
    assert all(infos[agent]["action_mask"].sum() > 1 for agent in deciding)
    with pytest.raises(InputError, match=f"given none of '{deciding[0]}', which decides now"):
        one.step(dict.fromkeys(waiting, 0))
    with pytest.raises(InputError, match="allowed are 0 to"):
        one.step(dict.fromkeys(one.agents, 99))
    first, second = one.step(dict.fromkeys(one.agents, 1)), other.step(dict.fromkeys(deciding, 1))
    assert all(np.array_equal(first[0][agent], second[0][agent]) for agent in one.agents)
    assert first[1] == second[1]


def test_a_copy_in_the_middle_of_an_episode_goes_on_to_the_same_numbers() -> None:
    env = parallel_env(devices=4, horizon_s=5.0)
    env.reset(seed=0)
    for _ in range(5):
        env.step(dict.fromkeys(env.agents, 2))
    copies, ends = [env, copy.deepcopy(env), pickle.loads(pickle.dumps(env))], []
    for each in copies:
        while each.agents:
            _, rewards, _, _, infos = each.step(dict.fromkeys(each.agents, 2))
        ends.append((rewards, {agent: float(info["dt"]) for agent, info in infos.items()}))
    assert ends[0] == ends[1] == ends[2]


def chances_of(net: Any, seen: dict[str, Any], infos: dict[str, Any]) -> Any:
    """What one shared policy does with each agent's observation and mask."""
    masks = torch.as_tensor(np.stack([infos[agent]["action_mask"] for agent in seen]))
    logits = net(torch.as_tensor(np.stack(list(seen.values())))).masked_fill(masks == 0, -torch.inf)
    return torch.distributions.Categorical(logits=logits)


def episode(env: SpeculationParallelEnv, net: Any, seed: int) -> tuple[Any, np.ndarray, Any]:
    """(T, agents) log chances of the actions, (T, agents) rewards, and the last infos."""
    (seen, infos), chances, rewards = env.reset(seed=seed), [], []
    while env.agents:
        distribution = chances_of(net, seen, infos)
        actions = distribution.sample()
        chances.append(distribution.log_prob(actions))
        seen, paid, _, _, infos = env.step(dict(zip(env.agents, actions.tolist(), strict=True)))
        rewards.append(list(paid.values()))
    return torch.stack(chances), np.array(rewards), infos


def test_the_pages_lines_train_one_policy_for_all() -> None:
    env: SpeculationParallelEnv = run_page("PettingZoo")["env"]
    torch.manual_seed(0)
    size, actions = env.observation_space("device_0").shape[0], int(env.action_space("device_0").n)
    net = torch.nn.Sequential(torch.nn.Linear(size, 32), torch.nn.Tanh(), torch.nn.Linear(32, actions))
    optimizer, steps, seed = torch.optim.Adam(net.parameters(), 3e-3), 0, 0
    while steps < 3_000:
        chances, rewards, infos = episode(env, net, seed)
        returns = rewards[::-1].cumsum(0)[::-1] / 100.0
        loss = -(chances * torch.as_tensor(returns - returns.mean(1, keepdims=True))).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps, seed = steps + rewards.size, seed + 1
        assert torch.isfinite(loss)
        assert all(info["invalid_actions"] == 0 and info["time_s"] == 20.0 for info in infos.values())
    assert seed >= 3
