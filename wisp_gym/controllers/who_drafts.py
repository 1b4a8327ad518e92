"""Additions to a controller's name that say who drafts: co-located drafting, rules of who drafts, overlapped drafting."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from wisp_gym.controllers.lookup import Part
from wisp_gym.engine.acceptance import DRIFT_BLOCK_TOKENS
from wisp_gym.engine.build import longer, mean_acceptance, normal_nodes, sigmoid
from wisp_gym.rules import server_lengths
from wisp_gym.rules.catalogue import DRAFTERS, OVERLAP, SOURCE
from wisp_gym.rules.who_drafts import Drafting, Hosted
from wisp_gym.scenario import Acceptance, Scenario, ServerDraft

LARGEST_BATCH = 4096  # that a table of lengths asks for


def with_drafting(drafting: Drafting, part: Part, scenario: Scenario, refuse: Callable[[str], Exception]) -> Drafting:
    """The drafting with one more addition.

    Args:
        refuse: makes the error of what does not fit, from the reason.

    Raises:
        ControllerError: the server has no such draft, or no room for it; two additions of one kind.
    """
    if part.name in OVERLAP:
        return replace(drafting, overlap_tokens=int(part.values[0]), overlap_chance=part.values[1])
    if part.name in DRAFTERS:
        return replace(drafting, drafter=part.rule.kind, drafter_parameters=part.values)
    return with_colocated(drafting, part, scenario, refuse)


def with_colocated(drafting: Drafting, part: Part, scenario: Scenario, refuse: Callable[[str], Exception]) -> Drafting:
    """The drafting with a rule for the server's own drafts; one that drafts nothing loads nothing."""
    settings = {s.name: value for s, value in zip(part.rule.settings, part.values, strict=True)}
    numbers = tuple(value for s, value in zip(part.rule.settings, part.values, strict=True) if s is not SOURCE)
    longest = int(min(longest_of(part.rule.kind, numbers), scenario.max_draft_tokens))
    if longest == 0:
        return drafting
    draft, kv_tokens = draft_with_room(scenario, int(settings[SOURCE.name]), refuse)
    found = hosted(scenario, draft, kv_tokens)
    if part.rule.kind == server_lengths.TABLE:
        numbers = (*numbers, *thresholds(scenario, draft))
    return replace(drafting, length=part.rule.kind, length_parameters=numbers, hosted=found, lookahead_tokens=longest)


def longest_of(kind: int, numbers: tuple[float, ...]) -> float:
    """Longest length, in tokens, that a rule may choose."""
    if kind in (server_lengths.FIXED, server_lengths.TABLE):
        return numbers[0]
    if kind in (server_lengths.EMA, server_lengths.THROUGHPUT):
        return max(numbers[:3])
    return numbers[1] if kind == server_lengths.SURVIVAL else math.inf


def draft_with_room(scenario: Scenario, index: int, refuse: Callable[[str], Exception]) -> tuple[ServerDraft, int]:
    """The scenario's server draft of this number, and the tokens that fit into memory beside it."""
    drafts = scenario.server_drafts
    if index >= len(drafts):
        named = ", ".join(f"{k} ({draft.name})" for k, draft in enumerate(drafts))
        allowed = f"allowed: {named}" if drafts else "the scenario names none ([[server_drafts]])"
        raise refuse(f"server draft given {index}; {allowed}")
    draft = drafts[index]
    kv_tokens = scenario.kv_tokens_beside(draft.weights_bytes, draft.kv_bytes_per_token)
    if kv_tokens < scenario.longest_tokens:
        room = f"KV memory would hold {max(kv_tokens, 0)} tokens, allowed: >= {scenario.longest_tokens}, one request"
        raise refuse(f"server '{scenario.server.name}' has no room for draft '{draft.name}': {room}")
    return draft, kv_tokens


def hosted(scenario: Scenario, draft: ServerDraft, kv_tokens: int) -> Hosted:
    """A server draft's numbers."""
    a, time = draft.acceptance, draft.time
    shares = draft.correlation == 1.0 and a == scenario.draft.acceptance
    return Hosted(
        draft.name, kv_tokens, shares, draft.offer, draft.correlation,
        time.overhead_s, time.launch_s, time.sequence_s, time.token_s, time.cached_token_s,
        a.logit_mean, a.request_std, a.drift_std, math.exp(-DRIFT_BLOCK_TOKENS / a.drift_tokens), a.after_rejection_logit,
        a.loop_enter, a.loop_leave, a.loop_whole, a.loop_period_tokens, longer(a), mean_acceptance(a),
    )  # fmt: skip


# --- vLLM's table ----------------------------------------------------------------------------------------------------


def thresholds(scenario: Scenario, draft: ServerDraft) -> tuple[float, ...]:
    """For 1, 2 … tokens the largest batch of sessions in decoding for which at least so many are best: `argmax AL(k)/t(B, k)`."""
    k = np.arange(server_lengths.TABLE_LENGTHS + 1)
    tokens = round_tokens(survivals(draft.acceptance, len(k) - 1))
    batch = np.arange(1, min(scenario.server.max_batch_requests, LARGEST_BATCH) + 1)[:, None]
    best = np.argmax(tokens / step_s(scenario, draft, batch, k), axis=1)
    return tuple(float(batch[best >= length].max(initial=0)) for length in k[1:])


def survivals(acceptance: Acceptance, n: int) -> np.ndarray:
    """(n,) probability that the first 1, 2 … n drafted tokens of a round that follows a rejection are accepted, over requests and drift."""
    nodes, weights = normal_nodes()
    logit = acceptance.logit_mean + math.hypot(acceptance.request_std, acceptance.drift_std) * nodes
    first, later = sigmoid(logit - acceptance.after_rejection_logit), sigmoid(logit)
    return weights @ (first[:, None] * later[:, None] ** np.arange(n))


def round_tokens(survival: np.ndarray) -> np.ndarray:
    """(n + 1,) expected tokens of a round of 0 … n drafts, from (n,) P(at least 1, 2 … n are accepted)."""
    return 1.0 + np.concatenate([[0.0], np.cumsum(survival)])


def mean_context_tokens(scenario: Scenario) -> float:
    """Context of a session halfway through a median response."""
    return scenario.workload.prompt.median_tokens + scenario.workload.output.median_tokens / 2


def step_s(scenario: Scenario, draft: ServerDraft, batch: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Predicted time of a step of so many sessions with k drafts each, at the mean context of a response."""
    e, t = scenario.estimator, draft.time
    context = mean_context_tokens(scenario)
    new = batch * (k + 1)
    verify_s = (
        e.launch_s + e.new_token_s * new + e.pair_s * new * (context + k + 1) + e.cached_token_s * batch * context
    )
    draft_s = t.launch_s + batch * (t.sequence_s + t.token_s + t.cached_token_s * context)
    return verify_s + k * draft_s + t.overhead_s * (k > 0)
