"""The larger of a network's two outputs, told without their exact sums where these are far apart.

An output is a sum in the order of its columns, each addition waiting for the one before. Vectors add the same products in another
order in a fraction of the time. In any order a sum of n float32 numbers is within (n − 1)·u of the true one, relative to the sum of
their magnitudes (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 4.2), u = 2⁻²⁴, and a product within u:
outputs that lie further apart than both orders can err are ordered alike in both. Only the others need exact sums.

Legend: `weights` float32 vector that holds W transposed, (n_in, 2) from `start` on, and then b; `values` (n_in,) float32.
"""

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.extending import intrinsic

from wisp_gym.jit import COMPILES, jit
from wisp_gym.rules.dense import read

COLUMNS = 64  # at a time
UNSURE = -1
UNIT_ROUNDOFF = 2.0**-24
UNDERFLOW = 1e-30  # more than what products can lose below the smallest float32
LANE = ir.IntType(32)


def lanes(builder: Any, numbers: Any, places: range) -> Any:
    """The numbers at some places of a vector."""
    return builder.shuffle_vector(numbers, numbers, ir.Constant(ir.VectorType(LANE, len(places)), list(places)))


def each_twice(builder: Any, numbers: Any) -> Any:
    """Every number of a vector and itself beside it."""
    places = [place // 2 for place in range(2 * numbers.type.count)]
    return builder.shuffle_vector(numbers, numbers, ir.Constant(ir.VectorType(LANE, len(places)), places))


def magnitudes(builder: Any, numbers: Any) -> Any:
    """The numbers without their signs."""
    kind = ir.VectorType(LANE, numbers.type.count)
    bits = builder.and_(builder.bitcast(numbers, kind), ir.Constant(kind, [0x7FFFFFFF] * kind.count))
    return builder.bitcast(bits, numbers.type)


def pair_sum(builder: Any, numbers: Any) -> Any:
    """Sums of the numbers at even and at odd places, (2,): one half of the vector is added to the other until two are left."""
    while numbers.type.count > 2:
        n = numbers.type.count
        numbers = builder.fadd(lanes(builder, numbers, range(n // 2)), lanes(builder, numbers, range(n // 2, n)))
    return numbers


def of_columns(context: Any, weights: Any, start: Any, values: Any, first: Any) -> Any:
    """Of COLUMNS columns from `first` on: by how much the second output gains on the first, and the sum of all magnitudes."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (weights, start, values, first) = (
            context.make_array(kind)(context, builder, value).data if isinstance(kind, types.Array) else value
            for value, kind in zip(arguments, signature.args, strict=True)
        )
        columns = read(builder, builder.gep(weights, [builder.add(start, builder.add(first, first))]), 2 * COLUMNS)
        products = builder.fmul(columns, each_twice(builder, read(builder, builder.gep(values, [first]), COLUMNS)))
        outputs = pair_sum(builder, products)
        sizes = pair_sum(builder, magnitudes(builder, products))
        at = [[builder.extract_element(pair, LANE(place)) for place in range(2)] for pair in (outputs, sizes)]
        gain, size = builder.fsub(at[0][1], at[0][0]), builder.fadd(at[1][0], at[1][1])
        return context.make_tuple(builder, signature.return_type, [gain, size])

    numbers = types.UniTuple(types.float32, 2)
    return numbers(weights, types.intp, values, types.intp), generate


sums: Any = intrinsic(of_columns)

larger: Any
if COMPILES:

    @jit
    def larger(weights, start, n_in, values):
        """Which of the two outputs is larger, 0 or 1, or UNSURE."""
        if n_in % COLUMNS:
            return UNSURE
        b0, b1 = weights[start + 2 * n_in], weights[start + 2 * n_in + 1]
        gain, size = b1 - b0, abs(b0) + abs(b1)
        for block in range(n_in // COLUMNS):
            more, magnitude = sums(weights, start, values, block * COLUMNS)
            gain, size = gain + more, size + magnitude
        terms = 2 * n_in + 32  # of both orders; 32 for the biases, the difference and the sum of magnitudes itself
        error = float(size) * terms * UNIT_ROUNDOFF + UNDERFLOW
        return UNSURE if not abs(gain) > error else 1 if gain > 0.0 else 0

else:

    def larger(weights, start, n_in, values):  # type: ignore[no-untyped-def]
        """Exact sums cost no more here."""
        return UNSURE
