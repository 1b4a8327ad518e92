"""A scorer of waiting requests inside the engine: shared weights for each request, pooled context, one score an action.

With x a request's entries of the documented observation and g the global ones, both through `symlog(x) = sign(x)·log(1 + |x|)`:

    embedding  e_q = tanh(W₂ tanh(W₁ x_q + b₁) + b₂)                of each request that lacks context in memory, once a batch
    context    c   = tanh(W₃ [g, mean of all e] + b₃)               before each decision
    scores     of picking q: e_q · (W₄ c + b₄)₁…H + (W₄ c + b₄)_{H+1}
               of launching (at each price), waiting and each prefill chunk: W₅ c + b₅

One that says for whom the server drafts embeds all requests; W₅ then has a row for each length of the server's drafts too, and W₄
H + 1 rows more, which give in the same way how much rather q's session is to be at the server: its score of moving there, and
with the other sign of moving back.

The valid action of the highest score is taken, the first among equals. The order of requests and their number enter only
through the mean, so neither matters by itself. Entries that change while a batch is composed (`request.MOVING`) are left out of x: what
they tell is in g, and an embedding holds for the whole batch.

Weights lie in one float32 vector: the eight numbers of Shape, then W₁, b₁, … W₅, b₅, each W
transposed, in row-major (in, out) order, as `wisp_gym.rules.mlp` wants it.

Legend: `scorer` the vector; `row` (n,) float32 entries; `values`, `out`, `seen`, `inputs` (n,) float32 before and
after symlog; `hidden` (H₁,), `embedding` (H,) and `context` (C,) float32; `embeddings` (H, Q) float32 of which the
first `n` requests count; `shape` Shape; `query` (queries·(H + 1),), `heads` (launches + 1 + chunks + lengths,) and `scores` (Q,) float32.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from wisp_gym.arrays import numbers
from wisp_gym.contract.ladders import SERVER_TOKENS
from wisp_gym.contract.request import MOVING
from wisp_gym.errors import InputError
from wisp_gym.jit import jit, jit_allocating
from wisp_gym.rules.activation import NONE, TANH
from wisp_gym.rules.mlp import layer

PARTS = ("hidden", "embedding", "context", "query", "heads")
HEADER = 8  # the numbers of Shape, in front of the weights
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
    lengths: int  # actions that choose the length of the server's drafts, 0 where others say for whom it drafts, and how long

    def layers(self) -> list[tuple[int, int]]:
        """(out, in) of each weight matrix, in the order of PARTS."""
        r, g, h, e, c, *others = self
        queries = 2 if self.lengths else 1  # of each request: to be picked, and to be at the server
        return [(h, r), (e, h), (c, g + e), (queries * (e + 1), c), (sum(others) + 1, c)]


def pack(shape: Shape, layers: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Pack (W, b) of each of PARTS into the engine's vector.

    Raises:
        ValueError: other shapes than `shape` asks for, widths above 256, weights that are not finite.
    """
    if len(layers) != len(PARTS) or not is_shape(shape):
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


def is_shape(sizes: Sequence[float]) -> bool:
    """Whether these may be the sizes of a scorer; the lengths alone may be none."""
    return all(0 <= size <= MAX_WIDTH and size == int(size) for size in sizes) and all(sizes[:-1])


def check(place: str, weights: Any, allowed: Sequence[Shape]) -> np.ndarray:
    """A packed scorer as compiled code takes it, which reads sizes and places from the vector itself.

    Args:
        place: what messages call it. weights: a vector of `pack`.
        allowed: its entries and actions must be those of one of these; widths are its own.

    Raises:
        InputError: no such vector.
    """
    vector = numbers(place, weights, np.float32, (None,))
    sizes = vector[:HEADER].tolist()
    if len(sizes) < HEADER or not is_shape(sizes):
        raise InputError(f"{place}: given {len(vector)} numbers that begin with no shape, allowed is what `pack` makes")
    shape = Shape(*map(int, sizes))
    length = HEADER + sum(n_out * (n_in + 1) for n_out, n_in in shape.layers())
    if len(vector) != length:
        raise InputError(f"{place}: given {len(vector)} numbers for {shape}, allowed are {length}")
    if shape._replace(hidden=1, embedding=1, context=1) not in allowed:
        raise InputError(f"{place}: given {shape}, allowed are with other widths {', '.join(map(str, allowed))}")
    return vector


@jit
def shape_of(scorer):
    """The Shape that a packed scorer begins with."""
    return Shape(
        int(scorer[0]), int(scorer[1]), int(scorer[2]), int(scorer[3]), int(scorer[4]), int(scorer[5]), int(scorer[6]),
        int(scorer[7]),
    )  # fmt: skip


@jit
def queries_of(shape):
    """What is asked of a request: to be picked, and where lengths are chosen to be at the server."""
    return 2 if shape.lengths > 0 else 1


@jit_allocating
def working_memory(scorer, n):
    """`embeddings`, `scores`, `inputs`, `context`, `query` and `heads` to decide in, with at most n requests."""
    shape = shape_of(scorer)
    heads = shape.launches + 1 + shape.chunks + shape.lengths
    return (
        np.empty((shape.embedding, n), np.float32), np.empty(n, np.float32), np.empty(shape.globals + shape.embedding, np.float32),
        np.empty(shape.context, np.float32), np.empty(queries_of(shape) * (shape.embedding + 1), np.float32), np.empty(heads, np.float32),
    )  # fmt: skip


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
    return third, fourth, fourth + queries_of(n) * (n.embedding + 1) * (n.context + 1)


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
def score_requests(query, asked, embeddings, n, scores):
    """Write the score of each of the first n requests; the inner loop runs along (H, Q) in parallel lanes.

    `asked`: 0 picking it, 1 its session's being at the server.
    """
    width = embeddings.shape[0]
    first = asked * (width + 1)
    for q in range(n):
        scores[q] = query[first + width]
    for k in range(width):
        weight = query[first + k]
        for q in range(n):
            scores[q] += weight * embeddings[k, q]


@jit_allocating
def best_head(shape, heads, empty, chunk_open, longest):
    """Valid action other than one of a request with the highest score: its place among the heads.

    `empty`: whether the batch is. `chunk_open`: whether a prefill chunk may be chosen. `longest`: of the lengths that may be
    chosen for the server's drafts, below 0 where none may.
    """
    launches, lengths = shape.launches, shape.launches + 1 + shape.chunks
    best = launches if empty else 0
    for k in range(len(heads)):
        if k <= launches:
            valid = empty if k == launches else not empty
        else:
            valid = chunk_open if k < lengths else SERVER_TOKENS[k - lengths] <= longest
        if valid and heads[k] > heads[best]:
            best = k
    return best
