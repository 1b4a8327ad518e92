"""What becomes of drafted tokens and what the draft tells of them, from either source.

The parametric process (`acceptance`) and traces of real models (`trace_source`) offer the same functions; here is
the one place that chooses between them. A rejection predictor, where there is one, replaces what either predicts.

Legend: `c` CONFIG and `d` DEVICE row; `i` number of the device; `source` Source; `position` in the output, in
tokens; fates are 1 accepted, 0 rejected.
"""

import math

import numpy as np
from numba import types

from wisp_gym.engine import acceptance, draws, trace_source
from wisp_gym.engine.draws import stream_key
from wisp_gym.jit import NUMBER, SINGLES, jit, jit_inline, on_demand
from wisp_gym.rules.mlp import logits


@jit
def begin_walk(c, d, i, source):
    """Place device i's new request at position 0 of the target's output."""
    if c.from_trace:
        trace_source.begin_walk(d, stream_key(c.seed, draws.ANSWER, i, d.request), source)
    else:
        acceptance.begin_walk(c, d, stream_key(c.seed, draws.REQUEST_EFFECT, i, d.request))


@jit_inline
def fate_here(c, d, source):
    """Whether the next token drafted from the true prefix is accepted (1) or not (0)."""
    return trace_source.fate_here(d, source) if c.from_trace else acceptance.fate_here(d)


@jit
def first_fate(c, d, source):
    """The same where nothing has been drafted from here: of a trace, that of the first token of the position's row."""
    return trace_source.first_fate(d, source) if c.from_trace else acceptance.fate_here(d)


@jit
def step(c, d):
    """Move past the current position without drafting there: the target's own bonus token."""
    if c.from_trace:
        d.position += 1
    else:
        acceptance.walk(c, d)


@jit
def mark(d):
    """Remember the walk at the start of a round, for `rewind`."""
    d.mark_drift = d.drift
    d.mark_after_rejection = d.after_rejection
    d.mark_loop_period, d.mark_loop_place = d.loop_period, d.loop_place


@jit
def rewind(c, d, position):
    """Place the walk where it stood at `position`, from the round's start (`d.committed`) to where it stands now.

    What was drafted is the caller's to cut; walked on from there, the walk meets the same fates.
    """
    if c.from_trace:
        d.position = position
    else:
        acceptance.rewind(c, d, position)


@jit
def statistics_of_token(c, d):
    """Confidence (0–1), entropy (nats, ≥ 0), top-2 margin (0–1) and logit spread (≥ 0) of the token just drafted."""
    if c.from_trace:
        return d.confidence, d.entropy, d.margin, d.logit_spread
    return acceptance.statistics_of_token(c, d)


@on_demand(lambda: NUMBER(SINGLES, types.UniTuple(NUMBER, 4)), allocating=True)
def predicted_acceptance(predictor, statistics):
    """Output of a rejection predictor (float32 vector of `mlp.pack`) for a token's four `statistics`, in the order of `INPUTS`; 0 to 1."""
    inputs, out = np.empty(4, np.float32), np.empty(1, np.float32)
    for k in range(4):
        inputs[k] = statistics[k]
    logits(predictor, inputs, out)
    return 1.0 / (1.0 + math.exp(-float(out[0])))


@jit_inline
def draft_token(c, d, source):
    """Draft one more token: its fate given all before it, what is seen of it, its predicted acceptance."""
    if c.from_trace:
        trace_source.draft_token(d, source)
    else:
        acceptance.draft_token(c, d)
    if source.predictor.shape[0] > 0:
        d.p_token = predicted_acceptance(source.predictor, statistics_of_token(c, d))
    d.drafted += 1
    d.survival *= d.p_token
    d.expected_tokens += d.survival
