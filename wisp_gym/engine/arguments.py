"""What compiled code works on, which it takes once and keeps: to look into forty arrays at each call would cost ten microseconds.

`keep` writes what numba found in them (addresses, shapes, strides) into memory that Python owns, and `arguments_at` reads it there: Python
then calls with that memory's address alone. The arrays must live as long, which `engine.call` sees to. In plain Python the
arguments are their own address.

Legend: `address` int64; `arguments` Arguments; `place` (1,) int64 of the next world to be worked on;
`index` of a world.
"""

from functools import cache
from typing import Any, NamedTuple

import numba
import numpy as np
from numba.core import types
from numba.core.extending import intrinsic

from wisp_gym.engine.build import empty_arrays
from wisp_gym.engine.state import World
from wisp_gym.jit import COMPILES, jit

ROOM_BYTES = 8192  # for what numba knows of the arrays


class Arguments(NamedTuple):
    """Arrays of `engine.run`; (W, …) with a row for each world."""

    worlds: World
    which: np.ndarray  # (W,) bool worlds that begin
    actions: np.ndarray  # (W,) int64 what is decided
    kinds: np.ndarray  # (W,) int64 what each waits for
    observations: np.ndarray  # (W, size) float32
    masks: np.ndarray  # (W, actions) int8, 1 = valid
    outcomes: np.ndarray  # (W, gather.SIZE) float64
    pay: np.ndarray  # (W, 1 + rewards.MOST_TERMS) float64, see `engine.rewards`
    place: np.ndarray  # (1,) int64 next world to be worked on


def outside(n_worlds: int, columns: int = 0) -> dict[str, np.ndarray]:
    """What passes between so many worlds and those outside, by name; observations and the like of so many columns."""
    shape = n_worlds, columns
    return {
        "which": np.zeros(n_worlds, bool), "actions": np.zeros(n_worlds, np.int64), "kinds": np.zeros(n_worlds, np.int64),
        "observations": np.zeros(shape, np.float32), "masks": np.zeros(shape, np.int8), "outcomes": np.zeros(shape), "pay": np.zeros(shape),
    }  # fmt: skip


@cache
def arguments_type() -> Any:
    """numba's type of all arguments: others would be read as these."""
    return numba.typeof(Arguments(empty_arrays(1, 1), **outside(1), place=np.zeros(1, np.int64)))


@intrinsic
def write(context: Any, address: Any, arguments: Any) -> Any:
    """Write arguments to an address."""
    if arguments != arguments_type():
        return None

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        form = context.get_value_type(arguments)
        assert context.get_abi_sizeof(form) <= ROOM_BYTES
        place = builder.inttoptr(given[0], form.as_pointer())
        builder.store(borrowed(context, builder, arguments, given[1]), place)
        return context.get_dummy_value()

    return types.void(address, arguments), generate


def borrowed(context: Any, builder: Any, form: Any, value: Any) -> Any:
    """Emit arrays without their owner, which numba gives up after the call."""
    if isinstance(form, types.Array):
        array = context.make_array(form)(context, builder, value)
        array.meminfo, array.parent = array.meminfo.type(None), array.parent.type(None)
        return array._getvalue()
    if isinstance(form, types.Integer):
        return value
    parts = [borrowed(context, builder, part, builder.extract_value(value, k)) for k, part in enumerate(form.types)]
    return context.make_tuple(builder, form, parts)


@intrinsic
def read(context: Any, address: Any) -> Any:
    """Arguments that were written to an address."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        form = context.get_value_type(signature.return_type)
        return builder.load(builder.inttoptr(given[0], form.as_pointer()))

    return arguments_type()(address), generate


@intrinsic
def count_up(context: Any, place: Any) -> Any:
    """Add one to the first number of an array, whoever else does; returns what it was."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        first = context.make_array(place)(context, builder, given[0]).data
        return builder.atomic_rmw("add", first, context.get_constant(types.int64, 1), "monotonic")

    return types.int64(place), generate


@jit
def world_of(worlds, index, home):
    """One world out of `worlds`, arrays with a leading axis (W, …); `home` address of the arguments that hold them."""
    return World(
        worlds.config[index], worlds.server[index], worlds.totals[index], worlds.slo_totals[index],
        worlds.histogram[index], worlds.device[index], worlds.observation[index], worlds.event_device[index],
        worlds.event_s[index], worlds.line[index], worlds.places[index], worlds.queue[index], worlds.cold[index], worlds.cold_keys[index],
        worlds.batch[index], worlds.replies[index],
        worlds.features[index], worlds.keys[index], worlds.order[index], worlds.rooflines[index], worlds.speculation_parameters[index],
        worlds.batching_parameters[index], worlds.drafter_parameters[index], worlds.length_parameters[index], worlds.server_memory[index],
        worlds.sessions[index], worlds.memory[index], worlds.log[index], worlds.decisions[index], worlds.seen[index],
        worlds.outcomes[index], worlds.survivals[index], worlds.trace, worlds.policy, worlds.scorer, worlds.source, home, index,
    )  # fmt: skip


arguments_at: Any
next_place: Any
if COMPILES:
    arguments_at, next_place = read, count_up

    @jit
    def keep(address, arguments):
        """Write arguments to an address of ROOM_BYTES."""
        write(address, arguments)  # type: ignore[call-arg]

    def address_of(arguments: Arguments, memory: np.ndarray) -> Any:
        """Where compiled code finds arguments: in (ROOM_BYTES,) bytes of memory, which it writes."""
        address = memory.ctypes.data
        keep(address, arguments)
        return address

else:

    def arguments_at(address):  # type: ignore[no-untyped-def]
        """The arguments themselves."""
        return address

    def next_place(place):  # type: ignore[no-untyped-def]
        """The next world's place."""
        place[0] += 1
        return int(place[0]) - 1

    def address_of(arguments: Arguments, memory: np.ndarray) -> Any:
        """The arguments themselves."""
        return arguments


@jit
def world_at(home, place):
    """World number `place` of the arguments at the address `home`.

    Functions on demand that work on a world take these two, for a world itself is more than two hundred numbers, which all who
    might call one would have to keep at hand.
    """
    return world_of(arguments_at(home).worlds, place, home)
