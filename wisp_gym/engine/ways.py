"""How a device ends its round, where its controller says that too: inside the engine, or outside of it.

Legend: `w` World; `d` DEVICE and `r` SESSION row; `i` number of a device; `action`, `n` as in `rules.ways`.
"""

from wisp_gym.contract.actions import DRAFT
from wisp_gym.engine.arguments import world_at
from wisp_gym.engine.observe_device import observe_all
from wisp_gym.engine.rollout_log import sampled_action
from wisp_gym.engine.rows import row_of
from wisp_gym.jit import INTEGER, NUMBER, jit, on_demand
from wisp_gym.rules.speculation import POLICY_LENGTH
from wisp_gym.rules.ways import best_allowed, length_of, way_of

BY_RULE = -1  # way of a round whose controller says nothing of it


@jit
def take(d, r, action, n):
    """Carry out an action: 1 to draft one more token, 0 to end the round, in its way."""
    if n > 0:
        d.target_tokens, r.way = length_of(action, n), way_of(action, n)
        return 1 if d.drafted < d.target_tokens else 0
    if action == DRAFT:
        return 1
    r.way = way_of(action, n)
    return 0


@on_demand(lambda: INTEGER(INTEGER, INTEGER, INTEGER, NUMBER))
def decide_way(home, place, i, chance):
    """Decision of a learned policy that ends rounds in ways, 1 to draft one more token; drawn by `chance` where it is being trained."""
    w = world_at(home, place)
    c, d, o, r = w.config[0], w.device[i], w.observation[row_of(w.observation, i)], w.sessions[row_of(w.sessions, i)]
    n = c.max_draft_tokens + 1 if c.speculation == POLICY_LENGTH else 0
    if d.target_tokens >= 0:
        return 1 if d.drafted < d.target_tokens else 0
    observe_all(c, d, o)
    if c.log_decisions:
        return take(d, r, sampled_action(w.home, w.place, i, chance), n)
    return take(d, r, best_allowed(w.policy, o, n, c.max_draft_tokens), n)
