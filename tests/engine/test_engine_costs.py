"""What a serving engine adds to its model's time: CUDA-graph sizes, eager batches, host time; and estimators that know of sizes."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.small_worlds import horizon, log_of, plain, run
from wisp_gym.engine.feasibility import best_tokens_per_s
from wisp_gym.engine.verification import clean_batch_s, padded_tokens
from wisp_gym.scenario import Scenario, ScenarioError, dumps, loads, with_

SIZES = [1, 2, 4, *range(8, 256, 8), *range(256, 513, 16)]  # vLLM's, up to its default of 512
COSTS = {"server.host_request_s": 0.002, "server.host_token_s": 1e-4, "server.graph_tokens": 12, "server.eager_s": 0.02}


def test_batches_are_padded_to_the_sizes_that_vllm_captures() -> None:
    for tokens in range(1, 513):
        assert padded_tokens(512, float(tokens)) == next(size for size in SIZES if size >= tokens)
    assert padded_tokens(512, 513.0) == 513.0  # beyond them nothing is padded
    assert padded_tokens(0, 7.0) == 7.0
    assert padded_tokens(100, 97.0) == 100.0  # the largest is captured too


def test_costs_by_hand() -> None:
    scenario = with_(plain(), **COSTS)
    v = scenario.verification

    def model_s(tokens: float) -> float:
        roofline_s = (v.weights_s**v.sharpness + (v.token_s * tokens) ** v.sharpness) ** (1 / v.sharpness)
        return scenario.server.host_s + v.launch_s + roofline_s

    assert clean_batch_s(scenario, 3, 9, 0.0, 0) == pytest.approx(model_s(12) + 3 * 0.002 + 9e-4, rel=1e-12)
    assert clean_batch_s(scenario, 3, 13, 0.0, 0) == pytest.approx(model_s(13) + 3 * 0.002 + 13e-4 + 0.02, rel=1e-12)


def batch_times(scenario: Scenario) -> np.ndarray:
    """Seconds of each batch of a device that is alone."""
    log = log_of(run(scenario, "fixed:4+fcfs", [1], 20_000))
    launched, ended = (np.array([t for t, kind, *_ in log if kind == name]) for name in ("launch", "end"))
    return ended - launched[: len(ended)]


def test_a_world_has_them() -> None:
    alone = plain(n_devices=1, horizon=horizon(0.0, 20.0))
    slower = batch_times(with_(alone, **{"server.host_request_s": 0.05})).mean() - batch_times(alone).mean()
    assert slower == pytest.approx(0.05, rel=0.02)
    kind = alone.devices[0]
    assert best_tokens_per_s(with_(alone, **COSTS), kind) < best_tokens_per_s(alone, kind)


def predicted(scenario: Scenario) -> dict[float, float]:
    """Predicted seconds of the verification batches of a device that is alone, by new tokens."""
    found, launched_s, run_tokens = {}, 0.0, 0.0
    for t, kind, _, value in log_of(run(scenario, "fixed:4+fcfs", [1], 20_000)):
        launched_s = t if kind == "launch" else launched_s
        if kind == "predict":
            predicted_s = value - launched_s
        if kind == "member":
            run_tokens = value
            found[run_tokens] = predicted_s
    return found


def test_levels_by_size_are_added_to_the_prediction() -> None:
    flat = {"estimator.new_token_s": 0.0, "estimator.pair_s": 0.0, "estimator.cached_token_s": 0.0}
    sizes = [{"tokens": 3, "add_s": 0.001}, {"tokens": 5, "add_s": 0.003}]
    alone = plain(n_devices=1, horizon=horizon(0.0, 20.0), **flat)
    scenario = with_(alone, **{"estimator.sizes": sizes, "estimator.request_s": 0.01})
    launch_s = scenario.estimator.launch_s + 0.01
    found = predicted(scenario)
    assert found[5.0] == pytest.approx(launch_s + 0.003)
    for tokens, seconds in found.items():
        level_s = 0.003 * tokens / 5 if tokens > 5 else np.interp(tokens, [3, 5], [0.001, 0.003])
        assert seconds == pytest.approx(launch_s + level_s)


def test_they_are_written_and_read() -> None:
    sizes = [{"tokens": 8, "add_s": 0.001}, {"tokens": 64, "add_s": 0.0}]
    scenario = with_(plain(), **COSTS, **{"estimator.sizes": sizes})
    assert loads(dumps(scenario)) == scenario
    assert "host_request_s" not in dumps(plain())


def test_sizes_that_cannot_be_are_refused() -> None:
    sizes = [{"tokens": 8, "add_s": 0.001}, {"tokens": 8, "add_s": 0.002}]
    with pytest.raises(ScenarioError, match=r"estimator\.sizes\[1\]\.tokens: given 8, allowed: > 8"):
        with_(plain(), **{"estimator.sizes": sizes})
    with pytest.raises(ScenarioError, match="given 65 sizes, allowed: up to 64"):
        with_(plain(), **{"estimator.sizes": [{"tokens": n, "add_s": 0.0} for n in range(1, 66)]})
