"""What a batching agent sees: the batch so far and the requests that wait, in order of arrival.

Legend: `w` World; `c` CONFIG, `s` SERVER and `d` DEVICE row; `f` (FEATURES,) float64 of a queued request; `o`
float32 entries, (GLOBALS,), (REQUEST,) or all of them; `value` any number.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from wisp_gym.contract import ladders
from wisp_gym.engine.compose import chunk_is_open, fits, predict_s, predicted_with_s, spoken_for, uncached_tokens
from wisp_gym.jit import jit
from wisp_gym.rules import batching as rules


class Entry(NamedTuple):
    """One entry of the observation; `scale` is what one unit of it means."""

    name: str
    unit: str
    low: float
    high: float
    meaning: str


# T is the mean batch time, K the cap on drafted tokens.
GLOBAL_ENTRIES = (
    Entry("batch_requests", "16 requests", 0, 64, "requests in the batch so far"),
    Entry("batch_tokens", "64 tokens", 0, 1000, "new tokens in the batch so far"),
    Entry("batch_time", "T", 0, 1000, "predicted time of the batch so far"),
    Entry(
        "batch_slack",
        "T",
        -1000,
        1000,
        "time until the earliest deadline in the batch that can still be met (1000: none)",
    ),
    Entry("batch_memory", "share", 0, 1, "KV memory that the batch needs"),
    Entry("chunk_left", "512 tokens", 0, 1000, "prefill tokens still allowed in this batch (1000: no limit)"),
    Entry("queue", "16 requests", 0, 1000, "requests waiting, visible or not"),
    Entry("memory", "share", 0, 1, "KV memory in use"),
    Entry("utilisation", "share", 0, 1, "running share of time that the server verifies"),
    Entry("mean_batch_time", "0.1 s", 0, 100, "T"),
    Entry("token_rate", "1,000 tokens/s", 0, 100, "running tokens per second committed while the server verifies"),
    Entry("chunk_open", "flag", 0, 1, "a prefill chunk may be chosen now"),
    Entry("prefill_waiting", "1,024 tokens", 0, 1000, "context that waiting requests lack in memory"),
    Entry(
        "memory_spoken_for",
        "share",
        0,
        1000,
        "KV memory in use, added by the batch so far, and that prompts begun still lack",
    ),
    Entry("starving", "16 requests", 0, 1000, "waiting requests whose response starves"),
    Entry("price", "tokens", 0, 10, "price of one draft token that replies carry now, in expected accepted tokens"),
)
REQUEST_ENTRIES = (
    Entry("waiting", "T", 0, 1000, "time since the request reached the server"),
    Entry("slack", "T", -1000, 1000, "time until its verification must be complete"),
    Entry("new_tokens", "64 tokens", 0, 1000, "tokens it would run through the model"),
    Entry("uncached_tokens", "512 tokens", 0, 1000, "context that must be computed first"),
    Entry("cached_tokens", "1,024 tokens", 0, 1000, "context in the cache"),
    Entry("expected_tokens", "K", 0, 2, "expected tokens committed, as the device reported"),
    Entry("slo", "10 tokens/s", 0, 100, "speed of its service class"),
    Entry("marginal", "T", 0, 1000, "predicted time that it adds to a batch"),
    Entry("solo", "T", 0, 1000, "predicted time of a batch of this request alone"),
    Entry("draft_tokens", "K", 0, 1, "drafted tokens to verify"),
    Entry("running", "flag", 0, 1, "a sequence already admitted (centralized serving)"),
    Entry("batch_time_with", "T", 0, 1000, "predicted time of the batch so far with it"),
    Entry("present", "flag", 0, 1, "this place holds a request"),
    Entry("admissible", "flag", 0, 1, "it may be picked now"),
    Entry("picked", "flag", 0, 1, "it is in the batch already"),
    Entry("due", "T", -1000, 1000, "time until the response's next token must leave to be on time"),
    Entry("age", "10 s", 0, 1000, "time since the device made its request"),
    Entry("committed", "64 tokens", 0, 1000, "output tokens of the response so far"),
    Entry("rate", "10 tokens/s", 0, 100, "those tokens divided by the age"),
    Entry("memory_with", "share", 0, 2, "KV memory in use with all of its context"),
    Entry("begun", "flag", 0, 1, "some of its context is in memory"),
    Entry("evicted", "flag", 0, 1, "its context was in memory and has been evicted"),
    Entry("starving", "flag", 0, 1, "less than 1 token for each second of its age beyond 20 s"),
)
GLOBALS = len(GLOBAL_ENTRIES)
REQUEST = len(REQUEST_ENTRIES)

G_REQUESTS, G_TIME, G_SLACK, G_QUEUE, G_MEMORY, G_MEAN_S, G_CHUNK_OPEN, G_PREFILL_WAITING, G_SPOKEN_FOR = (
    0,
    2,
    3,
    6,
    7,
    9,
    11,
    12,
    13,
)
(
    R_WAITING, R_SLACK, R_NEW, R_UNCACHED, R_CACHED, R_EXPECTED, R_SLO, R_MARGINAL, R_SOLO, R_DRAFT, R_RUNNING, R_WITH, R_PRESENT, R_ADMISSIBLE,
    R_PICKED, R_DUE, R_AGE, R_COMMITTED, R_RATE, R_MEMORY, R_BEGUN, R_EVICTED, R_STARVING,
) = range(REQUEST)  # fmt: skip
# What changes while a batch is composed, or says nothing of the request.
DYNAMIC = (R_WITH, R_PRESENT, R_ADMISSIBLE, R_PICKED)
FAR = 1000.0
PREFILL_UNIT = 1024.0
COUNT = 16.0  # unit of numbers of requests: one for every population and number of visible places


def bounds(visible: int) -> tuple[np.ndarray, np.ndarray]:
    """(GLOBALS + visible·REQUEST,) float32 lower and upper bounds."""
    entries = [*GLOBAL_ENTRIES, *(REQUEST_ENTRIES * visible)]
    return np.array([e.low for e in entries], np.float32), np.array([e.high for e in entries], np.float32)


@jit
def within(value, limit):
    """Clip to [−limit, limit]."""
    return min(max(value, -limit), limit)


@jit
def observe_batch(c, s, o):
    """Write the global entries."""
    t = s.mean_batch_s
    o[G_REQUESTS] = min(s.n_batch / COUNT, 64.0)
    o[1] = min(s.sum_new / 64.0, FAR)
    o[G_TIME] = within(predict_s(c, s.sum_new, s.sum_pairs, s.sum_cached) / t, FAR) if s.n_batch > 0 else 0.0
    o[G_SLACK] = within((s.earliest_deadline_s - s.now_s) / t, FAR) if s.earliest_deadline_s < math.inf else FAR
    o[4] = s.sum_kv / c.kv_capacity_tokens
    o[5] = min(s.chunk_left / 512.0, FAR)
    o[G_QUEUE] = min(s.n_queue / COUNT, FAR)
    o[G_MEMORY] = s.kv_tokens / c.kv_capacity_tokens
    o[8] = s.utilisation
    o[G_MEAN_S] = min(t * 10.0, 100.0)
    o[10] = min(s.token_rate * 1e-3, 100.0)
    o[G_CHUNK_OPEN] = 1.0 if chunk_is_open(s) else 0.0
    o[G_PREFILL_WAITING] = min(s.prefill_waiting / PREFILL_UNIT, FAR)
    o[G_SPOKEN_FOR] = min(spoken_for(s) / c.kv_capacity_tokens, FAR)
    o[14] = min(s.n_starving / COUNT, FAR)
    o[15] = min(s.price, 10.0)


@jit
def observe_request(c, s, d, f, o):
    """Write the entries of one waiting request."""
    t = s.mean_batch_s
    o[R_WAITING] = within(f[rules.WAITING_S] / t, FAR)
    o[R_SLACK] = within(f[rules.SLACK_S] / t, FAR)
    o[R_NEW] = min(f[rules.NEW_TOKENS] / 64.0, FAR)
    o[R_UNCACHED] = min(f[rules.UNCACHED_TOKENS] / 512.0, FAR)
    o[R_CACHED] = min(f[rules.CACHED_TOKENS] / 1024.0, FAR)
    o[R_EXPECTED] = min(f[rules.EXPECTED_TOKENS] / c.max_draft_tokens, 2.0)
    o[R_SLO] = min(f[rules.SLO_TOKENS_PER_S] / 10.0, 100.0)
    o[R_MARGINAL] = within(f[rules.MARGINAL_S] / t, FAR)
    o[R_SOLO] = within(f[rules.SOLO_S] / t, FAR)
    o[R_DRAFT] = f[rules.DRAFT_TOKENS] / c.max_draft_tokens
    o[R_RUNNING] = f[rules.RUNNING]
    o[R_WITH] = within(predicted_with_s(c, s, d) / t, FAR)
    o[R_PRESENT] = 1.0
    o[R_ADMISSIBLE] = 1.0 if fits(c, s, d) else 0.0
    o[R_PICKED] = d.in_batch
    observe_response(c, s, d, f, o)


@jit
def observe_response(c, s, d, f, o):
    """Write how the response stands that the request belongs to, and what it needs of memory."""
    t, age_s, committed = s.mean_batch_s, f[rules.AGE_S], f[rules.COMMITTED_TOKENS]
    o[R_DUE] = within((f[rules.DUE_S] - s.now_s) / t, FAR)
    o[R_AGE] = min(age_s / 10.0, FAR)
    o[R_COMMITTED] = min(committed / 64.0, FAR)
    o[R_RATE] = min(committed / age_s / 10.0, 100.0) if age_s > 0.0 else 0.0
    o[R_MEMORY] = min((s.kv_tokens + uncached_tokens(d) + 1 + d.drafted) / c.kv_capacity_tokens, 2.0)
    o[R_BEGUN] = 1.0 if d.cached_tokens > 0 else 0.0
    o[R_EVICTED] = 1.0 if committed > 0.0 and d.cached_tokens == 0 else 0.0
    o[R_STARVING] = 1.0 if rules.starving(f, ladders.PATIENCE_S) else 0.0


@jit
def observe_batching(w, o):
    """Write the whole observation (GLOBALS + Q·REQUEST,) float32; places without a request are zero."""
    c, s = w.config[0], w.server[0]
    o[:] = 0.0
    observe_batch(c, s, o)
    for q in range(min(s.n_queue, c.visible_requests)):
        start = GLOBALS + q * REQUEST
        observe_request(c, s, w.device[w.queue[q]], w.features[q], o[start : start + REQUEST])
