"""What compiled code works on, which it is told once: to look into forty arrays at each call would cost ten microseconds.

Python lays out in memory where the arrays are (`wisp_gym.jit_placed`), and calls with that memory's address alone. The arrays must
live as long, which `engine.call` sees to. In plain Python the arguments are their own address.

Legend: `home` int64 address of the arguments; `place` of a world.
"""

from functools import cache
from typing import Any, NamedTuple

import numba
import numpy as np

from wisp_gym.engine.build import empty_arrays
from wisp_gym.engine.state import World
from wisp_gym.engine.world_type import world_type
from wisp_gym.errors import InputError, shown
from wisp_gym.jit import COMPILES, INTEGER, jit
from wisp_gym.jit_placed import WORD_BYTES, Placed, placed_at, rows, words, words_of_each


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
    counts: np.ndarray  # (2,) int64 see `engine.taking`


def outside(n_worlds: int, columns: int = 0) -> dict[str, np.ndarray]:
    """What passes between so many worlds and those outside, by name; observations and the like of so many columns."""
    shape = n_worlds, columns
    return {
        "which": np.zeros(n_worlds, bool), "actions": np.zeros(n_worlds, np.int64), "kinds": np.zeros(n_worlds, np.int64),
        "observations": np.zeros(shape, np.float32), "masks": np.zeros(shape, np.int8), "outcomes": np.zeros(shape), "pay": np.zeros(shape),
    }  # fmt: skip


@cache
def known() -> World:
    """Arrays of the kinds that compiled code takes."""
    return empty_arrays(1, 1)


@cache
def arguments_type() -> Placed:
    """All arguments as compiled code sees them; `worlds` is where the first of them is."""
    arrays = {name: numba.typeof(array) for name, array in outside(1).items()}
    return Placed("Arguments", {"worlds": INTEGER, **arrays, "counts": INTEGER[::1]})


def world_rows(worlds: World, home: int) -> np.ndarray:
    """(W, words) int64 where compiled code finds the arrays of each world.

    Raises:
        InputError: an array of another kind; compiled code reads and writes without looking.
    """
    given = flat(worlds)
    for name, like in flat(known()).items():
        array = given[name]
        if array.dtype != like.dtype or array.ndim != like.ndim or not array.flags.carray:
            raise InputError(f"{name}: given {shown(array)}, allowed is {like.dtype} with {like.ndim} axes, in C order")
    own = [word for array in worlds.own().values() for word in words_of_each(array)]
    n, shared = len(worlds.config), (worlds.trace, worlds.policy, worlds.scorer, worlds.source)
    return rows([*own, *words(shared), home, np.arange(n)], n)


def flat(worlds: World) -> dict[str, np.ndarray]:
    """All arrays of many worlds by name, those of the source too."""
    shared = {"trace": worlds.trace, "policy": worlds.policy, "scorer": worlds.scorer}
    return {**worlds.own(), **shared, **worlds.source._asdict()}


def laid_out(arguments: Arguments) -> tuple[int, tuple[np.ndarray, ...]]:
    """Where compiled code finds arguments, and the memory that is there."""
    worlds, *arrays = arguments
    row = np.zeros((1, arguments_type().size_bytes // WORD_BYTES), np.int64)
    worlds_memory = world_rows(worlds, row.ctypes.data)
    row[:] = rows([worlds_memory.ctypes.data, *words(tuple(arrays))], 1)
    return row.ctypes.data, (row, worlds_memory)


arguments_at: Any
world_at: Any
if COMPILES:
    argument_row, world_row = placed_at(arguments_type), placed_at(world_type)

    @jit
    def arguments_at(home):
        """The arguments at an address."""
        return argument_row(home, 0)

    @jit
    def world_at(home, place):
        """World number `place` of the arguments at the address `home`."""
        return world_row(arguments_at(home).worlds, place)

else:

    def arguments_at(home):  # type: ignore[no-untyped-def]
        """The arguments themselves."""
        return home

    def world_at(home, place):  # type: ignore[no-untyped-def]
        """World number `place` of the arguments."""
        return home.worlds.at(place)._replace(home=home, place=place)
