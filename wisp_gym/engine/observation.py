"""What a device sees when it decides: the documented observation of the speculation controllers.

An observation is a function of what the device has drafted, measured and received with its last reply; it holds
nothing of the future and nothing of the other parties' state after that reply. Times are divided by the mean batch
time T that the reply carried, tokens by the cap K or by the service class's period, never by the number of devices.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from wisp_gym.engine.jit import jit
from wisp_gym.engine.slo import token_deadline_s
from wisp_gym.engine.source import statistics_of_token


class Entry(NamedTuple):
    """One entry of an observation."""

    name: str
    unit: str
    low: float
    high: float
    meaning: str


ENTRIES = (
    Entry("drafted_tokens", "K", 0, 1, "tokens drafted in this round"),
    Entry("survival", "probability", 0, 1, "predicted probability that all of them are accepted (1 before the first)"),
    Entry("accept_probability", "probability", 0, 1, "predictor's output for the last token (1 before the first)"),
    Entry("confidence", "probability", 0, 1, "draft model's probability of the last token"),
    Entry("entropy", "nats", 0, 8, "entropy of the draft distribution at the last token"),
    Entry("margin", "probability", 0, 1, "top-2 margin at the last token"),
    Entry("logit_spread", "logits", 0, 16, "spread of the logits at the last token"),
    Entry("acceptance_average", "probability", 0, 1, "running share of examined tokens that were accepted"),
    Entry("expected_tokens", "K", 0, 2, "expected tokens committed if sent now: 1 + sum of survivals"),
    Entry("draft_time", "T", 0, 20, "time to draft one token"),
    Entry("one_way_delay", "T", 0, 20, "running mean of the one-way delay"),
    Entry("jitter", "T", 0, 20, "running mean absolute deviation of the one-way delay"),
    Entry("slo_period", "T", 0, 50, "time between tokens that the service class asks for"),
    Entry("slack", "tokens", -20, 20, "time until the next token is due, in tokens of the service class"),
    Entry("tokens_left", "64 tokens", 0, 1, "output tokens still wanted, counted up to 64"),
    Entry("boundary_left", "T", 0, 5, "time from arrival at the server, if sent now, to the next batch boundary"),
    Entry("draftable_tokens", "K", 0, 1, "tokens that can still be drafted before that boundary"),
    Entry("boundaries_missed", "batches", 0, 8, "batch boundaries that pass before arrival, if sent now"),
    Entry("server_busy", "flag", 0, 1, "a batch was running when the last reply left"),
    Entry("queue_work", "T", 0, 10, "predicted verification time of the requests waiting then"),
    Entry("utilisation", "share", 0, 1, "running share of time that the server verifies"),
    Entry("own_rate", "tokens/T", 0, 20, "tokens per batch time that this device has been getting"),
    Entry("price", "tokens", 0, 10, "server's price of one draft token, in expected accepted tokens"),
    Entry("batch_time", "0.1 s", 0, 20, "mean batch time T"),
    Entry("info_age", "T", 0, 20, "age of the server state"),
    Entry("context", "1,000 tokens", 0, 32, "prompt and output so far"),
    Entry("round_time", "T", 0, 20, "time since this round began"),
    Entry("suggested_tokens", "K", 0, 1, "length that the last reply suggested (0 where the server suggests none)"),
    Entry(
        "adapted_survival", "probability", 0, 1, "survival with the predictor's odds scaled to the acceptance average"
    ),
    Entry("last_rejected", "flag", 0, 1, "the last reply corrected a drafted token"),
)
NAMES = tuple(entry.name for entry in ENTRIES)
SIZE = len(ENTRIES)
LOW = np.array([entry.low for entry in ENTRIES], dtype=np.float32)
HIGH = np.array([entry.high for entry in ENTRIES], dtype=np.float32)

(
    DRAFTED, SURVIVAL, ACCEPT_PROBABILITY, CONFIDENCE, ENTROPY, MARGIN, LOGIT_SPREAD, ACCEPTANCE_AVERAGE, EXPECTED_TOKENS,
    DRAFT_TIME, ONE_WAY_DELAY, JITTER, SLO_PERIOD, SLACK, TOKENS_LEFT, BOUNDARY_LEFT, DRAFTABLE, BOUNDARIES_MISSED,
    SERVER_BUSY, QUEUE_WORK, UTILISATION, OWN_RATE, PRICE, BATCH_TIME, INFO_AGE, CONTEXT, ROUND_TIME, SUGGESTED, ADAPTED_SURVIVAL, LAST_REJECTED,
) = range(SIZE)  # fmt: skip


@jit
def clip(value, high):
    """Clip to [0, high]."""
    return min(max(value, 0.0), high)


@jit
def odds(p):
    """p/(1 − p), of a probability kept off 0 and 1."""
    p = min(max(p, 1e-3), 1.0 - 1e-3)
    return p / (1.0 - p)


@jit
def adapt_to_request(c, d):
    """At the start of a round: how much likelier than on average tokens are accepted here, as a ratio of odds."""
    d.odds_ratio = odds(d.accepted_sum / d.examined_sum) / odds(c.accept_prior)
    d.adapted_survival = 1.0


@jit
def adapt_survival(d):
    """After a token: survival with the predictor's odds for it times that ratio, `p·r/(1 − p + p·r)` (Bayes)."""
    d.adapted_survival *= d.p_token * d.odds_ratio / (1.0 - d.p_token + d.p_token * d.odds_ratio)


