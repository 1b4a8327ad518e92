"""Whose turn it is: groups of devices that launch their batches in rotation (`pipelined`).

The server knows the plan, what waits, and which responses it has begun to answer and not finished: their devices draft, or
their messages are on the way, and come back. It does not know when, nor of requests that have not reached it.

Legend: `c` CONFIG, `s` SERVER and `d` DEVICE row; `devices` (n,) DEVICE; `parameters`
(8,) float64: patience, cycle in s and number of groups of the plan.
"""

import math

from wisp_gym.engine.arguments import world_at
from wisp_gym.engine.state import QUEUED, VERIFYING
from wisp_gym.jit import INTEGER, NUMBER, VOID, jit, on_demand
from wisp_gym.rules.batching import turn_wait_s


@jit
def comes_back(d):
    """Whether the server has answered, or just verified, a part of a response and waits for the next round."""
    answered = d.committed + (d.commit_tokens if d.phase == VERIFYING else 0)
    return d.phase != QUEUED and 0 < answered < d.output_tokens


@jit
def wait_of_group_s(c, s, devices, parameters):
    """`turn_wait_s` of the group whose turn it is."""
    waiting, coming, launched_s = 0, 0, 0.0
    for i in range(c.n_devices):
        d = devices[i]
        if d.group == s.turn:
            launched_s = max(launched_s, d.turn_s)
            if d.phase == QUEUED:
                waiting += 1
            elif comes_back(d):
                coming += 1
    return turn_wait_s(parameters, s.now_s, waiting, coming, launched_s)


@on_demand(lambda: NUMBER(INTEGER, INTEGER))
def find_turn(home, place):
    """Pass over groups with nothing to do; returns the seconds to wait for the one found, 0 to launch its batch now."""
    w = world_at(home, place)
    c, s, parameters = w.config[0], w.server[0], w.batching_parameters
    groups = int(parameters[2])
    for _ in range(groups):
        wait_s = wait_of_group_s(c, s, w.device, parameters)
        if wait_s < math.inf:
            return wait_s
        s.turn = (s.turn + 1) % groups
    return 0.0  # what waits belongs to no group


@on_demand(lambda: VOID(INTEGER, INTEGER))
def end_turn(home, place):
    """The group's batch starts: its members' times count from now, and the turn goes on."""
    w = world_at(home, place)
    s = w.server[0]
    for k in range(s.n_batch):
        d = w.device[w.batch[k]]
        if d.group == s.turn:
            d.turn_s = s.now_s
    s.turn = (s.turn + 1) % int(w.batching_parameters[2])
