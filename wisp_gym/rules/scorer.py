"""A scorer of waiting requests inside the engine: shared weights for each request, pooled context, one score an action.

With x a request's entries of the documented observation and g the global ones, both through `symlog(x) = sign(x)·log(1 + |x|)`:

    embedding  e_q = tanh(W₂ tanh(W₁ x_q + b₁) + b₂)                of each request that lacks context in memory, once a batch
    context    c   = tanh(W₃ [g, mean of all e] + b₃)               before each decision
    scores     of picking q: e_q · (W₄ c + b₄)₁…H + (W₄ c + b₄)_{H+1}
               of launching (at each price), waiting and each prefill chunk: W₅ c + b₅

The valid action of the highest score is taken, the first among equals. The order of requests and their number enter only
through the mean, so neither matters by itself. Entries that change while a batch is composed (`request.MOVING`) are left out of x: what
they tell is in g, and an embedding holds for the whole batch.

Weights lie in one float32 vector: the seven numbers of Shape, then W₁, b₁, … W₅, b₅, each W
transposed, in row-major (in, out) order, as `wisp_gym.rules.mlp` wants it.

Legend: `scorer` the vector; `row` (n,) float32 entries; `values`, `out`, `seen`, `inputs` (n,) float32 before and
after symlog; `hidden` (H₁,), `embedding` (H,) and `context` (C,) float32; `embeddings` (H, Q) float32 of which the
first `n` requests count; `query` (H + 1,), `heads` (launches + 1 + chunks,) and `scores` (Q,) float32.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from wisp_gym.arrays import numbers
from wisp_gym.contract.request import MOVING
from wisp_gym.errors import InputError
from wisp_gym.jit import jit, jit_allocating
from wisp_gym.rules.activation import NONE, TANH
from wisp_gym.rules.mlp import layer

PARTS = ("hidden", "embedding", "context", "query", "heads")
HEADER = 7  # the numbers of Shape, in front of the weights
MAX_WIDTH = 256


class Shape(NamedTuple):
    """Sizes of a scorer, by name."""

    requests: int  # entries of a request
    globals: int  # global entries
    hidden: int  # H₁
    embedding: int  # H
    context: int  # C
    launches: int  # launch actions: one, or one for each price
    chunks: int  # actions that choose a prefill chunk

    def layers(self) -> list[tuple[int, int]]:
        """(out, in) of each weight matrix, in the order of PARTS."""
        r, g, h, e, c, launches, chunks = self
        return [(h, r), (e, h), (c, g + e), (e + 1, c), (launches + 1 + chunks, c)]


def pack(shape: Shape, layers: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Pack (W, b) of each of PARTS into the engine's vector.

    Raises:
        ValueError: other shapes than `shape` asks for, widths above 256, weights that are not finite.
    """
    if len(layers) != len(PARTS) or not all(1 <= width <= MAX_WIDTH for width in shape):
        allowed = f"{len(PARTS)} of widths up to {MAX_WIDTH}"
        raise ValueError(f"layers: given {len(layers)} for {shape}, allowed are {allowed}")
    flat = [np.asarray(shape, np.float32)]
    for part, (w, b), (n_out, n_in) in zip(PARTS, layers, shape.layers(), strict=True):
        if w.shape != (n_out, n_in) or b.shape != (n_out,):
            allowed = f"({n_out}, {n_in}) and ({n_out},)"
            raise ValueError(f"{part}: given weights {w.shape} and bias {b.shape}, allowed are {allowed}")
        if not (np.isfinite(w).all() and np.isfinite(b).all()):
            raise ValueError(f"{part}: weights must be finite numbers")
        flat += [np.asarray(w, np.float32).T.ravel(), np.asarray(b, np.float32)]
    return np.concatenate(flat)


