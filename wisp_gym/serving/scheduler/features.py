"""What a batching policy may be shown of the queue: features by name, computed for all waiting requests at once.

The features are the entries of `wisp_gym.contract.server` and `request`, before a batch's first member; a bundle names those
that it reads. T is the mean batch time, K the cap on drafted tokens.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wisp_gym.contract.ladders import PATIENCE_S, STARVED_TOKENS_PER_S
from wisp_gym.contract.tables import TABLES
from wisp_gym.serving.bundle.schema import MOST_DRAFT_TOKENS
from wisp_gym.serving.estimator import VerificationTimeEstimator


@dataclass(frozen=True, slots=True)
class Request:
    """A request that waits at the server: a round to verify, or a prompt.

    Attributes:
        name: whatever the server calls it. arrived_s: clock time of its arrival.
        deadline_s: clock time by which its verification must be complete.
        context_tokens: prompt and output so far, ≥ 1. cached_tokens: those whose keys and values are in memory (the last one never is).
        draft_tokens: drafted tokens to verify. expected_tokens: expected tokens committed, as the device reported.
        slo_tokens_per_s: speed of its service class, > 0.
        requested_s: clock time at which the device made the request that the round belongs to. committed_tokens: output so far.
        due_s: clock time at which the response's next token must leave to be on time. These three are read by learned policies
            alone (NaN: not known).
        at_server: whether the server drafts for its session. stays: whether it will after this round, as things stand.
        gain_tokens_per_s: tokens per second that the session is expected to gain there. use: share of the server's time that it would
            cost there beyond its device's rounds. These four are read by policies that say for whom the server drafts
            (docs/model/who-drafts.md has the formulas).
    """

    name: Any
    arrived_s: float
    deadline_s: float
    context_tokens: int
    cached_tokens: int
    draft_tokens: int
    expected_tokens: float = 1.0
    slo_tokens_per_s: float = 1.0
    requested_s: float = math.nan
    committed_tokens: float = math.nan
    due_s: float = math.nan
    at_server: bool = False
    stays: bool = False
    gain_tokens_per_s: float = 0.0
    use: float = 0.0

    @property
    def uncached_tokens(self) -> int:
        """Context to compute besides its last token, which is always run."""
        return self.context_tokens - 1 - self.cached_tokens

    @property
    def new_tokens(self) -> int:
        """Tokens that the model must run for all of it: uncached context, the last token, the draft."""
        return self.context_tokens - self.cached_tokens + self.draft_tokens


FACTS = (
    "arrived_s", "deadline_s", "context_tokens", "cached_tokens", "draft_tokens", "expected_tokens", "slo_tokens_per_s", "requested_s",
    "committed_tokens", "due_s", "at_server", "stays", "gain_tokens_per_s", "use",
)  # fmt: skip
ARRIVED, DEADLINE, CONTEXT, CACHED, DRAFT, EXPECTED, SLO, REQUESTED, COMMITTED, DUE, AT_SERVER, STAYS, GAIN, USE = (
    range(len(FACTS))
)
NEEDED = REQUESTED  # the facts before this one are needed by every rule
LOW = np.array([-1e12, -1e12, 1, 0, 0, 0, 1e-6, -1e12, 0, -1e12, 0, 0, -1e9, -1e9])
HIGH = np.array([1e12, 1e12, 1e9, 1e9, 1e4, 1e4, 1e6, 1e12, 1e9, 1e12, 1, 1, 1e9, 1e9])
read_facts = attrgetter(*FACTS)


class Queue(NamedTuple):
    """Facts of the waiting requests and what follows from them, each (Q,) float64 of seconds or tokens."""

    waiting_s: NDArray[np.float64]
    slack_s: NDArray[np.float64]
    uncached: NDArray[np.float64]
    new: NDArray[np.float64]
    cached: NDArray[np.float64]
    draft: NDArray[np.float64]
    expected: NDArray[np.float64]
    slo: NDArray[np.float64]
    marginal_s: NDArray[np.float64]
    solo_s: NDArray[np.float64]
    age_s: NDArray[np.float64]  # this and the next two are NaN where the request does not tell
    committed: NDArray[np.float64]
    due_in_s: NDArray[np.float64]
    at_server: NDArray[np.float64]  # these four are NaN where what the request tells cannot be used
    stays: NDArray[np.float64]
    gain_tokens_per_s: NDArray[np.float64]
    use: NDArray[np.float64]


@dataclass(frozen=True)
class ServerDraft:
    """A draft model that the server has loaded beside its target, to draft for sessions.

    Attributes:
        longest_tokens: tokens that it drafts at most for a session in a batch, whose places in memory are kept, 0 to 32.
        overhead_s, launch_s, sequence_s, cached_token_s: time of k draft steps of n sessions with a context of c tokens in all:
            overhead_s + k·(launch_s + n·sequence_s + c·cached_token_s), each ≥ 0.
    """

    longest_tokens: int
    overhead_s: float = 0.0
    launch_s: float = 0.0
    sequence_s: float = 0.0
    cached_token_s: float = 0.0

    def check(self) -> None:
        """Raise ValueError for a draft that there cannot be."""
        times = (self.overhead_s, self.launch_s, self.sequence_s, self.cached_token_s)
        if not (0 <= self.longest_tokens <= MOST_DRAFT_TOKENS and all(0.0 <= time < math.inf for time in times)):
            raise ValueError(f"draft: given {self}, allowed are 0 to {MOST_DRAFT_TOKENS} tokens and times from 0 s")

    def step_s(self, sessions: float, context_tokens: float) -> float:
        """Time of one draft step."""
        return self.launch_s + sessions * self.sequence_s + self.cached_token_s * context_tokens


NO_DRAFT = ServerDraft(0)


class Server(NamedTuple):
    """What the server knows of itself: running means, memory, the price that its replies carry, K, and its own drafting."""

    mean_batch_s: float
    max_draft_tokens: int
    utilisation: float = 0.0
    tokens_per_s: float = 0.0
    price: float = 0.0
    kv_used: float = 0.0
    kv_capacity: float = 1.0
    draft: ServerDraft = NO_DRAFT
    server_tokens: int = 0  # that it drafted for each of its sessions in the last batch


def facts_of(queue: Sequence[Request]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """(Q, 14) facts of the requests and (Q,) which of them can be used; others hold harmless numbers."""
    try:
        facts = np.fromiter(chain.from_iterable(map(read_facts, queue)), np.float64, len(queue) * len(FACTS))
    except (TypeError, ValueError, AttributeError, OverflowError):
        facts = np.array([[number(getattr(request, name, None)) for name in FACTS] for request in queue])
    facts = facts.reshape(len(queue), len(FACTS))
    within = (facts >= LOW) & (facts <= HIGH)  # NaN is in no range
    usable = within[:, :NEEDED].all(axis=1) & (facts[:, CACHED] < facts[:, CONTEXT])
    facts = np.where(usable[:, None], facts, LOW)
    facts[:, NEEDED:][~within[:, NEEDED:]] = np.nan
    return facts, usable


def number(value: Any) -> float:
    """A number, NaN for what is none."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return float("nan")


