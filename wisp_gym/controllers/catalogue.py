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
from wisp_gym.controllers.plan import plan_lengths
from wisp_gym.controllers.policy import Policy, load_policy
from wisp_gym.scenario import Scenario

NO_POLICY = np.zeros(0, dtype=np.float32)

# WISP's published operating point: share of accepted tokens that its MLP lets pass (arXiv 2601.11652).
WISP_RECALL = 0.801


class ControllerError(ValueError):
    """A controller name that cannot be understood; the message is one line."""


@dataclass(frozen=True)
class Setting:
    """One number of a rule, given after the colon.

    Attributes:
        name: how messages and listings call it.
        default: the published value where there is one.
        low, high: what is allowed.
        tune: range that a comparison searches, (low, high); None keeps the default.
        log: search its logarithm. whole: only whole numbers make sense.
    """

    name: str
    default: float
    low: float
    high: float
    tune: tuple[float, float] | None = None
    log: bool = False
    whole: bool = False


@dataclass(frozen=True)
class Rule:
    """A named rule and its settings."""

    kind: int
    meaning: str
    settings: tuple[Setting, ...] = ()
    uses_predictor: bool = False
    sees_statistics: bool = False
    sees_observation: bool = False
    learns: bool = False
    suggests: bool = False


K_MAX = Setting("k_max", math.inf, 0, math.inf, whole=True)