def check(place: str, weights: Any, allowed: Shape, launches: tuple[int, ...]) -> np.ndarray:
    """A packed scorer as compiled code takes it, which reads sizes and places from the vector itself.

    Args:
        place: what messages call it. weights: a vector of `pack`.
        allowed: its entries and chunks must be these; widths and launches are its own. launches: what these may be.

    Raises:
        InputError: no such vector.
    """
    vector = numbers(place, weights, np.float32, (None,))
    sizes = vector[:HEADER].tolist()
    if len(sizes) < HEADER or not all(1 <= size <= MAX_WIDTH and size == int(size) for size in sizes):
        raise InputError(f"{place}: given {len(vector)} numbers that begin with no shape, allowed is what `pack` makes")
    shape = Shape(*map(int, sizes))
    length = HEADER + sum(n_out * (n_in + 1) for n_out, n_in in shape.layers())
    if len(vector) != length:
        raise InputError(f"{place}: given {len(vector)} numbers for {shape}, allowed are {length}")
    if (
        shape.launches not in launches
        or shape._replace(requests=allowed.requests, globals=allowed.globals, chunks=allowed.chunks) != shape
    ):
        raise InputError(
            f"{place}: given {shape}, allowed are the entries and chunks of {allowed}, launches of {launches}"
        )
    return vector


@jit
def shape_of(scorer):
    """The Shape that a packed scorer begins with."""
    return Shape(
        int(scorer[0]), int(scorer[1]), int(scorer[2]), int(scorer[3]), int(scorer[4]), int(scorer[5]), int(scorer[6])
    )


@jit_allocating
def symlog(values, out):
    """out = sign(x)·log(1 + |x|) of each value."""
    for k in range(len(values)):
        size = np.float32(math.log1p(abs(values[k])))
        out[k] = size if values[k] >= 0.0 else -size


@jit_allocating
def keep_still(row):
    """Take out of a request's entries what changes while a batch is composed."""
    for entry in MOVING:
        row[entry] = 0.0


@jit_allocating
def offsets_of(scorer):
    """Places of the third, fourth and fifth layer's weights."""
    n = shape_of(scorer)
    third = HEADER + n.hidden * (n.requests + 1) + n.embedding * (n.hidden + 1)
    fourth = third + n.context * (n.globals + n.embedding + 1)
    return third, fourth, fourth + (n.embedding + 1) * (n.context + 1)


@jit_allocating
def embed(scorer, row, seen, hidden, embedding):
    """Write the `embedding` of a request, without what moves; `seen` and `hidden` are working memory."""
    symlog(row, seen)
    n = shape_of(scorer)
    offset = layer(scorer, HEADER, n.requests, n.hidden, seen, hidden, TANH)
    layer(scorer, offset, n.hidden, n.embedding, hidden, embedding, TANH)


@jit_allocating
def pool(embeddings, n, inputs, start):
    """Write the mean of the first n of (H, Q) embeddings into `inputs` from `start` on (zeros where nobody waits)."""
    for k in range(embeddings.shape[0]):
        total = np.float32(0.0)
        for q in range(n):
            total += embeddings[k, q]
        inputs[start + k] = total / np.float32(max(n, 1))


@jit_allocating
def score_context(scorer, row, inputs, context, query, heads):
    """Write the query for requests and the scores of the other actions: `query` and `heads`.

    `row`: (globals,) entries. `inputs`: (globals + H,) whose tail holds the pooled embeddings. `context`: working memory.
    """
    symlog(row, inputs)
    third, fourth, fifth = offsets_of(scorer)
    layer(scorer, third, len(inputs), len(context), inputs, context, TANH)
    layer(scorer, fourth, len(context), len(query), context, query, NONE)
    layer(scorer, fifth, len(context), len(heads), context, heads, NONE)


@jit_allocating
def score_requests(query, embeddings, n, scores):
    """Write the score of picking each of the first n requests; the inner loop runs along (H, Q) in parallel lanes."""
    width = embeddings.shape[0]
    for q in range(n):
        scores[q] = query[width]
    for k in range(width):
        weight = query[k]
        for q in range(n):
            scores[q] += weight * embeddings[k, q]


@jit_allocating
def best_head(heads, launches, empty, chunk_open):
    """Valid action other than a pick with the highest score: its place among the heads, (launches + 1 + chunks,).

    `launches`: launch actions. `empty`: whether the batch is. `chunk_open`: whether a prefill chunk may be chosen.
    """
    best = launches if empty else 0
    for k in range(len(heads)):
        valid = (not empty) if k < launches else (empty if k == launches else chunk_open)
        if valid and heads[k] > heads[best]:
            best = k
    return best
