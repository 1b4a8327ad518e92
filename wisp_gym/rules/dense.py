"""One layer of a network, `out = f(W·values + b)`, with its sums kept in registers.

Each output is summed in the order of the columns, beginning with the bias, so that every block width, and plain Python, gives the
same bits. Left to itself the compiler reads and writes each sum once for every column. A column whose value is zero adds
nothing and is left out: behind a ReLU that is about every second one.

`working_memory` is room for the numbers between two layers, in the caller's frame: an allocation costs as much as a small layer.

Legend: `weights` float32 vector that holds W transposed, (n_in, n_out) from `start` on, and then b; `values` (n_in,), `out`
(n_out,) float32; `row` the first output of a block; `activation` f by its number in `wisp_gym.rules.activation`.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.extending import intrinsic
from numba.np.arrayobj import populate_array

from wisp_gym.jit import COMPILES, jit
from wisp_gym.jit_lanes import Lanes
from wisp_gym.rules.activation import FORMULA

WIDTHS = (64, 8, 2, 1)  # outputs at a time: 64 keep the vector units busy while a sum waits for its last addition
MAX_WIDTH = 1024  # of a layer
FLOAT = ir.FloatType()


def block(width: int) -> Any:
    """A function that computes `width` outputs at once."""

    @intrinsic
    def compute(
        context: Any, weights: Any, start: Any, n_in: Any, n_out: Any, values: Any, row: Any, out: Any, activation: Any
    ) -> Any:
        given = weights, start, n_in, n_out, values, row, out, activation
        numbers = start, n_in, n_out, row, activation
        if not all(isinstance(number, types.Integer) for number in numbers):
            return None

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            (weights, start, n_in, n_out, values, row, out, activation) = (
                context.cast(builder, value, kind, types.intp) if isinstance(kind, types.Integer)
                else context.make_array(kind)(context, builder, value).data
                for value, kind in zip(arguments, signature.args, strict=True)
            )  # fmt: skip
            first = builder.gep(weights, [builder.add(start, row)])
            bias = builder.gep(first, [builder.mul(n_in, n_out)])
            sums = cgutils.alloca_once_value(builder, read(builder, bias, width))
            add_columns(builder, sums, first, n_in, n_out, values)
            activate(builder, sums, activation)
            write(builder, builder.gep(out, [row]), builder.load(sums))
            return context.get_dummy_value()

        return types.void(*given), generate

    return compute


def add_columns(builder: Any, sums: Any, first: Any, n_in: Any, n_out: Any, values: Any) -> None:
    """Emit the loops over the columns, 64 at a time where there are as many: bias + w₀·v₀ + w₁·v₁ …"""
    width = sums.type.pointee.count

    def add(k: Any) -> None:
        column = read(builder, builder.gep(first, [builder.mul(k, n_out)]), width)
        value = spread(builder, builder.load(builder.gep(values, [k])), width)
        builder.store(builder.fadd(builder.load(sums), builder.fmul(column, value)), sums)

    whole = builder.and_(n_in, n_in.type(-64))
    with cgutils.for_range_slice(builder, n_in.type(0), whole, n_in.type(64)) as (start, _):
        numbers = read(builder, builder.gep(values, [start]), 64)
        for_each_bit(builder, not_zero(builder, numbers), lambda place: add(builder.add(start, place)))
    with cgutils.for_range(builder, n_in, start=whole) as loop:
        add(loop.index)


def not_zero(builder: Any, numbers: Any) -> Any:
    """A bit for each of 64 numbers, set where it is not zero."""
    zeros = ir.Constant(numbers.type, [0.0] * 64)
    return builder.bitcast(builder.fcmp_unordered("!=", numbers, zeros), ir.IntType(64))


def for_each_bit(builder: Any, bits: Any, body: Callable[[Any], None]) -> None:
    """Emit a loop over the places of the bits that are set, from the lowest."""
    left = cgutils.alloca_once_value(builder, bits)
    with cgutils.for_range(builder, builder.ctpop(bits)):
        now = builder.load(left)
        body(builder.cttz(now, ir.IntType(1)(1)))
        builder.store(builder.and_(now, builder.sub(now, now.type(1))), left)


def activate(builder: Any, sums: Any, activation: Any) -> None:
    """Emit the end of the layer: a branch for each formula."""
    for number, formula in FORMULA.items():
        with builder.if_then(builder.icmp_signed("==", activation, activation.type(number))):
            builder.store(formula(Lanes(builder, builder.load(sums))).value, sums)


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
        place.align = 64  # bytes, a line of the cache
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
    def dense(weights, start, n_in, n_out, values, out, activation):
        """out = f(W·values + b)."""
        row = 0
        while row + 64 <= n_out:
            by_64(weights, start, n_in, n_out, values, row, out, activation)
            row += 64
        while row + 8 <= n_out:
            by_8(weights, start, n_in, n_out, values, row, out, activation)
            row += 8
        while row + 2 <= n_out:
            by_2(weights, start, n_in, n_out, values, row, out, activation)
            row += 2
        if row < n_out:
            by_1(weights, start, n_in, n_out, values, row, out, activation)

else:

    def working_memory() -> np.ndarray:
        """(MAX_WIDTH,) float32."""
        return np.empty(MAX_WIDTH, np.float32)

    def dense(weights, start, n_in, n_out, values, out, activation):  # type: ignore[no-untyped-def]
        """out = f(W·values + b), column after column."""
        columns = weights[start : start + n_in * n_out].reshape(n_in, n_out)
        sums = weights[start + n_in * n_out : start + n_in * n_out + n_out].copy()
        for column, value in zip(columns, values, strict=False):
            sums += column * value
        out[:n_out] = FORMULA[activation](sums) if activation in FORMULA else sums
