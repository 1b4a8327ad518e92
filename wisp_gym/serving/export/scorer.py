"""A batching scorer as an ONNX graph: one decision, from the queue and the batch so far to the request that is picked or what else is done.

The formulas of `wisp_gym.rules.scorer`, with the masks of `wisp_gym/Batching-v1` inside: a pick must be admissible and lack
context in memory (the others join by themselves), a launch needs a member, waiting needs none, a chunk may be chosen only while
`chunk_open`, a length of the server's drafts while `length_open` and up to the longest; sessions move that are `movable`.
"""

import numpy as np

from wisp_gym.contract import request, server
from wisp_gym.contract.decisions import OF_SERVERS
from wisp_gym.contract.ladders import CHUNK_TOKENS, SERVER_TOKENS
from wisp_gym.serving.export.graph import FLOAT, Graph, Layers
from wisp_gym.serving.scheduler.factored import NEVER, POSSIBLE, STILL

ABOVE_ALL = 2.0  # what no share reaches


def named(g: Graph, layers: Layers) -> None:
    """The weights as tensors with names, as `factored.TENSORS` lists them."""
    (w1, b1), (w2, b2), (w3, b3), (w4, b4), (w5, b5) = layers
    entries, width = server.SIZE, len(b2)
    parts = {
        "hidden.weight": w1, "hidden.bias": b1, "embedding.weight": w2, "embedding.bias": b2, "context.globals": w3[:, :entries],
        "context.pooled": w3[:, entries:], "context.bias": b3, "query.weight": w4[:width], "query.bias": b4[:width],
        "offset.weight": w4[width : width + 1], "offset.bias": b4[width : width + 1], "heads.weight": w5, "heads.bias": b5,
    }  # fmt: skip
    if len(b4) > width + 1:
        w4, b4 = w4[width + 1 :], b4[width + 1 :]
        parts |= {
            "stays.weight": w4[:width], "stays.bias": b4[:width], "stays_offset.weight": w4[width:], "stays_offset.bias": b4[width:],
        }  # fmt: skip
    for name, value in parts.items():
        g.tensor(name, np.ascontiguousarray(value))


def symlog(g: Graph, value: str) -> str:
    """sign(x)·log(1 + |x|)."""
    size = g.op("Log", g.op("Add", g.op("Abs", value), g.constant([[1.0]], np.float32)))
    return g.op("Mul", g.op("Sign", value), size)


def linear(g: Graph, value: str, weight: str, bias: str) -> str:
    """value·Wᵀ + b."""
    return g.op("Gemm", value, weight, bias, transB=1)


def embed(g: Graph, requests: str) -> str:
    """(Q, H) embeddings of the requests."""
    still = symlog(g, g.op("Mul", requests, g.constant([STILL], np.float32)))
    hidden = g.op("Tanh", linear(g, still, "hidden.weight", "hidden.bias"))
    return g.op("Tanh", linear(g, hidden, "embedding.weight", "embedding.bias"))


def lacking(g: Graph, requests: str) -> str:
    """(Q, 1) bool: requests that lack context in memory."""
    return g.op("Less", g.constant([[0.0]], np.float32), g.column(requests, request.UNCACHED_TOKENS))


def present(g: Graph, requests: str) -> str:
    """(Q, 1) bool: places that hold a request."""
    return is_set(g, requests, request.PRESENT)


def is_set(g: Graph, rows: str, entry: int) -> str:
    """(Q, 1) or (1, 1) bool: whether a flag is."""
    return g.op("Less", g.constant([[0.5]], np.float32), g.column(rows, entry))


def context_of(g: Graph, pooled_over: str, seen: str, embedded: str) -> str:
    """(1, C) context of the decision; `pooled_over` are (Q, 1) bool."""
    pooling, rows = g.cast(pooled_over, FLOAT), g.constant([0], np.int64)
    number = g.op("Max", g.op("ReduceSum", pooling, rows, keepdims=1), g.constant([[1.0]], np.float32))
    pooled = g.op("Div", g.op("ReduceSum", g.op("Mul", embedded, pooling), rows, keepdims=1), number)
    globals_part = linear(g, symlog(g, seen), "context.globals", "context.bias")
    return g.op("Tanh", g.op("Add", globals_part, g.op("Gemm", pooled, "context.pooled", transB=1)))


