"""What a device sees when it decides: writes the entries of `wisp_gym.contract.device`.

An observation is a function of what the device has drafted, measured and received with its last reply; it holds
nothing of the future and nothing of the other parties' state after that reply.

Legend: `c` CONFIG and `d` DEVICE row; `o` (SIZE,) float32 observation; `t` the mean batch time T; `p` a
probability; `entry` place of an entry, written in units of `scale`.
"""

import math

from wisp_gym.contract import device
from wisp_gym.engine.slo import token_deadline_s
from wisp_gym.engine.source import statistics_of_token
from wisp_gym.jit import jit, jit_inline


@jit
def put(o, entry, quantity):
    """Write a quantity as an entry, in the entry's own unit and within its ends."""
    put_in(o, entry, quantity, device.SCALE[entry])


@jit_inline
def put_in(o, entry, quantity, scale):
    """Write a quantity in units of `scale`, the mean batch time T or the cap K."""
    o[entry] = min(max(quantity / scale, device.LOW[entry]), device.HIGH[entry])


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


@jit_inline
def adapt_survival(d):
    """After a token: survival with the predictor's odds for it times that ratio, `p·r/(1 − p + p·r)` (Bayes)."""
    d.adapted_survival *= d.p_token * d.odds_ratio / (1.0 - d.p_token + d.p_token * d.odds_ratio)


@jit
def observe_round(c, d, o):
    """Write the entries that stay the same within a round."""
    t = d.info_batch_s
    put(o, device.ACCEPTANCE_AVERAGE, d.accepted_sum / d.examined_sum)
    put_in(o, device.DRAFT_TIME, d.draft_token_s, t)
    put_in(o, device.ONE_WAY_DELAY, d.delay_mean_s, t)
    put_in(o, device.JITTER, d.delay_spread_s, t)
    put_in(o, device.SLO_PERIOD, 1.0, d.slo_tokens_per_s * t)
    put(o, device.TOKENS_LEFT, d.output_tokens - d.committed)
    put(o, device.SERVER_BUSY, d.info_busy)
    put_in(o, device.QUEUE_WORK, d.info_queue_s, t)
    put(o, device.UTILISATION, d.info_utilisation)
    put(o, device.OWN_RATE, d.token_sum / d.time_sum_s * t)
    put(o, device.PRICE, d.price)
    put(o, device.BATCH_TIME, t)
    put(o, device.CONTEXT, d.prompt_tokens + d.committed)
    put_in(o, device.SUGGESTED_TOKENS, d.suggested_tokens, c.max_draft_tokens)
    put(o, device.LAST_REJECTED, d.last_rejected)


@jit_inline
def observe_boundary(c, d, o):
    """Write when the message would meet the server: the next batch boundary and what fits before it."""
    t = d.info_batch_s
    arrive_s = d.clock_s + d.delay_mean_s
    left_s, missed = 0.0, 0.0
    if d.info_busy:
        left_s = d.info_end_s - arrive_s
        if left_s < 0.0:
            missed = math.ceil(-left_s / t)
            left_s += missed * t
    put_in(o, device.BOUNDARY_LEFT, left_s, t)
    put_in(o, device.DRAFTABLE_TOKENS, math.floor(left_s / d.draft_token_s), c.max_draft_tokens)
    put(o, device.BOUNDARIES_MISSED, missed)


@jit_inline
def observe_token(c, d, o):
    """Write the three entries that change with every drafted token and that simple rules read."""
    put_in(o, device.DRAFTED_TOKENS, d.drafted, c.max_draft_tokens)
    put(o, device.SURVIVAL, d.survival)
    put(o, device.ACCEPT_PROBABILITY, d.p_token)


@jit_inline
def observe_progress(c, d, o):
    """Write the other entries that change with every drafted token."""
    t = d.info_batch_s
    put_in(o, device.EXPECTED_TOKENS, d.expected_tokens, c.max_draft_tokens)
    put(o, device.ADAPTED_SURVIVAL, d.adapted_survival)
    put(o, device.SLACK, (token_deadline_s(d, d.committed) - d.clock_s) * d.slo_tokens_per_s)
    put_in(o, device.INFO_AGE, d.clock_s - d.info_s, t)
    put_in(o, device.ROUND_TIME, d.clock_s - d.round_start_s, t)
    observe_boundary(c, d, o)


@jit
def observe_statistics(c, d, o):
    """Write the draft model's statistics of the last token (all certain before the first)."""
    confidence, entropy, margin, spread = 1.0, 0.0, 1.0, 0.0
    if d.drafted > 0:
        confidence, entropy, margin, spread = statistics_of_token(c, d)
    put(o, device.CONFIDENCE, confidence)
    put(o, device.ENTROPY, entropy)
    put(o, device.MARGIN, margin)
    put(o, device.LOGIT_SPREAD, spread)


@jit
def observe_all(c, d, o):
    """Write every entry that changes with the drafted token."""
    observe_token(c, d, o)
    observe_progress(c, d, o)
    observe_statistics(c, d, o)
