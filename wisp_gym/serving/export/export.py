"""Export a policy or a rule for real servers: one ONNX file that `wisp_gym.serving` runs without torch.

    wisp-gym export runs/ppo-Speculation-v0_1 -o policy.onnx
    wisp-gym export aligned --scenario wisp-a100-qwen3-32b -o aligned.onnx
    wisp-gym export --batching wisp -o batching.onnx

The file holds the whole decision (normalisation, network or rule, masking, decoding) and its schema: features with units and
ranges, meaning of the actions, the commit that trained it, the hash of its scenario. The same input gives the same bytes.
With --check it is compared with torch and with the engine's compiled policy on recorded observations.
"""

from __future__ import annotations

import hashlib
import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wisp_gym.cli import Parser, output_file, run, whole
from wisp_gym.contract.tables import TABLES
from wisp_gym.controllers.policy import Policy, load_policy, saved_decision
from wisp_gym.controllers.predict import named
from wisp_gym.controllers.resolve import (
    BATCHING,
    SPECULATION,
    Controller,
    ControllerError,
    find_rule,
    is_file,
    published_threshold,
)
from wisp_gym.controllers.scorer_policy import load_scorer
from wisp_gym.errors import InputError
from wisp_gym.evaluation.arguments import DEFAULT_SCENARIO
from wisp_gym.files import write_bytes
from wisp_gym.rules.speculation import POLICY_LENGTH
from wisp_gym.scenario import Scenario, dumps, load
from wisp_gym.serving.bundle.bundle import from_bytes, schema
from wisp_gym.serving.bundle.schema import Origin, Schema
from wisp_gym.serving.export import batching_rules as onnx_batching
from wisp_gym.serving.export import speculation_rules as onnx_rules
from wisp_gym.serving.export.graph import Graph, bundle_bytes
from wisp_gym.serving.export.parity import compare
from wisp_gym.serving.export.scorer import scorer_graph

PROGRAM = "wisp_gym.serving.export.export"


def parse(arguments: Sequence[str] | None) -> Namespace:
    """The flags."""
    parser = Parser(prog=PROGRAM, description=__doc__)
    add = parser.add_argument
    add("policy", metavar="RUN|RULE", help="run folder, policy.json, or a rule such as wisp, fixed:4, aligned")
    add("--batching", action="store_true", help="the rule is a server's (wisp, edf-demoted …), not a device's")
    add("-o", "--output", type=output_file(".onnx"), required=True, metavar="FILE", help="the bundle to write")
    add("--scenario", default="", metavar="NAME|FILE",
        help=f"a rule's scenario (default {DEFAULT_SCENARIO}); that of a run is in its folder")  # fmt: skip
    add("--check", type=whole(1, 10**6), default=0, metavar="N", help="compare on N recorded observations, e.g. 10000")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    flags = parse(arguments)
    if is_file(flags.policy) and saved_decision(flags.policy) in schema.SCORERS:
        return write(flags.output, scorer_bundle(flags.policy, scenario_of_run(flags.policy, flags.scenario)))
    policy = load_policy(flags.policy) if is_file(flags.policy) and not flags.batching else None
    if flags.batching:
        scenario = load(flags.scenario or DEFAULT_SCENARIO)
        return write(flags.output, batching_bundle(flags.policy, scenario))
    if policy is not None:
        scenario = scenario_of_run(flags.policy, flags.scenario)
        data = learned_bundle(policy, scenario, origin_of_run(flags.policy, scenario))
        controller = named(flags.policy, scenario)
    else:
        scenario = load(flags.scenario or DEFAULT_SCENARIO)
        controller = rule_of(flags.policy, scenario)
        data = rule_bundle(controller, scenario)
    if flags.check:
        print(compare(from_bytes(data), controller, policy, scenario, flags.check))
    write(flags.output, data)


def write(path: Path, data: bytes) -> None:
    """Write a bundle, which must be one that can be read."""
    bundle = from_bytes(data)
    write_bytes(path, data)
    print(f"{path.name}: {bundle.schema.decision} policy, {len(data):,} bytes, sha256 {bundle.sha256}")


# --- learned policies ------------------------------------------------------------------------------------------------