SPECULATION = {
    "fixed": Rule(
        speculation_rules.FIXED, "draft k tokens in every round (SLED as WISP describes it)",
        (Setting("k", 4, 0, 32, tune=(0, 12), whole=True),),
    ),
    "confidence": Rule(
        speculation_rules.CONFIDENCE_RULE, "SLED's device rule: continue while the last token's confidence is at least c",
        (Setting("c", 0.6, 0, 1, tune=(0, 0.99)), K_MAX), sees_statistics=True,
    ),
    "wisp": Rule(
        speculation_rules.WISP, "WISP: stop when the predictor takes the last token for rejected (acceptance below p; "
        "default: WISP's published operating point)", (Setting("p", math.nan, 0, 1, tune=(0.02, 0.95)), K_MAX), uses_predictor=True,
    ),
    "survival": Rule(
        speculation_rules.SURVIVAL_RULE, "SpecDec++: stop when the predicted probability that a token is rejected exceeds h",
        (Setting("h", 0.7, 0, 1, tune=(0.3, 0.95)), K_MAX, Setting("k_min", 0, 0, 32, whole=True)), uses_predictor=True,
    ),
    "random": Rule(speculation_rules.RANDOM, "after each token, continue with probability p", (Setting("p", 0.5, 0, 1),)),
    "margin": Rule(
        speculation_rules.MARGIN_RULE, "continue while the last token's top-2 margin is at least m",
        (Setting("m", 0.5, 0, 1, tune=(0, 0.95)), K_MAX), sees_statistics=True,
    ),
    "svip": Rule(
        speculation_rules.SVIP, "SVIP (arXiv 2411.18462): stop when the root of the draft's entropy exceeds h (0.6: ours)",
        (Setting("h", 0.6, 0, 3, tune=(0.3, 2)), K_MAX), sees_statistics=True,
    ),
    "adaedl": Rule(
        speculation_rules.ADAEDL, "AdaEDL (arXiv 2410.18351): stop when 1 - root(gamma*entropy) < lambda, adapted to a target acceptance",
        (
            Setting("gamma", 0.2, 0, 10), Setting("lambda", 0.4, 0, 1), Setting("target", 0.9, 0, 1, tune=(0.3, 0.95)),
            Setting("step", 0.01, 0, 1, tune=(0.003, 0.3), log=True), K_MAX,
        ),
        sees_statistics=True, learns=True,
    ),
    "price": Rule(
        speculation_rules.PRICE_RULE, "price stop: continue while the next token's survival exceeds A*rate/speed + M",
        (Setting("A", 1, 0, 10, tune=(0, 1.5)), Setting("M", 0, 0, 10, tune=(0, 0.6)), K_MAX), uses_predictor=True, sees_observation=True,
    ),
    "aligned": Rule(
        speculation_rules.ALIGNED, "boundary-aligned price stop: free drafting until the next launch (survival above thr), priced beyond it",
        (
            Setting("thr", 0.15, 0, 1, tune=(0, 0.6)), Setting("A", 0.9, 0, 10, tune=(0, 2)), Setting("margin", 2, 0, 100, tune=(0, 8)),
            Setting("guard", 0.05, 0, 1, tune=(0, 0.3)), K_MAX,
        ),
        uses_predictor=True, sees_observation=True,
    ),
    "leviathan": Rule(
        speculation_rules.LEVIATHAN, "Leviathan (arXiv 2211.17192): the length with the most expected tokens per predicted round time",
        (Setting("w", 0.5, 0, 10, tune=(0, 2)), K_MAX), sees_observation=True,
    ),
    "ratio": Rule(speculation_rules.RATIO, "ratio-optimal stopping in closed form (arXiv 2606.20591)", (K_MAX,), sees_observation=True),
    "specstop": Rule(
        speculation_rules.SPECSTOP, "UCB-SpecStop (arXiv 2606.20591): UCB over lengths, tokens and time kept apart",
        (Setting("c", 1, 0, 10, tune=(0.003, 1), log=True), Setting("k_min", 1, 0, 32, whole=True), K_MAX), sees_observation=True, learns=True,
    ),
    "banditspec": Rule(
        speculation_rules.BANDITSPEC, "BanditSpec (arXiv 2505.15141): UCB1 over lengths, rewarded with a round's tokens/s",
        (Setting("c", 1, 0, 10, tune=(0.003, 1), log=True), Setting("k_min", 1, 0, 32, whole=True), K_MAX), sees_observation=True, learns=True,
    ),
    "contextual": Rule(
        speculation_rules.CONTEXTUAL, "contextual bandit: optimistic regression of a round's tokens and time on what the device sees",
        (Setting("c", 0.3, 0, 10, tune=(0.01, 1), log=True), Setting("ridge", 1, 0.001, 1e6, tune=(0.1, 100), log=True), K_MAX),
        sees_observation=True, learns=True,
    ),
    "sglang": Rule(
        speculation_rules.SGLANG, "SGLang's adaptive steps, on each device: a ladder of three lengths climbed by the average accepted",
        (
            Setting("low", 1, 0, 32, whole=True), Setting("mid", 3, 0, 32, tune=(1, 6), whole=True),
            Setting("high", 7, 0, 32, tune=(3, 12), whole=True),
            Setting("keep", 0.2, 0, 1), Setting("down", -0.25, -10, 10, tune=(-1, 1)), Setting("up", 0, -10, 10, tune=(-1, 2)),
            Setting("every", 5, 1, 1e6, whole=True), Setting("warmup", 10, 0, 1e6, whole=True),
        ),
        sees_observation=True, learns=True,
    ),
    "awc": Rule(
        speculation_rules.AWC, "DSD's adaptive window control (arXiv 2511.21669), with a closed form in place of its network",
        (Setting("smoothing", 0.4, 0.01, 1), K_MAX), sees_observation=True, learns=True,
    ),
    "turbospec": Rule(
        speculation_rules.TURBOSPEC, "TurboSpec (arXiv 2406.14066): the server suggests one length for the batch, favouring 0 by a factor",
        (Setting("favour", 1.1, 1, 10, tune=(1, 2)),), sees_observation=True, suggests=True,
    ),
    "vllm-dynamic": Rule(
        speculation_rules.VLLM_DYNAMIC, "vLLM's dynamic length by batch size, from acceptance per position, suggested by the server",
        sees_observation=True, suggests=True,
    ),
    "sglang-load": Rule(
        speculation_rules.SGLANG_LOAD, "SGLang's adaptive steps as published: ladders by batch size, suggested by the server",
        sees_observation=True, suggests=True,
    ),
    "goodspeed": Rule(
        speculation_rules.GOODSPEED, "GoodSpeed (arXiv 2512.09963): the server shares a budget of drafts per batch, proportionally fair",
        (Setting("budget", 32, 0, 4096, tune=(4, 256), log=True, whole=True),), sees_observation=True, suggests=True,
    ),
    "dipsd": Rule(
        speculation_rules.SUGGESTED_LENGTH, "DiP-SD (arXiv 2604.20919): a fixed length for each device class, planned from the scenario",
        sees_observation=True,
    ),
    "perfect": Rule(speculation_rules.PERFECT, "bound: learns a token's fate when it has been drafted"),
    "oracle": Rule(speculation_rules.ORACLE, "bound: knows a token's fate before drafting it"),
}  # fmt: skip

