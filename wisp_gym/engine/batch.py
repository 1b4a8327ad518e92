"""The server's side: launching and finishing verification batches.

Legend: `w` World; `c` CONFIG, `s` SERVER and `d` DEVICE row; `i` number of a device; `devices` (n,) DEVICE;
`line` (2n,) and `batch` (n,) int64 devices, of which the first `s.line_end` and `s.n_batch` count; `totals` TOTALS row;
`log` (capacity,) LOG_ROW; `rooflines` (ROOFLINES,) float64; `session` SESSION row.
"""

import math

from wisp_gym.contract.averages import FRESH, KEEP
from wisp_gym.engine import draws
from wisp_gym.engine.colocated import draft_at_server, launches_s, log_drafts, lone_drafting_s, member_drafting_s
from wisp_gym.engine.compose import lookahead
from wisp_gym.engine.draws import normal, stream_key
from wisp_gym.engine.kv_cache import forget, make_room, release, remember
from wisp_gym.engine.line import leave_line
from wisp_gym.engine.prediction import predict_s
from wisp_gym.engine.rows import row_of
from wisp_gym.engine.session import commit, in_window, write_log
from wisp_gym.engine.state import LOG_END, LOG_LAUNCH, LOG_MEMBER, LOG_PREDICT, LOG_VERIFY, NOBODY, VERIFYING
from wisp_gym.engine.trim import trim
from wisp_gym.engine.turns import end_turn
from wisp_gym.engine.verification import batch_time_s, engine_s, marginal_s, padded_tokens, with_roofline_s
from wisp_gym.engine.waiting import uncached_tokens
from wisp_gym.jit import jit
from wisp_gym.rules.batching import PIPELINED


@jit
def roofline_s(c, new_tokens):
    """Time, in s, of reading the weights and of arithmetic on so many new tokens, padded where graphs are captured."""
    padded = padded_tokens(c.graph_tokens, new_tokens)
    return batch_time_s(0.0, 0.0, c.weights_s, c.token_s, c.sharpness, 0.0, 0.0, padded, 0.0, 0)


@jit
def around_s(c, requests, new_tokens):
    """Time, in s, that the engine around the model adds to a batch of so many requests and new tokens."""
    return engine_s(c.host_request_s, c.host_token_s, c.graph_tokens, c.eager_s, requests, new_tokens)


@jit
def fill_rooflines(c, rooflines):
    """Roofline times, in s, of few new tokens: they are asked for every member of a batch, and powers are costly."""
    for new_tokens in range(rooflines.shape[0]):
        rooflines[new_tokens] = roofline_s(c, new_tokens)


@jit
def solo_time_s(c, d, rooflines):
    """True time, in s and without noise, of a batch of this request alone, the server's drafting left out."""
    new = d.take_tokens
    time_s = rooflines[new] if new < rooflines.shape[0] else roofline_s(c, new)
    pairs = float(new) * (d.cached_tokens + new)
    model_s = with_roofline_s(c.host_s, c.launch_s, time_s, c.cached_token_s, c.pair_s, pairs, d.cached_tokens)
    return model_s + around_s(c, 1, new)


@jit
def leave_queue(w):
    """Requests that the batch completes leave the queue; a prompt with chunks left stays in its place."""
    s, kept = w.server[0], 0
    for q in range(s.n_queue):
        i = w.queue[q]
        d = w.device[i]
        if d.in_batch and d.completes:
            d.phase = VERIFYING
            leave_line(s, w.line, w.places[i])
        else:
            w.queue[kept] = i
            kept += 1
    s.n_queue = kept


@jit
def queued_work_s(c, s, devices, line):
    """Predicted time, in s, that the waiting requests add to a batch: of all as of the first 64."""
    new, cached, n, place = 0, 0, 0, s.line_first
    while n < min(s.n_waiting, 64):
        if line[place] != NOBODY:
            d = devices[line[place]]
            new += uncached_tokens(d) + 1 + d.drafted
            cached += d.cached_tokens
            n += 1
        place += 1
    work = c.est_new_token_s * new + c.est_cached_token_s * cached + c.est_request_s * n
    return work * (s.n_waiting / n) if n > 0 else 0.0


@jit
def spare_tokens(c, d):
    """Places, in tokens, that the server keeps in memory for a member beyond what it runs: its drafts may be fewer."""
    return lookahead(c, d) - d.verified * d.at_server


@jit
def reserve_memory(c, s, devices, batch, totals):
    """Make room for the batch: members leave the list of idle sessions, others are evicted as needed."""
    growth = 0
    for k in range(s.n_batch):
        d = devices[batch[k]]
        forget(s, devices, batch[k])
        growth += d.take_tokens + spare_tokens(c, d)
    totals.evictions += make_room(s, devices, growth, c.kv_capacity_tokens)
    s.kv_tokens += growth
    totals.kv_peak_tokens = max(totals.kv_peak_tokens, s.kv_tokens)


@jit
def true_time_s(c, s):
    """Time, in s and without noise, of the composed batch, the server's drafting left out."""
    padded = padded_tokens(c.graph_tokens, s.sum_new)
    model_s = batch_time_s(
        c.host_s, c.launch_s, c.weights_s, c.token_s, c.sharpness, c.cached_token_s, c.pair_s, padded, s.sum_pairs, s.sum_cached
    )  # fmt: skip
    return model_s + around_s(c, s.n_batch, s.sum_new)


