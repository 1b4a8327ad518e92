"""Controllers by name: `speculation+batching[+addition …]`, each with its settings after a colon or in brackets.

Examples: `wisp+wisp`, `fixed:4+fcfs`, `aligned(thr=0.2, A=0.6)+static:4,0.1`, `centralized`, `fixed:8+fcfs+dspark`,
`runs/mine/policy.json+wisp`, `speculation-v1+aged+chunk(tokens=256)+admit`. The grammar: `wisp_gym.controllers.names`.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from os import PathLike
from statistics import NormalDist

import numpy as np

from wisp_gym.controllers.choice import chosen
from wisp_gym.controllers.lookup import SAVED, Part, find, parts_of
from wisp_gym.controllers.names import fault, one_piece
from wisp_gym.controllers.plan import make_plan
from wisp_gym.controllers.policy import Policy, load_policy
from wisp_gym.controllers.scorer_policy import load_scorer
from wisp_gym.controllers.who_drafts import with_drafting
from wisp_gym.engine.build import mean_acceptance, separation
from wisp_gym.engine.trace_files import load_draft_trace, passed_confidence
from wisp_gym.errors import InputError, of_kind, shown
from wisp_gym.rules import batching as batching_rules
from wisp_gym.rules import speculation as speculation_rules
from wisp_gym.rules.catalogue import (
    ADMISSION,
    BATCHING,
    CENTRALIZED,
    CHUNK,
    COLOCATED,
    DRAFTERS,
    OVERLAP,
    PACE,
    TRIMMING,
)
from wisp_gym.rules.controller import NO_POLICY, Controller
from wisp_gym.rules.rejection_predictor import load_predictor
from wisp_gym.scenario import Scenario
from wisp_gym.values import texts

AnyController = Controller | str | PathLike[str]  # itself, or by its name
NAME = texts("a controller's name such as wisp+fcfs")
# WISP's published operating point: share of accepted tokens that its MLP lets pass (arXiv 2601.11652).
WISP_RECALL = 0.801
# Kinds of additions by name: those that say who drafts, and those that need devices that draft.
COLOCATION, CHOICE, OVERLAPPING, PACING = "co-located drafting", "who drafts", "overlap", "pacing"
KINDS = {
    "trimming": TRIMMING, "chunk": CHUNK, "admission": ADMISSION, PACING: PACE, COLOCATION: COLOCATED, CHOICE: DRAFTERS, OVERLAPPING: OVERLAP,
}  # fmt: skip
OF_DRAFTING = (COLOCATION, CHOICE, OVERLAPPING)
OF_DEVICES = (CHOICE, OVERLAPPING)


def resolve(given: AnyController, scenario: Scenario, load: Callable[[str], Policy] = load_policy) -> Controller:
    """Controller of a name; a controller is returned as it is.

    Args:
        given: `speculation+batching[+addition …]`, a whole system, a server alone, or a saved policy (by default with
            wisp, one of the server beside `speculation-v1`). In place of a batching rule, a saved policy of the server. Or a
            choice, which takes one of its controllers for the scenario.
        scenario: gives the default of WISP's threshold, and devices to plan for.
        load: reads the policy of devices.

    Raises:
        ControllerError: unknown name or impossible setting, with the nearest valid choice.
        PolicyError: a saved policy that cannot be used.
        InputError: neither a name, nor a path, nor a controller.
    """
    if isinstance(given, Controller):
        return given
    name = NAME.checked("controller", given)
    of_kind("scenario", scenario, Scenario)
    if not callable(load):
        raise InputError(f"load: given {shown(load)}, allowed is a function such as `load_policy`")
    if (taken := chosen(name, scenario)) != name:
        return replace(resolve(taken, scenario, load), name=name)
    first, *rest = parts_of(name)
    if first.name in CENTRALIZED:
        found = Controller(name, speculation_rules.FIXED, (0.0,), first.rule.kind, first.values, centralized=True)
        return with_additions(found, rest, scenario)
    policy = load(first.name) if first.is_policy else None
    return with_additions(paired(name, first, policy, rest[0], scenario), rest[1:], scenario)


def with_policy(name: str, policy: Policy, batching: str, scenario: Scenario) -> Controller:
    """A learned speculation policy with a batching rule, or with a saved policy of the server.

    Args:
        name: how the controller is called. batching: a name, such as `static:4,0.1`.

    Raises:
        ControllerError, PolicyError: as `resolve`.
    """
    of_kind("policy", policy, Policy)
    of_kind("scenario", scenario, Scenario)
    return paired(name, Part(name, SAVED), policy, find(one_piece(batching), BATCHING, "batching"), scenario)


def paired(name: str, first: Part, policy: Policy | None, batching: Part, scenario: Scenario) -> Controller:
    """A speculation rule, or a policy, beside a batching rule or a saved policy of the server."""
    rule, (kind, parameters, scorer) = first.rule, decided_by(batching, scenario)
    if policy:
        policy.refuse_other_cap(scenario.max_draft_tokens)
    planned = rule.kind == speculation_rules.SUGGESTED_LENGTH or kind == batching_rules.PIPELINED
    return Controller(
        name=name,
        speculation=policy.kind if policy else rule.kind,
        speculation_parameters=filled(first, scenario),
        batching=kind,
        batching_parameters=parameters,
        uses_predictor=rule.uses_predictor,
        sees_statistics=rule.sees_statistics,
        sees_observation=rule.sees_observation,
        learns=rule.learns,
        suggests=rule.suggests,
        plan=make_plan(scenario) if planned else None,
        policy=policy.weights if policy else NO_POLICY,
        chooses_way=bool(policy and policy.chooses_way),
        scorer=scorer,
    )


def filled(part: Part, scenario: Scenario) -> tuple[float, ...]:
    """The numbers of a part; what depends on the scenario is WISP's threshold alone."""
    return tuple(published_threshold(scenario) if math.isnan(value) else value for value in part.values)


