"""Bundles for the tests of serving: rules, and networks with random weights."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from wisp_gym.contract import device
from wisp_gym.controllers.policy import Policy, make_policy
from wisp_gym.scenario import Scenario, load
from wisp_gym.serving.bundle.bundle import Bundle, from_bytes
from wisp_gym.serving.bundle.schema import Origin
from wisp_gym.serving.export.policies import learned_bundle, rule_bundle, rule_of

SCENARIO = load("wisp-a100-qwen3-32b")
ORIGIN = Origin("a test", "0" * 40, SCENARIO.name, "0" * 64)


def random_policy(decision: str, seed: int = 0, activation: str = "tanh", widths: tuple[int, ...] = (64, 64)) -> Policy:
    """A network whose answers vary over the observations that the engine shows."""
    rng = np.random.default_rng(seed)
    lengths = SCENARIO.max_draft_tokens + 1
    actions = {"token": 2, "token-way": 4, "length": lengths, "length-way": 3 * lengths}[decision]
    sizes = [device.SIZE, *widths, actions]
    layers = [
        (
            rng.normal(size=(b, a)).astype(np.float32) / np.sqrt(a, dtype=np.float32),
            rng.normal(size=b).astype(np.float32),
        )
        for a, b in pairwise(sizes)
    ]
    return make_policy(layers, decision, activation)


def network_bytes(policy: Policy) -> bytes:
    """Its bundle's file."""
    return learned_bundle(policy, SCENARIO, ORIGIN)


def rule_bytes(name: str, scenario: Scenario = SCENARIO) -> bytes:
    """The file of a speculation rule's bundle."""
    return rule_bundle(rule_of(name, scenario), scenario)


def rule(name: str, scenario: Scenario = SCENARIO) -> Bundle:
    """A speculation rule, loaded."""
    return from_bytes(rule_bytes(name, scenario))
