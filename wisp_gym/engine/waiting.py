"""What waits at the server as a batching rule sees it, and what need not be looked at again for every batch.

A request with nothing in memory is cold. Only the clock changes anything about it, and most rules keep cold requests in
one order while they wait: these are set aside, in a heap by the lowest priority that they can ever have, from which a batch
draws them as long as it has room for their context. Memory bounds how many others wait, and so what a batch looks at,
however many devices there are. A drawn request that does not join, or loses its context again, is set aside again.

Legend: `w` World; `c` CONFIG, `s` SERVER and `d` DEVICE row; `i` number of a device; `f` (FEATURES,) float64 of its request;
`turn` group of devices whose turn it is; `n` entries of the heap of those that the batch may take (`w.keys`, `w.order`);
`parameters` (8,) float64 of the batching rule.
"""

from wisp_gym.engine.heap import pop, push
from wisp_gym.engine.prediction import size_s
from wisp_gym.engine.slo import token_deadline_s
from wisp_gym.jit import jit, jit_inline
from wisp_gym.rules import batching as rules
from wisp_gym.rules.batching import keeps_order, lowest_priority, priority


@jit
def uncached_tokens(d):
    """Context, in tokens, of a waiting request that is not in the cache (the last token is always run through the model)."""
    return d.prompt_tokens + d.committed - 1 - d.cached_tokens


@jit
def next_token_due_s(d):
    """When, in s, the response's next token must leave the server to be delivered on time; of a first token its target."""
    if d.committed == 0 and d.clock_from_arrival == 0:
        return d.arrival_s + d.ttft_s - d.delay_mean_s
    return token_deadline_s(d, d.committed) - d.delay_mean_s


@jit_inline
def describe(c, d, now_s, turn, f):
    """Fill the feature row of a waiting request."""
    uncached = uncached_tokens(d)
    new = uncached + 1 + d.drafted
    if c.chunk_tokens > 0 and uncached > c.chunk_tokens:
        new = c.chunk_tokens
    marginal = (
        c.est_new_token_s * new + c.est_pair_s * new * (d.cached_tokens + new) + c.est_cached_token_s * d.cached_tokens
    ) + c.est_request_s
    f[rules.WAITING_S] = now_s - d.arrived_s
    f[rules.SLACK_S] = d.deadline_s - now_s
    f[rules.NEW_TOKENS] = new
    f[rules.UNCACHED_TOKENS] = uncached
    f[rules.CACHED_TOKENS] = d.cached_tokens
    f[rules.EXPECTED_TOKENS] = d.expected_tokens
    f[rules.SLO_TOKENS_PER_S] = d.slo_tokens_per_s
    f[rules.MARGINAL_S] = marginal
    f[rules.SOLO_S] = c.est_launch_s + marginal + size_s(c, new)
    f[rules.DRAFT_TOKENS] = d.drafted
    f[rules.ARRIVED_S] = d.arrived_s
    f[rules.DEADLINE_S] = d.deadline_s
    f[rules.RUNNING] = d.running
    f[rules.TURN] = 1.0 if d.group == turn or d.group < 0 else 0.0
    f[rules.AGE_S] = now_s - d.arrival_s
    f[rules.COMMITTED_TOKENS] = d.committed
    f[rules.DUE_S] = next_token_due_s(d)
    f[rules.OWED_TOKENS] = d.owed_tokens


FEW = 32  # requests that a batch looks at in less time than it takes to set some aside and draw them again


@jit
def sets_aside(c, s, parameters):
    """Whether cold requests are set aside: not of few, not where somebody outside sees them all, nor where many are passed over or paced.

    Those passed over would be drawn and set aside again for each batch, as by a limit on what may begin in memory.
    """
    lasts = keeps_order(c.batching, parameters)
    unlimited = c.admit_share <= 0.0 and c.pace_batch_s <= 0.0
    return s.n_waiting > FEW and lasts and c.external_batching == 0 and unlimited


@jit
def is_cold(d):
    """Whether a waiting request has nothing in memory, and lacks something."""
    return d.cached_tokens == 0 and uncached_tokens(d) > 0


@jit
def set_aside(w, i):
    """A cold request, described, leaves the queue until it is drawn."""
    c, s = w.config[0], w.server[0]
    key = lowest_priority(c.batching, w.batching_parameters, w.features[i])
    tokens = uncached_tokens(w.device[i])
    push(w.cold_keys, w.cold, s.n_cold, key, i)
    s.cold_least_tokens = tokens if s.n_cold == 0 else min(s.cold_least_tokens, tokens)
    s.n_cold += 1
    s.cold_tokens += tokens


@jit
def cold_may_fit(c, s):
    """Whether memory and chunk may have room for the smallest request ever set aside with those that are; never again in this batch if not.

    What a member takes of the chunk it adds to memory, so a smaller rest of the chunk makes no room.
    """
    return s.chunk_left > 0 and s.sum_kv + min(s.cold_least_tokens + 1, s.chunk_left) <= c.kv_capacity_tokens


@jit
def take_back(w, n, i):
    """A cold request is in the queue again and among those that the batch may take; returns the number of these."""
    c, s, d, f = w.config[0], w.server[0], w.device[i], w.features[i]
    s.cold_tokens -= uncached_tokens(d)
    w.queue[s.n_queue] = i
    s.n_queue += 1
    describe(c, d, s.now_s, s.turn, f)
    push(w.keys, w.order, n, priority(c.batching, w.batching_parameters, s.now_s, s.mean_batch_s, f), w.places[i])
    return n + 1


@jit
def draw(w, n):
    """Draw the cold requests that may go before all that the batch may take so far; returns the number of these.

    One that goes later than it might, since it is not urgent yet, seldom is alone: then all are drawn, as their order is open.
    """
    s = w.server[0]
    while s.n_cold > 0 and (n == 0 or w.cold_keys[0] <= w.keys[0]):
        key = w.cold_keys[0]
        i = pop(w.cold_keys, w.cold, s.n_cold)
        s.n_cold -= 1
        n = take_back(w, n, i)
        if w.keys[0] > key:
            for k in range(s.n_cold):
                n = take_back(w, n, w.cold[k])
            s.n_cold = 0
    return n
