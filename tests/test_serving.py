"""The runtime on a device acts as the engine does."""

from itertools import pairwise

import numpy as np
import pytest

from wisp_gym.controllers.mlp import argmax_action
from wisp_gym.controllers.policy import PolicyError, make_policy, save_policy
from wisp_gym.engine import observation
from wisp_gym.serving.speculation import SpeculationRuntime


def random_policy(rng: np.random.Generator, actions: int, decision: str, activation: str):
    """A policy of two hidden layers with random weights."""
    widths = [observation.SIZE, 16, 8, actions]
    layers = [
        (rng.normal(size=(b, a)).astype(np.float32), rng.normal(size=b).astype(np.float32)) for a, b in pairwise(widths)
    ]
    return make_policy(layers, decision, activation)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize(("actions", "decision"), [(2, "token"), (13, "length")])
def test_same_actions_as_the_engine(tmp_path, activation, actions, decision):
    rng = np.random.default_rng(5)
    policy = random_policy(rng, actions, decision, activation)
    save_policy(policy, tmp_path / "policy.json")
    runtime = SpeculationRuntime.load(tmp_path / "policy.json")
    seen = rng.uniform(observation.LOW, observation.HIGH, size=(500, observation.SIZE)).astype(np.float32)
    decide = runtime.wants_more if decision == "token" else runtime.round_length
    ours = np.array([int(decide(o)) for o in seen])
    theirs = np.array([argmax_action(policy.weights, o) for o in seen])
    assert len(set(ours)) > 1
    assert (ours == theirs).mean() > 0.998  # sums are taken in another order: a tie may fall the other way
    assert runtime.corrected == 0


def test_a_broken_sensor_is_corrected_and_counted():
    policy = random_policy(np.random.default_rng(2), 2, "token", "tanh")
    runtime = SpeculationRuntime(policy)
    o = np.full(observation.SIZE, np.nan, np.float32)
    o[0] = np.inf
    assert runtime.wants_more(o) in (True, False)
    assert runtime.corrected == 1
    with pytest.raises(ValueError, match=r"allowed is \(30,\)"):
        runtime.wants_more(np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="use wants_more"):
        runtime.round_length(np.zeros(observation.SIZE, np.float32))


def test_what_is_no_policy_is_refused(tmp_path):
    (tmp_path / "policy.json").write_text("{}", encoding="utf-8")
    with pytest.raises(PolicyError, match="not a policy file"):
        SpeculationRuntime.load(tmp_path)
