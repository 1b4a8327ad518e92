"""What compiled code takes a world, or a row of it, for: the arguments of functions on demand."""

from functools import cache
from typing import Any

import numba

from wisp_gym.engine.build import empty_arrays
from wisp_gym.jit_placed import Placed


@cache
def world_type() -> Placed:
    """A world of many as compiled code sees it: where its arrays are."""
    many = empty_arrays(1, 1)
    return Placed("World", {name: numba.typeof(part) for name, part in many.at(0)._asdict().items()})


def rows_type(name: str) -> Any:
    """numba's type of one of its arrays."""
    return world_type().fields[name]


def row_type(name: str) -> Any:
    """numba's type of a row of one of its arrays."""
    return rows_type(name).dtype
