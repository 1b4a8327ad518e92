"""Learned batching: responses in memory join; then a scorer picks among the others until it launches or waits.

Before, it may choose a prefill chunk, how many tokens the server drafts for its own sessions, and which sessions it drafts for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from wisp_gym.contract import request, server
from wisp_gym.contract.decisions import Decision
from wisp_gym.contract.ladders import CHUNK_TOKENS, PRICES, SERVER_TOKENS
from wisp_gym.serving.estimator import VerificationTimeEstimator
from wisp_gym.serving.scheduler.base import ServerLimits
from wisp_gym.serving.scheduler.factored import MOVING, NEVER, POSSIBLE, Floats
from wisp_gym.serving.scheduler.features import Queue, Server, matrix, scaling


class Scores(Protocol):
    """Scores of one batch's decisions: `factored.Factored`, or `asked.Asked` for a graph of another architecture.

    Attributes:
        sees_moves: whether a session's move changes what it scores next.
    """

    sees_moves: bool

    def open(self, may: NDArray[np.bool_]) -> None:
        """Say which of the (Q,) requests may be picked from now on."""

    def close(self, q: int) -> None:
        """Request q has joined."""

    def settle(self, places: Any = ...) -> None:
        """Sessions at these places of the queue have moved; without places: none can move."""

    def scores(self, moving: Sequence[float], batch: Picking) -> tuple[Floats, list[float], Floats]:
        """(Q,) scores of the picks, those of the actions of no request, (Q,) of the moves; NEVER of what may not be."""


class Actions(NamedTuple):
    """Actions of no request: launches, waiting, prefill chunks, lengths of the server's drafts."""

    launches: int
    lengths: int

    @property
    def first_length(self) -> int:
        """Place of the first length."""
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


