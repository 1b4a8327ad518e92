"""All devices are decided for outside: those that were answered together draft side by side, one decision of each at a time.

Legend: `w` World; `i` number of a device.
"""

from wisp_gym.engine.masks import nearest_of_device
from wisp_gym.engine.replies import answer, goes_on, send_round
from wisp_gym.engine.rows import row_of
from wisp_gym.engine.session import DECIDE, draft_round
from wisp_gym.jit import jit


@jit
def work_fleet(w):
    """Answer the members of the batch that ended, all of whose devices are decided for outside; returns DECIDE while some draft.

    A round depends on nothing that happens meanwhile, so all are drafted side by side: w.replies holds those that wait for a decision.
    """
    s, left = w.server[0], 0
    if s.mid_draft == 0:
        answer_all(w)
    for k in range(s.n_replies):
        i = w.replies[k]
        if draft_round(w, i) == DECIDE:
            w.replies[left] = i
            left += 1
        else:
            send_round(w, i)
    s.n_replies = left
    s.mid_draft = 1 if left > 0 else 0
    return DECIDE if left > 0 else 0


@jit
def answer_all(w):
    """Deliver the replies of the batch that ended; those whose responses are complete leave the list."""
    s, left = w.server[0], 0
    for k in range(s.n_replies):
        i = w.replies[k]
        if answer(w, i):
            w.replies[left] = i
            left += 1
    s.n_replies = left


@jit
def act_fleet(w):
    """Carry out what is decided for the devices that wait for it, which stands in their rows; those that send leave the list."""
    c, s, left = w.config[0], w.server[0], 0
    for k in range(s.n_replies):
        i = w.replies[k]
        action = nearest_of_device(c, s, w.device[i], w.observation[row_of(w.observation, i)], w.device[i].action)
        if goes_on(w, i, action):
            w.replies[left] = i
            left += 1
        else:
            send_round(w, i)
    s.n_replies = left
