"""Trimming at launch: of each member's drafted tokens the server verifies a first part, the rest it leaves out.

The n most likely tokens of a batch come from a heap of each member's next token; equally likely ones go to the member that
joined first.

Legend: `w` World; `c` CONFIG, `s` SERVER and `d` DEVICE row; `i` number of a device; `devices` (n,) DEVICE; `batch`
(n,) int64 members; `size` of the heap in `w.keys`, whose items are places in the batch; `tokens` still to be
verified; `members` that complete; `verified` tokens of a member, which commit `expected`.
"""

import math

from wisp_gym.engine.arguments import world_at
from wisp_gym.engine.heap import pop, push, sift_down
from wisp_gym.engine.prediction import predict_s
from wisp_gym.jit import INTEGER, VOID, jit, on_demand
from wisp_gym.rules.trimming import ADASERVE, DSPARK


@jit
def verify(s, d, verified, expected):
    """Verify the first `verified` drafted tokens of a member, which commits `expected`; the batch's sums follow."""
    take = d.take_tokens - d.verified + verified
    s.sum_new += take - d.take_tokens
    s.sum_kv += take - d.take_tokens
    s.sum_pairs += take * float(d.cached_tokens + take) - d.take_tokens * float(d.cached_tokens + d.take_tokens)
    d.take_tokens = take
    d.verified = verified
    d.verified_tokens = expected


@jit
def verify_none(s, devices, batch):
    """Leave out every drafted token; returns the expected tokens: one for each member that completes."""
    members = 0
    for k in range(s.n_batch):
        d = devices[batch[k]]
        if d.completes:
            verify(s, d, 0, 1.0)
            members += 1
    return members


@jit
def needs_more(d, end_s):
    """Whether a member has a token left and needs it to keep its speed, if the batch ends at `end_s` (inf: always)."""
    needed = d.expected_tokens + (end_s - d.deadline_s) * d.slo_tokens_per_s
    return d.completes == 1 and d.verified < d.drafted and d.verified_tokens < needed


@jit
def offer(w, end_s):
    """Heap of the next token of each member that needs one, most likely first; returns its size."""
    s, size = w.server[0], 0
    for k in range(s.n_batch):
        i = w.batch[k]
        if needs_more(w.device[i], end_s):
            push(w.keys, w.order, size, -w.survivals[i, w.device[i].verified], k)
            size += 1
    return size


@jit
def verify_next(w, size, end_s):
    """Verify the most likely token of the heap as well; returns the heap's new size."""
    i = w.batch[w.order[0]]
    d = w.device[i]
    verify(w.server[0], d, d.verified + 1, d.verified_tokens - w.keys[0])
    if not needs_more(d, end_s):
        pop(w.keys, w.order, size)
        return size - 1
    w.keys[0] = -w.survivals[i, d.verified]
    sift_down(w.keys, w.order, size, 0)
    return size


@jit
def verify_most_likely(w, tokens, end_s):
    """Verify so many more tokens of members that need them; returns how many of them are left."""
    size = offer(w, end_s)
    while size > 0 and tokens > 0:
        size = verify_next(w, size, end_s)
        tokens -= 1
    return tokens


@jit
def best_number(w, members):
    """Number of tokens with the most expected tokens per predicted second of the batch (the larger of equal ones)."""
    c, s = w.config[0], w.server[0]
    expected, tokens, best = float(members), 0, 0
    best_rate = expected / predict_s(c, s.n_batch, s.sum_new, s.sum_pairs, s.sum_cached)
    size = offer(w, math.inf)
    while size > 0:
        expected -= w.keys[0]
        size = verify_next(w, size, math.inf)
        tokens += 1
        rate = expected / predict_s(c, s.n_batch, s.sum_new, s.sum_pairs, s.sum_cached)
        if rate >= best_rate:
            best, best_rate = tokens, rate
    return best


@on_demand(lambda: VOID(INTEGER, INTEGER))
def trim(home, place):
    """Choose how many drafted tokens of each member the batch verifies, by the server's rule.

    DSPARK: the n most likely with the largest (Σ over members (1 + Σ S_ij)) / t(batch). TETRIS: the C most likely.
    ADASERVE: of C tokens first the most likely ones that members need to keep their speed, then the most likely.
    """
    w = world_at(home, place)
    c, s = w.config[0], w.server[0]
    whole_end_s = s.now_s + predict_s(c, s.n_batch, s.sum_new, s.sum_pairs, s.sum_cached)
    members = verify_none(s, w.device, w.batch)
    tokens = c.trim_tokens
    if c.trim == DSPARK:
        tokens = best_number(w, members)
        verify_none(s, w.device, w.batch)
    elif c.trim == ADASERVE:
        tokens = verify_most_likely(w, tokens, whole_end_s)
    verify_most_likely(w, tokens, math.inf)
