"""A small multilayer perceptron inside the engine: a learned policy runs at full speed.

Weights lie in one float32 vector: [inputs, outputs, activation, layers, width₁ … widthₗ, W₁, b₁, …, W_out, b_out], each W
transposed, in row-major (in, out) order: a layer then adds column after column to all its outputs at once, which compilers
vectorise without changing the order of any sum. Activation 0 is tanh, 1 is ReLU.

Legend: `policy` the vector; `values`, `out`, `observation` (n,) float32 of one layer; `n_in`, `n_out` widths and
`offset` place of a layer's weights.
"""

from itertools import pairwise
from typing import Any

import numpy as np

from wisp_gym.arrays import numbers
from wisp_gym.errors import InputError, shown
from wisp_gym.jit import INTEGER, SINGLES, jit, on_demand
from wisp_gym.rules.activation import NONE, RELU, TANH
from wisp_gym.rules.dense import MAX_WIDTH, dense, working_memory

N_IN, N_OUT, ACTIVATION, N_HIDDEN, HEADER = range(5)  # places in the vector; from HEADER on the widths
MAX_LAYERS = 8


def layers_of(layers: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """`layers`, which must be pairs of arrays of numbers.

    Raises:
        InputError: they are not.
    """
    if not isinstance(layers, list | tuple):
        raise InputError(f"layers: given {shown(layers)}, allowed is a list of (weights, bias)")
    pairs = list(layers)
    for index, pair in enumerate(pairs):
        arrays = pair if isinstance(pair, tuple | list) else ()
        if len(arrays) != 2 or not all(isinstance(a, np.ndarray) and a.dtype.kind in "iuf" for a in arrays):
            raise InputError(f"layer {index}: given {shown(pair)}, allowed are weights and a bias, arrays of numbers")
    return pairs


def pack(layers: list[tuple[np.ndarray, np.ndarray]], activation: str = "tanh") -> np.ndarray:
    """Pack (W, b) of each layer, the output layer last, into the engine's vector.

    Args:
        layers: W of shape (out, in), b of shape (out,); float32.
        activation: "tanh" or "relu", applied after every layer but the last.

    Raises:
        ValueError: shapes that do not chain, widths above 1,024 or more than 8 hidden layers, weights that are not
            finite, an unknown activation.
    """
    layers = layers_of(layers)
    if not isinstance(activation, str) or activation not in ("tanh", "relu"):
        raise ValueError(f"activation: given {shown(activation)}, allowed are 'tanh' and 'relu'")
    if not 1 <= len(layers) <= MAX_LAYERS + 1:
        raise ValueError(f"layers: given {len(layers)}, allowed are 1 to {MAX_LAYERS + 1}")
    widths = [w.shape[0] for w, _ in layers]
    inputs = [layers[0][0].shape[1], *widths[:-1]]
    for index, ((w, b), n) in enumerate(zip(layers, inputs, strict=True)):
        if w.ndim != 2 or w.shape[1] != n or b.shape != (w.shape[0],) or max(w.shape) > MAX_WIDTH:
            reason = f"do not follow a width of {n} (at most {MAX_WIDTH})"
            raise ValueError(f"layer {index}: weights {w.shape}, bias {b.shape} {reason}")
        if not (np.isfinite(w).all() and np.isfinite(b).all()):
            raise ValueError(f"layer {index}: weights must be finite numbers")
    header = [inputs[0], widths[-1], TANH if activation == "tanh" else RELU, len(layers) - 1, *widths[:-1]]
    flat = [np.asarray(header, dtype=np.float32)]
    for w, b in layers:
        flat += [np.asarray(w, dtype=np.float32).T.ravel(), np.asarray(b, dtype=np.float32)]
    return np.concatenate(flat)


def check(place: str, weights: Any, n_in: int, n_out: tuple[int, int]) -> np.ndarray:
    """A packed network as compiled code takes it, which reads sizes and places from the vector itself.

    Args:
        place: what messages call it. weights: a vector of `pack`.
        n_in: inputs that it must have. n_out: fewest and most outputs that it may have.

    Raises:
        InputError: no such vector.
    """
    vector = numbers(place, weights, np.float32, (None,))
    header = vector[:HEADER]
    if len(header) < HEADER or not 0 <= header[N_HIDDEN] <= MAX_LAYERS or header[ACTIVATION] not in (TANH, RELU):
        raise InputError(
            f"{place}: given {len(vector)} numbers that begin with no network, allowed is what `pack` makes"
        )
    hidden = int(header[N_HIDDEN])
    widths = [header[N_IN], *vector[HEADER : HEADER + hidden], header[N_OUT]]
    if len(widths) < hidden + 2 or not all(1 <= n <= MAX_WIDTH and n == int(n) for n in widths):
        raise InputError(f"{place}: given widths {widths}, allowed are whole numbers from 1 to {MAX_WIDTH}")
    sizes = [int(n) for n in widths]
    length = HEADER + hidden + sum((a + 1) * b for a, b in pairwise(sizes))
    if len(vector) != length:
        raise InputError(f"{place}: given {len(vector)} numbers for a network of widths {sizes}, allowed are {length}")
    if sizes[0] != n_in or not n_out[0] <= sizes[-1] <= n_out[1]:
        allowed = f"{n_in} and {' to '.join(map(str, dict.fromkeys(n_out)))}"
        raise InputError(f"{place}: given {sizes[0]} inputs and {sizes[-1]} outputs, allowed are {allowed}")
    return vector


@jit
def layer(policy, offset, n_in, n_out, values, out, activation):
    """out = f(W·values + b), f being an `activation`; returns the offset behind the layer's weights."""
    dense(policy, offset, n_in, n_out, values, out, activation)
    return offset + n_in * n_out + n_out


@jit
def logits(policy, observation, out):
    """Write the policy's outputs for an observation into `out`; returns their number."""
    n_out, activation, hidden = int(policy[N_OUT]), int(policy[ACTIVATION]), int(policy[N_HIDDEN])
    width = int(policy[N_IN])
    values, following, spare = observation, working_memory(), working_memory()
    offset = HEADER + hidden
    for index in range(hidden):
        n = int(policy[HEADER + index])
        offset = layer(policy, offset, width, n, values, following, activation)
        values, following, spare = following, spare, following
        width = n
    layer(policy, offset, width, n_out, values, out, NONE)
    return n_out


@on_demand(lambda: INTEGER(SINGLES, SINGLES))
def argmax_action(policy, observation):
    """Index of the largest output (the first among equals)."""
    out = working_memory()
    n = logits(policy, observation, out)
    best = 0
    for k in range(1, n):
        if out[k] > out[best]:
            best = k
    return best
