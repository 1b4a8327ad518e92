"""The larger of two outputs is that of the exact sums, or is left to them; a policy laid out for the engine decides alike."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wisp_gym.contract import device as o
from wisp_gym.rules.activation import NONE
from wisp_gym.rules.dense import dense
from wisp_gym.rules.larger import UNSURE, differences, larger
from wisp_gym.rules.mlp import HEADER, LINE, N_HIDDEN, N_IN, argmax_action, laid_out, logits, pack


def with_differences(weights: np.ndarray, start: int = 0) -> np.ndarray:
    """A layer of two outputs, whose weights begin at `start`, as a policy laid out for the engine has it."""
    pairs = weights[start:].reshape(-1, 2)
    return np.concatenate([weights, differences(pairs[:-1], pairs[-1])])


@settings(max_examples=200, deadline=None)
@given(
    n_in=st.sampled_from([64, 128, 1024]), start=st.integers(0, 20), size=st.sampled_from([1e-20, 1e-3, 1.0, 1e15]),
    apart=st.sampled_from([0.0, 1e-8, 1e-7, 1e-6, 1e-5, 1e-3, 1.0]), zeros=st.sampled_from([0.0, 0.5, 1.0]), seed=st.integers(0, 999),
)  # fmt: skip
def test_what_it_is_sure_of_holds_for_the_exact_sums(
    n_in: int, start: int, size: float, apart: float, zeros: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(n_in, 2)) * size
    matrix[:, 1] = matrix[rng.permutation(n_in) if apart == 1.0 else slice(None), 0] * (
        1.0 + apart * rng.normal(size=n_in)
    )
    values = np.where(rng.random(n_in) < zeros, 0.0, rng.normal(size=n_in)).astype(np.float32)
    weights = np.concatenate([np.full(start, np.nan), matrix.ravel(), rng.normal() + np.zeros(2)]).astype(np.float32)
    weights = with_differences(weights, start)
    out = np.empty(2, np.float32)
    dense(weights, start, n_in, 2, values, out, NONE)
    assert larger(weights, start, n_in, values) in (UNSURE, int(out[1] > out[0]))


def test_it_is_sure_of_nearly_all_and_of_no_tie() -> None:
    rng = np.random.default_rng(0)
    layer = rng.normal(size=130).astype(np.float32)
    weights = with_differences(layer)
    rows = rng.normal(size=(1000, 64)).astype(np.float32)
    assert sum(larger(weights, 0, 64, row) == UNSURE for row in rows) < 5
    assert larger(layer, 0, 64, rows[0]) == UNSURE  # nothing behind the biases
    assert larger(with_differences(layer[2:]), 0, 63, rows[0]) == UNSURE  # a width that no vector of 64 divides
    layer[1::2] = layer[::2]
    assert all(larger(with_differences(layer), 0, 64, row) == UNSURE for row in rows)
    for strange in (np.inf, np.nan):
        assert larger(weights, 0, 64, np.full(64, strange, np.float32)) == UNSURE


@pytest.mark.parametrize("widths", [(2,), (64, 64, 2), (16, 7)])
@pytest.mark.parametrize("known", [1, 30, o.SIZE])
def test_a_policy_laid_out_decides_alike(widths: tuple[int, ...], known: int) -> None:
    rng = np.random.default_rng(1)
    sizes = [o.SIZE, *widths]
    layers = [
        (rng.normal(size=(b, a)).astype(np.float32), rng.normal(size=b).astype(np.float32))
        for a, b in zip(sizes, widths, strict=False)
    ]
    layers[0][0][:, known:] = 0.0
    policy = pack(layers, "relu")
    copy = laid_out(policy)
    assert copy[N_IN] == known
    first = HEADER + int(copy[N_HIDDEN])
    assert copy[first:].ctypes.data % (LINE * copy.itemsize) == 0
    outputs = np.empty((2, widths[-1]), np.float32)
    for row in rng.uniform(o.LOW, o.HIGH, (300, o.SIZE)).astype(np.float32):
        assert logits(policy, row, outputs[0]) == logits(copy, row, outputs[1])
        assert outputs[0].tobytes() == outputs[1].tobytes()
        assert argmax_action(policy, row) == argmax_action(copy, row) == outputs[0].argmax()


def test_a_policy_laid_out_tells_the_larger_without_exact_sums() -> None:
    rng = np.random.default_rng(2)
    sizes = [(64, o.SIZE), (64, 64), (2, 64)]
    layers = [(rng.normal(size=size).astype(np.float32), rng.normal(size=size[0]).astype(np.float32)) for size in sizes]
    copy, (w, b) = laid_out(pack(layers, "relu")), layers[-1]
    start = HEADER + 2 + sum((n_in + 1) * n_out for n_out, n_in in sizes[:-1])
    rows = rng.normal(size=(100, 64)).astype(np.float32)
    told = [larger(copy, start, 64, row) for row in rows]
    assert sum(which == UNSURE for which in told) < 5
    assert all(which in (UNSURE, (w @ row + b).argmax()) for which, row in zip(told, rows, strict=True))


def test_weights_too_large_to_subtract_are_left_to_the_exact_sums() -> None:
    layer = np.resize(np.array([-3e38, 3e38], np.float32), 130)
    assert larger(with_differences(layer), 0, 64, np.ones(64, np.float32)) == UNSURE
