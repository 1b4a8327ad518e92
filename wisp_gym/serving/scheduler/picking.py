"""Learned batching: responses in memory join; then a scorer picks among the others until it launches, waits or chooses a chunk.

The scorer is that of `wisp_gym.rules.scorer`: embeddings of the requests once a batch, then before each decision a context, from
which the scores of all actions follow linearly. So one product of a matrix, made once a batch, with the context decides. The
bundle's graph is one such decision; `check_scorer` holds both equal when a bundle is loaded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wisp_gym.contract import request, server
from wisp_gym.contract.ladders import CHUNK_TOKENS, PRICES
from wisp_gym.contract.request import ADMISSIBLE, UNCACHED_TOKENS
from wisp_gym.contract.server import BATCH_REQUESTS, CHUNK_OPEN
from wisp_gym.serving.scheduler.base import ServerLimits
from wisp_gym.serving.scheduler.features import Queue, Server, matrix, scaling

# Tensors of the graph by name, with their shapes in widths: r request entries, g global ones, h, e, c of the scorer, a actions.
TENSORS = {
    "hidden.weight": "hr", "hidden.bias": "h", "embedding.weight": "eh", "embedding.bias": "e", "context.globals": "cg", "context.pooled": "ce",
    "context.bias": "c", "query.weight": "ec", "query.bias": "e", "offset.weight": "1c", "offset.bias": "1", "heads.weight": "ac", "heads.bias": "a",
}  # fmt: skip
STILL = np.array([entry not in request.MOVING for entry in range(request.SIZE)], np.float32)
MOVING = [
    server.BATCH_REQUESTS, server.BATCH_TOKENS, server.BATCH_TIME, server.BATCH_SLACK, server.BATCH_MEMORY, server.CHUNK_LEFT,
    server.CHUNK_OPEN, server.MEMORY_SPOKEN_FOR,
]  # fmt: skip
NEVER, POSSIBLE = np.float32(-1e30), np.float32(-1e29)  # score of what may not be done, and what lies below all others
TRIED = 8.0  # a scorer is checked with entries up to this size


Floats = NDArray[np.float32]


class Scorer(NamedTuple):
    """A scorer's tensors by name, and how many launch actions (prices) it has."""

    tensors: dict[str, Floats]
    launches: int


@dataclass
class Composition:
    """A batch while it is composed. Sums are of the four-term prediction; `ends` says why it ended: "launch" or "wait"."""

    members: list[int]
    taken: list[int]
    new: float = 0.0
    pairs: float = 0.0
    cached: float = 0.0
    kv: float = 0.0
    chunk: float = math.inf
    settled: bool = False  # the prefill chunk: chosen, or used
    due_s: float = math.inf
    missing: float = 0.0
    price: float | None = None
    ends: str = ""


def symlog(x: Floats) -> Floats:
    """sign(x)·log(1 + |x|)."""
    return np.asarray(np.copysign(np.log1p(np.abs(x)), x))


def launches_of(decision: str) -> int:
    """Launch actions of a decision: one, or one for each price."""
    return len(PRICES) if decision == "joint" else 1


def prepare(scorer: Scorer, requests: Floats, seen: Floats) -> tuple[Floats, ...]:
    """(scores' matrix (Q + a, C), their offsets (Q + a,), context (C,) without what moves, its (C, moving) weights).

    Raises:
        ValueError: weights so large that one of them is no finite number.
    """
    t = scorer.tensors
    embedded = np.tanh(symlog(requests * STILL) @ t["hidden.weight"].T + t["hidden.bias"])
    embedded = np.tanh(embedded @ t["embedding.weight"].T + t["embedding.bias"])
    still = symlog(seen)
    still[MOVING] = 0.0
    lacking = requests[:, UNCACHED_TOKENS] > 0.0  # these alone are pooled, and picked
    pooled = embedded[lacking].sum(axis=0) / np.float32(max(lacking.sum(), 1))
    base = t["context.globals"] @ still + t["context.pooled"] @ pooled + t["context.bias"]
    rows = np.concatenate([embedded @ t["query.weight"] + t["offset.weight"], t["heads.weight"]])
    offsets = np.concatenate([embedded @ t["query.bias"] + t["offset.bias"], t["heads.bias"]])
    if not all(np.isfinite(values).all() for values in (rows, offsets, base)):
        raise ValueError("the policy's scores are no finite numbers")
    return np.ascontiguousarray(rows), offsets, base, np.ascontiguousarray(t["context.globals"][:, MOVING])


