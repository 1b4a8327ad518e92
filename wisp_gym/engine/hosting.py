"""For whom the server drafts, and how long, where somebody outside composes its batches: what is open, and what is chosen.

Legend: `w` World; `c` CONFIG, `s` SERVER and `r` SESSION row; `tokens` to draft.
"""

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
