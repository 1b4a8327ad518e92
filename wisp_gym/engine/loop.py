"""The event loop: runs a world until its end or until someone outside must decide.

Two kinds of event drive the clock: a message reaches the server, and the running batch ends (a third, the wake-up of a
batching rule that waits, only makes the server look at its queue). Everything a device does between a reply and its
next message depends on nothing that happens meanwhile, so it is carried out when the reply leaves. Events of the same
time are taken in this order, so that a message that arrives just as a batch ends joins the next one:

1. messages reaching the server, smaller device number first;
2. the end of the running batch;
3. composing and launching the next batch;
4. replies of the batch that ended (they carry the predicted end of the batch just launched).

Legend: `w` World; `worlds` World with a leading axis (W, …), `index` a place on it; `c` CONFIG, `s` SERVER and `d`
DEVICE row; `i` number of a device; `request` number of its request; `action` int64 of a decision maker outside;
`place` in the queue.
"""

import math

from wisp_gym.contract.ladders import CHUNK_TOKENS, PRICES, SERVER_TOKENS, WAIT_SHARE
from wisp_gym.engine.arguments import world_at
from wisp_gym.engine.batch import fill_rooflines, finish_batch, launch
from wisp_gym.engine.colocated import learn_from_drafting
from wisp_gym.engine.compose import add, begin_batch, choose_chunk, chunk_is_open, compose, fits, join_responses
from wisp_gym.engine.compose_learned import compose_learned
from wisp_gym.engine.fleet import work_fleet
from wisp_gym.engine.handover import keep_sessions
from wisp_gym.engine.heap import pop
from wisp_gym.engine.hosting import choose_tokens, is_movable, length_is_open, longest_draft, move_session, open_choices
from wisp_gym.engine.line import enqueue
from wisp_gym.engine.replies import answer, goes_on, send_round, start_request
from wisp_gym.engine.requests import FOREVER_S, first_arrival_s, following_arrival_s
from wisp_gym.engine.rows import row_of
from wisp_gym.engine.session import DECIDE, EVERY_DEVICE, draft_one, draft_round, in_window, wants, write_log
from wisp_gym.engine.state import CLOSED, COMPOSE, EVENTS, LOG_ARRIVE, OVER, PICK, REPLY, TRACE
from wisp_gym.engine.suggest import suggest_lengths
from wisp_gym.engine.turns import find_turn
from wisp_gym.jit import INTEGER, VOID, jit, on_demand
from wisp_gym.rules.batching import FCFS, LEARNED, PIPELINED, binding_deadline_s, ready
from wisp_gym.rules.drafters import is_mixed

# What `advance` returns: the world is over, which decision it waits for, or that the room for logged decisions is used up.
DONE, SPECULATION, BATCHING, FULL = 0, 1, 2, 3


@jit
def open_world(w):
    """First request of every device."""
    c = w.config[0]
    fill_rooflines(c, w.rooflines)
    for i in range(c.n_devices):
        start_request(w, i, 0, first_arrival_s(c, i, w.trace), 0.0)


@jit
def next_event_s(s, w):
    """Time of the next event, in s; inf for none."""
    time_s = w.event_s[0] if s.n_events > 0 else math.inf
    if s.busy:
        return min(time_s, s.batch_end_s)
    return min(time_s, s.wake_s)


