"""What becomes of drafted tokens, and what the draft model's statistics tell about it beforehand.

In greedy decoding, whether the draft's token at position n of the target's output is accepted, given the true prefix,
does not depend on the controller. So fate is a property of the position: the log odds at position n are

    request effect + slow drift − (a penalty if the token before was rejected),

with a normal effect for each request and a first-order autoregressive drift over blocks of eight positions. A round
that starts at n and drafts K tokens has the run of accepted positions from n as its accepted tokens. In a loop (`loops`)
fates have no odds: they repeat with its period.

Evidence about a token is normal with unit variance and mean ±d'/2 (accepted / not), so that its area under the ROC
curve is Φ(d'/√2) and the log-likelihood ratio d'·x is calibrated. Beyond the first rejected token the draft goes on
from a wrong prefix: those tokens carry the evidence of rejected ones (the closed form of wasted drafting in docs/model/model.md).

Legend: `c` CONFIG row; `d` DEVICE row; `x` a number; `effect_key` uint64 key of the request's effect; `position` in
the output, in tokens. Fates are 1 accepted, 0 rejected.
"""

import math
from typing import Any

import numpy as np

from wisp_gym.engine.draws import normal, three_normals, uniform
from wisp_gym.engine.loops import loop_fate, next_loop
from wisp_gym.jit import jit, jit_inline
from wisp_gym.jit_lanes import exp, four_at_once

DRIFT_BLOCK_TOKENS = 8
OFF_PATH_INDEX = 1 << 32  # tokens drafted from a wrong prefix draw from places that no position of the output reaches

# Shares of the information (of d'²) in confidence, entropy, margin and spread: an assumption; confidence tells most.
VIEW_SHARES = np.array([0.45, 0.25, 0.20, 0.10])
VIEW_DIRECTION = np.sqrt(VIEW_SHARES)


def orthogonal_complement(direction: np.ndarray) -> np.ndarray:
    """(4, 3) orthonormal columns orthogonal to a unit vector (Householder reflection)."""
    v = direction.copy()
    v[0] += 1.0
    reflection = np.eye(4) - 2.0 * np.outer(v, v) / (v @ v)
    return np.ascontiguousarray(reflection[:, 1:])


VIEW_NOISE = orthogonal_complement(VIEW_DIRECTION)
exponentials: Any = four_at_once(exp)


@jit
def sigmoid(x):
    """Logistic function, in (0, 1)."""
    return 1.0 / (1.0 + math.exp(-x))


@jit
def refresh_probability(c, d):
    """Acceptance probability at the current drift, after an accepted and after a rejected token."""
    logit = d.request_logit + c.drift_std * d.drift
    d.p_accept = sigmoid(logit)
    d.p_accept_after = sigmoid(logit - c.after_rejection_logit)


@jit
def begin_walk(c, d, effect_key):
    """Place a new request at position 0 of the target's output."""
    d.request_logit = c.logit_mean + c.request_std * normal(effect_key, 0)
    d.drift = normal(d.drift_key, 0)
    d.drift_block = 0
    d.position = 0
    d.after_rejection = 0
    d.loop_period, d.loop_place = 0, 0
    turn(c, d)
    refresh_probability(c, d)


@jit_inline
def turn(c, d):
    """Whether the current position lies in a loop, and where."""
    if c.loop_enter > 0.0:
        d.loop_period, d.loop_place = next_loop(
            d.loop_key, d.position, c.loop_enter, c.loop_leave, c.loop_whole, c.loop_period_tokens, c.loop_longer, d.loop_period, d.loop_place
        )  # fmt: skip


@jit_inline
def fate_here(d):
    """Whether the draft's token at the current position is accepted (1) or not (0)."""
    if d.loop_period != 0:
        return loop_fate(d.loop_period, d.loop_place)
    p = d.p_accept_after if d.after_rejection else d.p_accept
    return 1 if uniform(d.acceptance_key, d.position) < p else 0


@jit_inline
def walk(c, d):
    """Fate of the token at the current position; moves on to the next."""
    fate = fate_here(d)
    d.after_rejection = 1 - fate
    d.position += 1
    turn(c, d)
    block = d.position // DRIFT_BLOCK_TOKENS
    if block != d.drift_block:
        d.drift = c.drift_keep * d.drift + c.drift_fresh * normal(d.drift_key, block)
        d.drift_block = block
        refresh_probability(c, d)
    return fate


@jit
def rewind(c, d, position):
    """Walk again from the start of the round, which `source.mark` has kept, to a position no further than before."""
    d.position = d.committed
    d.drift = d.mark_drift
    d.drift_block = d.position // DRIFT_BLOCK_TOKENS
    d.after_rejection = d.mark_after_rejection
    d.loop_period, d.loop_place = d.mark_loop_period, d.mark_loop_place
    refresh_probability(c, d)
    while d.position < position:
        walk(c, d)


@jit_inline
def draft_token(c, d):
    """Draft one more token: its fate given all before it, its evidence, its predicted acceptance."""
    if d.on_path:
        d.token_index = d.position
        d.fate = walk(c, d)
        noise = normal(d.evidence_key, d.token_index)
        d.accepted += d.fate
        d.on_path = d.fate
    else:
        d.token_index = OFF_PATH_INDEX + d.position * 64 + d.drafted
        d.fate = 0
        noise = normal(d.off_path_key, d.token_index)
    d.evidence = (d.fate - 0.5) * c.separation + noise
    d.p_token = sigmoid(c.base_logit + c.separation * d.evidence)


@jit
def statistics_of_token(c, d):
    """Confidence (0–1), entropy (nats, ≥ 0), top-2 margin (0–1) and logit spread (> 0) of the token just drafted.

    Four normal views whose best linear combination is the evidence, bent to the usual ranges; the shapes are an
    assumption, the information in them is not: it adds up to the stated area under the curve.
    """
    z0, z1, z2 = three_normals(d.views_key, d.token_index * 3)
    y0 = VIEW_DIRECTION[0] * d.evidence + VIEW_NOISE[0, 0] * z0 + VIEW_NOISE[0, 1] * z1 + VIEW_NOISE[0, 2] * z2
    y1 = VIEW_DIRECTION[1] * d.evidence + VIEW_NOISE[1, 0] * z0 + VIEW_NOISE[1, 1] * z1 + VIEW_NOISE[1, 2] * z2
    y2 = VIEW_DIRECTION[2] * d.evidence + VIEW_NOISE[2, 0] * z0 + VIEW_NOISE[2, 1] * z1 + VIEW_NOISE[2, 2] * z2
    y3 = VIEW_DIRECTION[3] * d.evidence + VIEW_NOISE[3, 0] * z0 + VIEW_NOISE[3, 1] * z1 + VIEW_NOISE[3, 2] * z2
    e0, e1, e2, e3 = exponentials(
        -(c.base_logit + c.overconfidence + 2.0 * y0), -0.6 * y1, -(0.5 + 1.5 * y2), 0.15 * y3
    )
    return 1.0 / (1.0 + e0), 1.2 * e1, 1.0 / (1.0 + e2), 3.0 * e3