def describe(
    facts: NDArray[np.float64], now_s: float, chunk_tokens: int, estimator: VerificationTimeEstimator
) -> Queue:
    """What follows from the facts (`compose.describe`), and from the estimator's predictions."""
    launch, new_token, pair, cached_token = estimator.coefficients
    cached, draft = facts[:, CACHED], facts[:, DRAFT]
    uncached = facts[:, CONTEXT] - 1.0 - cached
    new = uncached + 1.0 + draft
    if chunk_tokens > 0:
        new = np.where(uncached > chunk_tokens, float(chunk_tokens), new)
    marginal = new_token * new + pair * new * (cached + new) + cached_token * cached
    return Queue(
        now_s - facts[:, ARRIVED], facts[:, DEADLINE] - now_s, uncached, new, cached, draft, facts[:, EXPECTED], facts[:, SLO],
        marginal, launch + marginal + estimator.level_s(new), now_s - facts[:, REQUESTED], facts[:, COMMITTED], facts[:, DUE] - now_s,
        *facts[:, AT_SERVER:].T,
    )  # fmt: skip


def flag(condition: Any) -> Any:
    """1 where a condition holds."""
    return np.asarray(condition, np.float64)


def starving(q: Queue) -> Any:
    """Which responses get less than one token a second beyond the first seconds (`batching.starving`)."""
    return q.committed < STARVED_TOKENS_PER_S * (q.age_s - PATIENCE_S)


def rate(q: Queue) -> Any:
    """Tokens per second since the request, 0 at its very beginning."""
    return np.divide(q.committed, q.age_s, out=np.zeros_like(q.age_s), where=~(q.age_s <= 0.0))


