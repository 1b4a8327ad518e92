"""Sessions move between their devices and the server: who drafts next is chosen at the end of each round.

Legend: `w` World; `c` CONFIG, `s` SERVER, `d` DEVICE and `r` SESSION row; `i` number of a device; `n_answered` members
of the batch that ended; `stays` whether the server drafts next.
"""

from wisp_gym.contract import device
from wisp_gym.engine.arguments import world_at
from wisp_gym.engine.hosting import is_chosen
from wisp_gym.engine.line import enqueue
from wisp_gym.engine.observe_device import put, put_in
from wisp_gym.engine.overlap import end_overlap
from wisp_gym.engine.rollout_log import log_outcome
from wisp_gym.engine.rows import row_of
from wisp_gym.engine.session import (
    clear_draft,
    deadline_of_round_s,
    decided_outside,
    deliver,
    learn_from_round,
    write_log,
)
from wisp_gym.engine.state import LOG_DRAFTER
from wisp_gym.engine.ways import BY_RULE
from wisp_gym.jit import INTEGER, VOID, jit, on_demand
from wisp_gym.rules.drafters import (
    BY_DEVICE,
    BY_PRICE,
    FIRST_LENGTH,
    device_round_s,
    is_mixed,
    server_drafts,
    tokens_per_s,
)
from wisp_gym.rules.lengths import ALPHA_HIGH, ALPHA_LOW, expected_tokens


@jit
def deliver_round(w, i, device_goes_on=1):
    """The reply leaves; what its round teaches. Returns 1 when the response is complete.

    `device_goes_on`: 1 where the device drafts next, if the response is not complete.
    """
    c, d = w.config[0], w.device[i]
    complete = deliver(w, i)
    if c.learns and d.at_server == 0:
        o, memory = w.observation[row_of(w.observation, i)], w.memory[row_of(w.memory, i)]
        learn_from_round(c, d, i, w.speculation_parameters, memory, o)
    if c.log_decisions and d.round >= 0:
        log_outcome(w.home, w.place, i)
    if c.overlap_tokens:
        end_overlap(c, w.server[0], d, w.sessions[i], w.totals[0], w.log, i, device_goes_on - complete)
    return complete


@jit
def go_on_at_server(w, i):
    """The session's next step joins the queue as soon as the one before has ended."""
    s, d = w.server[0], w.device[i]
    d.round_start_s = d.delivered_s
    if w.config[0].server_length:
        clear_draft(d)
        d.expected_tokens = expected_tokens(server_acceptance(w.config[0], d), s.server_tokens)
    enqueue(s, d, w.line, w.places, w.queue, i)


@on_demand(lambda: VOID(INTEGER, INTEGER))
def keep_sessions(home, place):
    """Choose who drafts next for each member of the batch that has ended; those of the server are answered and join the queue.

    The others stay among the replies.
    """
    w = world_at(home, place)
    c, s, left = w.config[0], w.server[0], 0
    n_answered = s.n_replies
    note_share(w)
    for m in range(n_answered):
        i = w.replies[m]
        d = w.device[i]
        r, committed = w.sessions[i], d.committed + d.commit_tokens
        goes_on = committed < d.output_tokens
        r.takes = 1 if would_take(w, i, n_answered, d.prompt_tokens + committed) else 0
        r.stays = r.stays if goes_on else 0
        stays = goes_on and goes_to_server(c, r, i)
        count_choice(w, i, stays)
        if stays:
            keep(w, i)
        else:
            w.replies[left] = i
            left += 1
    s.n_replies = left


@jit
def note_share(w):
    """Of how many of the members of the batch that has ended the server drafts for."""
    s, n = w.server[0], 0
    for m in range(s.n_replies):
        n += w.device[w.replies[m]].at_server
    if s.n_replies > 0:
        s.share_at_server = n / s.n_replies


@jit
def count_choice(w, i, stays):
    """Count and write down who drafts for a session from now on."""
    s, d = w.server[0], w.device[i]
    if stays and d.at_server == 0:
        s.n_at_server += 1
        write_log(s, w.log, s.now_s, LOG_DRAFTER, i, 1)
    elif d.at_server and not stays:
        s.n_at_server -= 1
        if d.committed + d.commit_tokens < d.output_tokens:
            write_log(s, w.log, s.now_s, LOG_DRAFTER, i, 0)


