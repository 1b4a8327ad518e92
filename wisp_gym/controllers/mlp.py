"""A small multilayer perceptron inside the engine: a learned policy runs at full speed.

Weights lie in one float32 vector: [inputs, outputs, activation, layers, width₁ … widthₗ, W₁, b₁, …, W_out, b_out], each W
transposed, in row-major (in, out) order: a layer then adds column after column to all its outputs at once, which compilers
vectorise without changing the order of any sum. Activation 0 is tanh, 1 is ReLU.
"""

from __future__ import annotations

import math

import numpy as np

from wisp_gym.engine.jit import jit_allocating

TANH, RELU = 0, 1
HEADER = 4
MAX_WIDTH = 1024
MAX_LAYERS = 8


def pack(layers: list[tuple[np.ndarray, np.ndarray]], activation: str = "tanh") -> np.ndarray:
    """Pack (W, b) of each layer, the output layer last, into the engine's vector.

    Args:
        layers: W of shape (out, in), b of shape (out,); float32.
        activation: "tanh" or "relu", applied after every layer but the last.

    Raises:
        ValueError: shapes that do not chain, widths above 1,024 or more than 8 hidden layers, weights that are not
            finite, an unknown activation.
    """
    if activation not in ("tanh", "relu"):
        raise ValueError(f"activation: given {activation!r}, allowed are 'tanh' and 'relu'")
    if not 1 <= len(layers) <= MAX_LAYERS + 1:
        raise ValueError(f"layers: given {len(layers)}, allowed are 1 to {MAX_LAYERS + 1}")
    widths = [w.shape[0] for w, _ in layers]
    inputs = [layers[0][0].shape[1], *widths[:-1]]
    for index, ((w, b), n) in enumerate(zip(layers, inputs, strict=True)):
        if w.ndim != 2 or w.shape[1] != n or b.shape != (w.shape[0],) or max(w.shape) > MAX_WIDTH:
            raise ValueError(
                f"layer {index}: weights {w.shape}, bias {b.shape} do not follow a width of {n} (at most {MAX_WIDTH})"
            )
        if not (np.isfinite(w).all() and np.isfinite(b).all()):
            raise ValueError(f"layer {index}: weights must be finite numbers")
    header = [inputs[0], widths[-1], TANH if activation == "tanh" else RELU, len(layers) - 1, *widths[:-1]]
    flat = [np.asarray(header, dtype=np.float32)]
    for w, b in layers:
        flat += [np.asarray(w, dtype=np.float32).T.ravel(), np.asarray(b, dtype=np.float32)]
    return np.concatenate(flat)


@jit_allocating
def layer(policy, offset, n_in, n_out, values, out):
    """out = W·values + b; returns the offset behind the layer's weights."""
    bias = offset + n_in * n_out
    for row in range(n_out):
        out[row] = policy[bias + row]
    for column in range(n_in):
        value = values[column]
        start = offset + column * n_out
        for row in range(n_out):
            out[row] += policy[start + row] * value
    return bias + n_out


@jit_allocating
def logits(policy, observation, out):
    """Write the policy's outputs for an observation into `out`; returns their number."""
    n_out, activation, hidden = int(policy[1]), int(policy[2]), int(policy[3])
    width = int(policy[0])
    values = observation
    offset = HEADER + hidden
    for index in range(hidden):
        n = int(policy[HEADER + index])
        following = np.empty(n, dtype=np.float32)
        offset = layer(policy, offset, width, n, values, following)
        for k in range(n):
            following[k] = math.tanh(following[k]) if activation == TANH else max(following[k], np.float32(0.0))
        values = following
        width = n
    layer(policy, offset, width, n_out, values, out)
    return n_out


@jit_allocating
def argmax_action(policy, observation):
    """Index of the largest output (the first among equals)."""
    out = np.empty(int(policy[1]), dtype=np.float32)
    n = logits(policy, observation, out)
    best = 0
    for k in range(1, n):
        if out[k] > out[best]:
            best = k
    return best
