"""Functions of others called from compiled code by their address: a rule of one's own runs in the engine's loop.

Whoever makes an address keeps the `Compiled` as long as it may be called.
"""

from collections.abc import Callable
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.core.extending import intrinsic

from wisp_gym.errors import InputError, shown
from wisp_gym.jit import COMPILES

in_plain_python: dict[int, Callable[[Any], Any]] = {}  # by address, where nothing is compiled


class Compiled:
    """A function of float32 observations that compiled code can call.

    Args:
        function: decorated by `numba.njit`, of one (size,) float32 array; it returns an integer.

    Raises:
        InputError: it is not, or cannot be compiled for such an array.

    Attributes:
        address: of the machine code.
    """

    def __init__(self, function: Any, size: int):
        self.function = function
        if not COMPILES:
            self.address = id(function)
            in_plain_python[self.address] = function
            return
        if not is_compiled(function):
            raise InputError(f"rule: given {shown(function)}, allowed is a function decorated by numba.njit")

        def entry(pointer: Any) -> Any:
            return function(numba.carray(pointer, (size,)))

        signature = types.int64(types.CPointer(types.float32))
        try:
            self.code = numba.cfunc(signature, error_model="numpy")(entry)
        except numba.core.errors.NumbaError as error:
            words = str(error).strip().splitlines()
            raise InputError(
                f"rule: {function.__name__} cannot be compiled for ({size},) float32: {words[-1]}"
            ) from None
        self.address = int(self.code.address or 0)


def is_compiled(function: Any) -> bool:
    """Whether a function is one of numba's."""
    return hasattr(function, "py_func") and hasattr(function, "signatures")


call_at: Any
if COMPILES:

    @intrinsic
    def call_at(typing_context, address, observation):  # type: ignore[no-untyped-def]
        """What the function at an address makes of an observation."""

        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            array = context.make_array(signature.args[1])(context, builder, arguments[1])
            function = ir.FunctionType(ir.IntType(64), [array.data.type])
            return builder.call(builder.inttoptr(arguments[0], function.as_pointer()), [array.data])

        return types.int64(types.int64, observation), generate

else:

    def call_at(address: int, observation: Any) -> int:
        """What the function at an address makes of an observation."""
        return int(in_plain_python[address](observation))
