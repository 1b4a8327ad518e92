"""What the server sees when it composes a batch: writes the entries of `wisp_gym.contract.server`, then those of each request.

Legend: `w` World; `c` CONFIG and `s` SERVER row; `o` float32 entries, the server's alone or all of them; `t` the
mean batch time T; `entry` place of an entry, written in units of `scale`.
"""

from wisp_gym.contract import request, server
from wisp_gym.engine.arguments import world_at
from wisp_gym.engine.compose import chunk_is_open, draft_step_s, so_far_s, spoken_for
from wisp_gym.engine.hosting import length_is_open, longest_draft, tokens_of_batch
from wisp_gym.engine.observe_request import observe_request, observe_session
from wisp_gym.jit import INTEGER, SINGLES, VOID, jit, on_demand
from wisp_gym.rules.drafters import is_mixed


@jit
def put(o, entry, quantity):
    """Write a quantity as an entry, in the entry's own unit and within its ends."""
    put_in(o, entry, quantity, server.SCALE[entry])


@jit
def put_in(o, entry, quantity, scale):
    """Write a quantity in units of `scale`, the mean batch time T, the cap K or the memory."""
    o[entry] = min(max(quantity / scale, server.LOW[entry]), server.HIGH[entry])


@jit
def observe_batch(c, s, o):
    """Write the entries of the batch so far, of the queue and of the server itself; o: (server.SIZE,)."""
    t, memory = s.mean_batch_s, c.kv_capacity_tokens
    predicted_s = so_far_s(c, s) if s.n_batch > 0 else 0.0
    put(o, server.BATCH_REQUESTS, s.n_batch)
    put(o, server.BATCH_TOKENS, s.sum_new)
    put_in(o, server.BATCH_TIME, predicted_s, t)
    put_in(o, server.BATCH_SLACK, s.earliest_deadline_s - s.now_s, t)
    put_in(o, server.BATCH_MEMORY, s.sum_kv, memory)
    put(o, server.CHUNK_LEFT, s.chunk_left)
    put(o, server.QUEUE, s.n_waiting)
    put_in(o, server.MEMORY, s.kv_tokens, memory)
    put(o, server.UTILISATION, s.utilisation)
    put(o, server.MEAN_BATCH_TIME, t)
    put(o, server.TOKEN_RATE, s.token_rate)
    put(o, server.CHUNK_OPEN, 1.0 if chunk_is_open(s) else 0.0)
    put(o, server.PREFILL_WAITING, s.prefill_waiting)
    put_in(o, server.MEMORY_SPOKEN_FOR, spoken_for(s), memory)
    put(o, server.STARVING, s.n_starving)
    put(o, server.PRICE, s.price)
    if c.server_length > 0 or is_mixed(c.drafter):
        observe_hosting(c, s, o)


@jit
def observe_hosting(c, s, o):
    """Write the entries of the server's own drafting."""
    step_s = draft_step_s(c, s.n_drafting, s.draft_context) if s.n_drafting > 0 else 0.0
    put(o, server.SERVER_SESSIONS, s.n_at_server)
    put_in(o, server.DRAFT_TOKENS, tokens_of_batch(c, s), c.max_draft_tokens)
    put_in(o, server.DRAFT_STEP, step_s, s.mean_batch_s)
    put(o, server.LENGTH_OPEN, 1.0 if length_is_open(c, s) else 0.0)
    put_in(o, server.LONGEST, longest_draft(c), c.max_draft_tokens)


@on_demand(lambda: VOID(INTEGER, INTEGER, SINGLES))
def observe_server(home, place, o):
    """Write the whole observation of a world, (server.SIZE + Q·request.SIZE,); places without a request are zero."""
    w = world_at(home, place)
    c, s = w.config[0], w.server[0]
    o[:] = 0.0
    observe_batch(c, s, o)
    for q in range(min(s.n_queue, c.visible_requests)):
        i, start = w.queue[q], server.SIZE + q * request.SIZE
        observe_request(c, s, w.device[i], w.features[i], o[start : start + request.SIZE])
        if is_mixed(c.drafter):
            observe_session(c, s, w.device[i], w.sessions[i], o[start : start + request.SIZE])
