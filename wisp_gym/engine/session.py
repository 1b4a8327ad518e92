"""A device's side: requests one after another, rounds of drafting, replies.

Legend: `w` World; `c` CONFIG, `s` SERVER and `d` DEVICE row; `i` number of the device; `request` number of its
request, from 0; `o` (SIZE,) float32 observation; `trace` (rows,) TRACE_ROW; `source` Source; `parameters` (8,) and
`memory` (MEMORY,) float64, `policy` float32 weights of the speculation rule; `survivals` (SURVIVALS,) float32 of
the round's tokens; `totals` TOTALS row; `histogram` (2, LATENCY_BINS) int64; `log` (capacity,) LOG_ROW; `session`
SESSION row.
"""

import math

from wisp_gym.contract.averages import FRESH, KEEP, PRIOR_TOKENS
from wisp_gym.engine import draws
from wisp_gym.engine.arguments import world_at
from wisp_gym.engine.drafting import cool, heat_up, seconds_per_token
from wisp_gym.engine.draws import stream_key, uniform
from wisp_gym.engine.network import TOKEN_BYTES, transfer_s
from wisp_gym.engine.observe_device import (
    adapt_survival,
    adapt_to_request,
    observe_all,
    observe_progress,
    observe_round,
    observe_statistics,
    observe_token,
)
from wisp_gym.engine.rollout_log import sampled_action
from wisp_gym.engine.rows import row_of
from wisp_gym.engine.slo import on_time_tokens, token_deadline_s
from wisp_gym.engine.source import draft_token, fate_here, first_fate, mark, rewind, step
from wisp_gym.engine.state import (
    DOWNLINK,
    DRAFTING,
    LATENCY_BINS,
    LATENCY_HIGH_S,
    LATENCY_LOW_S,
    LOG_DELIVER,
    LOG_DONE,
    LOG_SEND,
    THINKING,
    UPLINK,
)
from wisp_gym.engine.ways import decide_way
from wisp_gym.jit import INTEGER, jit, jit_inline, on_demand
from wisp_gym.jit_pointer import call_at
from wisp_gym.rules.speculation import (
    ORACLE,
    POLICY,
    POLICY_LENGTH,
    RANDOM,
    choose_length,
    continue_drafting,
    learn,
)
from wisp_gym.rules.ways import may_end_otherwise

SENT, DECIDE = 0, 1
EXTERNAL_TOKEN, EXTERNAL_LENGTH = 1, 2
EVERY_DEVICE, ONE_BY_ONE = (
    -2,
    -3,
)  # in place of the number of the device that is decided for outside: all, together or in turn
BINS_PER_LOG = LATENCY_BINS / math.log(LATENCY_HIGH_S / LATENCY_LOW_S)


@jit
def write_log(s, log, time_s, kind, device, value):
    """Append an event, its `kind` and `value` as in `state.LOG_KINDS` and `device` −1 for the server's, while there is room."""
    n = s.log_length
    if n < log.shape[0]:
        log[n].time_s = time_s
        log[n].kind = kind
        log[n].device = device
        log[n].value = value
    s.log_length += 1


@jit
def latency_bin(latency_s):
    """Bin of a latency in the logarithmic histogram, 0 to LATENCY_BINS − 1."""
    if latency_s <= LATENCY_LOW_S:
        return 0
    return min(int(math.log(latency_s / LATENCY_LOW_S) * BINS_PER_LOG), LATENCY_BINS - 1)


@jit
def in_window(c, time_s):
    """Whether a time lies in the window of measurement."""
    return c.warmup_s <= time_s < c.window_end_s


@jit
def clear_draft(d):
    """No token drafted yet."""
    d.drafted = 0
    d.accepted = 0
    d.on_path = 1
    d.survival = 1.0
    d.p_token = 1.0
    d.expected_tokens = 1.0
    d.fate = 1
    d.target_tokens = -1


@jit
def deadline_of_round_s(d):
    """When, in s, the verification must be complete: `round start + E[tokens]/v − downlink`; for a prompt its first-token target."""
    if d.committed == 0:
        return d.arrival_s + d.ttft_s - d.delay_mean_s
    return d.round_start_s + d.expected_tokens / d.slo_tokens_per_s - d.delay_mean_s


@jit
def send(w, i, payload_bytes):
    """Send what is drafted at the device's clock; returns the time of arrival at the server, in s."""
    c, d, totals = w.config[0], w.device[i], w.totals[0]
    d.phase = UPLINK
    d.sent_s = d.clock_s
    d.uplink_s = transfer_s(d, d.clock_s, payload_bytes, d.uplink_bytes_per_s)
    d.arrived_s = d.sent_s + d.uplink_s
    d.deadline_s = deadline_of_round_s(d)
    if in_window(c, d.sent_s):
        d.window_messages += 1
    totals.messages += 1
    write_log(w.server[0], w.log, d.sent_s, LOG_SEND, i, d.drafted)
    return d.arrived_s


