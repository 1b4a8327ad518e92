"""Learned batching: responses in memory join; then a scorer picks among the others until it launches or waits.

Before, it may choose a prefill chunk, how many tokens the server drafts for its own sessions, and which sessions it drafts for.

The scorer is that of `wisp_gym.rules.scorer`: embeddings of the requests once a batch, then before each decision a context, from
which the scores of all actions follow linearly. So one product of a matrix, made once a batch, with the context decides. The
bundle's graph is one such decision; `check_scorer` holds both equal when a bundle is loaded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wisp_gym.contract import request, server
from wisp_gym.contract.ladders import CHUNK_TOKENS, PRICES, SERVER_TOKENS
from wisp_gym.contract.request import ADMISSIBLE, MOVABLE, PRESENT, STAYS, UNCACHED_TOKENS
from wisp_gym.contract.server import BATCH_REQUESTS, CHUNK_OPEN, LENGTH_OPEN, LONGEST
from wisp_gym.serving.estimator import VerificationTimeEstimator
from wisp_gym.serving.scheduler.base import ServerLimits
from wisp_gym.serving.scheduler.features import Queue, Server, matrix, scaling

# Tensors of the graph by name, with their shapes in widths: r request entries, g global ones, h, e, c of the scorer, a actions of
# no request; and those of one that says for whom the server drafts.
TENSORS = {
    "hidden.weight": "hr", "hidden.bias": "h", "embedding.weight": "eh", "embedding.bias": "e", "context.globals": "cg", "context.pooled": "ce",
    "context.bias": "c", "query.weight": "ec", "query.bias": "e", "offset.weight": "1c", "offset.bias": "1", "heads.weight": "ac", "heads.bias": "a",
}  # fmt: skip
OF_HOSTING = {"stays.weight": "ec", "stays.bias": "e", "stays_offset.weight": "1c", "stays_offset.bias": "1"}
STILL = np.array([entry not in request.MOVING for entry in range(request.SIZE)], np.float32)
MOVING = [
    server.BATCH_REQUESTS, server.BATCH_TOKENS, server.BATCH_TIME, server.BATCH_SLACK, server.BATCH_MEMORY, server.CHUNK_LEFT,
    server.CHUNK_OPEN, server.MEMORY_SPOKEN_FOR, server.DRAFT_TOKENS, server.DRAFT_STEP, server.LENGTH_OPEN,
]  # fmt: skip
NEVER, POSSIBLE = np.float32(-1e30), np.float32(-1e29)  # score of what may not be done, and what lies below all others
TRIED = 8.0  # a scorer is checked with entries up to this size


Floats = NDArray[np.float32]


class Scorer(NamedTuple):
    """A scorer's tensors by name, how many launch actions (prices) and lengths it has (`contract.decisions`), and K."""

    tensors: dict[str, Floats]
    launches: int
    lengths: int
    max_draft_tokens: int

    @property
    def first_length(self) -> int:
        """Place of the first length among the actions of no request."""
        return self.launches + 1 + len(CHUNK_TOKENS)


@dataclass
class Composition:
    """A batch while it is composed. Sums are of the four-term prediction; `ends` says why it ended: "launch" or "wait".

    Of members for whom the server drafts: `ahead` places kept in memory, `drafting` how many can be drafted for, `context` of
    those in tokens. `length`: chosen for them; None leaves it to the server's own rule. `moves`: places whose session moves.
    """

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
    ahead: float = 0.0
    drafting: int = 0
    context: float = 0.0
    length: int | None = None
    moves: list[int] = field(default_factory=list)


def symlog(x: Floats) -> Floats:
    """sign(x)·log(1 + |x|)."""
    return np.asarray(np.copysign(np.log1p(np.abs(x)), x))


def asked(embedded: Floats, t: dict[str, Floats], query: str, offset: str) -> tuple[Floats, Floats]:
    """(Q, C) and (Q,): scores of a question about each request, linear in the context."""
    rows = embedded @ t[f"{query}.weight"] + t[f"{offset}.weight"]
    return rows, embedded @ t[f"{query}.bias"] + t[f"{offset}.bias"]


def prepare(scorer: Scorer, requests: Floats, seen: Floats) -> tuple[Floats, ...]:
    """(scores' matrix (n, C), their offsets (n,), context (C,) without what moves, its (C, moving) weights).

    The scores are those of the Q picks, of the actions of no request, and of one that hosts of the Q moves.

    Raises:
        ValueError: weights so large that one of them is no finite number.
    """
    t = scorer.tensors
    embedded = np.tanh(symlog(requests * STILL) @ t["hidden.weight"].T + t["hidden.bias"])
    embedded = np.tanh(embedded @ t["embedding.weight"].T + t["embedding.bias"])
    still = symlog(seen)
    still[MOVING] = 0.0
    pooled_over = requests[:, UNCACHED_TOKENS] > 0.0 if scorer.lengths == 0 else requests[:, PRESENT] > 0.5
    pooled = embedded[pooled_over].sum(axis=0) / np.float32(max(pooled_over.sum(), 1))
    base = t["context.globals"] @ still + t["context.pooled"] @ pooled + t["context.bias"]
    parts = [asked(embedded, t, "query", "offset"), (t["heads.weight"], t["heads.bias"])]
    if scorer.lengths:
        rows, offsets = asked(embedded, t, "stays", "stays_offset")
        back = 1.0 - 2.0 * requests[:, STAYS]  # −1 of those who would move back
        parts.append((rows * back[:, None], offsets * back))
    rows, offsets = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    if not all(np.isfinite(values).all() for values in (rows, offsets, base)):
        raise ValueError("the policy's scores are no finite numbers")
    return np.ascontiguousarray(rows), offsets, base, np.ascontiguousarray(t["context.globals"][:, MOVING])


