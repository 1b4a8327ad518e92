"""The one compiled function that Python calls to run worlds; since it is the only one, the engine is compiled once.

Legend: `w` World; `worlds` World with a leading axis (W, …), of which `first` … `last` − 1 are worked on; `task` what is
to be done; `which` (W,) bool worlds that begin; `actions`, `kinds` (W,) int64 what is decided, and what each waits for;
`observations` (W, size) float32; `outcomes` (W, gather.SIZE) float64; `action`, `observation`, `outcome` those of one world, and
`kind` what it waited for.
"""

from wisp_gym.engine.gather import gather
from wisp_gym.engine.loop import (
    BATCHING,
    DONE,
    act_batching,
    act_speculation,
    advance,
    count_unstarted,
    open_world,
    world_of,
)
from wisp_gym.jit import jit

TO_END, BEGIN, STEP, LOG = range(4)  # tasks: what each takes besides `worlds`, and writes, is said below


@jit
def run(worlds, task, which, actions, kinds, observations, outcomes, first, last):
    """Do a task in worlds first … last − 1.

    TO_END: open them and run them to their end, with no decision outside. BEGIN: open those of `which` and run them to their
    first decision. STEP: carry out `actions` and run to the next decision. LOG: open those of `which`, and run all until
    enough decisions are logged (FULL) or they are over (DONE).
    """
    for index in range(first, last):
        w = world_of(worlds, index)
        if task == STEP:
            kinds[index] = step(w, kinds[index], actions[index], observations[index], outcomes[index])
            continue
        if task == TO_END or which[index]:
            open_world(w)
        if task != BEGIN or which[index]:
            kinds[index] = advance(w)
        if task == TO_END:
            count_unstarted(w)
        elif task == BEGIN and which[index]:
            gather(w, kinds[index], observations[index], outcomes[index])


@jit
def step(w, kind, action, observation, outcome):
    """Carry out one decision, run to the next and gather what happened; returns what the world waits for now."""
    if kind == BATCHING:
        act_batching(w, action)
    elif kind != DONE:
        act_speculation(w, action)
    if kind != DONE:
        kind = advance(w)
        if kind == DONE:
            count_unstarted(w)
    gather(w, kind, observation, outcome)
    return kind
