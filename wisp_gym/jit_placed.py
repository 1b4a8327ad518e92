"""Named tuples of arrays that compiled code reads from memory where it needs them, instead of being handed all at each call.

A world is some forty arrays, for numba two hundred numbers: passed on from function to function they are most of the code that
is compiled. Here they lie in a row of memory that Python writes, and what is passed on is its address. A row holds, of each array, the
address of its first number and its shape; integers as they are; and named tuples within as their parts.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba.core import cgutils, types
from numba.core.datamodel import models
from numba.core.extending import intrinsic, register_model
from numba.core.imputils import lower_getattr_generic
from numba.core.typing.templates import AttributeTemplate, infer_getattr

WORD_BYTES = 8
NAMED_TUPLES: Any = types.BaseNamedTuple


class Placed(types.Type):
    """numba's type of the address of a row.

    Args:
        name: of the type. fields: numba's types of what lies there, by name: C-contiguous arrays, integers, named tuples of these.
    """

    def __init__(self, name: str, fields: dict[str, Any]) -> None:
        super().__init__(name)
        self.fields, self.offsets, self.size_bytes = fields, {}, 0
        for field, kind in fields.items():
            self.offsets[field] = self.size_bytes
            self.size_bytes += WORD_BYTES * words_of(kind)


def words_of(kind: Any) -> int:
    """Words that something of a type takes in a row."""
    if isinstance(kind, types.Array):
        return 1 + kind.ndim
    return sum(map(words_of, kind.types)) if isinstance(kind, NAMED_TUPLES) else 1


def rows(columns: list[Any], n: int) -> np.ndarray:
    """(n, words) int64 rows of words, each (n,) or the same for all."""
    made = np.empty((n, len(columns)), np.int64)
    for k, column in enumerate(columns):
        made[:, k] = column
    return made


def words(value: Any) -> list[Any]:
    """The words of one of them."""
    if isinstance(value, np.ndarray):
        return [value.ctypes.data, *value.shape]
    return [word for part in value for word in words(part)] if isinstance(value, tuple) else [value]


def words_of_each(array: np.ndarray) -> list[Any]:
    """The words of an array's parts along its first axis, each word an array of as many or the same number for all."""
    return [array.ctypes.data + np.arange(len(array)) * array.strides[0], *array.shape[1:]]


@register_model(Placed)
class PlacedModel(models.PrimitiveModel):
    """An address is a number."""

    def __init__(self, manager: Any, kind: Placed) -> None:
        super().__init__(manager, kind, manager.lookup(types.int64).get_value_type())


@infer_getattr
class PlacedAttributes(AttributeTemplate):
    """Types of what lies in a row."""

    key = Placed

    def generic_resolve(self, placed: Any, name: str) -> Any:  # type: ignore[override]
        """The type of a field."""
        return placed.fields.get(name)


@lower_getattr_generic(Placed)
def read_field(context: Any, builder: Any, placed: Placed, address: Any, name: str) -> Any:
    """Emit the reads of a field."""
    return read(context, builder, placed.fields[name], builder.add(address, address.type(placed.offsets[name])))


def read(context: Any, builder: Any, kind: Any, address: Any) -> Any:
    """Emit the reads of something of a type at an address."""
    if isinstance(kind, types.Array):
        return read_array(context, builder, kind, address)
    if not isinstance(kind, NAMED_TUPLES):
        return read_word(builder, address, 0)
    parts, offset = [], 0
    for part in kind.types:
        parts.append(read(context, builder, part, builder.add(address, address.type(offset))))
        offset += WORD_BYTES * words_of(part)
    return context.make_tuple(builder, kind, parts)


def read_array(context: Any, builder: Any, kind: Any, address: Any) -> Any:
    """Emit an array without an owner: its strides follow from its shape."""
    array, item_bytes = (
        context.make_array(kind)(context, builder),
        context.get_abi_sizeof(context.get_data_type(kind.dtype)),
    )
    shape = [read_word(builder, address, 1 + axis) for axis in range(kind.ndim)]
    strides = [address.type(item_bytes)]
    for length in reversed(shape):
        strides.insert(0, builder.mul(strides[0], length))
    array.data = builder.inttoptr(read_word(builder, address, 0), array.data.type)
    array.shape = cgutils.pack_array(builder, shape, address.type)
    array.strides = cgutils.pack_array(builder, strides[1:], address.type)
    array.itemsize, array.nitems = address.type(item_bytes), builder.udiv(strides[0], address.type(item_bytes))
    array.meminfo, array.parent = array.meminfo.type(None), array.parent.type(None)
    return array._getvalue()


def read_word(builder: Any, address: Any, place: int) -> Any:
    """Emit the read of a word of a row: compiled code never writes there, so that one read serves for many."""
    at = builder.inttoptr(builder.add(address, address.type(WORD_BYTES * place)), address.type.as_pointer())
    word = builder.load(at, align=WORD_BYTES)
    word.set_metadata("invariant.load", builder.module.add_metadata([]))
    return word


def placed_at(placed: Callable[[], Placed]) -> Any:
    """A function for compiled code: the row at a place among those that begin at an address; `placed` makes its type, when it is needed."""

    @intrinsic
    def at(context: Any, first: Any, place: Any) -> Any:
        kind = placed()

        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            return builder.add(given[0], builder.mul(given[1], given[0].type(kind.size_bytes)))

        return kind(types.int64, types.int64), generate

    return at
