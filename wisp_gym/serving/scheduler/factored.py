"""A scorer whose scores follow from one product of a matrix, made once a batch, with a context, made before each decision.

It is that of `wisp_gym.rules.scorer`: embeddings of the requests once a batch, then before each decision a context, from which the
scores of all actions follow linearly. The bundle's graph is one such decision; `check_scorer` holds both equal when it is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wisp_gym.contract import request, server
from wisp_gym.contract.ladders import CHUNK_TOKENS, SERVER_TOKENS
from wisp_gym.contract.request import ADMISSIBLE, MOVABLE, PRESENT, STAYS, UNCACHED_TOKENS
from wisp_gym.contract.server import BATCH_REQUESTS, CHUNK_OPEN, LENGTH_OPEN, LONGEST

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

    def layers(self) -> list[tuple[Floats, Floats]]:
        """(W, b) of its parts, as `wisp_gym.rules.scorer` has them."""
        t = self.tensors
        query = [
            (t[f"{name}.weight"], t[f"{name}.bias"])
            for name in ("query", "offset", *(("stays", "stays_offset") if self.lengths else ()))
        ]
        stacked = np.concatenate([w for w, _ in query]), np.concatenate([b for _, b in query])
        context = np.concatenate([t["context.globals"], t["context.pooled"]], axis=1)
        plain = {name: (t[f"{name}.weight"], t[f"{name}.bias"]) for name in ("hidden", "embedding", "heads")}
        return [plain["hidden"], plain["embedding"], (context, t["context.bias"]), stacked, plain["heads"]]


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


class Factored:
    """The scores of one batch's decisions.

    Args:
        scorer: the policy. rows, seen: (Q, request.SIZE) and (server.SIZE,) entries before the first member.
    """

    sees_moves = False  # nothing of it is in what it embeds

    def __init__(self, scorer: Scorer, rows: Floats, seen: Floats):
        scores, self.offsets, self.base, self.moving = prepare(scorer, rows, seen)
        self.matrix = np.column_stack([scores, self.offsets])  # the last column meets a 1; NEVER there keeps one out
        self.context = np.ones(len(self.base) + 1, np.float32)
        self.n, self.first_move = len(rows), len(rows) + scorer.first_length + scorer.lengths

    def open(self, may: NDArray[np.bool_]) -> None:
        """Say which of the (Q,) requests may be picked from now on."""
        self.matrix[: self.n, -1] = np.where(may, self.offsets[: self.n], NEVER)

    def close(self, q: int) -> None:
        """Request q has joined."""
        self.matrix[q, -1] = NEVER

    def settle(self, places: Any = None) -> None:
        """Sessions at these places of the queue have moved; without places: none can move."""
        self.matrix[self.first_move :, -1][slice(None) if places is None else places] = NEVER

    def scores(self, moving: Sequence[float], batch: Any) -> tuple[Floats, list[float], Floats]:
        """(Q,) scores of the picks, NEVER of those that may not be, those of the actions of no request, (Q,) of the moves.

        Args:
            moving: entries of the server in the order of MOVING. batch: not read; requests are embedded as they waited.
        """
        sizes = np.array([math.copysign(math.log1p(abs(size)), size) for size in moving], np.float32)
        np.tanh(self.base + self.moving @ sizes, out=self.context[:-1])
        scores = self.matrix @ self.context
        return scores[: self.n], scores[self.n : self.first_move].tolist(), scores[self.first_move :]


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
