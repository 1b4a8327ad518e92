"""Loops and copies: stretches of a text in which a draft is always right, or wrong once a period.

A small model falls into repetition, and its draft follows; any model copies from its prompt. So a walk along the output has one
more state. At each position it enters a loop or leaves it with a constant chance. Loops are of the text: the draws
are the same for every draft, and each has chances of its own.

Legend: `key` uint64 of the request's loops; `position` in the output, in tokens; `enter`, `leave`, `whole`, `longer` chances;
`shortest` period, in tokens; `period` in tokens, negative where all of the loop is accepted, 0 outside of loops; `place` in it.
"""

import math

from wisp_gym.engine.draws import uniform
from wisp_gym.jit import jit

ENTRY_INDEX = 1 << 32  # draws about a loop that is entered: beyond those about entering and leaving


@jit
def next_loop(key, position, enter, leave, whole, shortest, longer, period, place):
    """Period and place at a position, from those at the one before it (0, 0 before the first)."""
    u = uniform(key, position)
    if period != 0:
        return (0, 0) if u < leave else (period, (place + 1) % abs(period))
    return entered(key, position, whole, shortest, longer) if u < enter else (0, 0)


@jit
def entered(key, position, whole, shortest, longer):
    """Period and place of a loop that begins at a position: shortest + geometric, anywhere in the period."""
    index = ENTRY_INDEX + 3 * position
    period = shortest
    if longer > 0.0:
        period += int(math.log(1.0 - uniform(key, index)) / math.log(longer))
    place = int(uniform(key, index + 1) * period)
    return (-period if uniform(key, index + 2) < whole else period), place


@jit
def loop_fate(period, place):
    """Whether a token in a loop is accepted (1) or not (0)."""
    return 1 if period < 0 or place > 0 else 0