@jit
def launch(w):
    """Start the composed batch, trimmed where the server trims."""
    c, s, devices = w.config[0], w.server[0], w.device
    if c.server_length:
        draft_at_server(w.home, w.place)
    if c.trim:
        trim(w.home, w.place)
    reserve_memory(c, s, devices, w.batch, w.totals[0])
    clean = true_time_s(c, s) + s.draft_s
    noise = normal(stream_key(c.seed, draws.BATCH_NOISE, 0, 0), s.batches) if c.noise > 0.0 else 0.0
    s.batch_clean_s = clean
    if c.log_decisions:
        s.batch_token_s = marginal_s(c.weights_s, c.token_s, c.sharpness, s.sum_new) + c.host_token_s
    s.batch_time_s = clean * math.exp(c.noise * noise)
    s.batch_start_s = s.now_s
    s.batch_end_s = s.now_s + s.batch_time_s
    s.predicted_end_s = s.now_s + (predict_s(c, s.n_batch, s.sum_new, s.sum_pairs, s.sum_cached) + s.draft_s)
    s.busy = 1
    s.batches += 1
    leave_queue(w)
    s.queue_s = queued_work_s(c, s, devices, w.line)
    external_work(w)
    if c.batching == PIPELINED:
        end_turn(w.home, w.place)
    log_launch(s, devices, w.batch, w.log)
    if c.server_length:
        log_drafts(w)


@jit
def log_launch(s, devices, batch, log):
    """A batch starts: its size, its predicted end, and for each member the new tokens that it runs."""
    write_log(s, log, s.now_s, LOG_LAUNCH, -1, s.n_batch)
    write_log(s, log, s.now_s, LOG_PREDICT, -1, s.predicted_end_s)
    for k in range(s.n_batch):
        write_log(s, log, s.now_s, LOG_MEMBER, batch[k], devices[batch[k]].take_tokens)


@jit
def external_work(w):
    """Count the time, in s, that the external device's session adds to the batch (for its reward).

    What its drafts add to verification, as predicted; a step at the server, which it would not have taken, all of it.
    """
    c, s, i = w.config[0], w.server[0], w.config[0].external_device
    if i < 0 or w.device[i].in_batch == 0 or w.device[i].completes == 0:
        return
    d = w.device[i]
    if d.at_server == 0:
        context = d.prompt_tokens + d.committed
        s.step_work_s += d.verified * (c.est_new_token_s + c.est_pair_s * (context + d.verified))
        return
    new, cached = d.take_tokens, d.cached_tokens
    s.step_work_s += c.est_new_token_s * new + c.est_pair_s * new * (cached + new) + c.est_cached_token_s * cached
    s.step_work_s += c.est_request_s
    if c.server_length and w.sessions[i].drafting:
        s.step_work_s += member_drafting_s(c, d, w.sessions[i]) + launches_s(c, d.drafted) / max(s.n_drafting, 1)


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
def count_member(c, s, d, session, totals, rooflines):
    """Interference that a member suffers: `T(batch) − T(it alone)`; tokens computed again after an eviction."""
    if in_window(c, s.now_s):
        totals.verified_requests += 1
        alone_s = solo_time_s(c, d, rooflines)
        if c.server_length and d.at_server:
            alone_s += lone_drafting_s(c, d, session)
        totals.interference_s += s.batch_clean_s - alone_s
        if d.committed > 0:
            totals.recomputed_tokens += d.take_tokens - (1 + d.verified if d.completes else 0)


@jit
def finish_member(w, i):
    """Outcome for one member: a chunk of its prompt is cached, or its verification is complete."""
    c, s, devices, d, totals = w.config[0], w.server[0], w.device, w.device[i], w.totals[0]
    d.in_batch = 0
    count_member(c, s, d, w.sessions[row_of(w.sessions, i)], totals, w.rooflines)
    s.kv_tokens -= spare_tokens(c, d)
    d.cached_tokens += d.take_tokens
    if d.completes == 0:
        remember(s, devices, i)
        return
    commit(c, d, w.source, totals)
    write_log(s, w.log, s.now_s, LOG_VERIFY, i, d.accepted)
    kept = d.prompt_tokens + d.committed + d.accepted  # keys and values of rejected tokens are dropped
    s.kv_tokens -= d.cached_tokens - kept
    d.cached_tokens = kept
    w.replies[s.n_replies] = i
    s.n_replies += 1
    if d.committed + d.commit_tokens >= d.output_tokens:
        release(s, devices, i)
        s.n_running -= d.running
        d.running = 0
    else:
        remember(s, devices, i)


@jit
def finish_batch(w):
    """The running batch ends now: outcomes and replies to send."""
    c, s = w.config[0], w.server[0]
    s.busy = 0
    s.ended_token_s = s.batch_token_s
    s.n_replies, s.reply_next = 0, 0
    tokens = 0
    count_batch(c, s, w.totals[0])
    write_log(s, w.log, s.now_s, LOG_END, -1, s.n_batch)
    for k in range(s.n_batch):
        finish_member(w, w.batch[k])
    s.n_batch = 0
    for k in range(s.n_replies):
        tokens += w.device[w.replies[k]].commit_tokens
    s.token_rate = KEEP * s.token_rate + FRESH * tokens / max(s.batch_time_s, 1e-9)
