"""What a batching policy may be shown of the queue: features by name, computed for all waiting requests at once.

The features are those of `wisp_gym/Batching-v0` (docs/environments.md) that do not change while a batch is composed; a bundle names
those that it reads. T is the mean batch time, K the cap on drafted tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

FAR = 1000.0


@dataclass(frozen=True, slots=True)
class Request:
    """A request that waits at the server: a round to verify, or a prompt.

    Attributes:
        name: whatever the server calls it. arrived_s: clock time of its arrival.
        deadline_s: clock time by which its verification must be complete.
        context_tokens: prompt and output so far, ≥ 1. cached_tokens: those whose keys and values are in memory (the last one never is).
        draft_tokens: drafted tokens to verify. expected_tokens: expected tokens committed, as the device reported.
        slo_tokens_per_s: speed of its service class, > 0.
    """

    name: Any
    arrived_s: float
    deadline_s: float
    context_tokens: int
    cached_tokens: int
    draft_tokens: int
    expected_tokens: float = 1.0
    slo_tokens_per_s: float = 1.0


FACTS = (
    "arrived_s",
    "deadline_s",
    "context_tokens",
    "cached_tokens",
    "draft_tokens",
    "expected_tokens",
    "slo_tokens_per_s",
)
ARRIVED, DEADLINE, CONTEXT, CACHED, DRAFT, EXPECTED, SLO = range(len(FACTS))
LOW = np.array([-1e12, -1e12, 1, 0, 0, 0, 1e-6])
HIGH = np.array([1e12, 1e12, 1e9, 1e9, 1e4, 1e4, 1e6])
read_facts = attrgetter(*FACTS)


class Queue(NamedTuple):
    """Facts of the waiting requests and what follows from them, each (Q,) float64 of seconds or tokens."""

    waiting_s: NDArray[np.float64]
    slack_s: NDArray[np.float64]
    uncached: NDArray[np.float64]
    new: NDArray[np.float64]
    cached: NDArray[np.float64]
    draft: NDArray[np.float64]
    expected: NDArray[np.float64]
    slo: NDArray[np.float64]
    marginal_s: NDArray[np.float64]
    solo_s: NDArray[np.float64]


class Server(NamedTuple):
    """What the server knows of itself: mean batch time in seconds, and K."""

    mean_batch_s: float
    max_draft_tokens: int


def facts_of(queue: Sequence[Request]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """(Q, 7) facts of the requests and (Q,) which of them can be used; others hold harmless numbers."""
    try:
        facts = np.array([read_facts(request) for request in queue], dtype=np.float64)
    except (TypeError, ValueError, AttributeError, OverflowError):
        facts = np.array([[number(getattr(request, name, None)) for name in FACTS] for request in queue])
    facts = facts.reshape(len(queue), len(FACTS))
    usable = ((facts >= LOW) & (facts <= HIGH)).all(axis=1)  # NaN is in no range
    usable &= facts[:, CACHED] < facts[:, CONTEXT]
    return np.where(usable[:, None], facts, LOW), usable


def number(value: Any) -> float:
    """A number, NaN for what is none."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return float("nan")


def describe(facts: NDArray[np.float64], now_s: float, chunk_tokens: int, coefficients: NDArray[np.float64]) -> Queue:
    """What follows from the facts (`compose.describe`); coefficients: (4,) seconds of the four-term prediction."""
    launch, new_token, pair, cached_token = coefficients
    cached, draft = facts[:, CACHED], facts[:, DRAFT]
    uncached = facts[:, CONTEXT] - 1.0 - cached
    new = uncached + 1.0 + draft
    if chunk_tokens > 0:
        new = np.where(uncached > chunk_tokens, float(chunk_tokens), new)
    marginal = new_token * new + pair * new * (cached + new) + cached_token * cached
    return Queue(
        now_s - facts[:, ARRIVED], facts[:, DEADLINE] - now_s, uncached, new, cached, draft, facts[:, EXPECTED], facts[:, SLO],
        marginal, launch + marginal,
    )  # fmt: skip


class Feature(NamedTuple):
    """A feature: how a schema lists it, and how it is computed."""

    name: str
    unit: str
    low: float
    high: float
    of: Callable[[Queue, Server], Any]


REQUEST_FEATURES = {
    f.name: f
    for f in (
        Feature("waiting", "T", 0, FAR, lambda q, s: q.waiting_s / s.mean_batch_s),
        Feature("slack", "T", -FAR, FAR, lambda q, s: q.slack_s / s.mean_batch_s),
        Feature("new_tokens", "64 tokens", 0, FAR, lambda q, s: q.new / 64.0),
        Feature("uncached_tokens", "512 tokens", 0, FAR, lambda q, s: q.uncached / 512.0),
        Feature("cached_tokens", "1,024 tokens", 0, FAR, lambda q, s: q.cached / 1024.0),
        Feature("expected_tokens", "K", 0, 2, lambda q, s: q.expected / s.max_draft_tokens),
        Feature("slo", "10 tokens/s", 0, 100, lambda q, s: q.slo / 10.0),
        Feature("marginal", "T", 0, FAR, lambda q, s: q.marginal_s / s.mean_batch_s),
        Feature("solo", "T", 0, FAR, lambda q, s: q.solo_s / s.mean_batch_s),
        Feature("draft_tokens", "K", 0, 1, lambda q, s: q.draft / s.max_draft_tokens),
    )
}
GLOBAL_FEATURES = {
    f.name: f for f in (Feature("mean_batch_time", "0.1 s", 0, 100, lambda q, s: s.mean_batch_s * 10.0),)
}
TABLES = {"requests": REQUEST_FEATURES, "globals": GLOBAL_FEATURES}


def matrix(
    names: Sequence[str], table: dict[str, Feature], queue: Queue, server: Server, rows: int
) -> NDArray[np.float32]:
    """(rows, features) float32 of the named features, within their ranges."""
    out = np.empty((rows, len(names)), np.float32)
    for column, name in enumerate(names):
        feature = table[name]
        np.clip(feature.of(queue, server), feature.low, feature.high, out=out[:, column], casting="same_kind")
    return out
