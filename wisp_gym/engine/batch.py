"""The server's side: composing, launching and finishing verification batches."""

from __future__ import annotations

import math

from wisp_gym.controllers import batching as rules
from wisp_gym.controllers.batching import admits, binding_deadline_s, priority
from wisp_gym.engine import draws
from wisp_gym.engine.draws import normal, stream_key
from wisp_gym.engine.heap import heapify, pop
from wisp_gym.engine.jit import jit
from wisp_gym.engine.kv_cache import forget, make_room, release, remember
from wisp_gym.engine.session import FRESH, KEEP, commit, in_window, write_log
from wisp_gym.engine.state import LOG_END, LOG_LAUNCH, LOG_MEMBER, LOG_PREDICT, LOG_VERIFY, QUEUED, VERIFYING
from wisp_gym.engine.verification import batch_time_s


@jit
def uncached_tokens(d):
    """Context of a waiting request that is not in the cache (the last token is always run through the model)."""
    return d.prompt_tokens + d.committed - 1 - d.cached_tokens


@jit
def predict_s(c, new_tokens, pairs, cached_tokens):
    """Four-term prediction of a batch's time: `δ + α·Σn + β·Σn·L + γ·Σc`."""
    return c.est_launch_s + c.est_new_token_s * new_tokens + c.est_pair_s * pairs + c.est_cached_token_s * cached_tokens


@jit
def describe(c, d, now_s, f):
    """Fill the feature row of a queued request."""
    uncached = uncached_tokens(d)
    new = uncached + 1 + d.drafted
    if c.prefill_chunk_tokens > 0 and uncached > c.prefill_chunk_tokens:
        new = c.prefill_chunk_tokens
    marginal = (
        c.est_new_token_s * new + c.est_pair_s * new * (d.cached_tokens + new) + c.est_cached_token_s * d.cached_tokens
    )
    f[rules.WAITING_S] = now_s - d.arrived_s
    f[rules.SLACK_S] = d.deadline_s - now_s
    f[rules.NEW_TOKENS] = new
    f[rules.UNCACHED_TOKENS] = uncached
    f[rules.CACHED_TOKENS] = d.cached_tokens
    f[rules.EXPECTED_TOKENS] = d.expected_tokens
    f[rules.SLO_TOKENS_PER_S] = d.slo_tokens_per_s
    f[rules.MARGINAL_S] = marginal
    f[rules.SOLO_S] = c.est_launch_s + marginal
    f[rules.DRAFT_TOKENS] = d.drafted
    f[rules.ARRIVED_S] = d.arrived_s
    f[rules.DEADLINE_S] = d.deadline_s
    f[rules.RUNNING] = d.running


@jit
def begin_batch(c, s, devices, queue, features):
    """Start to compose: an empty batch, and a feature row for every queued request."""
    s.n_batch = 0
    s.sum_new, s.sum_pairs, s.sum_cached = 0.0, 0.0, 0.0
    s.sum_kv = 0
    s.chunk_left = c.prefill_chunk_tokens if c.prefill_chunk_tokens > 0 else 1 << 40
    s.earliest_deadline_s = math.inf
    for q in range(s.n_queue):
        describe(c, devices[queue[q]], s.now_s, features[q])


@jit
def tokens_to_run(s, d):
    """New tokens that the request could run in this batch, given what is left of the prefill chunk (0: none)."""
    uncached = uncached_tokens(d)
    return uncached + 1 + d.drafted if uncached <= s.chunk_left else s.chunk_left


@jit
def fits(c, s, d):
    """Whether memory, batch size and prefill chunk let a request join the batch so far."""
    take = tokens_to_run(s, d)
    room = s.sum_kv + d.cached_tokens + take <= c.kv_capacity_tokens
    return take > 0 and room and s.n_batch < c.max_batch_requests and d.in_batch == 0


@jit
def add(c, s, devices, i, batch, f, margin):
    """Put device i's request into the batch."""
    d = devices[i]
    take = tokens_to_run(s, d)
    uncached = uncached_tokens(d)
    d.take_tokens = take
    d.completes = 1 if uncached <= s.chunk_left else 0
    s.chunk_left -= uncached if d.completes else take
    d.in_batch = 1
    batch[s.n_batch] = i
    s.n_batch += 1
    s.sum_new += take
    s.sum_pairs += take * float(d.cached_tokens + take)
    s.sum_cached += d.cached_tokens
    s.sum_kv += d.cached_tokens + take
    s.earliest_deadline_s = min(s.earliest_deadline_s, binding_deadline_s(s.now_s, f, margin))
    if c.centralized and d.running == 0:
        d.running = 1
        s.n_running += 1


