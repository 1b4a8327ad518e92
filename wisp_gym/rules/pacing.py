"""Pacing: whose response needs the next batch, in overload. It orders what waits in place of the batching rule.

Four groups, first to last: responses of devices below the floor, so that nobody is given up; those on time that soon need a token; those
that are late, the cheapest to bring back first; those that are ahead, which lose nothing by waiting.

Legend: `c` CONFIG row; `now_s` clock of the server; `committed` tokens of a response; `f` (FEATURES,) float64 of a queued request, in the units of
`wisp_gym.rules.batching.FEATURE_TABLE`.
"""

from wisp_gym.jit import jit
from wisp_gym.rules import batching as rules
from wisp_gym.rules.batching import FIRST_S


@jit
def lacking_tokens(c, f):
    """Tokens that a device lacks of the floor, which begins after a patience; 0 or less for none.

    A response without all its context in memory is given more patience: it costs its context first.
    """
    patience_s = c.pace_begin_s if f[rules.UNCACHED_TOKENS] > 0.0 else c.pace_patience_s
    return c.pace_floor_tokens_per_s * (f[rules.AGE_S] - patience_s) - f[rules.COMMITTED_TOKENS] + f[rules.OWED_TOKENS]


@jit
def carried_tokens(c, owed_tokens, age_s, committed):
    """What a device's responses lack of the floor when one of this age ends, for its next one to make up.

    Below 0 it had more, of which what the floor gives in `pace_credit_s` counts at most: a long answer does not pay for minutes.
    """
    floor = c.pace_floor_tokens_per_s
    return max(owed_tokens + floor * age_s - committed, -floor * c.pace_credit_s)


@jit
def recovery_tokens(f, now_s):
    """Tokens that a late response must be run before it is on time: uncached context, and those that it is behind."""
    return f[rules.UNCACHED_TOKENS] + (now_s - f[rules.DUE_S]) * f[rules.SLO_TOKENS_PER_S]


@jit
def paced_priority(c, now_s, f):
    """Sort key of a request, smallest first: its group, and within it the most lacking, the earliest due, the cheapest to bring back."""
    lacking = lacking_tokens(c, f)
    if lacking > 0.0:
        return -lacking - 4.0 * FIRST_S
    if now_s + f[rules.SOLO_S] > f[rules.DUE_S]:
        return recovery_tokens(f, now_s) - 2.0 * FIRST_S
    ahead = f[rules.UNCACHED_TOKENS] == 0.0 and f[rules.DUE_S] > now_s + c.pace_lead_s
    return f[rules.DUE_S] - (FIRST_S if ahead else 3.0 * FIRST_S)
