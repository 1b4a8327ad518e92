"""What compiled code takes a world for: the argument of functions on demand."""

from functools import cache
from typing import Any

import numba

from wisp_gym.engine.build import empty_arrays


@cache
def world_type() -> Any:
    """numba's type of one World."""
    return numba.typeof(empty_arrays(1, 1).at(0))