def find_batching(text: str, scenario: Scenario) -> tuple[int, tuple[float, ...], np.ndarray]:
    """Kind, parameters and scorer of a batching rule or of a saved policy of the server, by name.

    Raises:
        ControllerError, PolicyError: as `resolve`.
    """
    return decided_by(find(one_piece(text), BATCHING, "batching"), scenario)


def decided_by(batching: Part, scenario: Scenario) -> tuple[int, tuple[float, ...], np.ndarray]:
    """Kind, parameters and scorer of a batching part; a pipelined rule is told the plan's cycle and groups."""
    if batching.is_policy:
        return batching_rules.LEARNED, (), load_scorer(batching.name).weights
    kind, parameters = batching.rule.kind, batching.values
    if kind == batching_rules.PIPELINED:
        plan = make_plan(scenario)
        parameters = (*parameters, plan.cycle_s, float(plan.n_groups))
    return kind, parameters, NO_POLICY


def with_additions(controller: Controller, additions: list[Part], scenario: Scenario) -> Controller:
    """The controller with at most one addition of each kind, and those that an addition needs."""
    kinds = kinds_of(controller, additions)
    drafting, refuse = controller.drafting, partial(fault, controller.name)
    for part, kind in zip(additions, kinds, strict=True):
        if kind in OF_DRAFTING:
            drafting = with_drafting(drafting, part, scenario, refuse)
        else:
            controller = with_addition(controller, part)
    if "trimming" in kinds and controller.centralized and COLOCATION not in kinds:
        raise refuse(f"trimming needs drafts; allowed: {', '.join(COLOCATED)}")
    return replace(controller, drafting=drafting)


def kinds_of(controller: Controller, additions: list[Part]) -> list[str]:
    """The kind of each addition."""
    kinds = [next(kind for kind, rules in KINDS.items() if part.name in rules) for part in additions]
    allowed = [kind for kind in KINDS if not (controller.centralized and kind in OF_DEVICES)]
    for k, (part, kind) in enumerate(zip(additions, kinds, strict=True)):
        if kind in kinds[:k] or kind not in allowed:
            raise fault(controller.name, f"'{part.name}' does not fit; allowed: one each of {', '.join(allowed)}")
    if COLOCATION in kinds and not controller.centralized and CHOICE not in kinds:
        raise fault(controller.name, f"{COLOCATION} needs a rule of {CHOICE}; allowed: {', '.join(DRAFTERS)}")
    if PACING in kinds and not batching_rules.takes_pace(controller.batching):
        takes = ", ".join(rule for rule, x in BATCHING.items() if batching_rules.takes_pace(x.kind))
        raise fault(controller.name, f"{PACING} fits no rules that protect deadlines by their order; allowed: {takes}")
    return kinds


def with_addition(controller: Controller, part: Part) -> Controller:
    """The controller with a prefill chunk, a limit of admission, pacing or a trimming rule."""
    if part.name in CHUNK:
        return replace(controller, chunk_tokens=int(part.values[0]), chunk_share=part.values[1])
    if part.name in ADMISSION:
        return replace(controller, admit_share=part.values[0])
    if part.name in PACE:
        return replace(controller, pace=part.values)
    tokens = int(part.values[0]) if part.values else 0  # survivals are the predictor's, so its time is spent
    return replace(controller, trim=part.rule.kind, trim_tokens=tokens, uses_predictor=True)


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
