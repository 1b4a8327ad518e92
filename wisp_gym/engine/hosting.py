"""For whom the server drafts, and how long, where no rule says so: what is open, and what is chosen.

Whoever composes batches outside may choose, or a learned policy that composes them here.

Legend: `w` World; `c` CONFIG, `s` SERVER and `r` SESSION row; `tokens` to draft.
"""

from wisp_gym.jit import jit
from wisp_gym.rules.drafters import is_mixed

BY_RULE = -1  # no length is chosen: the controller's rule gives it


@jit
def is_chosen(c):
    """Whether it is chosen for whom the server drafts, and how long."""
    return (c.external_hosting if c.external_batching else c.chooses_hosting) == 1


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
    return drafts and is_chosen(c) and not has_length(c, s)


@jit
def has_length(c, s):
    """Whether a length has been chosen for the batch."""
    return is_chosen(c) and s.chosen_tokens != BY_RULE


@jit
def tokens_of_batch(c, s):
    """Tokens that the server drafts for each of its sessions in this batch; before they are chosen, in the last one."""
    return s.chosen_tokens if has_length(c, s) else s.server_tokens


@jit
def choose_tokens(s, tokens):
    """The server drafts so many tokens in this batch for each of its sessions, and predicts its time with them.

    What a session would gain at the server is told by the last batch's still: so it stands while a batch is composed.
    """
    s.chosen_tokens = tokens


@jit
def is_movable(c, r):
    """Whether it may be changed who drafts for a session once its round has ended: once a batch."""
    return is_mixed(c.drafter) and is_chosen(c) and r.moved == 0


@jit
def move_session(r):
    """Change who drafts for a session once its round has ended."""
    r.stays, r.moved = 1 - r.stays, 1
