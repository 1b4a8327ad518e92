"""Observations as policies outside of the engine are shown them: checked, and in memory as compiled code takes it."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wisp_gym.errors import InputError


def checked(given: Any, fits: Callable[[int], bool], allowed: str) -> NDArray[np.float32]:
    """(size,) or (n, size) observations.

    Args:
        given: numbers of one of these shapes. fits: whether a size may be. allowed: the shapes, in words.

    Raises:
        InputError: others.
    """
    try:
        array = np.asarray(given)
    except (TypeError, ValueError):  # rows of different lengths
        array = np.zeros((), object)
    if array.dtype.kind not in "biuf" or array.ndim not in (1, 2) or not fits(array.shape[-1]):
        raise InputError(
            f"observation: given shape {array.shape} of {array.dtype}, allowed are numbers of shape {allowed}"
        )
    # numba would compile everything anew for memory of another kind, such as a read-only array
    return np.require(array, np.float32, ["C", "A", "W"])
