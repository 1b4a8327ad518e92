"""When a token is on time.

Legend: `d` DEVICE row; `index` and `first` places of tokens in the response, from 0; `count` of tokens.
"""

import math

from wisp_gym.jit import jit, jit_inline


@jit_inline
def schedule_start_s(d):
    """Time, in s, from which a response's schedule counts: when its first token is due."""
    if d.clock_from_arrival:
        return d.arrival_s + d.ttft_s + 1.0 / d.slo_tokens_per_s + d.grace_s
    return d.first_token_s + d.grace_s


@jit_inline
def token_deadline_s(d, index):
    """Latest delivery, in s, of token `index`: `first token + index/v + grace`.

    With the clock at the request's arrival: `arrival + ttft + (index + 1)/v + grace`.
    """
    return schedule_start_s(d) + index / d.slo_tokens_per_s


@jit
def on_time_tokens(d, first, count, delivered_s):
    """How many of the tokens first … first + count − 1, delivered together, are on time."""
    behind = (delivered_s - schedule_start_s(d)) * d.slo_tokens_per_s
    if behind > first + count:  # all are late, however far beyond any whole number
        return 0
    earliest = int(math.ceil(behind - 1e-9)) if behind > 0.0 else 0
    return max(0, first + count - max(first, earliest))