@jit
def take_events(w):
    """Move the clock to the next event and take everything that happens then; returns False at the end of the world."""
    c, s = w.config[0], w.server[0]
    time_s = next_event_s(s, w)
    if time_s >= c.end_s or (c.ends_early and time_s >= c.window_end_s and s.n_open == 0):
        s.stage = OVER
        if s.busy:  # the batch that outlasts the world
            w.totals[0].busy_s += max(min(c.end_s, c.window_end_s) - max(s.batch_start_s, c.warmup_s), 0.0)
        return False
    s.now_s = time_s
    s.n_replies, s.reply_next = 0, 0
    while s.n_events > 0 and w.event_s[0] <= time_s:
        i = pop(w.event_s, w.event_device, s.n_events)
        s.n_events -= 1
        enqueue(s, w.device[i], w.line, w.places, w.queue, i)
        write_log(s, w.log, time_s, LOG_ARRIVE, i, w.device[i].drafted)
        w.totals[0].events += 1
    if s.busy and s.batch_end_s <= time_s:
        finish_batch(w)
        if c.suggests:
            suggest_lengths(w.home, w.place)
        if c.server_length:
            learn_from_drafting(w.home, w.place)
        if is_mixed(c.drafter):
            keep_sessions(w.home, w.place)
        w.totals[0].events += 1
    s.stage = REPLY if c.centralized else COMPOSE
    return True


@jit
def may_start(w):
    """Whether a batch may start now; sets the wake-up time of a rule that waits."""
    c, s = w.config[0], w.server[0]
    s.wake_s = math.inf
    if s.busy or s.n_waiting == 0:
        return False
    if c.batching == PIPELINED:
        wait_s = find_turn(w.home, w.place)
    else:
        oldest_wait_s = s.now_s - w.device[w.line[s.line_first]].arrived_s
        wait_s = ready(c.batching, w.batching_parameters, s.n_waiting, oldest_wait_s)
    if wait_s > 0.0:
        s.wake_s = s.now_s + wait_s
    return wait_s <= 0.0


@on_demand(lambda: VOID(INTEGER, INTEGER))
def open_batch(home, place):
    """What somebody outside composes begins with the responses that join in any case."""
    w = world_at(home, place)
    open_choices(w)
    if w.config[0].responses_join:
        join_responses(w)


@jit
def compose_and_launch(w):
    """Compose by the batching rule inside the engine and start the batch."""
    c, s = w.config[0], w.server[0]
    begin_batch(w)
    if c.batching == LEARNED:
        compose_learned(w.home, w.place)
    else:
        compose(w)
    if s.n_batch > 0:
        launch(w)
    elif c.batching == LEARNED:
        wait_a_little(s)


@jit
def wait_a_little(s):
    """A decision maker that starts no batch looks again at the next arrival, or after a share of a mean batch."""
    s.wake_s = s.now_s + WAIT_SHARE * s.mean_batch_s


@jit
def work_replies(w):
    """Answer the members of the batch that ended; returns DECIDE when a device's decision is taken outside, else 0."""
    s = w.server[0]
    if w.config[0].external_device == EVERY_DEVICE:
        return work_fleet(w)
    while s.reply_next < s.n_replies:
        i = w.replies[s.reply_next]
        if s.mid_draft == 0 and not answer(w, i):
            s.reply_next += 1
            continue
        s.mid_draft = 1
        if draft_round(w, i) == DECIDE:
            return DECIDE
        s.mid_draft = 0
        send_round(w, i)
        s.reply_next += 1
    return 0


@jit
def advance(w):
    """Run until the world is over (DONE), a decision is due outside (SPECULATION, BATCHING) or enough are logged (FULL)."""
    c, s = w.config[0], w.server[0]
    while s.stage != OVER:
        if c.log_decisions and s.n_decisions >= c.log_decisions and s.stage == EVENTS:
            return FULL
        if s.stage == EVENTS and not take_events(w):
            break
        if s.stage == COMPOSE:
            if may_start(w):
                if c.external_batching:
                    begin_batch(w)
                    open_batch(w.home, w.place)
                    s.stage = PICK
                    return BATCHING
                compose_and_launch(w)
            s.stage = EVENTS if c.centralized else REPLY
        if s.stage == PICK:
            return BATCHING
        if s.stage == REPLY:
            if work_replies(w) == DECIDE:
                return SPECULATION
            s.stage = COMPOSE if c.centralized else EVENTS
    return DONE


