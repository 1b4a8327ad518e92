"""Composing a batch: what waits, what fits, and which requests the rule takes.

Legend: `w` World; `c` CONFIG, `s` SERVER and `d` DEVICE row; `i` number of a device; `devices` (n,) DEVICE;
`queue`, `batch` (n,) int64 devices; `f` (FEATURES,) and `features` (n, FEATURES) float64, a row for each device;
`keys` (n,) float64 and `order` (n,) int64 heap of places in the `line`, of which the first `n` count;
`parameters` (8,) float64 of the batching rule; `margin` share that is added to predicted times; `pairs` sum of new
tokens × total length; `k` drafted tokens of each session.
"""

import math

from wisp_gym.contract import ladders
from wisp_gym.engine.heap import before, heapify, pop
from wisp_gym.engine.hosting import tokens_of_batch
from wisp_gym.engine.prediction import predict_s
from wisp_gym.engine.waiting import cold_may_fit, describe, draw, is_cold, set_aside, sets_aside, uncached_tokens
from wisp_gym.jit import jit
from wisp_gym.rules import batching as rules
from wisp_gym.rules.batching import admits, binding_deadline_s, is_full, leads, margin_of, priority, protects
from wisp_gym.rules.pacing import lacking_tokens, paced_priority


@jit
def begin_batch(w):
    """Start to compose: an empty batch, and a feature row for every request of the queue."""
    c, s = w.config[0], w.server[0]
    s.n_batch = 0
    s.sum_new, s.sum_pairs, s.sum_cached = 0.0, 0.0, 0.0
    s.sum_kv, s.sum_context = 0, 0
    s.n_drafting, s.draft_context, s.sum_lookahead = 0, 0, 0
    s.chunk_left = c.chunk_tokens if c.chunk_tokens > 0 else 1 << 40
    s.earliest_deadline_s = math.inf
    s.chunk_settled, s.memory_kept = 0, 0
    describe_queue(w)
    if c.chunk_tokens > 0:
        s.chunk_left = max(c.chunk_tokens, int(c.chunk_share * s.prefill_waiting))
    s.step_starved_s += s.n_starving * (s.now_s - s.composed_s)
    s.composed_s = s.now_s


@jit
def describe_queue(w):
    """Describe the requests of the queue and sum up what waits; cold ones are set aside where the rule's order lasts.

    Those that starve are counted in the queue alone: who reads their number sees all requests there.
    """
    c, s = w.config[0], w.server[0]
    apart, kept = sets_aside(c, s, w.batching_parameters), 0
    s.kv_missing, s.prefill_waiting, s.n_starving = 0, 0, 0
    for q in range(s.n_queue):
        i = w.queue[q]
        d, f = w.device[i], w.features[i]
        describe(c, d, s.now_s, s.turn, f)
        if apart and is_cold(d):
            set_aside(w, i)
            continue
        w.queue[kept] = i
        kept += 1
        s.prefill_waiting += uncached_tokens(d)
        s.kv_missing += uncached_tokens(d) if d.cached_tokens > 0 else 0
        s.n_starving += 1 if rules.starving(f, ladders.PATIENCE_S) else 0
    s.n_queue = kept
    s.prefill_waiting += s.cold_tokens


@jit
def chunk_is_open(s):
    """Whether a prefill chunk may be chosen: once, before a member has used it, where a waiting request lacks context."""
    return s.chunk_settled == 0 and s.prefill_waiting > 0


@jit
def choose_chunk(s, level):
    """The batch prefills at most so many tokens, by a `level` of the ladder, in place of the controller's or the scenario's chunk."""
    s.chunk_settled = 1
    s.chunk_left = ladders.CHUNK_TOKENS[level]


@jit
def tokens_to_run(s, d):
    """New tokens that the request could run in this batch, given what is left of the prefill chunk (0: none)."""
    uncached = uncached_tokens(d)
    return uncached + 1 + d.drafted if uncached <= s.chunk_left else s.chunk_left


@jit
def spoken_for(s):
    """Tokens of KV memory that are in use, that the batch so far adds, or that prompts begun still lack."""
    return s.kv_tokens + s.sum_new + s.sum_lookahead + s.kv_missing


@jit
def may_begin(c, s, d):
    """Whether a session without context in memory may begin, by the share of memory that may be spoken for.

    What has begun goes on in any case, and in an empty memory anything begins. What is kept for a device below the floor is nobody else's.
    """
    if c.admit_share <= 0.0 or d.cached_tokens > 0 or spoken_for(s) == 0:
        return True
    if s.memory_kept:
        return False
    return spoken_for(s) + uncached_tokens(d) + 1 + d.drafted + lookahead(c, d) <= c.admit_share * c.kv_capacity_tokens


