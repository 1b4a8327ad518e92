"""For whom the server drafts, and how long, where somebody outside composes its batches: what is open, what is chosen, what is seen.

Legend: `w` World; `c` CONFIG, `s` SERVER, `d` DEVICE and `r` SESSION row; `o` float32 entries, of the server or of one request;
`tokens` to draft.
"""

from wisp_gym.contract import request, server
from wisp_gym.engine.compose import drafting_s
from wisp_gym.engine.handover import gain_and_use
from wisp_gym.jit import jit
from wisp_gym.rules.drafters import is_mixed

BY_RULE = -1  # no length is chosen: the controller's rule gives it


@jit
def open_choices(w):
    """A batch is begun: no length is chosen, no session has been moved."""
    c, s = w.config[0], w.server[0]
    s.chosen_tokens = BY_RULE
    if is_mixed(c.drafter):
        for q in range(s.n_queue):
            w.sessions[w.queue[q]].moved = 0


@jit
def longest_draft(c):
    """Tokens that the server can draft at most: memory has places for no more."""
    return min(c.lookahead_tokens, c.max_draft_tokens)


@jit
def length_is_open(c, s):
    """Whether the batch's draft length may be chosen: once, where the server drafts for anybody."""
    drafts = c.server_length > 0 and (c.centralized == 1 or s.n_at_server > 0)
    return drafts and c.external_hosting == 1 and s.chosen_tokens == BY_RULE


@jit
def choose_tokens(s, tokens):
    """The server drafts so many tokens in this batch for each of its sessions, and predicts with them."""
    s.chosen_tokens, s.server_tokens = tokens, tokens


@jit
def is_movable(c, r):
    """Whether it may be changed who drafts for a session once its round has ended: once a batch."""
    return is_mixed(c.drafter) and c.external_hosting == 1 and r.moved == 0


@jit
def move_session(r):
    """Change who drafts for a session once its round has ended."""
    r.stays, r.moved = 1 - r.stays, 1


@jit
def observe_hosting(c, s, o):
    """Write the server's entries of its own drafting; o: (server.SIZE,)."""
    k_max = c.max_draft_tokens
    step_s = drafting_s(c, 1, s.n_drafting, s.draft_context) - (c.step_overhead_s if s.n_drafting > 0 else 0.0)
    o[server.SERVER_SESSIONS] = min(
        s.n_at_server / server.SCALE[server.SERVER_SESSIONS], server.HIGH[server.SERVER_SESSIONS]
    )
    o[server.DRAFT_TOKENS] = min(s.server_tokens / k_max, server.HIGH[server.DRAFT_TOKENS])
    o[server.DRAFT_STEP] = min(step_s / s.mean_batch_s, server.HIGH[server.DRAFT_STEP])
    o[server.LENGTH_OPEN] = 1.0 if length_is_open(c, s) else 0.0
    o[server.LONGEST] = longest_draft(c) / k_max


@jit
def observe_session(c, s, d, r, o):
    """Write a waiting request's entries of who drafts for its session; o: (request.SIZE,)."""
    sharing = max(s.n_at_server + (0 if d.at_server else 1), 1)
    gain, use = gain_and_use(c, s, d, r, sharing, d.prompt_tokens + d.committed)
    o[request.AT_SERVER] = d.at_server
    o[request.STAYS] = r.stays
    o[request.MOVABLE] = 1.0 if is_movable(c, r) else 0.0
    o[request.GAIN] = min(max(gain * s.mean_batch_s, request.LOW[request.GAIN]), request.HIGH[request.GAIN])
    o[request.USE] = min(max(use, request.LOW[request.USE]), request.HIGH[request.USE])
