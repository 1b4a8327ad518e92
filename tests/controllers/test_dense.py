"""A layer's sums are those of its definition, bit by bit, whatever the block that computes them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wisp_gym.rules.activation import FORMULA, NONE, RELU, TANH, tanh
from wisp_gym.rules.dense import dense


def by_columns(matrix: np.ndarray, bias: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Bias, then column after column, each sum and each product rounded to float32."""
    total = bias.copy()
    for column, value in zip(matrix.T, values, strict=True):
        total += column * value
    return total


@settings(max_examples=60, deadline=None)
@given(
    n_in=st.integers(1, 150), n_out=st.integers(1, 150), start=st.integers(0, 9), zeros=st.sampled_from([0.0, 0.5, 1.0]),
    activation=st.sampled_from([TANH, RELU, NONE]), seed=st.integers(0, 99),
)  # fmt: skip
def test_every_width_sums_in_the_order_of_the_columns(
    n_in: int, n_out: int, start: int, zeros: float, activation: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    matrix, bias = rng.normal(size=(n_out, n_in)).astype(np.float32), rng.normal(size=n_out).astype(np.float32)
    values = np.where(rng.random(n_in) < zeros, 0.0, rng.normal(size=n_in)).astype(np.float32)
    weights = np.concatenate([np.full(start, np.nan, np.float32), matrix.T.ravel(), bias])
    out = np.full(n_out + 3, 7.0, np.float32)
    dense(weights, start, n_in, n_out, values, out, activation)
    sums = by_columns(matrix, bias, values)
    wanted = FORMULA[activation](sums) if activation in FORMULA else sums
    assert out[:n_out].tobytes() == wanted.tobytes()
    assert (out[n_out:] == 7.0).all()  # nothing is written beyond


def test_tanh_is_near() -> None:
    x = np.linspace(-20.0, 20.0, 100_001, dtype=np.float32)
    assert tanh(x) == pytest.approx(np.tanh(x.astype(np.float64)), abs=4e-7)
