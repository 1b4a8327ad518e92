"""Controllers by name: `speculation+batching`, each with its parameters after a colon.

Examples: `wisp+wisp`, `fixed:4+fcfs`, `confidence:0.6+static:4,0.1`, `centralized`, `runs/mine/policy.json+wisp`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist

import numpy as np

from wisp_gym.controllers import batching as batching_rules
from wisp_gym.controllers import speculation as speculation_rules
from wisp_gym.controllers.policy import Policy, load_policy
from wisp_gym.scenario import Scenario

NO_POLICY = np.zeros(0, dtype=np.float32)

# WISP's published operating point: share of accepted tokens that its MLP lets pass (arXiv 2601.11652).
WISP_RECALL = 0.801


class ControllerError(ValueError):
    """A controller name that cannot be understood; the message is one line."""


@dataclass(frozen=True)
class Rule:
    """A named rule and its parameters."""

    kind: int
    meaning: str
    parameters: tuple[str, ...] = ()
    defaults: tuple[float, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    uses_predictor: bool = False
    sees_statistics: bool = False


SPECULATION = {
    "fixed": Rule(speculation_rules.FIXED, "draft k tokens in every round (SLED as WISP describes it)", ("k",), (4,), (0,), (32,)),
    "confidence": Rule(
        speculation_rules.CONFIDENCE_RULE, "SLED's device rule: continue while the last token's confidence is at least c",
        ("c", "k_max"), (0.6, math.inf), (0, 0), (1, math.inf), sees_statistics=True,
    ),
    "wisp": Rule(
        speculation_rules.WISP, "WISP: stop when the predictor takes the last token for rejected (acceptance below p; "
        "default: WISP's published operating point)", ("p", "k_max"), (math.nan, math.inf), (0, 0), (1, math.inf), uses_predictor=True,
    ),
    "survival": Rule(
        speculation_rules.SURVIVAL_RULE, "SpecDec++: stop when the predicted probability that a token is rejected exceeds h",
        ("h", "k_max", "k_min"), (0.7, math.inf, 0), (0, 0, 0), (1, math.inf, 32), uses_predictor=True,
    ),
    "random": Rule(
        speculation_rules.RANDOM, "after each token, continue with probability p", ("p",), (0.5,), (0,), (1,)
    ),
    "perfect": Rule(speculation_rules.PERFECT, "bound: learns a token's fate when it has been drafted"),
    "oracle": Rule(speculation_rules.ORACLE, "bound: knows a token's fate before drafting it"),
}  # fmt: skip

BATCHING = {
    "fcfs": Rule(batching_rules.FCFS, "take everything that waits, in order of arrival"),
    "static": Rule(
        batching_rules.STATIC, "batches of n, or fewer after a timeout", ("n", "timeout_s"), (4, 0.1), (1, 0), (4096, 1e6)
    ),
    "edf": Rule(batching_rules.EDF, "earliest deadline first"),
    "wisp": Rule(
        batching_rules.WISP, "WISP: urgent requests by deadline, then goodput density, with memory and deadline checks "
        "(margin on predictions; urgent within `window` mean batches of the latest start)",
        ("margin", "window"), (0.05, 1.0), (0, 0), (10, 1000),
    ),
}  # fmt: skip

ALIASES = {
    "wisp": "wisp+wisp",
    "sled": "fixed:8+static:4,0.1",
    "sled-confidence": "confidence:0.6+static:4,0.1",
}
CENTRALIZED_DEFAULT_SEQUENCES = 16  # reading of WISP's published capacities, not WISP's word: see docs/model.md


@dataclass(frozen=True)
class Controller:
    """A controller with its numbers, ready for the engine."""

    name: str
    speculation: int
    speculation_parameters: tuple[float, ...]
    batching: int
    batching_parameters: tuple[float, ...]
    uses_predictor: bool = False
    sees_statistics: bool = False
    sees_observation: bool = False
    centralized: bool = False
    policy: np.ndarray = field(default_factory=lambda: NO_POLICY, compare=False)


def listing() -> str:
    """Table of all rules for `--help`."""
    lines = []
    for title, rules in (("speculation", SPECULATION), ("batching", BATCHING)):
        lines.append(f"{title}:")
        for name, rule in rules.items():
            shown = name + (":" + ",".join(rule.parameters) if rule.parameters else "")
            lines.append(f"  {shown:<24} {rule.meaning}")
    lines.append("whole systems:")
    lines += [f"  {name:<24} {meaning}" for name, meaning in ALIASES.items()]
    lines.append(
        "  centralized:n            continuous batching on the server alone, at most n sequences (default 16, 0: no limit)"
    )
    lines.append("  FILE[+batching]          a saved policy: policy.json or its run folder (default +wisp)")
    return "\n".join(lines)


def did_you_mean(given: str, allowed: list[str]) -> str:
    """The nearest valid choice, if any is near, and all of them."""
    near = difflib.get_close_matches(given, allowed, n=1)
    return (f"did you mean '{near[0]}'? " if near else "") + f"allowed: {', '.join(allowed)}"


def numbers(name: str, text: str, rule: Rule) -> tuple[float, ...]:
    """Parameters after the colon, checked; missing ones take their defaults."""
    values = list(rule.defaults)
    parts = text.split(",") if text else []
    if len(parts) > len(rule.parameters):
        raise ControllerError(
            f"controller '{name}': given {len(parts)} parameters, allowed at most {len(rule.parameters)} ({', '.join(rule.parameters)})"
        )
    for index, part in enumerate(parts):
        label, low, high = rule.parameters[index], rule.low[index], rule.high[index]
        try:
            values[index] = float(part)
        except ValueError:
            raise ControllerError(
                f"controller '{name}': {label} given '{part}', allowed is a number from {low:g} to {high:g}"
            ) from None
        if not low <= values[index] <= high:
            raise ControllerError(f"controller '{name}': {label} given {part}, allowed is {low:g} to {high:g}")
    return tuple(values)


def find_rule(text: str, rules: dict[str, Rule], kind: str) -> tuple[Rule, tuple[float, ...]]:
    """Rule and parameters of `name:parameters`."""
    name, _, rest = text.partition(":")
    if name not in rules:
        raise ControllerError(
            f"unknown {kind} controller '{name}'; {did_you_mean(name, list(dict.fromkeys([*rules, *ALIASES, 'centralized'])))}"
        )
    return rules[name], numbers(text, rest, rules[name])


def published_threshold(scenario: Scenario) -> float:
    """Predicted acceptance below which WISP's rule stops.

    A predictor's own where the draft names one; else that which 80.1 % of the accepted tokens pass: by the confidence of
    a recorded trace, or by the closed form of the parametric process.
    """
    from wisp_gym.engine.build import mean_acceptance, separation
    from wisp_gym.engine.recordings import load_recording, passed_confidence
    from wisp_gym.predictor import load_predictor

    if scenario.draft.predictor:
        return load_predictor(scenario.draft.predictor).threshold
    if scenario.draft.trace:
        return passed_confidence(load_recording(scenario).tokens, WISP_RECALL)
    d = separation(scenario.draft.statistics.auc)
    share = mean_acceptance(scenario.draft.acceptance)
    evidence = d / 2.0 - NormalDist().inv_cdf(WISP_RECALL)
    return 1.0 / (1.0 + math.exp(-(math.log(share / (1.0 - share)) + d * evidence)))


def centralized(name: str, text: str) -> Controller:
    """Continuous batching on the server alone."""
    rule = Rule(batching_rules.CONTINUOUS, "", ("n",), (CENTRALIZED_DEFAULT_SEQUENCES,), (0,), (1e6,))
    return Controller(name, speculation_rules.FIXED, (0.0,), rule.kind, numbers(name, text, rule), centralized=True)


def is_file(text: str) -> bool:
    """Whether a name means a file rather than a rule."""
    if not text or text.partition(":")[0] in SPECULATION:
        return False
    return text.endswith((".json", ".onnx", ".zip")) or "/" in text or Path(text).is_dir()


def with_policy(name: str, policy: Policy, batching: str) -> Controller:
    """A learned speculation policy with a batching rule."""
    rule, parameters = find_rule(batching, BATCHING, "batching")
    return Controller(
        name,
        policy.kind,
        (),
        rule.kind,
        parameters,
        uses_predictor=True,
        sees_statistics=True,
        sees_observation=True,
        policy=policy.weights,
    )


def resolve(name: str, scenario: Scenario, load: Callable[[str], Policy] = load_policy) -> Controller:
    """Controller of a name.

    Args:
        name: `speculation+batching`, a whole system, or a file of a saved policy (optionally `+batching`, default wisp).
        scenario: gives the default of WISP's threshold.
        load: reads a policy file.

    Raises:
        ControllerError: unknown name or impossible parameter, with the nearest valid choice.
    """
    if name.partition(":")[0] == "centralized":
        return centralized(name, name.partition(":")[2])
    full = ALIASES.get(name, name)
    speculation, plus, batching = full.rpartition("+") if "+" in full else (full, "", "")
    if is_file(speculation):
        return with_policy(name, load(speculation), batching or "wisp")
    if not plus:
        find_rule(speculation, SPECULATION, "speculation")
        raise ControllerError(
            f"controller '{name}': a batching rule is missing, for instance '{name}+fcfs'; allowed: {', '.join(BATCHING)}"
        )
    rule, parameters = find_rule(speculation, SPECULATION, "speculation")
    batch_rule, batch_parameters = find_rule(batching, BATCHING, "batching")
    if rule.kind == speculation_rules.WISP and math.isnan(parameters[0]):
        parameters = (published_threshold(scenario), *parameters[1:])
    return Controller(
        name,
        rule.kind,
        parameters,
        batch_rule.kind,
        batch_parameters,
        uses_predictor=rule.uses_predictor,
        sees_statistics=rule.sees_statistics,
    )