def spoken_for(q: Queue, s: Server) -> float:
    """Memory in use and what prompts begun still lack; the batch so far is empty."""
    return s.kv_used + float(q.uncached[q.cached > 0].sum())


# Quantities by the name of their entry, in its own unit ("s", "tokens", …); the contract has their scales and ends. The batch so
# far is empty where they are computed; `picking` keeps up those that change with each member.
Quantity = Callable[[Queue, Server], Any]
OF_REQUESTS: dict[str, Quantity] = {
    "waiting": lambda q, s: q.waiting_s,
    "slack": lambda q, s: q.slack_s,
    "new_tokens": lambda q, s: q.new,
    "uncached_tokens": lambda q, s: q.uncached,
    "cached_tokens": lambda q, s: q.cached,
    "expected_tokens": lambda q, s: q.expected,
    "slo": lambda q, s: q.slo,
    "marginal": lambda q, s: q.marginal_s,
    "solo": lambda q, s: q.solo_s,
    "draft_tokens": lambda q, s: q.draft,
    "running": lambda q, s: 0.0,
    "batch_time_with": lambda q, s: q.solo_s,
    "present": lambda q, s: 1.0,
    "admissible": lambda q, s: 1.0,
    "picked": lambda q, s: 0.0,
    "due": lambda q, s: q.due_in_s,
    "age": lambda q, s: q.age_s,
    "committed": lambda q, s: q.committed,
    "rate": lambda q, s: rate(q),
    "memory_with": lambda q, s: (s.kv_used + q.uncached + 1.0 + q.draft) / s.kv_capacity,
    "begun": lambda q, s: flag(q.cached > 0),
    "evicted": lambda q, s: flag((q.committed > 0) & (q.cached == 0)),
    "starving": lambda q, s: flag(starving(q)),
    "at_server": lambda q, s: q.at_server,
    "stays": lambda q, s: q.stays,
    "movable": lambda q, s: flag(s.draft.longest_tokens > 0),
    "gain": lambda q, s: q.gain_tokens_per_s * s.mean_batch_s,
    "use": lambda q, s: q.use,
}
OF_SERVER: dict[str, Quantity] = {
    "batch_requests": lambda q, s: 0.0,
    "batch_tokens": lambda q, s: 0.0,
    "batch_time": lambda q, s: 0.0,
    "batch_slack": lambda q, s: math.inf,
    "batch_memory": lambda q, s: 0.0,
    "chunk_left": lambda q, s: math.inf,
    "queue": lambda q, s: len(q.new),
    "memory": lambda q, s: s.kv_used / s.kv_capacity,
    "utilisation": lambda q, s: s.utilisation,
    "mean_batch_time": lambda q, s: s.mean_batch_s,
    "token_rate": lambda q, s: s.tokens_per_s,
    "chunk_open": lambda q, s: flag(q.uncached.sum() > 0),
    "prefill_waiting": lambda q, s: q.uncached.sum(),
    "memory_spoken_for": lambda q, s: spoken_for(q, s) / s.kv_capacity,
    "starving": lambda q, s: starving(q).sum(),
    "price": lambda q, s: s.price,
    "server_sessions": lambda q, s: q.at_server.sum(),
    "draft_tokens": lambda q, s: s.server_tokens,
    "draft_step": lambda q, s: 0.0,
    "length_open": lambda q, s: flag(s.draft.longest_tokens > 0 and q.at_server.sum() > 0),
    "longest": lambda q, s: s.draft.longest_tokens,
}
QUANTITIES = {"requests": OF_REQUESTS, "globals": OF_SERVER}


def matrix(table: str, names: Sequence[str], queue: Queue, server: Server) -> NDArray[np.float32]:
    """(Q, features) float32 of the named entries of `requests`, (1, features) of `globals`; NaN where a fact is missing."""
    out = np.empty((len(names), len(queue.new) if table == "requests" else 1))
    for row, name in zip(out, names, strict=True):
        row[:] = QUANTITIES[table][name](queue, server)
    scales, low, high = scaling(table, names, server)
    out /= scales
    return np.ascontiguousarray(np.clip(out, low, high, out=out).T, np.float32)


def scaling(table: str, names: Iterable[str], server: Server) -> NDArray[np.float64]:
    """(3, features, 1) scales, lower and upper ends of the named entries, T and K being the server's."""
    entries = [TABLES[table][name] for name in names]
    t, cap = server.mean_batch_s, server.max_draft_tokens
    return np.array([(e.scale_in(t, cap), e.low, e.high) for e in entries]).T[..., None]
