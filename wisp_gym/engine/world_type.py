"""What compiled code takes a world, or a row of it, for: the arguments of functions on demand."""

from functools import cache
from typing import Any

import numba

from wisp_gym.engine.build import empty_arrays


@cache
def world_type() -> Any:
    """numba's type of one World."""
    return numba.typeof(empty_arrays(1, 1).at(0))


def rows_type(name: str) -> Any:
    """numba's type of one of its arrays."""
    form = world_type()
    return form.types[form.fields.index(name)]


def row_type(name: str) -> Any:
    """numba's type of a row of one of its arrays.

    A function that is called for every round takes the rows that it needs: a whole world is two hundred numbers, which the callers
    would have to keep at hand.
    """
    return rows_type(name).dtype
