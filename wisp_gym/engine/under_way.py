"""What rounds under way are worth, in tokens, when a world is looked at in their middle.

Whoever counts tokens until a time counts for nothing what is about to be delivered, so sending early looks better than it is the
sooner one looks. A device that gets ρ tokens a second in the long run is, τ seconds after its last reply, ρ·τ tokens ahead of where it
stood with that reply: the relative value of renewal theory, to first order (Ross: Stochastic Processes, section 3.6). Tokens
that would be late by now count for nothing, as ever.

Legend: `w` World; `d` DEVICE row; `time_s` in s.
"""

from wisp_gym.engine.arguments import world_at
from wisp_gym.engine.slo import token_deadline_s
from wisp_gym.jit import INTEGER, NUMBER, jit, on_demand


@on_demand(lambda: NUMBER(INTEGER, INTEGER))
def under_way_tokens(home, place):
    """Tokens that all rounds under way in world `place` are worth at its end."""
    w = world_at(home, place)
    time_s, tokens = w.config[0].end_s, 0.0
    for i in range(w.config[0].n_devices):
        tokens += round_worth_tokens(w.device[i], time_s)
    return tokens


@jit
def round_worth_tokens(d, time_s):
    """Tokens that a device's round, or the wait for its prompt, is worth at a time."""
    if d.arrival_s > time_s or d.committed >= d.output_tokens:
        return 0.0
    rate = d.token_sum / d.time_sum_s
    if d.committed == 0:
        return rate * (time_s - d.arrival_s) if time_s <= d.arrival_s + d.ttft_s else 0.0
    return rate * (time_s - d.delivered_s) if time_s <= token_deadline_s(d, d.committed) else 0.0
