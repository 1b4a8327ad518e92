"""Functions that are compiled when they are first called, by compiled code too.

A world uses few of the rules. A function on demand is code of its own; other compiled code calls it through a cell of memory that
holds its address, which costs a few nanoseconds. Of an empty cell it calls back into Python, which compiles the function, or reads
it from the disk, and fills the cell for all callers of this process.
"""

import ctypes
from collections.abc import Callable
from inspect import signature as parameters_of
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.core.extending import intrinsic

BIND = "wisp_gym.bind"  # symbol of the function that fills an empty cell


class NotCompiledError(RuntimeError):
    """Compiled code needed a function that could not be compiled; `reason` says why."""

    reason: BaseException | None = None


class OnDemand:
    """A function on demand.

    Attributes:
        name: symbol of its cell. whole: what Python calls. signature: makes its numba signature, when it is needed.
    """

    every: dict[int, "OnDemand"] = {}  # noqa: RUF012 - by the address of its cell

    def __init__(self, name: str, whole: Any, signature: Callable[[], Any]):
        self.name, self.whole, self.signature = name, whole, signature
        self.cell = ctypes.c_void_p()
        self.every[ctypes.addressof(self.cell)] = self
        binding.add_symbol(name, ctypes.addressof(self.cell))

    def bind(self) -> None:
        """Compile the function, or read it from the disk, and fill its cell."""
        signature = self.signature()
        self.whole.compile(signature)
        result = self.whole.overloads[tuple(signature.args)]
        self.cell.value = result.library.get_pointer_to_function(result.fndesc.llvm_func_name)


@ctypes.CFUNCTYPE(None, ctypes.c_int64)
def bind(cell: int) -> None:
    """Fill the cell at an address. Nothing can be raised through compiled code: what fails is kept, and the cell stays empty."""
    try:
        OnDemand.every[cell].bind()
    except BaseException as error:  # a signal's too
        NotCompiledError.reason = error


binding.add_symbol(BIND, ctypes.cast(bind, ctypes.c_void_p).value)


def caller(demanded: OnDemand, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function with the parameters of `function` that calls it through its cell, to be compiled as a part."""

    @intrinsic
    def call(_: Any, given: Any) -> Any:
        expected = demanded.signature()
        if tuple(map(types.unliteral, given)) != expected.args:
            raise TypingError(f"{demanded.name}: given {given}, allowed are {expected.args}")
        return expected.return_type(given), generate

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kinds, returned, convention = demanded.signature().args, signature.return_type, context.call_conv
        given = zip(cgutils.unpack_tuple(builder, arguments[0]), signature.args[0], kinds, strict=True)
        values = [context.cast(builder, *each) for each in given]
        code = address(context, builder, demanded.name, convention.get_function_type(returned, kinds))
        status, result = convention.call_function(builder, code, returned, kinds, values)
        with cgutils.if_unlikely(builder, status.is_error):
            convention.return_status_propagate(builder, status)
        return result

    names = ", ".join(parameters_of(function).parameters)
    made: dict[str, Any] = {"call": call}
    exec(f"def through({names}):\n    return call(({names},))\n", made)
    return made["through"]  # type: ignore[no-any-return]


def address(context: Any, builder: Any, name: str, kind: Any) -> Any:
    """Emit the read of a function's address from its cell, which is filled first where it is empty."""
    module = builder.module
    cell = module.globals.get(name) or ir.GlobalVariable(module, cgutils.voidptr_t, name)
    with cgutils.if_unlikely(builder, cgutils.is_null(builder, builder.load(cell))):
        fill = cgutils.get_or_insert_function(module, ir.FunctionType(ir.VoidType(), [cgutils.intp_t]), BIND)
        builder.call(fill, [builder.ptrtoint(cell, cgutils.intp_t)])
        with cgutils.if_unlikely(builder, cgutils.is_null(builder, builder.load(cell))):
            context.call_conv.return_user_exc(builder, NotCompiledError, ())
    return builder.bitcast(builder.load(cell), kind.as_pointer())
