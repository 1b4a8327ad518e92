"""Shipped policies of the server: one name for engine, environment and server, the same decisions, hardly less than the strongest rule."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

from wisp_gym.contract import request, server
from wisp_gym.controllers.predict_batching import BatchingPredictor
from wisp_gym.controllers.shipped import shipped_names
from wisp_gym.engine.worlds import Worlds
from wisp_gym.evaluation.metrics import Metrics
from wisp_gym.policies import load
from wisp_gym.scenario import load as load_scenario
from wisp_gym.scenario import with_
from wisp_gym.simulation import simulate

NAMES = [name for name in shipped_names() if load(name).decides_batches()]
SCENARIO = with_(load_scenario("wisp-study"), n_devices=90)
RULE = "speculation-v1+aged+chunk:96,0.2+admit"
SHORT = {"warmup_s": 15.0, "measure_s": 45.0, "drain_s": 0.0}


def test_a_policy_for_each_decision_of_the_server() -> None:
    assert {load(name).decision() for name in NAMES} == {"batching", "joint"}


@pytest.mark.parametrize("name", NAMES)
def test_one_name_for_engine_environment_and_server(name: str) -> None:
    loaded, visible = load(name), SCENARIO.n_devices
    model, decide = loaded.environment(SCENARIO), loaded.bundle().decide
    assert isinstance(model, BatchingPredictor)
    env = gym.make(
        f"wisp_gym/{loaded.decision().title()}-v1", scenario=SCENARIO, hosting=False, visible=visible,
        horizon_s=20.0,
        controller="speculation-v1+fcfs+admit",
    ).unwrapped  # fmt: skip
    o, info = env.reset(seed=1)
    over, same = False, []
    while not over:
        action = int(model.predict(o)[0])
        assert info["action_mask"][action]
        requests = o[server.SIZE :].reshape(visible, request.SIZE)
        waiting = requests[requests[:, request.PRESENT] > 0.5]
        pick, takes, other = decide({"requests": waiting, "globals": o[None, : server.SIZE]})
        same.append(action == (int(pick[0]) if takes[0] else visible + int(other[0])))
        o, _, _, over, info = env.step(action)
    assert len(same) > 200
    assert np.mean(same) > 0.995  # sums in another order: a tie may fall the other way
    worlds, arrays = Worlds(1, visible, threads=1), env.task.episodes.arrays  # type: ignore[attr-defined]
    worlds.fill(0, SCENARIO, int(arrays.config[0, 0]["seed"]), loaded.engine(SCENARIO), visible)
    for field in ("warmup_s", "window_end_s", "end_s"):
        worlds.arrays.config[0, 0][field] = arrays.config[0, 0][field]
    worlds.run()
    inside, outside = worlds.arrays.totals[0, 0], arrays.totals[0, 0]
    assert all(inside[field] == outside[field] for field in inside.dtype.names if field != "decisions")
    assert outside["tokens"] > 1000


def outcome(controller: str, devices: int) -> tuple[float, float]:
    """Mean goodput and share of starved devices in a few short worlds that no training saw."""
    scenario = with_(SCENARIO, n_devices=devices, horizon=SHORT)
    found: list[Metrics] = simulate(scenario, controller, range(700, 704))
    return float(np.mean([m.goodput_tokens_per_s for m in found])), float(np.mean([m.starved_share for m in found]))


@pytest.mark.parametrize("devices", [64, 120])
@pytest.mark.parametrize("name", NAMES)
def test_hardly_less_goodput_than_the_strongest_rule_and_nobody_starves(name: str, devices: int) -> None:
    goodput, starved = outcome(f"speculation-v1+{name}+admit", devices)
    rule, starved_by_rule = outcome(RULE, devices)
    assert goodput > 0.97 * rule
    assert starved <= starved_by_rule + 0.01
