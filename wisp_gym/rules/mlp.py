"""A small multilayer perceptron inside the engine: a learned policy runs at full speed.

Weights lie in one float32 vector: [inputs, outputs, activation, layers, width₁ … widthₗ, W₁, b₁, …, W_out, b_out], each W
transposed, in row-major (in, out) order: a layer then adds column after column to all its outputs at once, which compilers
vectorise without changing the order of any sum. Activation 0 is tanh, 1 is ReLU.

Legend: `policy` the vector; `values`, `out`, `observation` (n,) float32 of one layer; `n_in`, `n_out` widths and
`offset` place of a layer's weights; `even`, `odd` (MAX_WIDTH,) float32 working memory.
"""

from itertools import pairwise
from typing import Any

import numpy as np

from wisp_gym.arrays import numbers
from wisp_gym.errors import InputError, shown
from wisp_gym.jit import INTEGER, SINGLES, jit, on_demand
from wisp_gym.rules.activation import NONE, RELU, TANH
from wisp_gym.rules.dense import MAX_WIDTH, dense, working_memory
from wisp_gym.rules.larger import UNSURE, differences, larger

N_IN, N_OUT, ACTIVATION, N_HIDDEN, HEADER = range(5)  # places in the vector; from HEADER on the widths
MAX_LAYERS = 8
LINE = 16  # numbers of a line of the cache, 64 bytes


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


def laid_out(policy: np.ndarray) -> np.ndarray:
    """A copy that decides alike in less time: without the last inputs where they count for nothing, its first layer on a line, and with
    the differences of two outputs' weights behind it.

    A policy that knows fewer entries than are observed today has weights of zero for the rest. Numbers that are read as a
    vector of half a line lie on one line of the cache each, where all widths are multiples of LINE.
    """
    hidden, n_in = int(policy[N_HIDDEN]), int(policy[N_IN])
    start, width = HEADER + hidden, int(policy[HEADER if hidden else N_OUT])
    columns = policy[start : start + n_in * width].reshape(n_in, width)
    used = 1 + int(np.flatnonzero(columns.any(axis=1)).max(initial=0))
    parts = [policy[:start], columns[:used].ravel(), policy[start + n_in * width :]]
    if policy[N_OUT] == 2:
        inputs = int(policy[start - 1]) if hidden else used
        last = np.concatenate(parts)[-2 * (inputs + 1) :].reshape(inputs + 1, 2)
        parts.append(differences(last[:-1], last[-1]))
    length = sum(map(len, parts))
    room = np.empty(length + LINE, dtype=np.float32)
    begin = -(room.ctypes.data // room.itemsize + start) % LINE
    copy = np.concatenate(parts, out=room[begin : begin + length])
    copy[N_IN] = used
    return copy


@jit
def layer(policy, offset, n_in, n_out, values, out, activation):
    """out = f(W·values + b), f being an `activation`; returns the offset behind the layer's weights."""
    dense(policy, offset, n_in, n_out, values, out, activation)
    return offset + n_in * n_out + n_out


@jit
def last_hidden(policy, observation, even, odd):
    """What the last layer is given: its weights' offset, its inputs and their number. Layers write into `even` and `odd` in turn."""
    activation, hidden, width = int(policy[ACTIVATION]), int(policy[N_HIDDEN]), int(policy[N_IN])
    values, offset = observation, HEADER + hidden
    for index in range(hidden):
        n = int(policy[HEADER + index])
        offset = layer(policy, offset, width, n, values, even, activation)
        values, even, odd = even, odd, even
        width = n
    return offset, values, width


@jit
def logits(policy, observation, out):
    """Write the policy's outputs for an observation into `out`; returns their number."""
    offset, values, width = last_hidden(policy, observation, working_memory(), working_memory())
    layer(policy, offset, width, int(policy[N_OUT]), values, out, NONE)
    return int(policy[N_OUT])


@on_demand(lambda: INTEGER(SINGLES, SINGLES))
def argmax_action(policy, observation):
    """Index of the largest output (the first among equals)."""
    n = int(policy[N_OUT])
    offset, values, width = last_hidden(policy, observation, working_memory(), working_memory())
    if n == 2:
        surely = larger(policy, offset, width, values)
        if surely != UNSURE:
            return surely
    out = working_memory()
    layer(policy, offset, width, n, values, out, NONE)
    best = 0
    for k in range(1, n):
        if out[k] > out[best]:
            best = k
    return best
