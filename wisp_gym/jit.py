"""The one place that says how the engine is compiled.

The engine and its rules are written in the subset of Python that numba compiles; `jit` is numba's `njit` with a cache
on disk (`wisp_gym.jit_cache`) and without the global interpreter lock, so that worlds can run on several threads.
With NUMBA_DISABLE_JIT=1 the same code runs as plain Python, for debuggers and coverage: some hundred times slower, the
same numbers.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import types

from wisp_gym import jit_demand, jit_link
from wisp_gym.jit_cache import kept
from wisp_gym.jit_folder import CONFIG

COMMON = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True, "forceinline": False}
COMPILES = not CONFIG.DISABLE_JIT
njit: Any = numba.njit
if not COMPILES:
    np.seterr(all="ignore")  # draws overflow on purpose, and divisions by zero are infinite, as in compiled code

# What functions on demand take and return.
INTEGER, NUMBER, TRUTH, VOID = types.int64, types.float64, types.boolean, types.void
NUMBERS, SINGLES = types.float64[::1], types.float32[::1]


def compiler(**options: Any) -> Any:
    """`numba.njit` with these options: what Python calls is whole and kept, what compiled code calls is a part of that."""

    def decorate(function: Any) -> Any:
        common = {**COMMON, **options}
        if not (COMPILES and jit_link.SUITS):
            plain = njit(**common)(function)
            return kept(plain, function) if COMPILES else plain
        whole = njit(**common, pipeline_class=jit_link.WHOLE)(function)
        part = njit(**common, pipeline_class=jit_link.PART)(function)
        return jit_link.joined(kept(whole, function), part)

    return decorate


# Compiled code borrows the caller's arrays and allocates none, so it needs no reference counting: without it a round
# costs about 40 % less. `_nrt` and `no_cfunc_wrapper` are numba's own options; its version is pinned in constraints.txt.
jit = compiler(_nrt=False)
jit_inline = compiler(_nrt=False, forceinline=True)  # for small functions with many arguments in the hot loop
jit_allocating = compiler(_nrt=True)  # for the few functions that need working memory


def on_demand(signature: Callable[[], Any], allocating: bool = False) -> Any:
    """Compile a function when it is first called, by Python or by compiled code, and as code of its own (`wisp_gym.jit_demand`).

    Args:
        signature: makes its numba signature. allocating: whether it needs working memory.
    """

    def decorate(function: Any) -> Any:
        common = {**COMMON, "_nrt": allocating}
        if not (COMPILES and jit_link.SUITS):
            return compiler(**common)(function)
        whole = kept(njit(**common, pipeline_class=jit_link.WHOLE)(function), function)
        demanded = jit_demand.OnDemand(f"{function.__module__}.{function.__name__}", whole, signature)
        part = njit(**{**common, "_nrt": False}, pipeline_class=jit_link.PART)(jit_demand.caller(demanded, function))
        return jit_link.joined(whole, part)

    return decorate
