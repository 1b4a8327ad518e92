"""The server drafts, before it verifies a batch, for those members whose sessions it drafts for (docs/model/who-drafts.md).

Legend: `w` World; `c` CONFIG, `s` SERVER, `d` DEVICE and `r` SESSION row; `i` number of a device; `k` length in tokens; `n`
sessions, `context` of all of them; `source` Source.
"""

from wisp_gym.engine import server_fates
from wisp_gym.engine.arguments import world_at
from wisp_gym.engine.compose import draft_step_s
from wisp_gym.engine.hosting import has_length
from wisp_gym.engine.prediction import predict_s
from wisp_gym.engine.rows import row_of
from wisp_gym.engine.session import write_log
from wisp_gym.engine.source import draft_token, fate_here, mark, step
from wisp_gym.engine.state import LOG_DRAFT
from wisp_gym.jit import INTEGER, VOID, jit, on_demand
from wisp_gym.rules.server_lengths import SURVIVAL, goes_on, note_server_round, server_learns, server_length


@on_demand(lambda: VOID(INTEGER, INTEGER))
def draft_at_server(home, place):
    """Choose the length of the composed batch, and draft for its members."""
    w = world_at(home, place)
    c, s = w.config[0], w.server[0]
    s.draft_s = 0.0
    n, context = find_drafting(w)
    if n == 0:
        return
    chosen = has_length(c, s)
    k = s.chosen_tokens if chosen else length_of_batch(w, n, context)
    s.server_tokens = k
    longest = 0
    for m in range(s.n_batch):
        i = w.batch[m]
        if w.sessions[i].drafting:
            draft_session(w, i, k, chosen)
            longest = max(longest, w.device[i].drafted)
            s.draft_s += member_drafting_s(c, w.device[i], w.sessions[i])
    s.draft_s += launches_s(c, longest)
    overlap_s = min(s.now_s + s.draft_s, c.window_end_s) - max(s.now_s, c.warmup_s)
    w.totals[0].server_draft_s += max(overlap_s, 0.0)


@jit
def find_drafting(w):
    """Mark the members that the server drafts for; returns how many, and their context in all.

    Where context is computed, for the first time or again, the draft's cache has gone too.
    """
    s, n, context = w.server[0], 0, 0
    for m in range(s.n_batch):
        d, r = w.device[w.batch[m]], w.sessions[w.batch[m]]
        if d.committed == 0 or d.completes == 0 or d.take_tokens > 1 + d.drafted:
            r.draft_cached = 0
        r.drafting = 1 if d.at_server == 1 and d.completes == 1 and d.committed > 0 and d.take_tokens == 1 else 0
        if r.drafting:
            n += 1
            context += d.prompt_tokens + d.committed
    return n, context


@jit
def length_of_batch(w, n, context):
    """The length that the rule gives to a batch with n drafting members."""
    c, s = w.config[0], w.server[0]
    base_s = predict_s(c, s.n_batch, s.sum_new, s.sum_pairs, s.sum_cached)
    step_s = draft_step_s(c, n, context)
    verify_s = c.est_new_token_s * n + c.est_pair_s * context
    return server_length(
        c.server_length, w.length_parameters, w.server_memory, n, s.n_batch - n, min(c.max_draft_tokens, c.lookahead_tokens),
        c.server_prior, base_s, step_s, verify_s, c.step_overhead_s)  # fmt: skip


@jit
def draft_session(w, i, k, chosen):
    """Draft up to k tokens for a session, or that many where they were `chosen` outside; the batch's sums follow."""
    c, s, d, r = w.config[0], w.server[0], w.device[i], w.sessions[i]
    expected = d.expected_tokens
    d.cap = min(c.max_draft_tokens, d.output_tokens - d.committed - 1)
    k = begin_drafting(c, d, r, i, min(k, d.cap))
    while d.drafted < k and (chosen or goes_on(c.server_length, w.length_parameters, d.survival)):
        if c.server_shares == 0:
            server_fates.draft_token(c, d, r, i)
        elif c.trim or c.server_length == SURVIVAL:
            draft_token(c, d, w.source)
        else:
            draft_fate(c, d, w.source)
        if c.trim:
            w.survivals[row_of(w.survivals, i), d.drafted - 1] = d.survival
    d.verified, d.expected_tokens = d.drafted, expected
    before, after = d.take_tokens, d.take_tokens + d.drafted
    s.sum_new += d.drafted
    s.sum_pairs += after * float(d.cached_tokens + after) - before * float(d.cached_tokens + before)
    d.take_tokens = after
    w.totals[0].drafted += d.drafted
    w.totals[0].unverified += d.drafted


@jit
def begin_drafting(c, d, r, i, k):
    """Place the walk where the response stands; returns the tokens that may be drafted, 0 where the source offers none."""
    if c.server_shares:
        while d.position < d.committed:
            step(c, d)
        mark(d)
        return k
    server_fates.follow(c, d, r, i)
    return k if server_fates.offers(c, d, r, i) else 0


@jit
def draft_fate(c, d, source):
    """Draft one more token of which nothing is asked but its fate."""
    if d.on_path:
        d.fate = fate_here(c, d, source)
        step(c, d)
        d.accepted += d.fate
        d.on_path = d.fate
    d.drafted += 1


@jit
def member_drafting_s(c, d, r):
    """Time, in s, that a member adds to the draft steps of its batch, their launches left out.

    Of k drafts on a context of x tokens, y of them in the draft's cache, step 1 runs x − y tokens and reads y; each further step j
    runs one and reads x + j − 2.
    """
    k, context = d.drafted, d.prompt_tokens + d.committed
    if k == 0:
        return 0.0
    tokens = context - r.draft_cached + k - 1
    cached = r.draft_cached + (k - 1) * context + (k - 1) * (k - 2) // 2
    return c.step_sequence_s * k + c.step_token_s * tokens + c.step_cached_token_s * cached


@jit
def launches_s(c, k):
    """Time, in s, of drafting k tokens apart from what members add."""
    return c.step_overhead_s + c.step_launch_s * k if k > 0 else 0.0


@jit
def lone_drafting_s(c, d, r):
    """Time, in s, of the draft steps of a member if it were alone."""
    return launches_s(c, d.drafted) + member_drafting_s(c, d, r) if r.drafting else 0.0


@jit
def log_drafts(w):
    """Write down what the server drafted for the members of the batch."""
    s = w.server[0]
    for m in range(s.n_batch):
        d = w.device[w.batch[m]]
        if w.sessions[w.batch[m]].drafting and d.drafted > 0:
            write_log(s, w.log, s.now_s, LOG_DRAFT, w.batch[m], d.drafted)


@on_demand(lambda: VOID(INTEGER, INTEGER))
def learn_from_drafting(home, place):
    """The batch that has ended tells how the server's drafts fared; their keys and values stay as far as they are right."""
    w = world_at(home, place)
    c, s, n, accepted = w.config[0], w.server[0], 0, 0
    for m in range(s.n_replies):
        d, r = w.device[w.replies[m]], w.sessions[w.replies[m]]
        if r.drafting and d.drafted > 0:
            n += 1
            accepted += d.accepted
            r.draft_cached = d.prompt_tokens + d.committed + min(d.accepted, d.drafted - 1)
    server_learns(c.server_length, w.length_parameters, w.server_memory, n, accepted / max(n, 1))
    for m in range(s.n_replies):
        d, r = w.device[w.replies[m]], w.sessions[w.replies[m]]
        if r.drafting and d.drafted > 0:
            note_server_round(c.server_length, w.server_memory, d.verified, d.accepted)