def run_folder(name: str) -> Path:
    """The folder of a run, given by itself or by its policy.json."""
    path = Path(name)
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
    """Where a learned policy comes from."""
    folder = run_folder(name)
    try:
        versions = json.loads((folder / "versions.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        versions = {}
    commit = versions.get("commit") if isinstance(versions, dict) else None
    return Origin(folder.resolve().name, str(commit or ""), scenario.name, scenario_sha256(scenario))


def scenario_sha256(scenario: Scenario) -> str:
    """Hash of a whole scenario."""
    return hashlib.sha256(dumps(scenario).encode()).hexdigest()


def scorer_bundle(name: str, scenario: Scenario) -> bytes:
    """The bundle of a policy that batches request by request, and that sets prices where it is a joint one."""
    policy = load_scorer(name)
    inputs = {table: schema.features_of(table, list(TABLES[table])) for table in ("requests", "globals")}
    cap = scenario.max_draft_tokens
    actions = schema.actions_of(policy.decision, cap)
    origin = origin_of_run(name, scenario)
    described = Schema(policy.decision, True, inputs, actions, cap, server_fallback(), origin)
    return bundle_bytes(scorer_graph(policy.layers, policy.decision), described)


def server_fallback() -> dict[str, float]:
    """Settings of WISP's scheduler."""
    return {setting.name: setting.default for setting in BATCHING["wisp"].settings}


def learned_bundle(policy: Policy, scenario: Scenario, origin: Origin) -> bytes:
    """The bundle of a network that decides after each token or once a round.

    Raises:
        InputError: a length policy for another cap than the scenario's.
    """
    cap = scenario.max_draft_tokens
    outputs = policy.layers[-1][0].shape[0]
    if policy.decision == schema.LENGTH and outputs != cap + 1:
        raise InputError(f"the policy chooses among {outputs} lengths, but the scenario drafts 0 to {cap} tokens")
    g = Graph()
    low, high = ([feature[k] for feature in schema.features_of("observation")] for k in (2, 3))
    inside = g.within("observation", low, high)
    scores = g.perceptron(inside, policy.layers, policy.activation)
    if policy.decision == schema.TOKEN:
        best = g.op("ArgMax", scores, axis=1, keepdims=1)
        more = g.cast(best, onnx_rules.BOOL)
        onnx_rules.decode_token(g, more, *onnx_rules.round_columns(g, inside, cap), float(cap))
    else:
        _, left = onnx_rules.round_columns(g, inside, cap)
        onnx_rules.decode_length(g, g.op("ArgMax", scores, axis=1, keepdims=0), left)
    return bundle_bytes(g, described(policy.decision, True, scenario, origin))


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
    return bundle_bytes(g, described(decision, False, scenario, origin))


def batching_bundle(name: str, scenario: Scenario) -> bytes:
    """The bundle of a batching rule.

    Raises:
        ControllerError: unknown, or a rule that waits or looks at the batch so far.
    """
    rule, parameters = find_rule(name, BATCHING, "batching")
    if rule.kind not in onnx_batching.RULES:
        exported = {known.kind: text for text, known in BATCHING.items()}
        allowed = ", ".join(exported[kind] for kind in onnx_batching.RULES)
        raise ControllerError(f"controller '{name}': no order of the queue alone; allowed: {allowed}")
    g = onnx_batching.queue_graph(rule.kind, parameters)
    inputs = {table: schema.features_of(table, names) for table, names in g.names.items() if names}
    origin = Origin(name, "", scenario.name, scenario_sha256(scenario))
    fallback, cap = server_fallback(), scenario.max_draft_tokens
    actions = schema.actions_of(schema.ORDER, cap)
    return bundle_bytes(g, Schema(schema.ORDER, False, inputs, actions, cap, fallback, origin))


def described(decision: str, learned: bool, scenario: Scenario, origin: Origin) -> Schema:
    """The schema of a speculation bundle."""
    fallback: dict[str, Any] = {"threshold": published_threshold(scenario)}
    cap = scenario.max_draft_tokens
    inputs = {"observation": schema.features_of("observation")}
    return Schema(decision, learned, inputs, schema.actions_of(decision, cap), cap, fallback, origin)


if __name__ == "__main__":
    sys.exit(run(main, PROGRAM))