@jit
def lookahead(c, d):
    """Places in memory, in tokens, that the server keeps for its drafts of a session."""
    return c.lookahead_tokens * d.at_server


@jit
def fits(c, s, d):
    """Whether memory, batch size and prefill chunk let a request join the batch so far."""
    take = tokens_to_run(s, d)
    room = s.sum_kv + d.cached_tokens + take + lookahead(c, d) <= c.kv_capacity_tokens
    return take > 0 and room and may_begin(c, s, d) and s.n_batch < c.max_batch_requests and d.in_batch == 0


@jit
def add(c, s, devices, i, batch, due_s):
    """Put device i's request into the batch, with the deadline that it puts on it."""
    d = devices[i]
    take = tokens_to_run(s, d)
    uncached = uncached_tokens(d)
    d.take_tokens = take
    d.completes = 1 if uncached <= s.chunk_left else 0
    d.verified = d.drafted
    used = uncached if d.completes else take
    s.chunk_settled = 1 if uncached > 0 else s.chunk_settled
    s.chunk_left -= used
    s.kv_missing += uncached - used if d.cached_tokens == 0 else -used
    d.in_batch = 1
    batch[s.n_batch] = i
    s.n_batch += 1
    s.sum_new += take
    s.sum_pairs += take * float(d.cached_tokens + take)
    s.sum_cached += d.cached_tokens
    s.sum_kv += d.cached_tokens + take + lookahead(c, d)
    s.sum_context += d.prompt_tokens + d.committed
    s.earliest_deadline_s = min(s.earliest_deadline_s, due_s)
    if c.server_length:
        s.sum_lookahead += lookahead(c, d)
        if would_draft(d):
            s.n_drafting += 1
            s.draft_context += d.prompt_tokens + d.committed
    if c.centralized and d.running == 0:
        d.running = 1
        s.n_running += 1


@jit
def join_responses(w):
    """Responses whose context is in memory join in order of arrival, as far as memory and the batch limit allow."""
    c, s = w.config[0], w.server[0]
    for q in range(s.n_queue):
        i = w.queue[q]
        if w.features[i, rules.UNCACHED_TOKENS] == 0.0 and fits(c, s, w.device[i]):
            add(c, s, w.device, i, w.batch, binding_deadline_s(rules.FCFS, s.now_s, w.features[i], 0.0))


@jit
def would_draft(d):
    """Whether the server drafts for a session once it is in a batch: where it can, with a token and all context in memory."""
    return d.at_server == 1 and d.committed > 0 and uncached_tokens(d) == 0


@jit
def drafting_s(c, k, n, context):
    """Time, in s, of k draft steps of n sessions with `context` tokens in all, as the server predicts it."""
    if k == 0 or n == 0:
        return 0.0
    return c.step_overhead_s + k * draft_step_s(c, n, context)


@jit
def draft_step_s(c, n, context):
    """Time, in s, of one draft step of n sessions with `context` tokens in all, as the server predicts it."""
    return c.step_launch_s + n * (c.step_sequence_s + c.step_token_s) + c.step_cached_token_s * context


@jit
def so_far_s(c, s, more_tokens=0.0):
    """Predicted time, in s, of the batch so far, with so many new tokens more."""
    verify_s = predict_s(c, s.n_batch, s.sum_new + more_tokens, s.sum_pairs, s.sum_cached)
    if c.server_length == 0:
        return verify_s
    return verify_s + drafting_s(c, tokens_of_batch(c, s), s.n_drafting, s.draft_context)


@jit
def predicted_with_s(c, s, d):
    """Predicted time, in s, of the batch so far with one more request."""
    take = tokens_to_run(s, d)
    pairs = s.sum_pairs + take * float(d.cached_tokens + take)
    verify_s = predict_s(c, s.n_batch + 1, s.sum_new + take, pairs, s.sum_cached + d.cached_tokens)
    if c.server_length == 0:
        return verify_s
    more = would_draft(d)
    context = s.draft_context + (d.prompt_tokens + d.committed if more else 0)
    return verify_s + drafting_s(c, tokens_of_batch(c, s), s.n_drafting + (1 if more else 0), context)


@jit
def decode_step_with_s(c, s, d):
    """Predicted time, in s, of a step of one token for each member so far and one more sequence, their prompts computed."""
    sequences = s.n_batch + 1
    context = s.sum_context + d.prompt_tokens + d.committed
    return predict_s(c, sequences, sequences, context, context - sequences)


@jit
def is_called(c, f):
    """Whether pacing's floor calls for a request."""
    return c.pace_batch_s > 0.0 and lacking_tokens(c, f) > 0.0