class Picking:
    """One batch, decided request by request.

    Args:
        scorer: the policy. queue, state: what waits, and what the server knows of itself. usable: (Q,) which requests may join.
        estimator: of batch times. limits: of the batch.
    """

    def __init__(
        self, scorer: Scorer, queue: Queue, state: Server, usable: NDArray[np.bool_], estimator: VerificationTimeEstimator,
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
        self.n, self.scorer, self.limits, self.state = len(usable), scorer, limits, state
        self.heads = scorer.first_length + scorer.lengths
        self.hosted = queue.at_server
        self.ahead = state.draft.longest_tokens * queue.at_server
        self.drafts_for = ((queue.at_server == 1.0) & (queue.uncached == 0.0) & (queue.committed > 0.0)).tolist()
        if scorer.lengths and state.draft.longest_tokens == 0:  # nobody can be moved
            self.matrix[self.n + self.heads :, -1] = NEVER
        self.estimator, self.coefficients = estimator, estimator.coefficients.tolist()
        self.begin_below = limits.admit_share * state.kv_capacity
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
        self.held = self.limits.held(self.cached + self.take + self.ahead)
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
            other, best = self.best_other(scores[self.n : self.n + self.heads].tolist())
            if self.scorer.lengths:
                self.move(scores[self.n + self.heads :] > max(score, best))
            if q >= 0 and score >= best:
                self.add(q)
            else:
                self.act(other)
        return self.batch

    def move(self, above: NDArray[np.bool_]) -> None:
        """Move the sessions of (Q,) requests; nothing of it changes what is seen of the others."""
        places = np.flatnonzero(above)
        self.batch.moves += places.tolist()
        self.matrix[self.n + self.heads + places, -1] = NEVER

    def drafting_s(self) -> tuple[float, float]:
        """Predicted time of one draft step of the members so far, and of all that the server drafts for them."""
        b, draft = self.batch, self.state.draft
        if not b.drafting:
            return 0.0, 0.0
        tokens, step_s = self.tokens_of_batch(), draft.step_s(b.drafting, b.context)
        return step_s, draft.overhead_s + tokens * step_s if tokens else 0.0

    def tokens_of_batch(self) -> int:
        """Tokens that the server drafts for each of its sessions; before they are chosen, in the last batch."""
        return self.state.server_tokens if self.batch.length is None else self.batch.length

    def length_is_open(self) -> bool:
        """Whether the length may be chosen: once, where the server drafts for anybody."""
        return self.batch.length is None and self.state.draft.longest_tokens > 0 and bool(self.hosted.any())

    def sight(self) -> Floats:
        """Symlog of the entries that move, in the order of MOVING."""
        b, (launch, new_token, pair, cached_token) = self.batch, self.coefficients
        n, capacity = len(b.members), self.state.kv_capacity
        step_s, drafting_s = self.drafting_s()
        verify_s = launch + new_token * b.new + pair * b.pairs + cached_token * b.cached + self.estimator.level_s(b.new)
        predicted_s = verify_s + drafting_s if n else 0.0
        shares = (b.kv / capacity, b.chunk, float(self.chunk_is_open()), self.spoken_for() / capacity)
        own = (self.tokens_of_batch(), step_s, float(self.length_is_open()))
        quantities = zip((n, b.new, predicted_s, b.due_s, *shares, *own), self.scaling, strict=True)
        sizes = [min(max(quantity / scale, low), high) for quantity, (scale, low, high) in quantities]
        return np.array([math.copysign(math.log1p(abs(size)), size) for size in sizes], np.float32)

    def spoken_for(self) -> float:
        """Memory in use, added by the batch so far, and that prompts begun still lack (`compose.spoken_for`)."""
        return self.state.kv_used + self.batch.new + self.batch.ahead + self.batch.missing

    def chunk_is_open(self) -> bool:
        """Whether a prefill chunk may be chosen: once, before a member has used it, where a waiting request lacks context."""
        return not self.batch.settled and self.prefill > 0.0

    def best_pick(self, scores: Floats) -> tuple[int, float]:
        """Place and score of the best request that fits; −1 where none does."""
        if len(self.batch.members) >= self.limits.requests:
            return -1, -math.inf
        if self.batch.kv + self.largest > self.state.kv_capacity:  # only then may memory keep one out
            scores = np.where(self.batch.kv + self.held <= self.state.kv_capacity, scores, NEVER)
        spoken_for = self.spoken_for()
        if self.begin_below > 0.0 and spoken_for > 0.0:
            begins = (self.cached > 0.0) | (spoken_for + self.uncached + self.own + self.ahead <= self.begin_below)
            scores = np.where(begins, scores, NEVER)
        q = int(scores.argmax())
        score = float(scores[q])
        return (q, score) if score > POSSIBLE else (-1, -math.inf)

    def best_other(self, heads: list[float]) -> tuple[int, float]:
        """The valid action other than a pick with the highest score."""
        launches, lengths = self.scorer.launches, self.scorer.first_length
        valid = list(range(launches)) if self.batch.members else [launches]
        if self.chunk_is_open():
            valid += range(launches + 1, lengths)
        if self.scorer.lengths and self.length_is_open():
            valid += [
                lengths + k for k in range(self.scorer.lengths) if SERVER_TOKENS[k] <= self.state.draft.longest_tokens
            ]
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
        b.ahead += float(self.ahead[q])
        if self.drafts_for[q]:
            b.drafting += 1
            b.context += cached + 1.0
        b.due_s = min(b.due_s, self.deadline_s[q])
        self.free[q] = False
        self.matrix[q, -1] = NEVER
        if used > 0.0 and b.chunk < self.deepest:  # else everybody still fits as before
            self.fit()

    def act(self, other: int) -> None:
        """Launch at a price, wait, or choose a chunk or a length."""
        launches, lengths = self.scorer.launches, self.scorer.first_length
        if other >= lengths:
            self.batch.length = SERVER_TOKENS[other - lengths]
        elif other > launches:
            self.batch.settled, self.batch.chunk = True, float(CHUNK_TOKENS[other - launches - 1])
            self.fit()
        elif other == launches:
            self.batch.ends = "wait"
        else:
            self.batch.ends = "launch"
            self.batch.price = PRICES[other] if launches > 1 else None


def check_scorer(scorer: Scorer, decide: Any) -> None:
    """The graph must decide as its tensors say.

    Raises:
        ValueError: a tensor is missing, of another shape or far too large, or the graph decides otherwise.
    """
    sizes: dict[str, int] = {"r": request.SIZE, "g": server.SIZE, "1": 1, "a": scorer.first_length + scorer.lengths}
    for name, letters in (TENSORS | (OF_HOSTING if scorer.lengths else {})).items():
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
        requests[:, PRESENT] = requests[:, ADMISSIBLE] = 1.0
        requests[:, STAYS], requests[:, MOVABLE] = rng.integers(0, 2, (2, 5))
        seen[0, BATCH_REQUESTS], seen[0, CHUNK_OPEN], seen[0, LENGTH_OPEN] = trial % 2, (trial // 2) % 2, trial // 4
        with np.errstate(all="ignore"):  # what overflows is told by its result
            check_decision(scorer, decide, requests.astype(np.float32), seen.astype(np.float32))


def check_decision(scorer: Scorer, decide: Any, requests: Floats, seen: Floats) -> None:
    """One decision of the graph against the tensors'."""
    rows, offsets, base, moving = prepare(scorer, requests, seen[0])
    scores = rows @ np.tanh(base + moving @ symlog(seen[0])[MOVING]) + offsets
    picks = np.where(requests[:, UNCACHED_TOKENS] > 0.0, scores[: len(requests)], NEVER)
    pick, takes, other, *moves = decide({"requests": requests, "globals": seen})
    n_heads = scorer.first_length + scorer.lengths
    heads = np.where(valid_heads(scorer, seen[0]), scores[len(requests) :][:n_heads], NEVER)
    wanted, best = int(picks.argmax()), int(heads.argmax())
    above = scores[len(requests) + n_heads :] > max(picks[wanted], heads[best])
    decided = (
        wanted,
        bool(picks[wanted] >= heads[best]),
        best,
        *([(above & (requests[:, MOVABLE] > 0.5)).tolist()] if moves else []),
    )
    if decided != (int(pick[0]), bool(takes[0]), int(other[0]), *(each.tolist() for each in moves)):
        raise ValueError("the graph decides otherwise than its tensors")


def valid_heads(scorer: Scorer, seen: Floats) -> NDArray[np.bool_]:
    """(a,) which actions of no request may be taken, as (globals,) entries tell."""
    empty, longest = (
        seen[BATCH_REQUESTS] == 0.0,
        seen[LONGEST] * scorer.max_draft_tokens + 0.5 if seen[LENGTH_OPEN] > 0.5 else -1.0,
    )
    lengths = [tokens < longest for tokens in SERVER_TOKENS[: scorer.lengths]]
    return np.array(
        [not empty] * scorer.launches + [empty] + [seen[CHUNK_OPEN] > 0.5] * len(CHUNK_TOKENS) + lengths, np.bool_
    )
