"""What a device sees when it decides: the documented observation of the speculation controllers.

An observation is a function of what the device has drafted, measured and received with its last reply; it holds
nothing of the future and nothing of the other parties' state after that reply. Times are divided by the mean batch
time T that the reply carried, tokens by the cap K or by the service class's period, never by the number of devices.

Legend: `c` CONFIG and `d` DEVICE row; `o` (SIZE,) float32 observation; `p` a probability; `value` any number.
"""

from __future__ import annotations

import math

from wisp_gym.contract.observation import (
    ACCEPT_PROBABILITY,
    ACCEPTANCE_AVERAGE,
    ADAPTED_SURVIVAL,
    BATCH_TIME,
    BOUNDARIES_MISSED,
    BOUNDARY_LEFT,
    CONFIDENCE,
    CONTEXT,
    DRAFT_TIME,
    DRAFTABLE,
    DRAFTED,
    ENTROPY,
    EXPECTED_TOKENS,
    INFO_AGE,
    JITTER,
    LAST_REJECTED,
    LOGIT_SPREAD,
    MARGIN,
    ONE_WAY_DELAY,
    OWN_RATE,
    PRICE,
    QUEUE_WORK,
    ROUND_TIME,
    SERVER_BUSY,
    SLACK,
    SLO_PERIOD,
    SUGGESTED,
    SURVIVAL,
    TOKENS_LEFT,
    UTILISATION,
)
from wisp_gym.engine.slo import token_deadline_s
from wisp_gym.engine.source import statistics_of_token
from wisp_gym.jit import jit


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