@jit
def decided_outside(c, i):
    """Which decisions of device i are taken outside (0: none)."""
    return c.external_speculation if c.external_device == i or c.external_device <= EVERY_DEVICE else 0


@jit
def begin_round(c, d, i, o, now_s):
    """The device has the committed tokens and starts to draft."""
    outside = decided_outside(c, i) != 0
    d.phase = DRAFTING
    d.round_start_s = now_s
    cool(d, now_s)
    d.draft_token_s = seconds_per_token(d, c.uses_predictor or c.external_device == i)
    d.clock_s = now_s
    d.cap = min(c.max_draft_tokens, d.output_tokens - d.committed - 1)
    clear_draft(d)
    while d.position < d.committed:  # the server, or nobody, drafted since
        step(c, d)
    mark(d)
    if c.sees_observation or outside:
        adapt_to_request(c, d)
        observe_round(c, d, o)


@jit
def follow_length(c, d, parameters, policy, memory, o):
    """1 to draft one more token, up to the length that the rule chooses before the first."""
    if d.target_tokens < 0:
        observe_all(c, d, o)
        d.target_tokens = choose_length(c.speculation, parameters, policy, memory, c.max_draft_tokens, o)
    return 1 if d.drafted < d.target_tokens else 0


@on_demand(lambda: INTEGER(INTEGER, INTEGER, INTEGER))
def ask_own_rule(home, place, i):
    """1 to draft one more token, as a function of somebody else's says of the whole observation."""
    w = world_at(home, place)
    c, d, o = w.config[0], w.device[i], w.observation[row_of(w.observation, i)]
    if c.own_by_length == 0:
        observe_all(c, d, o)
        return 1 if call_at(c.own_rule, o) > 0 else 0
    if d.target_tokens < 0:
        observe_all(c, d, o)
        d.target_tokens = max(call_at(c.own_rule, o), 0)
    return 1 if d.drafted < d.target_tokens else 0


@jit_inline
def wants_more(w, i):
    """Decision of the controller inside the engine, 1 to draft one more token; the oracle is told the next one's fate."""
    c, d, o = w.config[0], w.device[i], w.observation[row_of(w.observation, i)]
    if c.own_rule != 0:
        return ask_own_rule(w.home, w.place, i)
    if c.speculation >= POLICY_LENGTH:
        return follow_length(c, d, w.speculation_parameters, w.policy, w.memory[row_of(w.memory, i)], o)
    observe_token(c, d, o)
    if c.sees_observation:
        observe_progress(c, d, o)
    if c.sees_statistics:
        observe_statistics(c, d, o)
    next_fate = fate_here(c, d, w.source) if c.speculation == ORACLE and d.on_path else 0
    chance = own_chance(c, d, i) if c.speculation == RANDOM else 0.5
    parameters, memory = w.speculation_parameters, w.memory[row_of(w.memory, i)]
    return continue_drafting(
        c.speculation, parameters, w.policy, memory, c.max_draft_tokens, o, d.fate, next_fate, chance
    )


@jit
def own_chance(c, d, i):
    """Uniform draw in (0, 1) of a controller that draws its decision after this token."""
    return uniform(stream_key(c.seed, draws.CONTROLLER, i, d.request), d.committed * 64 + d.drafted)


@jit_inline
def draft_one(c, d, source, survivals, session):
    """Draft one token; the clock moves on. The message carries its survival to a server that trims."""
    if c.overlap_tokens and d.drafted < session.head_tokens + session.under_way:
        if d.drafted == session.head_tokens:  # those before it were done while the last round was away
            d.clock_s = session.under_way_s
    else:
        if d.drafted == 0:
            d.clock_s += d.round_overhead_s
        d.clock_s += d.draft_token_s
    draft_token(c, d, source)
    if c.sees_observation or c.external_speculation:
        adapt_survival(d)
    if c.trim:
        survivals[d.drafted - 1] = d.survival


@on_demand(lambda: INTEGER(INTEGER, INTEGER, INTEGER))
def drawn_decision(home, place, i):
    """Decision drawn from a policy that is being trained, and logged: 1 to draft one more token."""
    w = world_at(home, place)
    c, d = w.config[0], w.device[i]
    if c.speculation == POLICY_LENGTH and d.target_tokens >= 0:
        return 1 if d.drafted < d.target_tokens else 0
    observe_all(c, d, w.observation[row_of(w.observation, i)])
    action = sampled_action(w.home, w.place, i, own_chance(c, d, i))
    if c.speculation != POLICY_LENGTH:
        return action
    d.target_tokens = action
    return 1 if d.drafted < action else 0


