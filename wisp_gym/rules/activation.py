"""How a layer ends: hyperbolic tangent, the positive part, or nothing more.

One formula for numpy's arrays and for `Lanes`, by which compiled code is written: x is either, of float32 numbers.
"""

from typing import Any

from wisp_gym.jit_lanes import polynomial

TANH, RELU, NONE = 0, 1, 2  # the first two are those that a packed network may ask for

# tanh x ≈ x·P(x²)/Q(x²) to 4e-7, of Eigen (`generic_fast_tanh_float`), which ONNX Runtime uses too.
TANH_BOUND = 7.90531110763549805
TANH_P = (
    -2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-08, 1.48572235717979e-05,
    6.37261928875436e-04, 4.89352455891786e-03,
)  # fmt: skip
TANH_Q = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)


def tanh(x: Any) -> Any:
    """Hyperbolic tangent to 4e-7."""
    x = x.clip(-TANH_BOUND, TANH_BOUND)
    square = x * x
    return x * polynomial(TANH_P, square) / polynomial(TANH_Q, square)


def relu(x: Any) -> Any:
    """Zero where a number is below it."""
    return x.clip(0.0, None)


FORMULA = {TANH: tanh, RELU: relu}