@jit
def predicted_with_s(c, s, d):
    """Predicted time of the batch so far with one more request."""
    take = tokens_to_run(s, d)
    pairs = s.sum_pairs + take * float(d.cached_tokens + take)
    return predict_s(c, s.sum_new + take, pairs, s.sum_cached + d.cached_tokens)


@jit
def may_join(c, s, devices, i, f, parameters):
    """Whether the rule and the engine's limits let device i's request join."""
    d = devices[i]
    if not fits(c, s, d):
        return False
    predicted = predicted_with_s(c, s, d)
    return admits(c.batching, parameters, s.now_s, f, s.n_batch, s.n_running, predicted, s.earliest_deadline_s)


@jit
def is_sorted(keys, n):
    """Whether keys[:n] do not fall."""
    for q in range(1, n):
        if keys[q] < keys[q - 1]:
            return False
    return True


@jit
def is_closed(c, s, margin):
    """Whether no further request can join: the batch is full, or one more token would miss its earliest deadline."""
    if s.n_batch >= c.max_batch_requests:
        return True
    if c.batching != rules.WISP or s.n_batch == 0:
        return False
    return s.now_s + predict_s(c, s.sum_new + 1.0, s.sum_pairs, s.sum_cached) * (1.0 + margin) > s.earliest_deadline_s


@jit
def keep_cached(features, keys, order, n):
    """Drop from the heap what needs prefill, once the chunk is used up (order is kept); returns how many are left."""
    kept = 0
    for k in range(n):
        if features[order[k], rules.UNCACHED_TOKENS] == 0.0:
            keys[kept] = keys[k]
            order[kept] = order[k]
            kept += 1
    heapify(keys, order, kept)
    return kept


@jit
def compose(c, s, devices, queue, batch, features, keys, order, parameters):
    """Compose a batch by the batching rule: admit the queued requests in order of priority, passing over what may not join."""
    n = s.n_queue
    margin = parameters[0] if c.batching == rules.WISP else 0.0
    for q in range(n):
        keys[q] = priority(c.batching, parameters, s.now_s, s.mean_batch_s, features[q])
        order[q] = q
    in_order = is_sorted(keys, n)
    if not in_order:
        heapify(keys, order, n)
    k = 0
    while k < n and not is_closed(c, s, margin):
        chunk_was_open = s.chunk_left > 0
        q = order[k] if in_order else pop(keys, order, n)
        if may_join(c, s, devices, queue[q], features[q], parameters):
            add(c, s, devices, queue[q], batch, features[q], margin)
        if in_order:
            k += 1
        else:
            n -= 1
        if chunk_was_open and s.chunk_left == 0 and not in_order:
            n = keep_cached(features, keys, order, n)


@jit
def solo_time_s(c, d):
    """True time, without noise, of a batch of this request alone."""
    total = d.cached_tokens + d.take_tokens
    return batch_time_s(
        c.host_s, c.launch_s, c.weights_s, c.token_s, c.sharpness, c.cached_token_s, c.pair_s,
        d.take_tokens, float(d.take_tokens) * total, d.cached_tokens,
    )  # fmt: skip


@jit
def leave_queue(s, devices, queue):
    """Requests that the batch completes leave the queue; a prompt with chunks left stays in its place."""
    kept = 0
    for q in range(s.n_queue):
        d = devices[queue[q]]
        if d.in_batch and d.completes:
            d.phase = VERIFYING
        else:
            queue[kept] = queue[q]
            kept += 1
    s.n_queue = kept


@jit
def queued_work_s(c, s, devices, queue):
    """Predicted time that the waiting requests add to a batch, up to the first 64 of them."""
    n = min(s.n_queue, 64)
    new, cached = 0.0, 0.0
    for q in range(n):
        d = devices[queue[q]]
        new += uncached_tokens(d) + 1 + d.drafted
        cached += d.cached_tokens
    work = c.est_new_token_s * new + c.est_cached_token_s * cached
    return work * (s.n_queue / n) if n > 0 else 0.0


@jit
def reserve_memory(c, s, devices, batch, totals):
    """Make room for the batch: members leave the list of idle sessions, others are evicted as needed."""
    growth = 0
    for k in range(s.n_batch):
        forget(s, devices, batch[k])
        growth += devices[batch[k]].take_tokens
    totals.evictions += make_room(s, devices, growth, c.kv_capacity_tokens)
    s.kv_tokens += growth
    totals.kv_peak_tokens = max(totals.kv_peak_tokens, s.kv_tokens)