@jit
def is_too_long(c, s, d, f):
    """Whether a request would make a paced batch longer, as predicted, than pacing allows.

    The first one never does, nor does the first prompt if the floor calls for it: long ones would wait for ever behind short ones.
    """
    if c.pace_batch_s <= 0.0 or s.n_batch == 0:
        return False
    called = f[rules.UNCACHED_TOKENS] > 0.0 and s.chunk_settled == 0 and is_called(c, f)
    return not called and predicted_with_s(c, s, d) > c.pace_batch_s


@jit
def place_in_order(c, s, f, parameters):
    """Sort key of a request, smallest first: by pacing, or by the batching rule."""
    if c.pace_batch_s > 0.0:
        return paced_priority(c, s.now_s, f)
    return priority(c.batching, parameters, s.now_s, s.mean_batch_s, f)


@jit
def may_join(c, s, d, f, parameters):
    """Whether the rule and the engine's limits let a device's request join."""
    if not fits(c, s, d) or is_too_long(c, s, d, f):
        return False
    batch_s = so_far_s(c, s)
    predicted_s = decode_step_with_s(c, s, d) if c.batching == rules.PACED else predicted_with_s(c, s, d)
    return admits(
        c.batching, parameters, s.now_s, s.mean_batch_s, f, s.n_batch, s.n_running, batch_s, predicted_s, s.earliest_deadline_s
    )  # fmt: skip


@jit
def earliest_met_s(c, s, devices, batch, margin):
    """Earliest deadline, in s, among the members of the batch so far that it still meets; inf for none."""
    end_s = s.now_s + so_far_s(c, s) * (1.0 + margin)
    due_s = math.inf
    for k in range(s.n_batch):
        deadline_s = devices[batch[k]].deadline_s
        if deadline_s >= end_s:
            due_s = min(due_s, deadline_s)
    return due_s


@jit
def is_sorted(keys, order, n):
    """Whether n entries lie in their order, so that they need no heap."""
    for k in range(1, n):
        if before(keys, order, k, k - 1):
            return False
    return True


@jit
def is_closed(c, s, parameters, checked, margin):
    """Whether no further request can join: the batch is full, or one more token would miss its deadline, if that is `checked`."""
    if s.n_batch >= c.max_batch_requests or is_full(c.batching, parameters, s.n_batch):
        return True
    if not checked or s.n_batch == 0:
        return False
    return s.now_s + so_far_s(c, s, 1.0) * (1.0 + margin) > s.earliest_deadline_s


@jit
def keep_cached(line, features, keys, order, n):
    """Drop from the heap what needs prefill, once the chunk is used up (order is kept); returns how many are left."""
    kept = 0
    for k in range(n):
        if features[line[order[k]], rules.UNCACHED_TOKENS] == 0.0:
            keys[kept] = keys[k]
            order[kept] = order[k]
            kept += 1
    heapify(keys, order, kept)
    return kept


@jit
def compose(w):
    """Compose a batch by the batching rule, or paced: admit the waiting requests in order of priority, passing over what may not join."""
    c, s, features, keys, order, parameters = (
        w.config[0],
        w.server[0],
        w.features,
        w.keys,
        w.order,
        w.batching_parameters,
    )
    kind, margin = c.batching, margin_of(c.batching, parameters)
    n = s.n_queue
    for q in range(n):
        i = w.queue[q]
        keys[q] = place_in_order(c, s, features[i], parameters)
        order[q] = w.places[i]
    in_order = s.n_cold == 0 and is_sorted(keys, order, n)
    if not in_order:
        heapify(keys, order, n)
    k = 0
    checked = False  # those that join in any case are through
    while not is_closed(c, s, parameters, checked, margin):
        if s.n_cold > 0 and cold_may_fit(c, s):
            n = draw(w, n)
        if k == n:
            break
        chunk_was_open = s.chunk_left > 0
        i = w.line[order[k] if in_order else pop(keys, order, n)]
        if not checked and protects(kind) and not leads(kind, parameters, s.now_s, s.mean_batch_s, features[i]):
            checked = True
            s.earliest_deadline_s = earliest_met_s(c, s, w.device, w.batch, margin)
        if may_join(c, s, w.device[i], features[i], parameters):
            add(c, s, w.device, i, w.batch, binding_deadline_s(kind, s.now_s, features[i], margin))
        elif is_called(c, features[i]) and not may_begin(c, s, w.device[i]):
            s.memory_kept = 1
        if in_order:
            k += 1
        else:
            n -= 1
        if chunk_was_open and s.chunk_left == 0 and not in_order:
            n = keep_cached(w.line, features, keys, order, n)