class Picking:
    """One batch, decided request by request.

    Args:
        policy: makes `Scores` of the entries of (Q,) requests and of the server. decision: what it decides. queue, state: what waits,
            and what the server knows of itself. usable: (Q,) which requests may join. estimator: of batch times. limits: of the
            batch.
    """

    def __init__(
        self, policy: Callable[[Floats, Floats], Scores], decision: Decision, queue: Queue, state: Server, usable: NDArray[np.bool_],
        estimator: VerificationTimeEstimator, limits: ServerLimits,
    ):  # fmt: skip
        rows = matrix("requests", request.NAMES, queue, state)
        seen = matrix("globals", server.NAMES, queue, state)[0]
        if not (np.isfinite(rows).all() and np.isfinite(seen).all()):
            raise LookupError("a fact that the policy reads is missing")
        moving = [server.NAMES[entry] for entry in MOVING]
        self.scaling = scaling("globals", moving, state)[..., 0].T.tolist()
        self.policy, self.actions = policy(rows, seen), Actions(*decision)
        self.limits, self.state = limits, state
        self.hosted = queue.at_server
        self.ahead = state.draft.longest_tokens * queue.at_server
        self.drafts_for = ((queue.at_server == 1.0) & (queue.uncached == 0.0) & (queue.committed > 0.0)).tolist()
        if decision.lengths and state.draft.longest_tokens == 0:
            self.policy.settle()
        self.estimator, self.coefficients = estimator, estimator.coefficients.tolist()
        self.begin_below = limits.admit_share * state.kv_capacity
        self.prefill, self.deepest = float(queue.uncached.sum()), float(queue.uncached.max())
        self.uncached, self.cached, self.own = queue.uncached, queue.cached, queue.draft + 1.0
        self.deadline_s = np.where(queue.solo_s > queue.slack_s, math.inf, queue.slack_s).tolist()
        self.free, self.picked = usable.copy(), np.zeros(len(usable), np.bool_)
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
        self.policy.open(self.free & (self.take > 0.0))

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
            picks, heads, moves = self.policy.scores(self.sight(), self)
            q, score = self.best_pick(picks)
            other, best = self.best_other(heads)
            if self.actions.lengths and self.move(moves > max(score, best), moves):
                continue
            if q >= 0 and score >= best:
                self.add(q)
            else:
                self.act(other)
        return self.batch

    def move(self, above: NDArray[np.bool_], scores: Floats) -> bool:
        """Move sessions of (Q,) requests: all, or the best one where the policy sees what has moved; returns whether to ask again."""
        places = np.flatnonzero(above)
        if self.policy.sees_moves and len(places):
            places = places[[int(scores[places].argmax())]]
        self.batch.moves += places.tolist()
        self.policy.settle(places)
        return self.policy.sees_moves and len(places) > 0

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

    def sight(self) -> list[float]:
        """The server's entries that move, in the order of MOVING."""
        b, (launch, new_token, pair, cached_token) = self.batch, self.coefficients
        n, capacity = len(b.members), self.state.kv_capacity
        step_s, drafting_s = self.drafting_s()
        verify_s = launch + new_token * b.new + pair * b.pairs + cached_token * b.cached + self.estimator.level_s(b.new)
        predicted_s = verify_s + drafting_s if n else 0.0
        shares = (b.kv / capacity, b.chunk, float(self.chunk_is_open()), self.spoken_for() / capacity)
        own = (self.tokens_of_batch(), step_s, float(self.length_is_open()))
        quantities = zip((n, b.new, predicted_s, b.due_s, *shares, *own), self.scaling, strict=True)
        return [min(max(quantity / scale, low), high) for quantity, (scale, low, high) in quantities]

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
        begins = self.begins()
        if begins is not None:
            scores = np.where(begins, scores, NEVER)
        q = int(scores.argmax())
        score = float(scores[q])
        return (q, score) if score > POSSIBLE else (-1, -math.inf)

    def begins(self) -> NDArray[np.bool_] | None:
        """(Q,) which requests may begin, or have begun; None where new ones are not kept out (`ServerLimits.admit_share`)."""
        spoken_for = self.spoken_for()
        if self.begin_below <= 0.0 or spoken_for <= 0.0:
            return None
        return (self.cached > 0.0) | (spoken_for + self.uncached + self.own + self.ahead <= self.begin_below)

    def fits(self) -> NDArray[np.bool_]:
        """(Q,) which requests may join the batch so far, as the engine tells a policy (`compose.fits`)."""
        room = (self.take > 0.0) & (self.batch.kv + self.held <= self.state.kv_capacity) & ~self.picked
        begins = self.begins()
        full = len(self.batch.members) >= self.limits.requests
        return room & (not full) if begins is None else room & begins & (not full)

    def with_s(self) -> NDArray[np.float64]:
        """(Q,) predicted time of the batch so far with each request (`compose.predicted_with_s`)."""
        b, (launch, new_token, pair, cached_token) = self.batch, self.coefficients
        new, pairs = b.new + self.take, b.pairs + self.take * (self.cached + self.take)
        verify_s = (
            launch
            + new_token * new
            + pair * pairs
            + cached_token * (b.cached + self.cached)
            + self.estimator.level_s(new)
        )
        draft, tokens = self.state.draft, self.tokens_of_batch()
        drafts = np.array(self.drafts_for, float)
        drafting, context = b.drafting + drafts, b.context + drafts * (self.cached + 1.0)
        step_s = draft.launch_s + drafting * draft.sequence_s + draft.cached_token_s * context
        return np.asarray(verify_s + np.where((drafting > 0) & (tokens > 0), draft.overhead_s + tokens * step_s, 0.0))

    def best_other(self, heads: list[float]) -> tuple[int, float]:
        """The valid action other than a pick with the highest score."""
        launches, lengths = self.actions.launches, self.actions.first_length
        valid = list(range(launches)) if self.batch.members else [launches]
        if self.chunk_is_open():
            valid += range(launches + 1, lengths)
        if self.actions.lengths and self.length_is_open():
            valid += [
                lengths + k for k in range(self.actions.lengths) if SERVER_TOKENS[k] <= self.state.draft.longest_tokens
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
        self.free[q], self.picked[q] = False, True
        self.policy.close(q)
        if used > 0.0 and b.chunk < self.deepest:  # else everybody still fits as before
            self.fit()

    def act(self, other: int) -> None:
        """Launch at a price, wait, or choose a chunk or a length."""
        launches, lengths = self.actions.launches, self.actions.first_length
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