def asked(g: Graph, embedded: str, context: str, query: str, offset: str) -> str:
    """(Q, 1) scores of a question about each request."""
    weights = linear(g, context, f"{query}.weight", f"{query}.bias")
    return g.op(
        "Add", g.op("Gemm", embedded, weights, transB=1), linear(g, context, f"{offset}.weight", f"{offset}.bias")
    )


def picks(g: Graph, requests: str, embedded: str, context: str) -> str:
    """(Q, 1) scores of picking each request; NEVER where it may not be picked."""
    valid = g.op("And", is_set(g, requests, request.ADMISSIBLE), lacking(g, requests))
    scores = asked(g, embedded, context, "query", "offset")
    return g.op("Where", valid, scores, g.constant([[NEVER]], np.float32))


def moves(g: Graph, requests: str, embedded: str, context: str) -> str:
    """(Q, 1) scores of moving each session; NEVER where it may not be moved."""
    scores = asked(g, embedded, context, "stays", "stays_offset")
    scores = g.op("Where", is_set(g, requests, request.STAYS), g.op("Neg", scores), scores)
    return g.op("Where", is_set(g, requests, request.MOVABLE), scores, g.constant([[NEVER]], np.float32))


def others(g: Graph, seen: str, context: str, decision: str, max_draft_tokens: int) -> str:
    """(1, actions) scores of what else can be done; NEVER where it is not valid."""
    launches, n_lengths = OF_SERVERS[decision]
    first = launches + 1 + len(CHUNK_TOKENS)  # length
    places = np.arange(first + n_lengths)[None]
    empty = g.op("Less", g.column(seen, server.BATCH_REQUESTS), g.constant([[1e-6]], np.float32))
    launch = g.op("And", g.op("Not", empty), g.constant(places < launches, np.bool_))
    wait = g.op("And", empty, g.constant(places == launches, np.bool_))
    chunk = g.op(
        "And", is_set(g, seen, server.CHUNK_OPEN), g.constant((places > launches) & (places < first), np.bool_)
    )
    valid = g.op("Or", g.op("Or", launch, wait), chunk)
    if n_lengths:
        needed = np.concatenate([np.full(first, ABOVE_ALL), (np.array(SERVER_TOKENS) - 0.5) / max_draft_tokens])
        short = g.op("Less", g.constant(needed[None], np.float32), g.column(seen, server.LONGEST))
        valid = g.op("Or", valid, g.op("And", is_set(g, seen, server.LENGTH_OPEN), short))
    return g.op("Where", valid, linear(g, context, "heads.weight", "heads.bias"), g.constant([[NEVER]], np.float32))


def scorer_graph(layers: Layers, decision: str, max_draft_tokens: int) -> Graph:
    """The graph of a scorer's layers for a decision of `contract.decisions`, its cap K beside."""
    g = Graph()
    named(g, layers)
    requests = g.within("requests", list(request.LOW), list(request.HIGH))
    seen = g.within("globals", list(server.LOW), list(server.HIGH))
    hosts, embedded = OF_SERVERS[decision].lengths > 0, embed(g, requests)
    context = context_of(g, (present if hosts else lacking)(g, requests), seen, embedded)
    scores, heads = picks(g, requests, embedded, context), others(g, seen, context, decision, max_draft_tokens)
    g.op("ArgMax", scores, axis=0, keepdims=0, output="pick")
    g.op("ArgMax", heads, axis=1, keepdims=0, output="other")
    best = g.op("ReduceMax", scores, g.constant([0], np.int64), keepdims=0)
    rival = g.op("ReduceMax", heads, g.constant([1], np.int64), keepdims=0)
    may = g.op("Less", g.constant([POSSIBLE], np.float32), best)
    g.op("And", may, g.op("LessOrEqual", rival, best), output="takes")
    if hosts:
        above = g.op("Less", g.op("Max", best, rival), moves(g, requests, embedded, context))
        g.op("Squeeze", above, g.constant([1], np.int64), output="moves")
    return g
