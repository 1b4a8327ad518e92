"""A device's requests: when they come, how long they are, and how one begins.

Legend: `w` World; `c` CONFIG and `d` DEVICE row; `i` number of the device; `request` number of its request, from 0; `trace`
(rows,) TRACE_ROW.
"""

from wisp_gym.engine import draws
from wisp_gym.engine.draws import clipped_lognormal, exponential, stream_key, uniform
from wisp_gym.engine.network import TOKEN_BYTES
from wisp_gym.engine.session import clear_draft, in_window, send, write_log
from wisp_gym.engine.source import begin_walk
from wisp_gym.engine.state import CLOSED, LOG_REQUEST, TRACE
from wisp_gym.jit import jit

FOREVER_S = 1e18


@jit
def first_arrival_s(c, i, trace):
    """Time, in s, of a device's first request; FOREVER_S where none comes."""
    if c.arrivals == TRACE:
        return trace[i].arrival_s if i < trace.shape[0] else FOREVER_S
    key = stream_key(c.seed, draws.ARRIVAL, i, 0)
    return c.start_window_s * uniform(key, 0) if c.arrivals == CLOSED else exponential(key, 0) / c.requests_per_s


@jit
def following_arrival_s(c, d, i, request, done_s, trace):
    """Time, in s, of the device's request number `request` (> 0), the one before having ended at `done_s`."""
    if c.arrivals == TRACE:
        row = i + request * c.n_devices
        return trace[row].arrival_s if row < trace.shape[0] else FOREVER_S
    key = stream_key(c.seed, draws.ARRIVAL, i, request)
    if c.arrivals == CLOSED:
        return done_s + c.think_s * exponential(key, 0)
    return d.arrival_s + exponential(key, 0) / c.requests_per_s


@jit
def draw_lengths(c, d, i, trace):
    """Prompt and output length, in tokens, of the device's current request."""
    if c.arrivals == TRACE:
        row = i + d.request * c.n_devices
        d.prompt_tokens = min(max(trace[row].prompt_tokens, int(c.prompt_min)), int(c.prompt_max))
        d.output_tokens = min(max(trace[row].output_tokens, int(c.output_min)), int(c.output_max))
        return
    prompt = stream_key(c.seed, draws.PROMPT, i, d.request)
    output = stream_key(c.seed, draws.OUTPUT, i, d.request)
    d.prompt_tokens = clipped_lognormal(prompt, 0, c.prompt_log_mean, c.prompt_log_std, c.prompt_min, c.prompt_max)
    d.output_tokens = clipped_lognormal(output, 0, c.output_log_mean, c.output_log_std, c.output_min, c.output_max)


@jit
def draw_keys(c, d, i):
    """Streams of the device's current request."""
    d.acceptance_key = stream_key(c.seed, draws.ACCEPTANCE, i, d.request)
    d.evidence_key = stream_key(c.seed, draws.EVIDENCE, i, d.request)
    d.off_path_key = stream_key(c.seed, draws.OFF_PATH, i, d.request)
    d.views_key = stream_key(c.seed, draws.VIEWS, i, d.request)
    d.drift_key = stream_key(c.seed, draws.DRIFT, i, d.request)
    d.loop_key = stream_key(c.seed, draws.LOOPS, i, d.request)
    d.network_key = stream_key(c.seed, draws.NETWORK, i, d.request)
    d.loss_key = stream_key(c.seed, draws.LOSS, i, d.request)
    d.outage_key = stream_key(c.seed, draws.OUTAGE, i, 0)  # one process for the device, whatever it requests


@jit
def begin_request(w, i, request, arrival_s, start_s):
    """Take the next request; its prompt leaves at `start_s`. Returns the time it reaches the server, in s."""
    c, s, d = w.config[0], w.server[0], w.device[i]
    d.request = request
    d.arrival_s = arrival_s
    d.messages = 0
    d.committed = 0
    d.last_rejected = 0
    draw_lengths(c, d, i, w.trace)
    draw_keys(c, d, i)
    begin_walk(c, d, i, w.source)
    d.counted = 1 if in_window(c, arrival_s) else 0
    w.totals[0].requests_in += 1
    w.slo_totals[d.slo_id].arrived += d.counted
    s.n_open += d.counted
    d.round_start_s = start_s
    d.clock_s = start_s
    clear_draft(d)
    write_log(s, w.log, start_s, LOG_REQUEST, i, d.prompt_tokens)
    return send(w, i, d.prompt_tokens * TOKEN_BYTES)