class Picking:
    """One batch, decided request by request.

    Args:
        scorer: the policy. queue, state: what waits, and what the server knows of itself. usable: (Q,) which requests may join.
        coefficients: (4,) of the estimator. limits: of the batch.
    """

    def __init__(
        self, scorer: Scorer, queue: Queue, state: Server, usable: NDArray[np.bool_], coefficients: NDArray[np.float64],
        limits: ServerLimits,
    ):  # fmt: skip
        rows = matrix("requests", request.NAMES, queue, state)
        seen = matrix("globals", server.NAMES, queue, state)[0]
        if not (np.isfinite(rows).all() and np.isfinite(seen).all()):
            raise LookupError("a fact that the policy reads is missing")
        moving = [server.NAMES[entry] for entry in MOVING]
        self.scaling = scaling("globals", moving, state)[..., 0].T.tolist()
        scores, self.offsets, self.base, self.moving = prepare(scorer, rows, seen)
        self.matrix = np.column_stack([scores, self.offsets])  # the last column meets a 1; NEVER there keeps one out
        self.context = np.ones(len(self.base) + 1, np.float32)
        self.n, self.launches, self.limits, self.state = len(usable), scorer.launches, limits, state
        self.coefficients, self.begin_below = coefficients.tolist(), limits.admit_share * state.kv_capacity
        self.prefill, self.deepest = float(queue.uncached.sum()), float(queue.uncached.max())
        self.uncached, self.cached, self.own = queue.uncached, queue.cached, queue.draft + 1.0
        self.deadline_s = np.where(queue.solo_s > queue.slack_s, math.inf, queue.slack_s).tolist()
        self.free = usable.copy()
        chunk = float(limits.prefill_tokens) if limits.prefill_tokens > 0 else math.inf
        self.batch = Composition([], [], chunk=chunk, missing=float(queue.uncached[queue.cached > 0].sum()))
        self.fit()
        self.join()

    def fit(self) -> None:
        """What each request would run with the chunk as it stands, and which may join as far as that goes."""
        chunk = self.batch.chunk
        self.take = np.where(self.uncached <= chunk, self.uncached + self.own, chunk)
        self.held = self.limits.held(self.cached + self.take)
        self.largest = float(self.held.max(initial=0.0))
        self.matrix[: self.n, -1] = np.where(self.free & (self.take > 0.0), self.offsets[: self.n], NEVER)

    def join(self) -> None:
        """Responses in memory join in order of arrival, as far as memory and the batch limit allow (`compose.join_responses`)."""
        for q in np.flatnonzero(self.free & (self.uncached == 0.0)).tolist():
            full = len(self.batch.members) >= self.limits.requests
            if not full and self.batch.kv + self.held[q] <= self.state.kv_capacity:
                self.add(q)
        self.free &= self.uncached > 0.0
        self.fit()

    def run(self) -> Composition:
        """Decide until the batch is launched, or not to launch one."""
        while not self.batch.ends:
            np.tanh(self.base + self.moving @ self.sight(), out=self.context[:-1])
            scores = self.matrix @ self.context
            q, score = self.best_pick(scores[: self.n])
            other, best = self.best_other(scores[self.n :].tolist())
            if q >= 0 and score >= best:
                self.add(q)
            else:
                self.act(other)
        return self.batch

    def sight(self) -> Floats:
        """Symlog of the entries that move, in the order of MOVING."""
        b, (launch, new_token, pair, cached_token) = self.batch, self.coefficients
        n, capacity = len(b.members), self.state.kv_capacity
        predicted_s = launch + new_token * b.new + pair * b.pairs + cached_token * b.cached if n else 0.0
        spoken_for = self.state.kv_used + b.new + b.missing
        shares = (b.kv / capacity, b.chunk, float(self.chunk_is_open()), spoken_for / capacity)
        quantities = zip((n, b.new, predicted_s, b.due_s, *shares), self.scaling, strict=True)
        sizes = [min(max(quantity / scale, low), high) for quantity, (scale, low, high) in quantities]
        return np.array([math.copysign(math.log1p(abs(size)), size) for size in sizes], np.float32)

    def chunk_is_open(self) -> bool:
        """Whether a prefill chunk may be chosen: once, before a member has used it, where a waiting request lacks context."""
        return not self.batch.settled and self.prefill > 0.0

    def best_pick(self, scores: Floats) -> tuple[int, float]:
        """Place and score of the best request that fits; −1 where none does."""
        if len(self.batch.members) >= self.limits.requests:
            return -1, -math.inf
        if self.batch.kv + self.largest > self.state.kv_capacity:  # only then may memory keep one out
            scores = np.where(self.batch.kv + self.held <= self.state.kv_capacity, scores, NEVER)
        spoken_for = self.state.kv_used + self.batch.new + self.batch.missing
        if self.begin_below > 0.0 and spoken_for > 0.0:
            begins = (self.cached > 0.0) | (spoken_for + self.uncached + self.own <= self.begin_below)
            scores = np.where(begins, scores, NEVER)
        q = int(scores.argmax())
        score = float(scores[q])
        return (q, score) if score > POSSIBLE else (-1, -math.inf)

    def best_other(self, heads: list[float]) -> tuple[int, float]:
        """The valid action other than a pick with the highest score."""
        empty, launches = not self.batch.members, self.launches
        valid = [launches] if empty else list(range(launches))
        if self.chunk_is_open():
            valid += range(launches + 1, len(heads))
        best = max(valid, key=heads.__getitem__)
        return best, heads[best]

    def add(self, q: int) -> None:
        """Request q joins (`compose.add`)."""
        b, take, uncached, cached = self.batch, float(self.take[q]), float(self.uncached[q]), float(self.cached[q])
        used = uncached if uncached <= b.chunk else take
        b.chunk -= used
        b.settled = b.settled or uncached > 0.0
        b.missing += uncached - used if cached == 0.0 else -used
        b.members.append(q)
        b.taken.append(int(take))
        b.new, b.pairs = b.new + take, b.pairs + take * (cached + take)
        b.cached, b.kv = b.cached + cached, b.kv + float(self.held[q])
        b.due_s = min(b.due_s, self.deadline_s[q])
        self.free[q] = False
        self.matrix[q, -1] = NEVER
        if used > 0.0 and b.chunk < self.deepest:  # else everybody still fits as before
            self.fit()

    def act(self, other: int) -> None:
        """Launch at a price, wait, or choose a chunk."""
        if other > self.launches:
            self.batch.settled, self.batch.chunk = True, float(CHUNK_TOKENS[other - self.launches - 1])
            self.fit()
        elif other == self.launches:
            self.batch.ends = "wait"
        else:
            self.batch.ends = "launch"
            self.batch.price = PRICES[other] if self.launches > 1 else None


