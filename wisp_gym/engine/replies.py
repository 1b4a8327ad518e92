"""What devices do between the reply of a batch and their next message, all carried out when the reply leaves.

Legend: `w` World; `i` number of a device; `request` number of its request; `action` int64 of a decision maker outside.
"""

from wisp_gym.engine.handover import deliver_round, go_on_at_server, leave_server, see_who_drafts
from wisp_gym.engine.heap import push
from wisp_gym.engine.masks import lengths_of
from wisp_gym.engine.network import DRAFT_TOKEN_BYTES
from wisp_gym.engine.overlap import note_sent
from wisp_gym.engine.requests import FOREVER_S, begin_request, following_arrival_s
from wisp_gym.engine.rollout_log import begin_logging
from wisp_gym.engine.rows import row_of
from wisp_gym.engine.session import begin_round, draft_one, finish_drafting, send
from wisp_gym.engine.ways import BY_RULE, take
from wisp_gym.jit import jit
from wisp_gym.rules.drafters import is_mixed
from wisp_gym.rules.pacing import carried_tokens


@jit
def start_request(w, i, request, arrival_s, earliest_s):
    """Begin a device's request when it has arrived and the device is free, from `earliest_s` on, unless it never comes."""
    if arrival_s < FOREVER_S:
        reach_later(w, i, begin_request(w, i, request, arrival_s, max(arrival_s, earliest_s)))


@jit
def reach_later(w, i, reach_s):
    """Device i's message is on the way and reaches the server at `reach_s`."""
    s = w.server[0]
    push(w.event_s, w.event_device, s.n_events, reach_s, i)
    s.n_events += 1


@jit
def after_response(w, i):
    """The device's response is complete: its next request."""
    c, d = w.config[0], w.device[i]
    d.owed_tokens = carried_tokens(c, d.owed_tokens, w.server[0].now_s - d.arrival_s, d.committed)
    arrival_s = following_arrival_s(c, d, i, d.request + 1, d.delivered_s, w.trace)
    start_request(w, i, d.request + 1, arrival_s, d.delivered_s)


@jit
def answer(w, i):
    """Deliver the reply to device i and begin what follows; returns True when a round of drafting has begun."""
    c, s, d = w.config[0], w.server[0], w.device[i]
    complete = deliver_round(w, i)
    if is_mixed(c.drafter):
        leave_server(w, i)
    if complete:
        after_response(w, i)
        return False
    if c.centralized:
        go_on_at_server(w, i)
        return False
    begin_round(c, d, i, w.observation[row_of(w.observation, i)], d.delivered_s)
    if c.overlap_tokens or is_mixed(c.drafter):
        see_who_drafts(w.home, w.place, i)
    if c.log_decisions:
        begin_logging(s, d)
    return True


@jit
def send_round(w, i):
    """The round's drafting is over: its message is on the way."""
    c, d = w.config[0], w.device[i]
    finish_drafting(c, d, w.totals[0])
    if c.overlap_tokens or is_mixed(c.drafter):
        note_sent(c, d, w.sessions[i], w.totals[0])
    reach_later(w, i, send(w, i, d.drafted * DRAFT_TOKEN_BYTES))


@jit
def goes_on(w, i, action):
    """Carry out a decision on device i, see `contract.actions`: a token or a way to send, or a length with a way.

    Returns whether it drafts on; the tokens of a length follow in `draft_round`.
    """
    c, d, r = w.config[0], w.device[i], w.sessions[row_of(w.sessions, i)]
    w.totals[0].decisions += 1
    n = lengths_of(c)
    more = take(d, r, action, n)
    if c.external_ways == 0:
        r.way = BY_RULE
    if n == 0 and more:
        draft_one(c, d, w.source, w.survivals[row_of(w.survivals, i)], r)
    return n > 0 or more == 1
