"""Stopping rules without memory: after each drafted token, draft one more or send.

A rule reads the documented observation alone. Where a formula asks for p of the token that comes next, nobody knows it
before it has been drafted: the running share of accepted tokens stands for it. The predictor's output for the last token
does not, since it tells of that token's own fate, which the survival already holds.

Legend: `parameters` (8,) float64 of the rule; `o` (SIZE,) float32 observation; `drafted` tokens of the round so
far; T the mean batch time. A rule returns whether to draft one more.
"""

import math

from wisp_gym.contract import device
from wisp_gym.jit import jit


@jit
def margin_continues(parameters, drafted, o):
    """Continue while the last token's top-2 margin is at least m. Parameters: m, k_max."""
    return drafted < parameters[1] and (drafted == 0 or o[device.MARGIN] >= parameters[0])


@jit
def svip_continues(parameters, drafted, o):
    """SVIP (arXiv 2411.18462): stop when √H of the draft distribution exceeds h. Parameters: h, k_max."""
    return drafted < parameters[1] and (drafted == 0 or math.sqrt(o[device.ENTROPY]) <= parameters[0])


@jit
def next_survival(o):
    """Probability that all tokens drafted so far and the next one are accepted: `S_j · α`."""
    return o[device.SURVIVAL] * o[device.ACCEPTANCE_AVERAGE]


@jit
def price_continues(parameters, drafted, o):
    """Price stop: continue iff `S_j·p_{j+1} > A·ρ/v + M`. Parameters: A, M, k_max.

    ρ: own tokens per second, v: drafting speed, so ρ/v is what the time of one token would have earned; M: what verifying
    it costs the others, here a constant plus the price that the server's reply carried. With A = 1 it is the one-step
    lookahead of the ratio problem tokens/time, optimal where the hazard of a rejection does not fall.
    """
    cost = parameters[0] * o[device.OWN_RATE] * o[device.DRAFT_TIME] + parameters[1] + o[device.PRICE]
    return drafted < parameters[2] and next_survival(o) > cost


@jit
def room_before_boundary(o, margin, guard):
    """Time, in T, until the first batch boundary that a message sent now reaches with `margin` jitters and `guard` T to spare."""
    room = o[device.BOUNDARY_LEFT] - margin * o[device.JITTER] - guard
    return room if room >= 0.0 else room + math.ceil(-room)


@jit
def aligned_continues(parameters, drafted, max_draft_tokens, o):
    """Boundary-aligned price stop. Parameters: thr, A, margin, guard, k_max.

    Boundaries lie at the predicted end of the running batch and every mean batch time T after it. While the message would
    wait for a boundary anyway, drafting is free: if the next token still makes the same one, continue iff
    `S_j·p_{j+1} > thr`. Else the n tokens that can be drafted before the next one it makes must together be worth the batches
    missed: `Σ_{m≤n} S_j·p_{j+1}·α^(m−1) > A·ρ·T·batches + thr·n/2`. An idle server launches on arrival: there is no
    boundary, one token costs its own drafting time, `S_j·p_{j+1} > A·ρ/v + thr/2`. A price of a
    draft token that the reply carried is added to thr.
    """
    gain, alpha, draft = next_survival(o), o[device.ACCEPTANCE_AVERAGE], o[device.DRAFT_TIME]
    threshold, price = parameters[0] + o[device.PRICE], parameters[1] * o[device.OWN_RATE]
    if drafted >= parameters[4]:
        return False
    if o[device.SERVER_BUSY] == 0.0:
        return gain > price * draft + threshold / 2.0
    room = room_before_boundary(o, parameters[2], parameters[3])
    if draft <= room:
        return gain > threshold
    batches = math.ceil(draft - room)
    wanted = min(o[device.TOKENS_LEFT] * device.SCALE[device.TOKENS_LEFT] - 1.0, max_draft_tokens) - drafted
    n = min(math.floor((room + batches) / draft), wanted)
    total = gain * (1.0 - alpha**n) / (1.0 - alpha) if alpha < 1.0 else gain * n
    return total > price * batches + threshold * n / 2.0
