"""Controllers by name: `speculation+batching[+trim][+chunk][+admit]`, each with its parameters after a colon.

Examples: `wisp+wisp`, `fixed:4+fcfs`, `confidence:0.6+static:4,0.1`, `centralized`, `runs/mine/policy.json+wisp`,
`fixed:8+fcfs+dspark`, `wisp+aged+chunk:256+admit`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist

import numpy as np

from wisp_gym.controllers.catalogue import (
    ADDITIONS,
    ADMISSION,
    ALIASES,
    BATCHING,
    CENTRALIZED,
    CHUNK,
    SPECULATION,
    TRIMMING,
    Rule,
    Setting,
)
from wisp_gym.controllers.plan import make_plan
from wisp_gym.controllers.policy import Policy, load_policy
from wisp_gym.controllers.scorer_policy import load_scorer
from wisp_gym.controllers.shipped import shipped_names
from wisp_gym.engine.build import mean_acceptance, separation
from wisp_gym.engine.trace_files import load_draft_trace, passed_confidence
from wisp_gym.errors import InputError, did_you_mean
from wisp_gym.rules import batching as batching_rules
from wisp_gym.rules import speculation as speculation_rules
from wisp_gym.rules.controller import NO_POLICY, Controller
from wisp_gym.rules.rejection_predictor import load_predictor
from wisp_gym.scenario import Scenario

FILE_ENDINGS = (".json", ".onnx", ".zip")

# WISP's published operating point: share of accepted tokens that its MLP lets pass (arXiv 2601.11652).
WISP_RECALL = 0.801


class ControllerError(InputError):
    """A controller name that cannot be understood; the message is one line."""


def shown(name: str, rule: Rule) -> str:
    """A rule's name with those of its settings."""
    return name + (":" if rule.settings else "") + ",".join(setting.name for setting in rule.settings)


def listing() -> str:
    """Table of all rules for `--help`."""
    lines = []
    for title, rules in (
        ("speculation", SPECULATION),
        ("batching", BATCHING),
        ("server alone", CENTRALIZED),
        ("added to batching", ADDITIONS),
    ):
        lines.append(f"{title}:")
        for name, rule in rules.items():
            lines.append(f"  {shown(name, rule):<24} {rule.meaning}")
    lines.append("whole systems:")
    lines += [f"  {name:<24} {meaning}" for name, meaning in ALIASES.items()]
    lines.append("  FILE[+batching]          a saved policy: policy.json or its run folder (default +wisp)")
    lines.append(f"  {', '.join(shipped_names()):<24} shipped policies, wherever a file may stand")
    lines.append("  speculation+FILE         a saved batching policy, beside any speculation rule or policy")
    return "\n".join(lines)


def numbers(name: str, text: str, rule: Rule) -> tuple[float, ...]:
    """Parameters after the colon, checked; missing ones take their defaults."""
    parts = text.split(",") if text else []
    if len(parts) > len(rule.settings):
        allowed = ", ".join(setting.name for setting in rule.settings)
        raise ControllerError(
            f"controller '{name}': given {len(parts)} parameters, allowed at most {len(rule.settings)} ({allowed})"
        )
    given = [number(name, part, setting) for part, setting in zip(parts, rule.settings, strict=False)]
    return (*given, *(setting.default for setting in rule.settings[len(parts) :]))


def number(name: str, part: str, setting: Setting) -> float:
    """One parameter, checked."""
    allowed = f"{setting.low:g} to {setting.high:g}"
    try:
        value = float(part)
    except ValueError:
        raise ControllerError(
            f"controller '{name}': {setting.name} given '{part}', allowed is a number from {allowed}"
        ) from None
    if not setting.low <= value <= setting.high:
        raise ControllerError(f"controller '{name}': {setting.name} given {part}, allowed is {allowed}")
    return value


def find_rule(text: str, rules: dict[str, Rule], kind: str) -> tuple[Rule, tuple[float, ...]]:
    """Rule and parameters of `name:parameters`."""
    name, _, rest = text.partition(":")
    if name not in rules:
        raise ControllerError(
            f"unknown {kind} controller '{name}'; {did_you_mean(name, list(dict.fromkeys([*rules, *ALIASES, *CENTRALIZED])))}"
        )
    return rules[name], numbers(text, rest, rules[name])


def published_threshold(scenario: Scenario) -> float:
    """Predicted acceptance below which WISP's rule stops.

    A predictor's own where the draft names one; else that which 80.1 % of the accepted tokens pass: by the confidence of
    a recorded trace, or by the closed form of the parametric process.
    """
    if scenario.draft.predictor:
        return load_predictor(scenario.draft.predictor).threshold
    if scenario.draft.trace:
        return passed_confidence(load_draft_trace(scenario).tokens, WISP_RECALL)
    d = separation(scenario.draft.statistics.auc)
    share = mean_acceptance(scenario.draft.acceptance)
    evidence = d / 2.0 - NormalDist().inv_cdf(WISP_RECALL)
    return 1.0 / (1.0 + math.exp(-(math.log(share / (1.0 - share)) + d * evidence)))


def centralized(name: str, text: str) -> Controller:
    """Continuous batching on the server alone."""
    rule, parameters = find_rule(text, CENTRALIZED, "centralized")
    return Controller(name, speculation_rules.FIXED, (0.0,), rule.kind, parameters, centralized=True)