@jit
def observe_round(c, d, o):
    """Write the entries that stay the same within a round (o: (SIZE,) float32)."""
    batch_s = d.info_batch_s
    o[ACCEPTANCE_AVERAGE] = d.accepted_sum / d.examined_sum
    o[DRAFT_TIME] = clip(d.draft_token_s / batch_s, 20.0)
    o[ONE_WAY_DELAY] = clip(d.delay_mean_s / batch_s, 20.0)
    o[JITTER] = clip(d.delay_spread_s / batch_s, 20.0)
    o[SLO_PERIOD] = clip(1.0 / (d.slo_tokens_per_s * batch_s), 50.0)
    o[TOKENS_LEFT] = min(d.output_tokens - d.committed, 64) / 64.0
    o[SERVER_BUSY] = d.info_busy
    o[QUEUE_WORK] = clip(d.info_queue_s / batch_s, 10.0)
    o[UTILISATION] = clip(d.info_utilisation, 1.0)
    o[OWN_RATE] = clip(d.token_sum / d.time_sum_s * batch_s, 20.0)
    o[PRICE] = clip(d.price, 10.0)
    o[BATCH_TIME] = clip(batch_s * 10.0, 20.0)
    o[CONTEXT] = clip((d.prompt_tokens + d.committed) * 1e-3, 32.0)
    o[SUGGESTED] = d.suggested_tokens / c.max_draft_tokens
    o[LAST_REJECTED] = d.last_rejected


@jit
def observe_boundary(c, d, o):
    """Write when the message would meet the server: the next batch boundary and what fits before it."""
    batch_s = d.info_batch_s
    arrive_s = d.clock_s + d.delay_mean_s
    left_s, missed = 0.0, 0.0
    if d.info_busy:
        left_s = d.info_end_s - arrive_s
        if left_s < 0.0:
            missed = math.ceil(-left_s / batch_s)
            left_s += missed * batch_s
    o[BOUNDARY_LEFT] = clip(left_s / batch_s, 5.0)
    o[DRAFTABLE] = min(math.floor(left_s / d.draft_token_s), float(c.max_draft_tokens)) / c.max_draft_tokens
    o[BOUNDARIES_MISSED] = clip(missed, 8.0)


@jit
def observe_token(c, d, o):
    """Write the three entries that change with every drafted token and that simple rules read."""
    o[DRAFTED] = d.drafted / c.max_draft_tokens
    o[SURVIVAL] = d.survival
    o[ACCEPT_PROBABILITY] = d.p_token


@jit
def observe_progress(c, d, o):
    """Write the other entries that change with every drafted token."""
    o[EXPECTED_TOKENS] = clip(d.expected_tokens / c.max_draft_tokens, 2.0)
    o[ADAPTED_SURVIVAL] = d.adapted_survival
    slack = (token_deadline_s(d, d.committed) - d.clock_s) * d.slo_tokens_per_s
    o[SLACK] = min(max(slack, -20.0), 20.0)
    o[INFO_AGE] = clip((d.clock_s - d.info_s) / d.info_batch_s, 20.0)
    o[ROUND_TIME] = clip((d.clock_s - d.round_start_s) / d.info_batch_s, 20.0)
    observe_boundary(c, d, o)


@jit
def observe_all(c, d, o):
    """Write every entry that changes with the drafted token."""
    observe_token(c, d, o)
    observe_progress(c, d, o)
    observe_statistics(c, d, o)


@jit
def observe_statistics(c, d, o):
    """Write the draft model's statistics of the last token (all certain before the first)."""
    if d.drafted == 0:
        o[CONFIDENCE], o[ENTROPY], o[MARGIN], o[LOGIT_SPREAD] = 1.0, 0.0, 1.0, 0.0
        return
    confidence, entropy, margin, spread = statistics_of_token(c, d)
    o[CONFIDENCE] = confidence
    o[ENTROPY] = min(entropy, 8.0)
    o[MARGIN] = margin
    o[LOGIT_SPREAD] = min(spread, 16.0)
