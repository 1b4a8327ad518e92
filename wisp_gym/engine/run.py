"""The one compiled function that Python calls to run worlds; since it is the only one, the engine is compiled once.

Legend: `w` World; `a` Arguments; `address` of them, see `call`; `task` what is to be done; `index` of a world; `kind` what it
waits for; `end`, `looks` see `taking`.
"""

from wisp_gym.engine.afresh import draw_afresh
from wisp_gym.engine.arguments import arguments_at, world_at
from wisp_gym.engine.fleet import act_fleet
from wisp_gym.engine.gather import gather
from wisp_gym.engine.loop import (
    BATCHING,
    DONE,
    SPECULATION,
    act_batching,
    act_speculation,
    advance,
    count_unstarted,
    follow_rule,
    open_world,
)
from wisp_gym.engine.masks import nearest_of_device, nearest_valid, write_mask
from wisp_gym.engine.observe_server import observe_server
from wisp_gym.engine.rows import row_of
from wisp_gym.engine.state import PICK
from wisp_gym.engine.taking import all_done, count_done, next_place
from wisp_gym.engine.under_way import under_way_tokens
from wisp_gym.jit import INTEGER, VOID, jit, on_demand

# Tasks: what each takes besides the worlds, and writes, is said below.
TO_END, BEGIN, STEP, LOG, FLEET, ACT, AFRESH, WORTH = range(8)
AS_RULED = -1  # an action: what the world's own controller decides


@jit
def run(address, task, end, looks):
    """Do a task in all worlds, together with other threads that do the same: each takes the next world that none has taken.

    TO_END: open them and run them to their end, with no decision outside. BEGIN: open those of `which` and run them to their
    first decision. STEP: carry out `actions` and run to the next decision. LOG: open those of `which`, and run all until
    enough decisions are logged (FULL) or they are over (DONE). FLEET: open those of `which`, in the others carry out what was decided
    for the devices that wait for it (in their rows) or for the batch (`actions`), and run all to the next such decisions.
    ACT: carry out `actions` and stay there; AS_RULED as a world's own controller decides for its device. AFRESH: what is not known yet
    is drawn again, by the seeds in `actions`. WORTH: what rounds under way are worth, into the first column of `outcomes`.
    Returns whether all worlds are done.
    """
    a, done = arguments_at(address), 0
    first = end - a.kinds.shape[0]
    place = next_place(a.counts, end)
    while place < end:
        if task == STEP:
            step(a, address, place - first)
        elif task == FLEET:
            go_on(a, address, place - first)
        elif task == ACT:
            act(address, place - first, a.kinds[place - first], a.actions[place - first])
        elif task == AFRESH:
            draw_afresh(address, place - first, a.actions[place - first])
        elif task == WORTH:
            a.outcomes[place - first, 0] = under_way_tokens(address, place - first)
        else:
            begin_or_go_on(a, address, place - first, task)
        done += 1
        place = next_place(a.counts, end)
    count_done(a.counts, done)
    return all_done(a.counts, end, looks)


@jit
def begin_or_go_on(a, address, index, task):
    """Do a task other than STEP in one world."""
    w = world_at(address, index)
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
    w, kind = world_at(address, index), a.kinds[index]
    if kind != DONE:
        decide(w, kind, a.masks[index], a.actions[index])
        kind = advance(w)
        if kind == DONE:
            count_unstarted(w)
    gather(w, kind, a.observations[index], a.masks[index], a.outcomes[index], a.pay[index])
    a.kinds[index] = kind


@jit
def go_on(a, address, index):
    """Carry out what was decided in one world, all of whose devices are decided for outside, and run to what is to be decided next."""
    w, kind = world_at(address, index), a.kinds[index]
    if a.which[index]:
        open_world(w)
    elif kind == SPECULATION:
        act_fleet(w)
    elif kind == BATCHING:
        decide(w, kind, a.masks[index], a.actions[index])
    else:
        return
    kind = advance(w)
    if kind == DONE:
        count_unstarted(w)
    elif kind == BATCHING:
        observe_server(w.home, w.place, a.observations[index])
        write_mask(w.config[0], a.observations[index], a.masks[index])
    a.kinds[index] = kind


@on_demand(lambda: VOID(INTEGER, INTEGER, INTEGER, INTEGER))
def act(address, index, kind, action):
    """Carry out an action, or the nearest valid one, in the place of whoever decides outside, and do not run on."""
    w = world_at(address, index)
    c, s = w.config[0], w.server[0]
    if kind == BATCHING and s.stage == PICK:
        act_batching(w.home, w.place, action)
    elif kind == SPECULATION and action == AS_RULED:
        follow_rule(w.home, w.place)
    elif kind == SPECULATION:
        i = w.replies[s.reply_next]
        act_speculation(w, nearest_of_device(c, s, w.device[i], w.observation[row_of(w.observation, i)], action))


@jit
def decide(w, kind, mask, action):
    """Carry out an action, or the nearest valid one: `mask` (actions,) int8 says which are; `kind` of decision."""
    c, s = w.config[0], w.server[0]
    taken = nearest_valid(c, s, w.device[max(c.external_device, 0)], mask, action)
    if kind == BATCHING:
        act_batching(w.home, w.place, taken)
    else:
        act_speculation(w, taken)
