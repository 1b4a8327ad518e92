"""Several numbers at once in compiled code: one formula, written for numpy, over the lanes of a vector.

Each lane goes through the operations that the formula names, in their order, so it has the bits that a number alone would have.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.extending import intrinsic

from wisp_gym.jit import COMPILES

LOG2_E = 1.0 / math.log(2.0)
LN_2, LN_2_REST = 6.93147180369123816490e-01, 1.90821492927058770002e-10  # the first has few digits: n·LN_2 is exact
ROUNDS = 1.5 * 2.0**52  # added to a number, it leaves no place for a fraction
EXP_BOUND = 700.0
TAYLOR = tuple(1.0 / math.factorial(k) for k in range(14))


class Lanes:
    """A vector of numbers in code that is being written, with the arithmetic of a numpy array."""

    def __init__(self, builder: Any, value: Any) -> None:
        self.builder, self.value = builder, value

    def other(self, operand: Lanes | float) -> Any:
        """Another vector, or the same number in every lane."""
        kind = self.value.type
        return operand.value if isinstance(operand, Lanes) else ir.Constant(kind, [operand] * kind.count)

    def __add__(self, operand: Lanes | float) -> Lanes:
        return Lanes(self.builder, self.builder.fadd(self.value, self.other(operand)))

    def __sub__(self, operand: Lanes | float) -> Lanes:
        return Lanes(self.builder, self.builder.fsub(self.value, self.other(operand)))

    def __rsub__(self, operand: float) -> Lanes:
        return Lanes(self.builder, self.builder.fsub(self.other(operand), self.value))

    def __mul__(self, operand: Lanes | float) -> Lanes:
        return Lanes(self.builder, self.builder.fmul(self.value, self.other(operand)))

    def __truediv__(self, operand: Lanes) -> Lanes:
        return Lanes(self.builder, self.builder.fdiv(self.value, operand.value))

    def clip(self, low: float, high: float | None) -> Lanes:
        """Each number within its ends."""
        value = self.value
        for bound, outside in ((low, "<"), (high, ">")):
            if bound is not None:
                end = self.other(bound)
                value = self.builder.select(self.builder.fcmp_ordered(outside, value, end), end, value)
        return Lanes(self.builder, value)

    def power_of_two(self) -> Lanes:
        """2ⁿ of whole numbers n from −1,022 to 1,023, written as exponents."""
        small, bits = (ir.VectorType(ir.IntType(size), self.value.type.count) for size in (32, 64))
        n = self.builder.sext(self.builder.fptosi(self.value, small), bits)
        exponents = self.builder.shl(self.builder.add(n, bits([1023] * bits.count)), bits([52] * bits.count))
        return Lanes(self.builder, self.builder.bitcast(exponents, self.value.type))


def polynomial(coefficients: tuple[float, ...], x: Any) -> Any:
    """Horner's rule, the highest power first."""
    first, second, *others = coefficients
    total = x * first + second
    for coefficient in others:
        total = total * x + coefficient
    return total


def polynomial_in_pairs(coefficients: tuple[float, ...], x: Any) -> Any:
    """Estrin's scheme, the constant first: few operations wait for one another, where each of Horner's waits for the one before."""
    terms: list[Any] = list(coefficients)
    while len(terms) > 1:
        alone = terms[len(terms) & ~1 :]
        terms = [x * high + low for low, high in zip(terms[::2], terms[1::2], strict=False)] + alone
        x = x * x
    return terms[0]


def exp(x: Any) -> Any:
    """e to the power of x, to 1e-15: with n the nearest whole number to x/ln 2, 2ⁿ·exp(x − n·ln 2).

    Beyond ±EXP_BOUND that of the bound: 1e304 and its inverse, where 2ⁿ has an exponent yet.
    """
    x = x.clip(-EXP_BOUND, EXP_BOUND) if isinstance(x, Lanes) else min(max(x, -EXP_BOUND), EXP_BOUND)
    n = (x * LOG2_E + ROUNDS) - ROUNDS
    rest = x - n * LN_2 - n * LN_2_REST
    return polynomial_in_pairs(TAYLOR, rest) * (n.power_of_two() if isinstance(n, Lanes) else 2.0**n)


def four_at_once(formula: Callable[[Any], Any]) -> Any:
    """A function of four float64 numbers for compiled code that returns what a formula makes of each."""

    @intrinsic
    def compute(context: Any, first: Any, second: Any, third: Any, fourth: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            vector = ir.Constant(ir.VectorType(ir.DoubleType(), 4), ir.Undefined)
            for lane, number in enumerate(arguments):
                vector = builder.insert_element(vector, number, ir.IntType(32)(lane))
            made = formula(Lanes(builder, vector)).value
            numbers = [builder.extract_element(made, ir.IntType(32)(lane)) for lane in range(4)]
            return context.make_tuple(builder, signature.return_type, numbers)

        return types.UniTuple(types.float64, 4)(*[types.float64] * 4), generate

    return compute if COMPILES else lambda *numbers: tuple(map(formula, numbers))
