"""Sessions move between their devices and the server: who drafts next is chosen at the end of each round.

Legend: `w` World; `c` CONFIG, `s` SERVER, `d` DEVICE and `r` SESSION row; `i` number of a device; `n_answered` members
of the batch that ended; `stays` whether the server drafts next.
"""

from wisp_gym.engine.arguments import world_at
from wisp_gym.engine.line import enqueue
from wisp_gym.engine.overlap import end_overlap
from wisp_gym.engine.rollout_log import log_outcome
from wisp_gym.engine.rows import row_of
from wisp_gym.engine.session import clear_draft, deadline_of_round_s, deliver, learn_from_round, write_log
from wisp_gym.engine.state import LOG_DRAFTER
from wisp_gym.jit import INTEGER, VOID, jit, on_demand
from wisp_gym.rules.drafters import BY_PRICE, FIRST_LENGTH, device_round_s, server_drafts, tokens_per_s
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
    s, left = w.server[0], 0
    n_answered = s.n_replies
    for m in range(n_answered):
        i = w.replies[m]
        d = w.device[i]
        stays = d.committed + d.commit_tokens < d.output_tokens and goes_to_server(w, i, n_answered)
        count_choice(w, i, stays)
        if stays:
            keep(w, i)
        else:
            w.replies[left] = i
            left += 1
    s.n_replies = left


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
    w.device[i].at_server = 0


@jit
def goes_to_server(w, i, n_answered):
    """Whether the server drafts for a session in its next round; `n_answered` members of the batch are."""
    c, s, d, parameters = w.config[0], w.server[0], w.device[i], w.drafter_parameters
    gain, price = 0.0, 0.0
    if c.drafter == BY_PRICE:
        gain, price = gain_and_price(c, s, d, w.sessions[i], n_answered)
    others = s.n_at_server - d.at_server
    return server_drafts(c.drafter, parameters, others, d.slo_tokens_per_s, 1.0 / d.token_s, gain, price)


@jit
def gain_and_price(c, s, d, r, n_answered):
    """Tokens a second that a session gains at the server, and what the server's time for it brings in elsewhere."""
    batch_s, k, context = s.mean_batch_s, s.server_tokens, d.prompt_tokens + d.committed + d.commit_tokens
    length = r.device_tokens if r.device_tokens >= 0 else FIRST_LENGTH
    round_s = device_round_s(length, d.round_overhead_s, d.token_s, d.delay_mean_s, batch_s)
    alpha = d.accepted_sum / d.examined_sum
    gain = tokens_per_s(server_acceptance(c, d), k, batch_s) - tokens_per_s(alpha, length, round_s)
    cached_s = c.est_cached_token_s * context
    draft_s = c.step_launch_s / n_answered + c.step_sequence_s + c.step_token_s + c.step_cached_token_s * context
    at_server = (k * draft_s + c.est_new_token_s * (k + 1) + cached_s) / batch_s
    at_device = (c.est_new_token_s * (length + 1) + cached_s) / round_s
    return gain, s.token_rate * (at_server - at_device)