@jit
def act_speculation(w, action):
    """Carry out a decision on the drafting device."""
    if not goes_on(w, w.replies[w.server[0].reply_next], action):
        end_drafting(w)


@jit
def end_drafting(w):
    """The drafting device sends its round; the next reply follows."""
    s = w.server[0]
    s.mid_draft = 0
    send_round(w, w.replies[s.reply_next])
    s.reply_next += 1


@on_demand(lambda: VOID(INTEGER, INTEGER))
def follow_rule(home, place):
    """Carry out one decision on the drafting device, as the world's own controller takes it."""
    w = world_at(home, place)
    i = w.replies[w.server[0].reply_next]
    w.totals[0].decisions += 1
    if wants(w, i):
        draft_one(
            w.config[0], w.device[i], w.source, w.survivals[row_of(w.survivals, i)], w.sessions[row_of(w.sessions, i)]
        )
    else:
        end_drafting(w)


@jit
def pick(w, place):
    """Put the request that waits in a visible place into the batch, if it fits."""
    c, s = w.config[0], w.server[0]
    if 0 <= place < min(s.n_queue, c.visible_requests) and fits(c, s, w.device[w.queue[place]]):
        due_s = binding_deadline_s(FCFS, s.now_s, w.features[w.queue[place]], 0.0)
        add(c, s, w.device, w.queue[place], w.batch, due_s)
    else:
        s.invalid_actions += 1


@jit
def choose(w, action):
    """Choose for the batch, by the number after waiting: a prefill chunk, the server's draft length, or who drafts for a session."""
    c, s, length = w.config[0], w.server[0], action - len(CHUNK_TOKENS)
    move = length - len(SERVER_TOKENS)
    if length < 0 and chunk_is_open(s):
        choose_chunk(s, action)
    elif length >= 0 and move < 0 and length_is_open(c, s) and SERVER_TOKENS[length] <= longest_draft(c):
        choose_tokens(s, SERVER_TOKENS[length])
    elif 0 <= move < s.n_queue and is_movable(c, w.sessions[row_of(w.sessions, w.queue[move])]):
        move_session(w.sessions[w.queue[move]])
    else:
        s.invalid_actions += 1


@on_demand(lambda: VOID(INTEGER, INTEGER, INTEGER))
def act_batching(home, place, action):
    """Carry out a decision on the batch: with Q visible places and L prices (1 where none is set), action

    0 … Q − 1 picks a request, Q … Q + L − 1 launches, Q + L waits, and those after it choose the prefill chunk, the server's draft
    length and whose drafter changes. What is not possible is counted and changes nothing; launching nothing waits, and waiting with
    a batch launches it.
    """
    w = world_at(home, place)
    c, s = w.config[0], w.server[0]
    w.totals[0].decisions += 1
    place = action - c.visible_requests
    launches = len(PRICES) if c.sets_prices else 1
    if place < 0:
        pick(w, action)
        return
    if place > launches:
        choose(w, place - launches - 1)
        return
    if c.sets_prices and place < launches and s.n_batch > 0:
        s.price = PRICES[place]
    if s.n_batch > 0:
        launch(w)
    else:
        wait_a_little(s)
    s.stage = EVENTS if c.centralized else REPLY


@jit
def count_unstarted(w):
    """Requests that arrived in the window and were never begun count as arrived (and so as missed)."""
    c = w.config[0]
    if c.arrivals == CLOSED:
        return
    for i in range(c.n_devices):
        d = w.device[i]
        request, arrival_s = d.request + 1, d.arrival_s
        while True:
            d.arrival_s = arrival_s
            arrival_s = following_arrival_s(c, d, i, request, 0.0, w.trace)
            if arrival_s >= c.window_end_s or (c.arrivals == TRACE and arrival_s >= FOREVER_S):
                break
            w.slo_totals[d.slo_id].arrived += 1 if in_window(c, arrival_s) else 0
            request += 1