@jit_inline
def draft_round(w, i):
    """Draft until the controller sends (returns SENT) or someone outside must decide (returns DECIDE)."""
    c, d = w.config[0], w.device[i]
    external = decided_outside(c, i)
    while d.drafted < d.cap:
        if external == EXTERNAL_TOKEN or (external == EXTERNAL_LENGTH and d.target_tokens < 0):
            observe_all(c, d, w.observation[row_of(w.observation, i)])
            return DECIDE
        if external == EXTERNAL_LENGTH:
            more = 1 if d.drafted < d.target_tokens else 0
        else:
            w.totals[0].decisions += 1
            more = wants(w, i)
        if more == 0:
            return SENT
        draft_one(c, d, w.source, w.survivals[row_of(w.survivals, i)], w.sessions[row_of(w.sessions, i)])
    return end_at_cap(w, i, external)


@jit_inline
def wants(w, i):
    """Decision inside the engine, 1 to draft one more token: of a rule, or of a policy."""
    c, d = w.config[0], w.device[i]
    if c.chooses_way:
        return decide_way(w.home, w.place, i, own_chance(c, d, i) if c.log_decisions else 0.5)
    return drawn_decision(w.home, w.place, i) if c.log_decisions else wants_more(w, i)


@jit
def end_at_cap(w, i, external):
    """The round holds no more tokens: it is sent, unless who decides after each token may choose how.

    Returns DECIDE if that is decided outside; `external`: which decisions are (0: none).
    """
    c, d, o = w.config[0], w.device[i], w.observation[row_of(w.observation, i)]
    outside = external == EXTERNAL_TOKEN and c.external_ways
    asked = outside or (external == 0 and c.chooses_way and c.speculation == POLICY)
    if not asked or d.cap <= 0 or not may_end_otherwise(o):
        return SENT
    if outside:
        observe_all(c, d, o)
        return DECIDE
    w.totals[0].decisions += 1
    decide_way(w.home, w.place, i, own_chance(c, d, i) if c.log_decisions else 0.5)
    return SENT


@jit
def finish_drafting(c, d, totals):
    """Account for the round's drafting before it is sent."""
    busy_s = d.clock_s - d.round_start_s
    heat_up(d, busy_s)
    totals.drafted += d.drafted
    totals.unverified += d.drafted
    if in_window(c, d.round_start_s):
        d.draft_s += busy_s


@jit
def commit(c, d, source, totals):
    """Outcome of the verification at the server: A accepted tokens and one of the target's own.

    The walk of a session at the server follows when somebody drafts again.
    """
    d.guess_held = 0
    if d.verified < d.accepted:  # the server left out tokens that would have been accepted
        d.accepted = d.verified
        if d.at_server == 0 or c.server_shares:
            rewind(c, d, d.committed + d.verified)
            step(c, d)
    elif d.at_server == 0 and d.on_path:  # everything drafted was accepted (or nothing drafted): the bonus token
        if c.overlap_tokens:
            d.guess_held = first_fate(c, d, source)
        step(c, d)
    d.commit_tokens = min(d.accepted + 1, d.output_tokens - d.committed)
    totals.accepted += d.accepted
    totals.rejected += d.verified - d.accepted
    totals.trimmed += d.drafted - d.verified
    totals.unverified -= d.drafted


@jit_inline
def learn_delay(d, delay_s):
    """A message's one-way delay enters the device's running averages."""
    d.delay_spread_s = KEEP * d.delay_spread_s + FRESH * abs(delay_s - d.delay_mean_s)
    d.delay_mean_s = KEEP * d.delay_mean_s + FRESH * delay_s


@jit_inline
def learn_from_reply(c, s, d, downlink_s):
    """Running averages of the device and the server state that the reply carries."""
    if d.at_server == 0 or d.committed == 0:  # a message went up
        learn_delay(d, d.uplink_s)
    learn_delay(d, downlink_s)
    d.last_rejected = 1 if d.accepted < d.verified else 0
    if d.at_server == 0 or d.drafted == 0 or c.server_shares:  # else it is another draft's
        examined = min(d.accepted + 1, d.verified)
        d.accepted_sum = KEEP * d.accepted_sum + d.accepted + FRESH * PRIOR_TOKENS * c.accept_prior
        d.examined_sum = KEEP * d.examined_sum + examined + FRESH * PRIOR_TOKENS
    if d.committed > 0:
        d.token_sum = KEEP * d.token_sum + d.commit_tokens
        d.time_sum_s = KEEP * d.time_sum_s + (d.delivered_s - d.round_start_s)
    d.info_s = s.now_s
    d.info_busy = s.busy
    d.info_end_s = s.predicted_end_s if s.busy else s.now_s
    d.info_batch_s = s.mean_batch_s
    d.info_queue_s = s.queue_s
    d.info_utilisation = s.utilisation
    d.price = s.price