BATCHING = {
    "fcfs": Rule(batching_rules.FCFS, "take everything that waits, in order of arrival"),
    "static": Rule(
        batching_rules.STATIC, "batches of n, or fewer after a timeout",
        (Setting("n", 4, 1, 4096, tune=(1, 32), log=True, whole=True), Setting("timeout_s", 0.1, 0, 1e6, tune=(0.005, 0.5), log=True)),
    ),
    "edf": Rule(batching_rules.EDF, "earliest deadline first"),
    "wisp": Rule(
        batching_rules.WISP, "WISP: urgent requests by deadline, then goodput density, with memory and deadline checks "
        "(margin on predictions; urgent within `window` mean batches of the latest start)",
        (Setting("margin", 0.05, 0, 10, tune=(0, 0.5)), Setting("window", 1.0, 0, 1000, tune=(0, 8))),
    ),
}  # fmt: skip

CENTRALIZED = Rule(
    batching_rules.CONTINUOUS, "continuous batching on the server alone, at most n sequences (0: no limit)",
    # 16: reading of WISP's published capacities, not WISP's word (docs/model.md)
    (Setting("n", 16, 0, 1e6, tune=(4, 256), log=True, whole=True),),
)  # fmt: skip

ALIASES = {
    "wisp": "wisp+wisp",
    "sled": "fixed:8+static:4,0.1",
    "sled-confidence": "confidence:0.6+static:4,0.1",
}


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
    learns: bool = False
    suggests: bool = False
    plan: tuple[int, ...] = ()  # length of each device class, where they are fixed before the run
    policy: np.ndarray = field(default_factory=lambda: NO_POLICY, compare=False)


def listing() -> str:
    """Table of all rules for `--help`."""
    lines = []
    for title, rules in (("speculation", SPECULATION), ("batching", BATCHING)):
        lines.append(f"{title}:")
        for name, rule in rules.items():
            shown = name + (":" if rule.settings else "") + ",".join(setting.name for setting in rule.settings)
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
            f"unknown {kind} controller '{name}'; {did_you_mean(name, list(dict.fromkeys([*rules, *ALIASES, 'centralized'])))}"
        )
    return rules[name], numbers(text, rest, rules[name])


def published_threshold(scenario: Scenario) -> float:
    """Predicted acceptance below which WISP's rule stops, so that 80.1 % of the accepted tokens pass."""
    from wisp_gym.engine.build import mean_acceptance, separation

    d = separation(scenario.draft.statistics.auc)
    share = mean_acceptance(scenario.draft.acceptance)
    evidence = d / 2.0 - NormalDist().inv_cdf(WISP_RECALL)
    return 1.0 / (1.0 + math.exp(-(math.log(share / (1.0 - share)) + d * evidence)))


def centralized(name: str, text: str) -> Controller:
    """Continuous batching on the server alone."""
    parameters = numbers(name, text, CENTRALIZED)
    return Controller(name, speculation_rules.FIXED, (0.0,), CENTRALIZED.kind, parameters, centralized=True)


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
        sees_observation=rule.sees_observation,
        learns=rule.learns,
        suggests=rule.suggests,
        plan=plan_lengths(scenario) if rule.kind == speculation_rules.SUGGESTED_LENGTH else (),
    )
