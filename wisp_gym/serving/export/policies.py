"""Bundles of policies and of rules: one ONNX file each with the whole decision and its schema. The same input gives the same bytes."""

import hashlib
import json
from pathlib import Path
from typing import Any

from wisp_gym.contract.tables import TABLES
from wisp_gym.controllers.names import ControllerError
from wisp_gym.controllers.policy import Policy
from wisp_gym.controllers.predict import named
from wisp_gym.controllers.resolve import find_batching, published_threshold
from wisp_gym.controllers.scorer_policy import ScorerPolicy, load_scorer
from wisp_gym.controllers.shipped import policy_path, shipped_names
from wisp_gym.errors import InputError
from wisp_gym.files import read_text
from wisp_gym.rules.catalogue import BATCHING, SPECULATION
from wisp_gym.rules.controller import Controller
from wisp_gym.rules.speculation import POLICY_LENGTH
from wisp_gym.scenario import Scenario, dumps, load
from wisp_gym.serving.bundle.bundle import load_bundle, schema
from wisp_gym.serving.bundle.schema import Origin, Schema
from wisp_gym.serving.export import batching_rules as onnx_batching
from wisp_gym.serving.export import speculation_rules as onnx_rules
from wisp_gym.serving.export import ways as onnx_ways
from wisp_gym.serving.export.graph import BOOL, Graph, bundle_bytes
from wisp_gym.serving.export.scorer import scorer_graph


def run_folder(name: str) -> Path:
    """The folder of a run, given by itself or by its policy.json; that of a shipped policy holds no run's description."""
    path = policy_path(name)
    return path if path.is_dir() else path.parent


def scenario_of_run(name: str, given: str) -> Scenario:
    """The scenario that a policy was trained in.

    Raises:
        InputError: the run does not hold it and none is given, or one is given beside the run's.
    """
    path = run_folder(name) / "scenario.toml"
    if path.is_file() and not given:
        return load(path)
    if given and not path.is_file():
        return load(given)
    what = f"not allowed, '{path}' holds the run's" if given else f"needed, since there is no '{path}'"
    raise InputError(f"argument --scenario: {what}")


def origin_of_run(name: str, scenario: Scenario) -> Origin:
    """Where a learned policy comes from; a shipped one's name and commit stand in its bundle."""
    if name in shipped_names():
        told = load_bundle(name).schema.origin
        return Origin(told.made_by, told.commit, scenario.name, scenario_sha256(scenario))
    folder = run_folder(name)
    try:
        versions = json.loads(read_text(folder / "versions.json"))
    except (OSError, ValueError, RecursionError):
        versions = {}
    commit = versions.get("commit") if isinstance(versions, dict) else None
    return Origin(folder.resolve().name, str(commit or ""), scenario.name, scenario_sha256(scenario))


def scenario_sha256(scenario: Scenario) -> str:
    """Hash of a whole scenario."""
    return hashlib.sha256(dumps(scenario).encode()).hexdigest()


def scorer_bundle(name: str, scenario: Scenario) -> bytes:
    """The bundle of a policy that batches request by request."""
    return scorer_bytes(load_scorer(name), scenario, origin_of_run(name, scenario))


def scorer_bytes(policy: ScorerPolicy, scenario: Scenario, origin: Origin) -> bytes:
    """The bundle of a scorer."""
    about = described(policy.decision, True, read_by(policy.decision), scenario, origin)
    return bundle_bytes(scorer_graph(policy.layers, policy.decision, scenario.max_draft_tokens), about)


def learned_bundle(policy: Policy, scenario: Scenario, origin: Origin) -> bytes:
    """The bundle of a network that decides after each token or once a round, how the round ends too or not.

    Raises:
        InputError: a length policy for another cap than the scenario's.
    """
    cap = scenario.max_draft_tokens
    outputs = policy.layers[-1][0].shape[0]
    if policy.decision == schema.LENGTH and outputs != cap + 1:
        raise InputError(f"the policy chooses among {outputs} lengths, but the scenario drafts 0 to {cap} tokens")
    policy.refuse_other_cap(cap)
    g = Graph()
    low, high = ([feature[k] for feature in schema.features_of("observation")] for k in (2, 3))
    inside = g.within("observation", low, high)
    scores = g.perceptron(inside, policy.layers, policy.activation)
    decode(g, scores, inside, policy.decision, cap)
    return bundle_bytes(g, described(policy.decision, True, observation(), scenario, origin))


