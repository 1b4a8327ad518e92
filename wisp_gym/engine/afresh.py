"""What is not known yet, drawn again: the future of a running world as its model tells it.

Whoever decides knows what has happened and been observed, and the law of the rest. So from a moment on all draws come from
another seed, and what has been drawn already but nobody has seen is drawn again from its law, given what was seen:

- when the next request of a device that is thinking comes (exponential times have no memory), and all about it;
- how likely the draft's tokens are accepted: the request's effect given how many of its tokens were;
- which tokens of a round under way are accepted, given their evidence and those log odds (Bayes, exactly).

What is physically under way stays: messages on the network, the running batch, what the server has drafted. So does what devices are
told: how long the answer to their request is. Of a recorded trace or of loops nothing can be drawn again (`branch.refuse_recorded`).

Legend: `w` World; `c` CONFIG, `s` SERVER, `d` DEVICE, `totals` TOTALS and `slo` SLO_TOTALS row; `i` number of a device; `key` uint64
of a stream of draws; `replies` (n,) int64 members of the batch that ended, of which those before place `answered` have been answered;
`done` tokens of an answer that are there; `drafted` tokens of a round, `r` number of one of them; `first` chance that its first token is
accepted; `a` accepted of `n` examined tokens; `logit` and `after_rejection_logit` as of `acceptance`.
"""

import math

import numpy as np

from wisp_gym.contract.averages import PRIOR_TOKENS
from wisp_gym.engine import draws
from wisp_gym.engine.acceptance import DRIFT_BLOCK_TOKENS, OFF_PATH_INDEX, begin_walk, refresh_probability, sigmoid
from wisp_gym.engine.arguments import world_at
from wisp_gym.engine.draws import exponential, mix, normal, stream_key, uniform
from wisp_gym.engine.heap import heapify
from wisp_gym.engine.requests import begin_request, draw_keys
from wisp_gym.engine.session import in_window
from wisp_gym.engine.state import CLOSED
from wisp_gym.jit import INTEGER, VOID, jit, on_demand

NEWTON_STEPS = 8  # the log posterior is concave; from the prior's mean it takes three or four
HIDDEN_INDEX = 1 << 33  # the draw of what a round's fates are: beyond those of any position


@on_demand(lambda: VOID(INTEGER, INTEGER, INTEGER))
def draw_afresh(home, place, seed):
    """Draw again, by another seed, what is not known yet in world `place`."""
    w = world_at(home, place)
    c, s = w.config[0], w.server[0]
    c.seed = mix(c.seed + draws.GOLDEN * mix(np.uint64(seed)))
    answered = s.reply_next + s.mid_draft  # the replies from here on are committed and not delivered
    for i in range(c.n_devices):
        d = w.device[i]
        if d.arrival_s > s.now_s:
            ask_again(w, i)
        else:
            know_less(c, d, i, committed_tokens(s, w.replies, answered, d, i))
    for k in range(s.n_events):
        w.event_s[k] = w.device[w.event_device[k]].arrived_s
    heapify(w.event_s, w.event_device, s.n_events)


@jit
def committed_tokens(s, replies, answered, d, i):
    """Tokens of a device's answer that are there, those of a reply that is about to leave among them."""
    for k in range(answered, s.n_replies):
        if replies[k] == i:
            return d.committed + d.commit_tokens
    return d.committed


@jit
def ask_again(w, i):
    """The next request of a device that is thinking comes at another time."""
    c, s, d = w.config[0], w.server[0], w.device[i]
    key = stream_key(c.seed, draws.ARRIVAL, i, d.request)
    if c.arrivals != CLOSED:
        wait_s = exponential(key, 0) / c.requests_per_s
    elif d.request == 0:
        wait_s = (c.start_window_s - s.now_s) * uniform(key, 0)
    else:
        wait_s = c.think_s * exponential(key, 0)
    take_back(c, s, w.totals[0], w.slo_totals[d.slo_id], d)
    arrival_s = s.now_s + wait_s
    begin_request(w, i, d.request, arrival_s, max(arrival_s, d.delivered_s))


@jit
def take_back(c, s, totals, slo, d):
    """The planned request has never begun."""
    s.n_open -= d.counted
    slo.arrived -= d.counted
    totals.requests_in -= 1
    totals.messages -= 1
    d.window_messages -= 1 if in_window(c, d.sent_s) else 0
    d.link_used_s = d.delivered_s


@jit
def know_less(c, d, i, done):
    """Draw again what is not known of a request under way."""
    drafted = d.drafted if d.at_server == 0 and done == d.committed else 0
    if drafted == 0:
        draw_keys(c, d, i)
    if done == 0:
        begin_walk(c, d, stream_key(c.seed, draws.REQUEST_EFFECT, i, d.request))
        return
    believe(c, d, stream_key(c.seed, draws.REQUEST_EFFECT, i, d.request), done)
    if drafted > 0:
        round_afresh(c, d, i, drafted)