@jit
def wasted_tokens(d):
    """Drafted tokens beyond the first rejected one, and those that the server left out."""
    return d.drafted - d.verified + max(0, d.verified - d.accepted - 1)


@jit_inline
def count_round(c, d, totals, histogram):
    """Measures of a verified round (not of a prompt) that ends in the window."""
    if d.committed == 0 or not in_window(c, d.delivered_s):
        return
    latency_s = d.delivered_s - d.round_start_s
    totals.rounds += 1
    totals.window_drafted += d.drafted
    totals.window_accepted += d.accepted
    totals.window_trimmed += d.drafted - d.verified
    totals.round_latency_s += latency_s
    histogram[0, latency_bin(latency_s)] += 1
    if d.at_server:
        totals.server_rounds += 1 if d.drafted > 0 else 0
        totals.server_drafted += d.drafted
    elif d.drafted > 0:
        totals.wasted_s += d.draft_token_s * wasted_tokens(d)
        totals.wasted_with_rejected_s += d.draft_token_s * (d.drafted - d.accepted)
        totals.draft_s += d.draft_token_s * d.drafted


@jit_inline
def count_tokens(w, i):
    """Tokens delivered, and how many of them on time."""
    c, s, d, totals = w.config[0], w.server[0], w.device[i], w.totals[0]
    first = d.committed == 0
    if first:
        d.first_token_s = d.delivered_s
        if in_window(c, d.delivered_s):
            totals.ttft_s += d.delivered_s - d.arrival_s
            totals.ttft_n += 1
            w.histogram[1, latency_bin(d.delivered_s - d.arrival_s)] += 1
    on_time = on_time_tokens(d, d.committed, d.commit_tokens, d.delivered_s)
    if in_window(c, d.delivered_s):
        row = w.slo_totals[d.slo_id]
        totals.tokens += d.commit_tokens
        totals.tokens_on_time += on_time
        row.tokens += d.commit_tokens
        row.tokens_on_time += on_time
        d.window_tokens += d.commit_tokens
    if c.external_device == i:
        s.step_committed += d.commit_tokens
        s.step_on_time += on_time
        s.step_round_s += 0.0 if first else d.delivered_s - d.round_start_s
        if d.drafted > 0 and d.at_server == 0:
            s.step_wasted += wasted_tokens(d)


@jit
def finish_request(w, i):
    """The last token has been delivered."""
    s, d = w.server[0], w.device[i]
    attained = 1 if d.delivered_s <= token_deadline_s(d, d.output_tokens - 1) else 0
    w.totals[0].requests_done += 1
    if d.counted:
        row = w.slo_totals[d.slo_id]
        row.finished += 1
        row.attained += attained
        row.attained_tokens += attained * d.output_tokens
        s.n_open -= 1
    d.phase = THINKING
    write_log(s, w.log, d.delivered_s, LOG_DONE, i, d.output_tokens)


@jit_inline
def deliver(w, i):
    """The reply of the batch that ends now reaches the device; returns 1 when the response is complete."""
    c, s, d, totals = w.config[0], w.server[0], w.device[i], w.totals[0]
    downlink_s = transfer_s(d, s.now_s, d.commit_tokens * TOKEN_BYTES, d.downlink_bytes_per_s)
    d.phase = DOWNLINK
    d.delivered_s = max(d.delivered_s, s.now_s + downlink_s)
    totals.messages += 1
    if in_window(c, s.now_s):
        d.window_messages += 1
    learn_from_reply(c, s, d, downlink_s)
    count_round(c, d, totals, w.histogram)
    count_tokens(w, i)
    d.committed += d.commit_tokens
    write_log(s, w.log, d.delivered_s, LOG_DELIVER, i, d.commit_tokens)
    if d.committed < d.output_tokens:
        return 0
    finish_request(w, i)
    return 1


@jit
def learn_from_round(c, d, i, parameters, memory, o):
    """The rule that decided the delivered round (not a prompt) learns from it."""
    if d.committed > d.commit_tokens and not decided_outside(c, i):
        round_s = d.delivered_s - d.round_start_s
        learn(c.speculation, parameters, memory, o, d.drafted, d.accepted, d.commit_tokens, round_s)