@jit
def keep(w, i):
    """The server drafts for a session: its reply leaves and its next step joins the queue."""
    c, s, d = w.config[0], w.server[0], w.device[i]
    deliver_round(w, i, 0)
    d.at_server = 1
    d.round = -1
    d.round_start_s = d.delivered_s
    d.arrived_s = s.now_s
    clear_draft(d)
    d.expected_tokens = expected_tokens(server_acceptance(c, d), s.server_tokens)
    d.deadline_s = deadline_of_round_s(d)
    enqueue(s, d, w.line, w.places, w.queue, i)


@jit
def server_acceptance(c, d):
    """What the server expects of its draft's tokens for a session: the running average, or the mean of another source than the devices'."""
    alpha = d.accepted_sum / d.examined_sum if c.server_length == 0 or c.server_shares else c.server_prior
    return min(max(alpha, ALPHA_LOW), ALPHA_HIGH)


@jit
def leave_server(w, i):
    """The session's reply has left: its device drafts, if the response goes on."""
    w.device[i].at_server, w.sessions[i].asks = 0, 0


@jit
def goes_to_server(c, r, i):
    """Whether the server drafts for a session in its next round: as it is chosen, by rule, or by rule if its device asks."""
    if is_chosen(c):
        return r.stays == 1
    asks_itself = c.drafter == BY_DEVICE or c.chooses_way or (c.external_ways and decided_outside(c, i))
    return r.takes == 1 and (r.asks == 1 or not asks_itself)


@jit
def would_take(w, i, n_answered, context):
    """Whether the rule would draft for a session with `context` tokens in its next round; `n_answered` members of the batch are."""
    c, s, d, parameters = w.config[0], w.server[0], w.device[i], w.drafter_parameters
    gain, price = 0.0, 0.0
    if c.drafter == BY_PRICE:
        gain, use = gain_and_use(c, s, d, w.sessions[i], n_answered, context)
        price = s.token_rate * use
    others = s.n_at_server - d.at_server
    return server_drafts(c.drafter, parameters, others, d.slo_tokens_per_s, 1.0 / d.token_s, gain, price)


@jit
def gain_and_use(c, s, d, r, sharing, context):
    """Tokens a second that a session gains at the server, and the share of the server's time that it costs beyond its device's rounds.

    `sharing`: sessions that share a draft step's launch. `context`: in tokens.
    """
    batch_s, k = s.mean_batch_s, s.server_tokens
    length = r.device_tokens if r.device_tokens >= 0 else FIRST_LENGTH
    round_s = device_round_s(length, d.round_overhead_s, d.token_s, d.delay_mean_s, batch_s)
    alpha = d.accepted_sum / d.examined_sum
    gain = tokens_per_s(server_acceptance(c, d), k, batch_s) - tokens_per_s(alpha, length, round_s)
    cached_s = c.est_cached_token_s * context + c.est_request_s
    draft_s = c.step_launch_s / sharing + c.step_sequence_s + c.step_token_s + c.step_cached_token_s * context
    at_server = (k * draft_s + c.est_new_token_s * (k + 1) + cached_s) / batch_s
    at_device = (c.est_new_token_s * (length + 1) + cached_s) / round_s
    return gain, at_server - at_device


@on_demand(lambda: VOID(INTEGER, INTEGER, INTEGER))
def see_who_drafts(home, place, i):
    """A round begins at the device: how it ends is open, and what the device sees of that choice, if it looks."""
    w = world_at(home, place)
    c, s, d, r, o = w.config[0], w.server[0], w.device[i], w.sessions[i], w.observation[row_of(w.observation, i)]
    r.way = BY_RULE
    if not (c.sees_observation or decided_outside(c, i)):
        return
    put(o, device.DRAFTS_ON, 1.0 if c.overlap_tokens > 0 else 0.0)
    put_in(o, device.HEAD_TOKENS, r.head_tokens, c.max_draft_tokens)
    if is_mixed(c.drafter):
        put(o, device.TAKES_OVER, r.takes)
        put_in(o, device.SERVER_TOKENS, s.server_tokens, c.max_draft_tokens)
        put(o, device.SERVER_RATE, expected_tokens(server_acceptance(c, d), s.server_tokens))
        put(o, device.SERVER_SHARE, s.share_at_server)
