"""A policy of any making as a bundle: layers, torch modules, models of stable-baselines3, ONNX graphs, saved policies."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import onnx

from wisp_gym.contract.tables import TABLES
from wisp_gym.controllers.policy import Policy, load_policy, make_policy, saved_decision
from wisp_gym.controllers.scorer_policy import ScorerPolicy, load_scorer
from wisp_gym.errors import InputError, one_of, shown
from wisp_gym.scenario import Scenario, load
from wisp_gym.serving.bundle import schema
from wisp_gym.serving.bundle.bundle import Bundle, from_bytes
from wisp_gym.serving.bundle.schema import Origin
from wisp_gym.serving.export import foreign, policies, scores, torch_module

DECISIONS = (*schema.OF_DEVICES, *schema.SCORERS)
KINDS = (
    "an ONNX file, its bytes or model, a torch module, a model of stable-baselines3, a list of (W, b), a Policy, a ScorerPolicy, "
    "a run's folder or policy.json"
)


def bundle_of(policy: Any, decision: str, scenario: str | Path | Scenario, made_by: str) -> Bundle:
    """What `wisp_gym.serving.build_bundle` says."""
    one_of("decision", decision, DECISIONS)
    world = scenario if isinstance(scenario, Scenario) else load(scenario)
    origin = Origin(made_by, "", world.name, policies.scenario_sha256(world))
    given = saved(policy)
    if isinstance(given, list):
        given = make_policy(given, decision, "tanh")
    if isinstance(given, Policy):
        return from_bytes(policies.learned_bundle(given, world, origin))
    if isinstance(given, ScorerPolicy):
        return from_bytes(policies.scorer_bytes(given, world, origin))
    return from_bytes(scores.bundle_of_model(model_of(given, decision), decision, world, origin))


def saved(policy: Any) -> Any:
    """The policy that a run's folder or a `policy.json` holds; what is none of these as it is."""
    if not isinstance(policy, (str, os.PathLike)) or str(policy).endswith(".onnx"):
        return policy
    name = os.fspath(policy)
    return load_scorer(name) if saved_decision(name) in schema.SCORERS else load_policy(name)


def model_of(given: Any, decision: str) -> onnx.ModelProto:
    """The ONNX model of what is neither layers nor a saved policy.

    Raises:
        InputError: something else.
    """
    if isinstance(given, (str, os.PathLike, bytes, onnx.ModelProto)):
        return foreign.read(given)
    tables = ("requests", "globals") if decision in schema.SCORERS else ("observation",)
    widths = {name: len(TABLES[name]) for name in tables}
    if torch_module.is_module(given):
        return torch_module.exported(given, widths)
    if torch_module.is_sb3(given):
        return torch_module.exported(torch_module.actor_of(given), widths)
    raise InputError(f"policy: given {shown(given)}, allowed are {KINDS}")
