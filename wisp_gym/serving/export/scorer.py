"""A batching scorer as an ONNX graph: one decision, from the queue and the batch so far to the request that is picked or what else is done.

The formulas of `wisp_gym.rules.scorer`, with the masks of `wisp_gym/Batching-v1` inside: a pick must be admissible and lack
context in memory (the others join by themselves), a launch needs a member, waiting needs none, a chunk may be chosen only while `chunk_open`.
"""

import numpy as np

from wisp_gym.contract import request, server
from wisp_gym.contract.ladders import CHUNK_TOKENS
from wisp_gym.serving.export.graph import FLOAT, Graph, Layers
from wisp_gym.serving.scheduler.picking import NEVER, POSSIBLE, STILL, launches_of


def named(g: Graph, layers: Layers) -> None:
    """The weights as tensors with names, as `picking.TENSORS` lists them."""
    (w1, b1), (w2, b2), (w3, b3), (w4, b4), (w5, b5) = layers
    entries = server.SIZE
    parts = {
        "hidden.weight": w1, "hidden.bias": b1, "embedding.weight": w2, "embedding.bias": b2, "context.globals": w3[:, :entries],
        "context.pooled": w3[:, entries:], "context.bias": b3, "query.weight": w4[:-1], "query.bias": b4[:-1], "offset.weight": w4[-1:],
        "offset.bias": b4[-1:], "heads.weight": w5, "heads.bias": b5,
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


def context_of(g: Graph, requests: str, seen: str, embedded: str) -> str:
    """(1, C) context of the decision."""
    pooling, rows = g.cast(lacking(g, requests), FLOAT), g.constant([0], np.int64)
    number = g.op("Max", g.op("ReduceSum", pooling, rows, keepdims=1), g.constant([[1.0]], np.float32))
    pooled = g.op("Div", g.op("ReduceSum", g.op("Mul", embedded, pooling), rows, keepdims=1), number)
    globals_part = linear(g, symlog(g, seen), "context.globals", "context.bias")
    return g.op("Tanh", g.op("Add", globals_part, g.op("Gemm", pooled, "context.pooled", transB=1)))


def picks(g: Graph, requests: str, embedded: str, context: str) -> str:
    """(Q, 1) scores of picking each request; NEVER where it may not be picked."""
    query = linear(g, context, "query.weight", "query.bias")
    scores = g.op("Add", g.op("Gemm", embedded, query, transB=1), linear(g, context, "offset.weight", "offset.bias"))
    admissible = g.op("Less", g.constant([[0.5]], np.float32), g.column(requests, request.ADMISSIBLE))
    return g.op("Where", g.op("And", admissible, lacking(g, requests)), scores, g.constant([[NEVER]], np.float32))


def others(g: Graph, seen: str, context: str, launches: int) -> str:
    """(1, actions) scores of what else can be done; NEVER where it is not valid."""
    places = np.arange(launches + 1 + len(CHUNK_TOKENS))[None]
    empty = g.op("Less", g.column(seen, server.BATCH_REQUESTS), g.constant([[1e-6]], np.float32))
    is_open = g.op("Less", g.constant([[0.5]], np.float32), g.column(seen, server.CHUNK_OPEN))
    launch = g.op("And", g.op("Not", empty), g.constant(places < launches, np.bool_))
    wait = g.op("And", empty, g.constant(places == launches, np.bool_))
    chunk = g.op("And", is_open, g.constant(places > launches, np.bool_))
    valid = g.op("Or", g.op("Or", launch, wait), chunk)
    return g.op("Where", valid, linear(g, context, "heads.weight", "heads.bias"), g.constant([[NEVER]], np.float32))


def scorer_graph(layers: Layers, decision: str) -> Graph:
    """The graph of a scorer's layers for "batching" or "joint"."""
    g = Graph()
    named(g, layers)
    requests = g.within("requests", list(request.LOW), list(request.HIGH))
    seen = g.within("globals", list(server.LOW), list(server.HIGH))
    embedded = embed(g, requests)
    context = context_of(g, requests, seen, embedded)
    scores, heads = picks(g, requests, embedded, context), others(g, seen, context, launches_of(decision))
    g.op("ArgMax", scores, axis=0, keepdims=0, output="pick")
    g.op("ArgMax", heads, axis=1, keepdims=0, output="other")
    best = g.op("ReduceMax", scores, g.constant([0], np.int64), keepdims=0)
    rival = g.op("ReduceMax", heads, g.constant([1], np.int64), keepdims=0)
    may = g.op("Less", g.constant([POSSIBLE], np.float32), best)
    g.op("And", may, g.op("LessOrEqual", rival, best), output="takes")
    return g
