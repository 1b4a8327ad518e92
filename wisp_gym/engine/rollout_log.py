"""What a learner is handed of a fleet: every decision of a policy that draws its actions, and what became of each round.

A decision carries the number of its round; the round's outcome, known when its reply is delivered, carries the same.

Legend: `w` World; `c` CONFIG, `s` SERVER and `d` DEVICE row; `i` number of a device; `o` (SIZE,) float32 observation; `policy`
float32 vector of `rules.mlp.pack`; `chance` uniform draw in (0, 1); `out` (actions,) float32 outputs.
"""

import math

import numpy as np

from wisp_gym.engine.arguments import world_at
from wisp_gym.engine.rows import row_of
from wisp_gym.engine.slo import on_time_tokens
from wisp_gym.jit import INTEGER, NUMBER, VOID, jit, jit_allocating, on_demand
from wisp_gym.rules.mlp import N_OUT, logits
from wisp_gym.rules.speculation import POLICY_LENGTH
from wisp_gym.rules.ways import allows


@jit
def begin_logging(s, d):
    """A round of drafting begins whose decisions are logged."""
    d.round = s.rounds
    s.rounds += 1


@jit_allocating
def draw_action(c, policy, o, chance):
    """Action (int64) drawn from the softmax of the policy's outputs, and the logarithm of its probability.

    Of one that chooses ways, what the observation does not allow is left out.
    """
    out = np.empty(int(policy[N_OUT]), dtype=np.float32)
    n = logits(policy, o, out)
    if c.chooses_way:
        leave_out(c, o, out)
    top = out[0]
    for k in range(1, n):
        top = max(top, out[k])
    total = 0.0
    for k in range(n):
        total += math.exp(float(out[k] - top))
    left, action = chance * total, 0
    while action < n - 1:
        left -= math.exp(float(out[action] - top))
        if left < 0.0:
            break
        action += 1
    return action, float(out[action] - top) - math.log(total)


@jit_allocating
def leave_out(c, o, out):
    """Give what the observation does not allow no chance."""
    lengths = c.max_draft_tokens + 1 if c.speculation == POLICY_LENGTH else 0
    for k in range(len(out)):
        if not allows(k, lengths, c.max_draft_tokens, o):
            out[k] = -np.inf


@on_demand(lambda: INTEGER(INTEGER, INTEGER, INTEGER, NUMBER))
def sampled_action(home, place, i, chance):
    """Draw the policy's action, returned as int64, and log the decision; there must be room."""
    w = world_at(home, place)
    s, d, o = w.server[0], w.device[i], w.observation[row_of(w.observation, i)]
    action, log_probability = draw_action(w.config[0], w.policy, o, chance)
    row = w.decisions[s.n_decisions]
    row.round, row.device, row.action = d.round, i, action
    row.time_s, row.log_probability = d.clock_s, log_probability
    for k in range(o.shape[0]):
        w.seen[s.n_decisions, k] = o[k]
    s.n_decisions += 1
    return action


@on_demand(lambda: VOID(INTEGER, INTEGER, INTEGER))
def log_outcome(home, place, i):
    """The reply of a logged round has been delivered and counted."""
    w = world_at(home, place)
    c, s, d = w.config[0], w.server[0], w.device[i]
    row = w.outcomes[s.n_outcomes]
    before = d.committed - d.commit_tokens
    row.round, row.device = d.round, i
    row.drafted, row.accepted, row.committed = d.drafted, d.accepted, d.commit_tokens
    row.on_time = on_time_tokens(d, before, d.commit_tokens, d.delivered_s)
    row.last = 1 if d.committed >= d.output_tokens else 0
    row.start_s, row.draft_s, row.end_s = d.round_start_s, d.sent_s - d.round_start_s, d.delivered_s
    row.work_s = d.verified * (s.ended_token_s + c.pair_s * (d.prompt_tokens + before + d.verified))
    row.token_rate, row.utilisation, row.price = s.token_rate, s.utilisation, d.price
    s.n_outcomes += 1
    d.round = -1
