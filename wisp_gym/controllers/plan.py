"""DiP-SD's static plan: a length for each class of devices, computed before the run from the scenario."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from wisp_gym.scenario import Scenario

MOST_BATCHES = 4  # batches in the pipeline that are tried


def plan_lengths(scenario: Scenario) -> tuple[int, ...]:
    """Length of each device class that maximises `Σ E[N(k_i)] / cycle` (DiP-SD, arXiv 2604.20919).

    m equal batches take turns at the server while the others are drafted. A cycle lasts as long as m batches, or as the
    slowest draft, its way and its batch. Every deadline D for drafting and every longest useful length are tried: class i
    drafts `k_i = min(cap, ⌊(D − RTT_i)/t_i⌋)` tokens. Acceptances are independent with the scenario's mean share, as in the
    paper. Its assignment of devices to batches is left out: here the batching rule composes them.

    Returns:
        one length of 0 to `max_draft_tokens` for each device class, in the scenario's order.
    """
    from wisp_gym.engine.build import mean_acceptance

    alpha = mean_acceptance(scenario.draft.acceptance)
    candidates = {k for deadline in deadlines(scenario) for k in within(scenario, deadline)}
    return max(candidates, key=lambda lengths: (tokens_per_s(scenario, lengths, alpha), lengths))


def deadlines(scenario: Scenario) -> set[float]:
    """Times at which some class has just drafted some length and sent it."""
    lengths = range(scenario.max_draft_tokens + 1)
    return {2.0 * d.link.one_way_s + k / d.draft_tokens_per_s for d in scenario.devices for k in lengths}


def within(scenario: Scenario, deadline_s: float) -> Iterator[tuple[int, ...]]:
    """Lengths of each class that are drafted by a deadline, cut off at each longest length."""
    fits = [math.floor((deadline_s - 2.0 * d.link.one_way_s) * d.draft_tokens_per_s + 1e-9) for d in scenario.devices]
    for longest in range(scenario.max_draft_tokens + 1):
        yield tuple(min(max(k, 0), longest) for k in fits)


def tokens_per_s(scenario: Scenario, lengths: tuple[int, ...], alpha: float) -> float:
    """Tokens per second of the best pipeline with these lengths."""
    k = np.array(lengths)
    shares = np.array([d.share for d in scenario.devices])
    devices = scenario.n_devices * shares / shares.sum()
    away_s = max(
        2.0 * d.link.one_way_s + n / d.draft_tokens_per_s for d, n in zip(scenario.devices, lengths, strict=True)
    )
    e, context = scenario.estimator, scenario.workload.prompt.median_tokens + scenario.workload.output.median_tokens / 2
    work_s = devices @ ((k + 1) * (e.new_token_s + e.pair_s * (context + k + 1)) + e.cached_token_s * context)
    tokens = devices @ ((1.0 - alpha ** (k + 1)) / (1.0 - alpha))
    batches = range(1, min(MOST_BATCHES, scenario.n_devices) + 1)
    cycles = [max(m * e.launch_s + work_s, away_s + e.launch_s + work_s / m) for m in batches]
    return float(tokens / min(cycles))