def with_additions(controller: Controller, texts: list[str]) -> Controller:
    """The controller with at most one trimming rule, one prefill chunk and one limit of admission."""
    for text in texts:
        name = text.partition(":")[0]
        if name not in ADDITIONS:
            hint = did_you_mean(name, list(ADDITIONS))
            raise ControllerError(f"controller '{controller.name}': unknown addition '{text}'; {hint}")
        rule, values = find_rule(text, ADDITIONS, "batching")
        if name in CHUNK and controller.chunk_tokens is None:
            controller = replace(controller, chunk_tokens=int(values[0]), chunk_share=values[1])
        elif name in ADMISSION and not controller.admit_share:
            controller = replace(controller, admit_share=values[0])
        elif name in TRIMMING and not controller.trim and not controller.centralized:
            tokens = int(values[0]) if values else 0  # survivals are the predictor's, so its time is spent
            controller = replace(controller, trim=rule.kind, trim_tokens=tokens, uses_predictor=True)
        else:
            raise ControllerError(
                f"controller '{controller.name}': '{text}' does not fit; allowed: one of {', '.join(TRIMMING)} where devices draft, "
                "one chunk, one admit"
            )
    return controller


def is_file(text: str) -> bool:
    """Whether a name means a saved policy (a file, a run folder, a shipped one) rather than a rule."""
    if not text or text.partition(":")[0] in SPECULATION:
        return False
    return text in shipped_names() or text.endswith(FILE_ENDINGS) or "/" in text or Path(text).is_dir()


def split(full: str) -> tuple[str, list[str]]:
    """Speculation and the pieces after it, the first of which may be a file of a batching policy."""
    first, rest = take_piece(full.split("+"), {**SPECULATION, **CENTRALIZED, **ALIASES})
    if not rest:
        return first, []
    second, rest = take_piece(rest, {**BATCHING, **ADDITIONS})
    return first, [second, *rest]


def take_piece(parts: list[str], rules: Mapping[str, object]) -> tuple[str, list[str]]:
    """The first piece of a name, and the parts left. The path of a file may hold a plus sign: the longest that exists, else the

    shortest that ends as a file, else all up to the last part that looks like one.
    """
    if parts[0].partition(":")[0] in rules or parts[0] in shipped_names() or not any(map(is_file, parts)):
        return parts[0], parts[1:]
    joined = ["+".join(parts[: k + 1]) for k in range(len(parts))]
    there = [k for k, path in enumerate(joined) if is_file(path) and Path(path).exists()]
    named = [k for k, path in enumerate(joined) if path.endswith(FILE_ENDINGS)]
    n = 1 + (there[-1] if there else named[0] if named else max(k for k, part in enumerate(parts) if is_file(part)))
    return "+".join(parts[:n]), parts[n:]


def find_batching(text: str, scenario: Scenario) -> tuple[int, tuple[float, ...], np.ndarray]:
    """Kind, parameters and scorer of a batching rule or of a saved policy; a pipelined rule is told the plan's cycle and groups."""
    if is_file(text):
        return batching_rules.LEARNED, (), load_scorer(text).weights
    rule, parameters = find_rule(text, BATCHING, "batching")
    if rule.kind == batching_rules.PIPELINED:
        plan = make_plan(scenario)
        parameters = (*parameters, plan.cycle_s, float(plan.n_groups))
    return rule.kind, parameters, NO_POLICY


def with_policy(name: str, policy: Policy, batching: str, scenario: Scenario) -> Controller:
    """A learned speculation policy with a batching rule, or a learned one."""
    kind, parameters, scorer = find_batching(batching, scenario)
    return Controller(
        name,
        policy.kind,
        (),
        kind,
        parameters,
        plan=make_plan(scenario) if kind == batching_rules.PIPELINED else None,
        scorer=scorer,
        uses_predictor=True,
        sees_statistics=True,
        sees_observation=True,
        policy=policy.weights,
    )


def resolve(name: str, scenario: Scenario, load: Callable[[str], Policy] = load_policy) -> Controller:
    """Controller of a name.

    Args:
        name: `speculation+batching[+trim][+chunk][+admit]`, a whole system, or a file of a saved policy (optionally with `+batching…`,
            default wisp). In place of a batching rule, a file of a saved batching policy.
        scenario: gives the default of WISP's threshold.
        load: reads a policy file.

    Raises:
        ControllerError: unknown name or impossible parameter, with the nearest valid choice.
    """
    speculation, pieces = split(ALIASES.get(name, name))
    if speculation.partition(":")[0] in CENTRALIZED:
        return with_additions(centralized(name, speculation), pieces)
    if is_file(speculation):
        return with_additions(
            with_policy(name, load(speculation), pieces[0] if pieces else "wisp", scenario), pieces[1:]
        )
    rule, parameters = find_rule(speculation, SPECULATION, "speculation")
    if not pieces or pieces[0].partition(":")[0] in ADDITIONS:
        raise ControllerError(
            f"controller '{name}': a batching rule is missing, for instance '{speculation}+fcfs'; allowed: {', '.join(BATCHING)}"
        )
    batch_kind, batch_parameters, scorer = find_batching(pieces[0], scenario)
    if rule.kind == speculation_rules.WISP and math.isnan(parameters[0]):
        parameters = (published_threshold(scenario), *parameters[1:])
    planned = rule.kind == speculation_rules.SUGGESTED_LENGTH or batch_kind == batching_rules.PIPELINED
    found = Controller(
        name,
        rule.kind,
        parameters,
        batch_kind,
        batch_parameters,
        scorer=scorer,
        uses_predictor=rule.uses_predictor,
        sees_statistics=rule.sees_statistics,
        sees_observation=rule.sees_observation,
        learns=rule.learns,
        suggests=rule.suggests,
        plan=make_plan(scenario) if planned else None,
    )
    return with_additions(found, pieces[1:])
