"""One layer of a network, `out = W·values + b`, with its sums kept in registers.

Each output is summed in the order of the columns, beginning with the bias, so that every block width, and plain Python, gives the
same bits. Left to itself the compiler reads and writes each sum once for every column.

`working_memory` is room for the numbers between two layers, in the caller's frame: an allocation costs as much as a small layer.

Legend: `weights` float32 vector that holds W transposed, (n_in, n_out) from `start` on, and then b; `values` (n_in,), `out`
(n_out,) float32; `row` the first output of a block.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.extending import intrinsic
from numba.np.arrayobj import populate_array

from wisp_gym.jit import COMPILES, jit

WIDTHS = (64, 8, 2, 1)  # outputs at a time: 64 keep the vector units busy while a sum waits for its last addition
MAX_WIDTH = 1024  # of a layer
FLOAT = ir.FloatType()


def block(width: int) -> Any:
    """A function that computes `width` outputs at once."""

    @intrinsic
    def compute(context: Any, weights: Any, start: Any, n_in: Any, n_out: Any, values: Any, row: Any, out: Any) -> Any:
        given = weights, start, n_in, n_out, values, row, out
        sizes = start, n_in, n_out, row
        if not all(isinstance(size, types.Integer) for size in sizes):
            return None

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            (weights, start, n_in, n_out, values, row, out) = (
                context.cast(builder, value, kind, types.intp) if isinstance(kind, types.Integer)
                else context.make_array(kind)(context, builder, value).data
                for value, kind in zip(arguments, signature.args, strict=True)
            )  # fmt: skip
            sums = sum_of(builder, width, weights, start, n_in, n_out, values, row)
            write(builder, builder.gep(out, [row]), sums)
            return context.get_dummy_value()

        return types.void(*given), generate

    return compute


def sum_of(
    builder: Any, width: int, weights: Any, start: Any, n_in: Any, n_out: Any, values: Any, row: Any
) -> Any:  # fmt: skip
    """Emit the loop over the columns: bias + w₀·v₀ + w₁·v₁ …"""
    first = builder.add(start, row)
    bias = builder.gep(weights, [builder.add(first, builder.mul(n_in, n_out))])
    sums = cgutils.alloca_once_value(builder, read(builder, bias, width))
    with cgutils.for_range(builder, n_in, intp=n_in.type) as loop:
        column = read(builder, builder.gep(weights, [builder.add(first, builder.mul(loop.index, n_out))]), width)
        value = spread(builder, builder.load(builder.gep(values, [loop.index])), width)
        builder.store(builder.fadd(builder.load(sums), builder.fmul(column, value)), sums)
    return builder.load(sums)


def vector(width: int) -> Any:
    """Type of so many numbers."""
    return ir.VectorType(FLOAT, width)


def read(builder: Any, place: Any, width: int) -> Any:
    """So many numbers from a place in memory."""
    return builder.load(builder.bitcast(place, vector(width).as_pointer()), align=4)


def write(builder: Any, place: Any, numbers: Any) -> None:
    """Numbers to a place in memory."""
    builder.store(numbers, builder.bitcast(place, numbers.type.as_pointer()), align=4)


def spread(builder: Any, number: Any, width: int) -> Any:
    """The same number so many times."""
    one = builder.insert_element(ir.Constant(vector(width), ir.Undefined), number, ir.IntType(32)(0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(ir.IntType(32), width), [0] * width))


@intrinsic
def room(context: Any) -> Any:
    """(MAX_WIDTH,) float32 in the frame of the function that calls this."""
    kind = types.Array(types.float32, 1, "C")

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        size, array = context.get_constant(types.intp, MAX_WIDTH), context.make_array(kind)(context, builder)
        place = cgutils.alloca_once(builder, FLOAT, size=size)
        item = context.get_constant(types.intp, 4)
        populate_array(array, data=place, shape=[size], strides=[item], itemsize=item, meminfo=None)
        return array._getvalue()

    return kind(), generate


working_memory: Any
dense: Any
if COMPILES:
    working_memory = room
    by_64, by_8, by_2, by_1 = map(block, WIDTHS)

    @jit
    def dense(weights, start, n_in, n_out, values, out):
        """out = W·values + b."""
        row = 0
        while row + 64 <= n_out:
            by_64(weights, start, n_in, n_out, values, row, out)
            row += 64
        while row + 8 <= n_out:
            by_8(weights, start, n_in, n_out, values, row, out)
            row += 8
        while row + 2 <= n_out:
            by_2(weights, start, n_in, n_out, values, row, out)
            row += 2
        if row < n_out:
            by_1(weights, start, n_in, n_out, values, row, out)

else:

    def working_memory() -> np.ndarray:
        """(MAX_WIDTH,) float32."""
        return np.empty(MAX_WIDTH, np.float32)

    def dense(weights, start, n_in, n_out, values, out):  # type: ignore[no-untyped-def]
        """out = W·values + b, column after column."""
        columns = weights[start : start + n_in * n_out].reshape(n_in, n_out)
        out[:n_out] = weights[start + n_in * n_out : start + n_in * n_out + n_out]
        for column, value in zip(columns, values, strict=False):
            out[:n_out] += column * value
