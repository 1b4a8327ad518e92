"""Arrays that a caller gave, checked once and before anything is touched.

Compiled code takes arrays at their word, so each one that comes from outside passes here on its way there. Every error is
one line: the place, what was given, what is allowed. Single numbers are checked by the kinds of `wisp_gym.values`.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from wisp_gym.errors import InputError, shown

Shape = tuple[int | None, ...]  # None: any number of them


def numbers(
    place: str, value: Any, dtype: DTypeLike, *shapes: Shape, low: float = -math.inf, high: float = math.inf
) -> Any:
    """A C-ordered, writable array of finite numbers of one of the shapes; the same one where it is such an array already.

    Args:
        dtype: of what comes back. Whole numbers become real ones; fractions never become whole ones, nor text numbers.
        shapes: those that are allowed. low, high: what each number must lie in.

    Raises:
        InputError: something else, NaN or an infinity among it.
    """
    wanted = f"{np.dtype(dtype).name} numbers of shape {' or '.join(map(_spelled, shapes))}"
    wanted += "" if math.isinf(low) and math.isinf(high) else f" from {low:g} to {high:g}"
    try:
        given = np.asarray(value)
    except (TypeError, ValueError):  # rows of different lengths, or what numpy cannot make an array of
        raise InputError(f"{place}: given {shown(value)}, allowed are {wanted}") from None
    kinds = "iu" if np.dtype(dtype).kind in "iu" else "iuf"
    if given.dtype.kind not in kinds or not any(_fits(given.shape, shape) for shape in shapes):
        raise InputError(f"{place}: given {shown(given)}, allowed are {wanted}")
    with np.errstate(over="ignore"):
        made = np.require(given, dtype, ["C", "W", "A"])
    right = np.isfinite(made)
    if not (math.isinf(low) and math.isinf(high)):
        right &= (given >= low) & (given <= high)  # as given: beyond the wanted type it may have wrapped around
    if not right.all():
        raise InputError(f"{place}: given {given[~right].flat[0]} among them, allowed are {wanted}")
    return made


def _fits(given: tuple[int, ...], shape: Shape) -> bool:
    """Whether a shape is that one."""
    return len(given) == len(shape) and all(n in (None, k) for k, n in zip(given, shape, strict=True))


def _spelled(shape: Shape) -> str:
    """A shape, n standing for any number."""
    inside = ", ".join("n" if size is None else str(size) for size in shape)
    return f"({inside}{',' if len(shape) == 1 else ''})"
