"""The one compiled function that Python calls to run worlds; since it is the only one, the engine is compiled once.

Legend: `w` World; `a` Arguments; `address` of them, see `call`; `task` what is to be done; `index` of a world.
"""

from wisp_gym.engine.arguments import arguments_at, next_place, world_of
from wisp_gym.engine.gather import gather
from wisp_gym.engine.loop import (
    BATCHING,
    DONE,
    act_batching,
    act_speculation,
    advance,
    count_unstarted,
    open_world,
)
from wisp_gym.engine.masks import nearest_valid
from wisp_gym.jit import jit

TO_END, BEGIN, STEP, LOG = range(4)  # tasks: what each takes besides the worlds, and writes, is said below


@jit
def run(address, task):
    """Do a task in all worlds, together with other threads that do the same: each takes the next world that none has taken.

    TO_END: open them and run them to their end, with no decision outside. BEGIN: open those of `which` and run them to their
    first decision. STEP: carry out `actions` and run to the next decision. LOG: open those of `which`, and run all until
    enough decisions are logged (FULL) or they are over (DONE).
    """
    a = arguments_at(address)
    index = next_place(a.place)
    while index < a.kinds.shape[0]:
        if task == STEP:
            step(a, address, index)
        else:
            begin_or_go_on(a, address, index, task)
        index = next_place(a.place)


@jit
def begin_or_go_on(a, address, index, task):
    """Do a task other than STEP in one world."""
    w = world_of(a.worlds, index, address)
    if task == TO_END or a.which[index]:
        open_world(w)
    if task != BEGIN or a.which[index]:
        a.kinds[index] = advance(w)
    if task == TO_END:
        count_unstarted(w)
    elif task == BEGIN and a.which[index]:
        gather(w, a.kinds[index], a.observations[index], a.masks[index], a.outcomes[index], a.pay[index])


@jit
def step(a, address, index):
    """Carry out one decision, run to the next and gather what happened; a world that is over stays as it is."""
    w, kind = world_of(a.worlds, index, address), a.kinds[index]
    if kind != DONE:
        decide(w, kind, a.masks[index], a.actions[index])
        kind = advance(w)
        if kind == DONE:
            count_unstarted(w)
    gather(w, kind, a.observations[index], a.masks[index], a.outcomes[index], a.pay[index])
    a.kinds[index] = kind


@jit
def decide(w, kind, mask, action):
    """Carry out an action, or the nearest valid one: `mask` (actions,) int8 says which are; `kind` of decision."""
    c, s = w.config[0], w.server[0]
    taken = nearest_valid(c, s, w.device[max(c.external_device, 0)], mask, action)
    if kind == BATCHING:
        act_batching(w.home, w.place, taken)
    else:
        act_speculation(w, taken)
