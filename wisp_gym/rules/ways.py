"""Decisions that say how a round ends too: which actions an observation allows, and the best of a learned policy's.

Legend: `policy` float32 vector of `mlp.pack`; `o` (SIZE,) float32 observation of a device; `n` lengths to choose from, K + 1, or 0 of
one that decides after each token; `action` as in `wisp_gym.contract.actions`; `out` (actions,) float32 outputs of the policy.
"""

from wisp_gym.contract import device
from wisp_gym.contract.actions import DRAFT, DRAFTS_ON, HANDS_OVER, SENDS
from wisp_gym.jit import INTEGER, SINGLES, jit, on_demand
from wisp_gym.rules.dense import working_memory
from wisp_gym.rules.mlp import logits


@jit
def way_of(action, n):
    """Way to end the round that an action names."""
    return action // n if n > 0 else max(action - DRAFT, SENDS)


@jit
def length_of(action, n):
    """Length that an action names, of one that chooses it once a round."""
    return action % n


@jit
def longest(max_draft_tokens, o):
    """Tokens that the round may hold: the cap, and one less than those still wanted."""
    left = int(o[device.TOKENS_LEFT] * device.SCALE[device.TOKENS_LEFT] + 0.5)
    return min(max_draft_tokens, left - 1)


@jit
def is_possible(way, drafted, cap, o):
    """Whether a round of so many drafted tokens, which may hold `cap`, may end in this way."""
    if way == DRAFTS_ON:
        return o[device.DRAFTS_ON] > 0.5 and drafted > 0
    if way == HANDS_OVER:
        return o[device.TAKES_OVER] > 0.5 and cap > 0
    return way == SENDS


@jit
def allows(action, n, max_draft_tokens, o):
    """Whether an observation allows an action."""
    cap = longest(max_draft_tokens, o)
    if n > 0:
        k = length_of(action, n)
        return k <= cap and is_possible(way_of(action, n), k, cap, o)
    drafted = int(o[device.DRAFTED_TOKENS] * max_draft_tokens + 0.5)
    return drafted < cap if action == DRAFT else is_possible(way_of(action, n), drafted, cap, o)


@jit
def may_end_otherwise(o):
    """Whether there is a choice of ways after the last token that the round may hold."""
    return o[device.DRAFTS_ON] > 0.5 or o[device.TAKES_OVER] > 0.5


@on_demand(lambda: INTEGER(SINGLES, SINGLES, INTEGER, INTEGER))
def best_allowed(policy, o, n, max_draft_tokens):
    """The allowed action with the largest output (the first among equals)."""
    out = working_memory()
    actions, best = logits(policy, o, out), -1
    for k in range(actions):
        if allows(k, n, max_draft_tokens, o) and (best < 0 or out[k] > out[best]):
            best = k
    return best
