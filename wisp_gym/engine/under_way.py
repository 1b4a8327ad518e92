"""What rounds under way are worth, in tokens, when a world is looked at in their middle.

Whoever counts tokens until a time counts for nothing what is about to be delivered, so sending early looks better than it is the
sooner one looks. A device that gets ρ tokens a second in the long run is, τ seconds after its last reply, ρ·τ tokens ahead of where it
stood with that reply: the relative value of renewal theory, to first order (Ross: Stochastic Processes, section 3.6). Tokens
that would be late by now count for nothing, as ever.

Of that, those who wait at the server lose ρ tokens for each second until the running batch ends: a batch that is longer has cost them
already what they will be seen to lose only when it has ended.

Legend: `w` World; `d` DEVICE row; `time_s` in s.
"""

from wisp_gym.engine.arguments import world_at
from wisp_gym.engine.slo import token_deadline_s
from wisp_gym.engine.state import QUEUED, VERIFYING
from wisp_gym.jit import INTEGER, NUMBER, jit, on_demand


@on_demand(lambda: NUMBER(INTEGER, INTEGER))
def under_way_tokens(home, place):
    """Tokens that all rounds under way in world `place` are worth at its end."""
    w = world_at(home, place)
    s, time_s, tokens = w.server[0], w.config[0].end_s, 0.0
    busy_s = max(s.batch_end_s - time_s, 0.0) if s.busy else 0.0
    for i in range(w.config[0].n_devices):
        d = w.device[i]
        waiting_s = busy_s if d.phase == QUEUED or d.phase == VERIFYING else 0.0
        tokens += rate_on_time(d, time_s) * (time_s - waiting_s - begun_s(d))
    return tokens


@jit
def begun_s(d):
    """When, in s, a device's round began: with the last reply, or its request."""
    return d.arrival_s if d.committed == 0 else d.delivered_s


@jit
def rate_on_time(d, time_s):
    """A device's tokens a second; 0 while it has no request, and where its next token would be late."""
    if d.arrival_s > time_s or d.committed >= d.output_tokens:
        return 0.0
    due_s = d.arrival_s + d.ttft_s if d.committed == 0 else token_deadline_s(d, d.committed)
    return d.token_sum / d.time_sum_s if time_s <= due_s else 0.0
