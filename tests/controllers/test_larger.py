"""The larger of two outputs is that of the exact sums, or is left to them; a policy laid out for the engine decides alike."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wisp_gym.contract import device as o
from wisp_gym.rules.activation import NONE
from wisp_gym.rules.dense import dense
from wisp_gym.rules.larger import UNSURE, larger
from wisp_gym.rules.mlp import LINE, N_IN, argmax_action, laid_out, logits, pack


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
    out = np.empty(2, np.float32)
    dense(weights, start, n_in, 2, values, out, NONE)
    assert larger(weights, start, n_in, values) in (UNSURE, int(out[1] > out[0]))


def test_it_is_sure_of_nearly_all_and_of_no_tie() -> None:
    rng = np.random.default_rng(0)
    weights = rng.normal(size=130).astype(np.float32)
    rows = rng.normal(size=(1000, 64)).astype(np.float32)
    assert sum(larger(weights, 0, 64, row) == UNSURE for row in rows) < 5
    weights[1::2] = weights[::2]
    assert all(larger(weights, 0, 64, row) == UNSURE for row in rows)
    assert larger(weights, 0, 63, rows[0]) == UNSURE  # a width that no vector of 64 divides
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
    first = len(copy) - sum((a + 1) * b for a, b in zip([known, *widths], widths, strict=False))
    assert copy[first:].ctypes.data % (LINE * copy.itemsize) == 0
    outputs = np.empty((2, widths[-1]), np.float32)
    for row in rng.uniform(o.LOW, o.HIGH, (300, o.SIZE)).astype(np.float32):
        assert logits(policy, row, outputs[0]) == logits(copy, row, outputs[1])
        assert outputs[0].tobytes() == outputs[1].tobytes()
        assert argmax_action(policy, row) == argmax_action(copy, row) == outputs[0].argmax()
