"""Arrays without reference counting, for the inside of the engine."""

from __future__ import annotations

from typing import Any

from numba.core import cgutils, types
from numba.core.errors import TypingError
from numba.extending import intrinsic
from numba.np.arrayobj import make_array


def _unowned(typing_context, array):  # type: ignore[no-untyped-def]
    """The same array without an owner: compiled code then spends no atomic operations on counting references.

    Half of a round's time went there. Only for arrays that a caller keeps alive while the result is in use.
    """
    if not isinstance(array, types.Array):
        raise TypingError(f"given {array}, allowed is an array")

    def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        struct = make_array(signature.args[0])(context, builder, arguments[0])
        struct.meminfo = cgutils.get_null_value(struct.meminfo.type)
        return struct._getvalue()

    return array(array), codegen


unowned: Any = intrinsic(_unowned)