def check_scorer(scorer: Scorer, decide: Any) -> None:
    """The graph must decide as its tensors say.

    Raises:
        ValueError: a tensor is missing, of another shape or far too large, or the graph decides otherwise.
    """
    sizes: dict[str, int] = {"r": request.SIZE, "g": server.SIZE, "1": 1, "a": scorer.launches + 1 + len(CHUNK_TOKENS)}
    for name, letters in TENSORS.items():
        shape = scorer.tensors[name].shape if name in scorer.tensors else ()
        if len(shape) != len(letters) or any(sizes.setdefault(a, n) != n for a, n in zip(letters, shape, strict=True)):
            raise ValueError(f"tensor {name!r}: given shape {shape}, allowed is that of a scorer ({letters}: {sizes})")
    rng = np.random.default_rng(0)
    for trial in range(8):
        requests, seen = (
            rng.uniform(np.maximum(table.LOW, -TRIED), np.minimum(table.HIGH, TRIED), (n, table.SIZE))
            for table, n in ((request, 5), (server, 1))
        )
        requests[: trial % 6, UNCACHED_TOKENS] = 0.0
        requests[:, ADMISSIBLE], seen[0, BATCH_REQUESTS], seen[0, CHUNK_OPEN] = 1.0, trial % 2, (trial // 2) % 2
        with np.errstate(all="ignore"):  # what overflows is told by its result
            check_decision(scorer, decide, requests.astype(np.float32), seen.astype(np.float32))


def check_decision(scorer: Scorer, decide: Any, requests: Floats, seen: Floats) -> None:
    """One decision of the graph against the tensors'."""
    rows, offsets, base, moving = prepare(scorer, requests, seen[0])
    scores = rows @ np.tanh(base + moving @ symlog(seen[0])[MOVING]) + offsets
    picks = np.where(requests[:, UNCACHED_TOKENS] > 0.0, scores[: len(requests)], NEVER)
    pick, takes, other = decide({"requests": requests, "globals": seen})
    empty, heads = seen[0, BATCH_REQUESTS] == 0.0, scores[len(requests) :]
    places = np.arange(len(heads))
    others = np.where(places == scorer.launches, empty, seen[0, CHUNK_OPEN] > 0.5)
    valid = np.where(places < scorer.launches, not empty, others)
    best = int(np.where(valid, heads, NEVER).argmax())
    given = (int(pick[0]), bool(takes[0]), int(other[0]))
    wanted = int(picks.argmax())
    if given != (wanted, bool(picks[wanted] >= heads[best]), best):
        raise ValueError("the graph decides otherwise than its tensors")
