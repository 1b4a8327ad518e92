"""The larger of a network's two outputs, told without their exact sums where these are far apart.

An output is a sum in the order of its columns, each addition waiting for the one before. Their difference is one sum, which vectors
add in another order in a fraction of the time. In any order a sum of n float32 numbers is within (n − 1)·u of the true one, relative
to the sum of their magnitudes (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 4.2), u = 2⁻²⁴, and a product or
a difference within u: outputs that lie further apart than both ways can err are ordered alike in both. Only the others need exact
sums.

Legend: `weights` float32 vector that holds W transposed, (n_in, 2) from `start` on, then b, and then what `differences` makes of them;
`values` (n_in,) float32.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.core.extending import intrinsic

from wisp_gym.jit import COMPILES, jit
from wisp_gym.rules.dense import read

COLUMNS = 64  # at a time
BLOCK = 16  # of them of which no sum waits for another
GAIN, SIZE, HEADER = (
    2,
    3,
    16,
)  # places behind W of the biases' own, and where the columns' begin: HEADER keeps lines of the cache
UNSURE = -1
UNIT_ROUNDOFF = 2.0**-24
UNDERFLOW = 1e-30  # more than what products can lose below the smallest float32
LANE = ir.IntType(32)


def differences(columns: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """What `larger` reads behind a layer of two outputs: by how much the second weight of each column exceeds the first, and the sum
    of both magnitudes, those of the biases first.

    Args:
        columns: (n_in, 2) float32. bias: (2,) float32.
    """
    rows = np.concatenate([bias[None], columns])
    with np.errstate(over="ignore"):  # infinite ones make `larger` unsure
        gains, sizes = rows[:, 1] - rows[:, 0], np.abs(rows).sum(axis=1)
    header = np.zeros(HEADER, dtype=np.float32)
    header[GAIN], header[SIZE] = gains[0], sizes[0]
    return np.concatenate([header[len(bias) :], gains[1:], sizes[1:]])


def lanes(builder: Any, numbers: Any, places: range) -> Any:
    """The numbers at some places of a vector."""
    return builder.shuffle_vector(numbers, numbers, ir.Constant(ir.VectorType(LANE, len(places)), list(places)))


def magnitudes(builder: Any, numbers: Any) -> Any:
    """The numbers without their signs."""
    kind = ir.VectorType(LANE, numbers.type.count)
    bits = builder.and_(builder.bitcast(numbers, kind), ir.Constant(kind, [0x7FFFFFFF] * kind.count))
    return builder.bitcast(bits, numbers.type)


def total(builder: Any, numbers: Any) -> Any:
    """Sum of a vector's numbers: one half of it is added to the other until one is left."""
    while numbers.type.count > 1:
        n = numbers.type.count
        numbers = builder.fadd(lanes(builder, numbers, range(n // 2)), lanes(builder, numbers, range(n // 2, n)))
    return builder.extract_element(numbers, LANE(0))


def of_columns(context: Any, weights: Any, gains: Any, sizes: Any, values: Any) -> Any:
    """Of COLUMNS columns: by how much the second output gains on the first, and the sum of all magnitudes.

    `gains`, `sizes` are places in `weights`.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (weights, gains, sizes, values) = (
            context.make_array(kind)(context, builder, value).data if isinstance(kind, types.Array) else value
            for value, kind in zip(arguments, signature.args, strict=True)
        )
        sums: list[Any] = []
        for block in range(0, COLUMNS, BLOCK):
            value = numbers_at(builder, values, LANE(block))
            gain = builder.fmul(numbers_at(builder, weights, builder.add(gains, gains.type(block))), value)
            size = builder.fmul(
                numbers_at(builder, weights, builder.add(sizes, sizes.type(block))), magnitudes(builder, value)
            )
            sums = [builder.fadd(*pair) for pair in zip(sums, (gain, size), strict=True)] if sums else [gain, size]
        return context.make_tuple(builder, signature.return_type, [total(builder, one) for one in sums])

    pair = types.UniTuple(types.float32, 2)
    return pair(weights, types.intp, types.intp, values), generate


def numbers_at(builder: Any, vector: Any, place: Any) -> Any:
    """A block's numbers from a place of a vector on."""
    return read(builder, builder.gep(vector, [place]), BLOCK)


sums: Any = intrinsic(of_columns)

larger: Any
if COMPILES:

    @jit
    def larger(weights, start, n_in, values):
        """Which of the two outputs is larger, 0 or 1, or UNSURE."""
        behind = start + 2 * n_in
        gains = behind + HEADER
        if n_in % COLUMNS or gains + 2 * n_in > weights.shape[0]:
            return UNSURE
        gain, size = weights[behind + GAIN], weights[behind + SIZE]
        for first in range(0, n_in, COLUMNS):
            more, magnitude = sums(weights, gains + first, gains + n_in + first, values[first:])
            gain, size = gain + more, size + magnitude
        terms = 2 * n_in + 32  # of both; 32 for the biases, the differences and the sum of magnitudes itself
        error = float(size) * terms * UNIT_ROUNDOFF + UNDERFLOW
        return UNSURE if not abs(gain) > error else 1 if gain > 0.0 else 0

else:

    def larger(weights, start, n_in, values):  # type: ignore[no-untyped-def]
        """Exact sums cost no more here."""
        return UNSURE