def decode(g: Graph, scores: str, inside: str, decision: str, cap: int) -> None:
    """`action` (n,) of (n, actions) scores, what the (n, SIZE) observation does not allow left out."""
    if decision in (schema.TOKEN_WAY, schema.LENGTH_WAY):
        onnx_ways.decode(g, scores, inside, cap, by_length=decision == schema.LENGTH_WAY)
    elif decision == schema.TOKEN:
        more = g.cast(g.op("ArgMax", scores, axis=1, keepdims=1), BOOL)
        onnx_rules.decode_token(g, more, *onnx_rules.round_columns(g, inside, cap), float(cap))
    else:
        _, left = onnx_rules.round_columns(g, inside, cap)
        onnx_rules.decode_length(g, g.op("ArgMax", scores, axis=1, keepdims=0), left)


# --- rules -----------------------------------------------------------------------------------------------------------


def rule_of(name: str, scenario: Scenario) -> Controller:
    """The speculation rule of a name.

    Raises:
        ControllerError: unknown, or a rule that is no function of the observation alone.
    """
    controller = named(name, scenario)
    if controller.speculation not in onnx_rules.STOPPING | onnx_rules.LENGTHS:
        exported = {rule.kind: text for text, rule in SPECULATION.items()}
        allowed = ", ".join(exported[kind] for kind in (*onnx_rules.STOPPING, *onnx_rules.LENGTHS))
        raise ControllerError(f"controller '{name}': no function of the observation alone; allowed: {allowed}, RUN")
    return controller


def rule_bundle(controller: Controller, scenario: Scenario) -> bytes:
    """The bundle of a speculation rule."""
    g = onnx_rules.rule_graph(controller.speculation, controller.speculation_parameters, scenario.max_draft_tokens)
    decision = schema.LENGTH if controller.speculation >= POLICY_LENGTH else schema.TOKEN
    origin = Origin(controller.name, "", scenario.name, scenario_sha256(scenario))
    return bundle_bytes(g, described(decision, False, observation(), scenario, origin))


def batching_bundle(name: str, scenario: Scenario) -> bytes:
    """The bundle of a batching rule.

    Raises:
        ControllerError: unknown, or a rule that waits or looks at the batch so far.
    """
    kind, parameters, _ = find_batching(name, scenario)
    if kind not in onnx_batching.RULES:
        exported = {known.kind: text for text, known in BATCHING.items()}
        allowed = ", ".join(exported[kind] for kind in onnx_batching.RULES)
        raise ControllerError(f"controller '{name}': no order of the queue alone; allowed: {allowed}")
    g = onnx_batching.queue_graph(kind, parameters)
    inputs = {table: schema.features_of(table, names) for table, names in g.names.items() if names}
    origin = Origin(name, "", scenario.name, scenario_sha256(scenario))
    return bundle_bytes(g, described(schema.ORDER, False, inputs, scenario, origin))


def observation() -> dict[str, list[list[Any]]]:
    """What a device's bundle reads."""
    return {"observation": schema.features_of("observation")}


def read_by(decision: str) -> dict[str, list[list[Any]]]:
    """What a learned policy's bundle reads, by its decision."""
    tables = ("requests", "globals") if decision in schema.SCORERS else ("observation",)
    return {table: schema.features_of(table, list(TABLES[table])) for table in tables}


def described(
    decision: str, learned: bool, inputs: dict[str, list[list[Any]]], scenario: Scenario, origin: Origin
) -> Schema:
    """The schema of a bundle; WISP's own settings are what it falls back to."""
    if "observation" in inputs:
        fallback = {"threshold": published_threshold(scenario)}
    else:
        fallback = {setting.name: setting.default for setting in BATCHING["wisp"].settings}
    cap = scenario.max_draft_tokens
    return Schema(decision, learned, inputs, schema.actions_of(decision, cap), cap, fallback, origin)