@jit
def launch(c, s, devices, queue, batch, totals, log):
    """Start the composed batch."""
    reserve_memory(c, s, devices, batch, totals)
    clean = batch_time_s(
        c.host_s, c.launch_s, c.weights_s, c.token_s, c.sharpness, c.cached_token_s, c.pair_s, s.sum_new, s.sum_pairs, s.sum_cached
    )  # fmt: skip
    noise = normal(stream_key(c.seed, draws.BATCH_NOISE, 0, 0), s.batches) if c.noise > 0.0 else 0.0
    s.batch_clean_s = clean
    s.batch_time_s = clean * math.exp(c.noise * noise)
    s.batch_start_s = s.now_s
    s.batch_end_s = s.now_s + s.batch_time_s
    s.predicted_end_s = s.now_s + predict_s(c, s.sum_new, s.sum_pairs, s.sum_cached)
    s.busy = 1
    s.batches += 1
    leave_queue(s, devices, queue)
    s.queue_s = queued_work_s(c, s, devices, queue)
    external_work(c, s, devices)
    log_launch(s, devices, batch, log)


@jit
def log_launch(s, devices, batch, log):
    """A batch starts: its size, its predicted end, and for each member the new tokens that it runs."""
    write_log(s, log, s.now_s, LOG_LAUNCH, -1, s.n_batch)
    write_log(s, log, s.now_s, LOG_PREDICT, -1, s.predicted_end_s)
    for k in range(s.n_batch):
        write_log(s, log, s.now_s, LOG_MEMBER, batch[k], devices[batch[k]].take_tokens)


@jit
def external_work(c, s, devices):
    """Predicted verification time that the external device's drafts add (for its reward)."""
    i = c.external_device
    if i >= 0 and devices[i].in_batch and devices[i].completes:
        d = devices[i]
        context = d.prompt_tokens + d.committed
        s.step_work_s += d.drafted * (c.est_new_token_s + c.est_pair_s * (context + d.drafted))


@jit
def count_batch(c, s, totals):
    """Measures of the batch that has just ended."""
    overlap_s = min(s.now_s, c.window_end_s) - max(s.batch_start_s, c.warmup_s)
    totals.busy_s += max(overlap_s, 0.0)
    if in_window(c, s.now_s):
        totals.batches += 1
        totals.batched_requests += s.n_batch
        totals.verify_s += s.batch_time_s * s.n_batch
    idle_s = max(s.batch_start_s - s.last_end_s, 0.0)
    s.utilisation = KEEP * s.utilisation + FRESH * s.batch_time_s / (s.batch_time_s + idle_s)
    s.mean_batch_s = KEEP * s.mean_batch_s + FRESH * s.batch_time_s
    s.last_end_s = s.now_s


@jit
def count_member(c, s, d, totals):
    """Interference that a member suffers: `T(batch) − T(it alone)`; tokens computed again after an eviction."""
    if in_window(c, s.now_s):
        totals.verified_requests += 1
        totals.interference_s += s.batch_clean_s - solo_time_s(c, d)
        if d.committed > 0:
            totals.recomputed_tokens += d.take_tokens - (1 + d.drafted if d.completes else 0)


@jit
def finish_member(c, s, devices, i, totals, replies, log):
    """Outcome for one member: a chunk of its prompt is cached, or its verification is complete."""
    d = devices[i]
    d.in_batch = 0
    count_member(c, s, d, totals)
    d.cached_tokens += d.take_tokens
    if d.completes == 0:
        remember(s, devices, i)
        return
    write_log(s, log, s.now_s, LOG_VERIFY, i, d.accepted)
    commit(c, d, totals)
    kept = d.prompt_tokens + d.committed + d.accepted  # keys and values of rejected tokens are dropped
    s.kv_tokens -= d.cached_tokens - kept
    d.cached_tokens = kept
    replies[s.n_replies] = i
    s.n_replies += 1
    if d.committed + d.commit_tokens >= d.output_tokens:
        release(s, devices, i)
        s.n_running -= d.running
        d.running = 0
    else:
        remember(s, devices, i)


@jit
def finish_batch(c, s, devices, batch, replies, totals, log):
    """The running batch ends now: outcomes and replies to send."""
    s.busy = 0
    s.n_replies, s.reply_next = 0, 0
    tokens = 0
    count_batch(c, s, totals)
    write_log(s, log, s.now_s, LOG_END, -1, s.n_batch)
    for k in range(s.n_batch):
        finish_member(c, s, devices, batch[k], totals, replies, log)
    s.n_batch = 0
    for k in range(s.n_replies):
        tokens += devices[replies[k]].commit_tokens
    s.token_rate = KEEP * s.token_rate + FRESH * tokens / max(s.batch_time_s, 1e-9)


@jit
def enqueue(s, devices, queue, i):
    """A message reaches the server."""
    devices[i].phase = QUEUED
    queue[s.n_queue] = i
    s.n_queue += 1