@jit
def believe(c, d, key, done):
    """Draw request effect and drift from what the device can know of them, each from Laplace's normal.

    All accepted tokens of the request tell of its effect, those of its running average of the drift around it. Each of the n examined
    was accepted with chance `sigmoid(x − shift)`, where the shift makes the share come out at the logit x of the average request.
    """
    rounds = d.messages - 2 if d.at_server else d.messages // 2 - 1
    of_request = max(float(done - 1 - rounds), 0.0)
    accepted = max(d.accepted_sum - PRIOR_TOKENS * c.accept_prior, 0.0)
    examined = max(d.examined_sum - PRIOR_TOKENS, accepted)
    ratio = of_request / accepted if accepted > 0.0 else 0.0  # below 1 the average is of earlier requests too
    shift = share_shift(c.logit_mean, c.after_rejection_logit)
    mode, spread = laplace(c.logit_mean, c.request_std**2, shift, ratio * accepted, ratio * examined)
    d.request_logit = mode + spread * normal(key, 1)
    recent = min(ratio, 1.0)
    mode, spread = laplace(d.request_logit, c.drift_std**2, shift, recent * accepted, recent * examined)
    d.drift = (mode - d.request_logit + spread * normal(key, 2)) / c.drift_std if c.drift_std > 0.0 else 0.0
    d.mark_drift = d.drift
    refresh_probability(c, d)


@jit
def share_shift(logit, after_rejection_logit):
    """How far the log odds of a request's share of accepted positions lie below its logit: the share m solves `m = m·p + (1 − m)·q`."""
    p, q = sigmoid(logit), sigmoid(logit - after_rejection_logit)
    return logit - math.log(q / (1.0 - p))


@jit
def laplace(mean, variance, shift, a, n):
    """Mode and standard deviation of log odds x: normal with `mean` and `variance`, then `a` of `n` tokens with chance `sigmoid(x − shift)`."""
    x, precision = mean, math.inf
    if variance > 0.0:
        for _ in range(NEWTON_STEPS):
            p = sigmoid(x - shift)
            precision = n * p * (1.0 - p) + 1.0 / variance
            x += (a - n * p - (x - mean) / variance) / precision
    return x, 1.0 / math.sqrt(precision)


@jit
def round_afresh(c, d, i, drafted):
    """Draw again how many of the round's drafted tokens are accepted, given their evidence, and place the walk behind them.

    Relative to a rejection at the first token, a rejection at token r has the weight `Π_{k<r} p_k·e^{d'x_k} · (1 − p_r)`, and none at all
    `Π_k p_k·e^{d'x_k}`: the evidence x of an accepted token is `e^{d'x}` times as likely as of a rejected one, and that beyond the first
    rejected one is a rejected one's.
    """
    first = d.p_accept_after if d.mark_after_rejection else d.p_accept
    total = weight_of(c, d, drafted, first, math.inf)[0]
    left = uniform(stream_key(c.seed, draws.ACCEPTANCE, i, d.request), HIDDEN_INDEX) * total
    accepted = weight_of(c, d, drafted, first, left)[1]
    draw_keys_ahead(c, d, i)
    d.accepted = accepted
    d.on_path = d.fate = 1 if accepted == drafted else 0
    d.position = d.committed + min(accepted + 1, drafted)
    d.after_rejection = 1 - d.on_path
    d.drift_block = d.position // DRIFT_BLOCK_TOKENS


@jit
def weight_of(c, d, drafted, first, left):
    """Sum of the weights of all numbers of accepted tokens, until it exceeds `left`; and the number at which it did."""
    total, reached = 0.0, 1.0
    for r in range(drafted):
        p = first if r == 0 else d.p_accept
        total += reached * (1.0 - p)
        if total > left:
            return total, r
        reached *= p * math.exp(c.separation * evidence(c, d, r))
    return total + reached, drafted


@jit
def evidence(c, d, r):
    """What the device saw of token r of its round."""
    if r <= d.accepted:
        return ((0.5 if r < d.accepted else -0.5) * c.separation) + normal(d.evidence_key, d.committed + r)
    return -0.5 * c.separation + normal(d.off_path_key, OFF_PATH_INDEX + (d.committed + d.accepted + 1) * 64 + r)


@jit
def draw_keys_ahead(c, d, i):
    """Streams of what is still to come of a request; the last drafted token's views stay as they were seen."""
    seen = d.views_key
    draw_keys(c, d, i)
    d.views_key = seen
