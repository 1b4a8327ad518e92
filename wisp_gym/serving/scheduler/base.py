"""What all schedulers of a server share: the limits of a batch, the batch, and what is measured of those that ran."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from wisp_gym.contract.averages import FRESH, KEEP
from wisp_gym.contract.ladders import WAIT_SHARE
from wisp_gym.errors import of_kind
from wisp_gym.serving.estimator import VerificationTimeEstimator
from wisp_gym.serving.scheduler.features import Request


@dataclass(frozen=True)
class ServerLimits:
    """What a batch must keep to.

    Attributes:
        kv_tokens: tokens whose keys and values fit in memory, ≥ 1. requests: members of a batch at most, ≥ 1.
        prefill_tokens: context that a batch may compute besides the rounds' own tokens (0: any).
        admit_share: a prompt, or an evicted session again, begins only if with all of its context at most this share of memory is
            spoken for, 0 to 1 (0: whatever memory holds after evictions; docs/guide/batching.md). `compose` must then be told the memory in use.
        block_tokens: memory is given to a session in whole blocks of so many tokens, ≥ 1.
    """

    kv_tokens: int
    requests: int = 256
    prefill_tokens: int = 512
    admit_share: float = 0.0
    block_tokens: int = 1

    def check(self) -> None:
        """Raise ValueError for limits that nothing can keep to."""
        if min(self.kv_tokens, self.requests, self.block_tokens) < 1 or self.prefill_tokens < 0:
            least = "at least 1 token, request and block, and 0 prefill tokens"
            raise ValueError(f"limits: given {self}, allowed are {least}")
        if not 0.0 <= self.admit_share <= 1.0:
            raise ValueError(f"admit_share: given {self.admit_share}, allowed is 0 to 1")

    def held(self, tokens: Any) -> Any:
        """Memory that sessions of so many tokens hold: numbers or arrays, rounded up to whole blocks."""
        return tokens if self.block_tokens == 1 else -(-tokens // self.block_tokens) * self.block_tokens


@dataclass(frozen=True)
class Batch:
    """A composed batch.

    Attributes:
        members: places in the queue, in the order in which they joined. new_tokens: of each, to run through the model; fewer than the
            request needs where its prompt is prefilled in chunks.
        predicted_s: predicted time. pairs, cached_tokens: sums that the estimator learns from.
        refused: places of requests whose facts cannot be used, which the server must answer itself.
        price: of a draft token, which the replies are to carry; None where the policy sets none.
        waits: the policy would rather wait for the next arrival than launch.
        wait_s: of a batch without members: compose again at the next arrival, at the latest after so long.
        composed_s: clock time.
        draft_tokens: that the server drafts before it verifies, for each member whose session is its own and whose context is in
            memory; None leaves it to the server. draft_s: predicted time of that, which `predicted_s` does not hold.
        moves: places whose session changes, once its round has ended, from its device to the server or back. The server that drafts
            adds its drafts to `new_tokens` and `pairs` before it calls `finished`, with the seconds of verification alone.
    """

    members: list[int] = field(default_factory=list)
    new_tokens: list[int] = field(default_factory=list)
    predicted_s: float = 0.0
    pairs: float = 0.0
    cached_tokens: float = 0.0
    refused: list[int] = field(default_factory=list)
    price: float | None = None
    waits: bool = False
    wait_s: float = 0.0
    composed_s: float = 0.0
    draft_tokens: int | None = None
    draft_s: float = 0.0
    moves: list[int] = field(default_factory=list)


@dataclass
class Room:
    """Memory that is spoken for: in use, added by the batch so far, or lacking to prompts begun (`compose.may_begin`).

    Attributes:
        most: tokens up to which sessions may begin (0: any). spoken_for: tokens now.
    """

    most: float
    spoken_for: float

    def lets_begin(self, tokens: float) -> bool:
        """Whether a session that will hold so many tokens may begin; in an empty memory anything does."""
        return self.most <= 0.0 or self.spoken_for == 0.0 or self.spoken_for + tokens <= self.most

    def take(self, prefilled: float, new: float, begun: float) -> None:
        """A request joins: context that it computes, all new tokens, and all context that it lacks where it begins."""
        self.spoken_for += new + begun - prefilled


class Scheduler(ABC):
    """Composes the batches of one server. Subclasses say how.

    Args:
        estimator: of batch times, which learns. limits: of a batch.

    Raises:
        ValueError: limits below 1.

    Attributes:
        decisions: batches composed. fallbacks: how many of them were not composed as they should, by reason.
        mean_batch_s: running mean of batch times, T. utilisation: running share of time that the server verifies.
        tokens_per_s: running mean of committed tokens per second of verification.
        price: of a draft token, in expected accepted tokens; replies carry it.
    """

    def __init__(self, estimator: VerificationTimeEstimator, limits: ServerLimits):
        of_kind("limits", limits, ServerLimits).check()
        of_kind("estimator", estimator, VerificationTimeEstimator)
        self.estimator, self.limits = estimator, limits
        self.decisions, self.fallbacks = 0, Counter[str]()
        self.mean_batch_s = estimator.predict(1.0, 1.0, 0.0)
        self.utilisation = self.tokens_per_s = self.price = self.last_end_s = 0.0

    @abstractmethod
    def compose(self, queue: Sequence[Request], now_s: float, kv_used_tokens: int = 0) -> Batch:
        """The next batch of the waiting requests, which are given in order of arrival; empty where none can join.

        Args:
            kv_used_tokens: tokens whose keys and values are in memory.
        """

    def wait_s(self) -> float:
        """How long whoever has composed an empty batch waits for an arrival."""
        return WAIT_SHARE * self.mean_batch_s

    def predict_s(self, queue: Sequence[Request]) -> float:
        """Predicted time of one batch of all these requests, 0 of none: the work that waits, as replies tell it."""
        return self.estimator.predict(*sums(queue, [request.new_tokens for request in queue])) if queue else 0.0

    def suggested_tokens(self, name: Hashable) -> int:
        """Draft length that the reply to this request suggests (0: none; no bundle suggests any)."""
        return 0

    def finished(self, batch: Batch, seconds: float, committed_tokens: int = 0) -> bool:
        """A batch has run; returns whether the estimator raises its drift alarm.

        Args:
            committed_tokens: of all its members, read by learned policies as a running rate.
        """
        try:
            if not 0.0 < seconds < 60.0:
                raise ValueError("no time of a batch")
            alarm = self.estimator.observe(sum(batch.new_tokens), batch.pairs, batch.cached_tokens, seconds)
            idle_s = max(batch.composed_s - self.last_end_s, 0.0)
            self.last_end_s = batch.composed_s + seconds
            self.mean_batch_s = KEEP * self.mean_batch_s + FRESH * seconds
            self.utilisation = KEEP * self.utilisation + FRESH * seconds / (seconds + idle_s)
            self.tokens_per_s = KEEP * self.tokens_per_s + FRESH * max(committed_tokens, 0) / seconds
            return alarm
        except Exception:
            self.estimator.ignored += 1
            return False


def sums(requests: Sequence[Request], new_tokens: Sequence[int]) -> tuple[int, int, int]:
    """New tokens, pairs of a new token with a token of its context, cached tokens (docs/model/model.md, §5)."""
    pairs = sum(new * (new + request.cached_tokens) for request, new in zip(requests, new_tokens, strict=True))
    return sum(new_tokens), pairs, sum(request.cached_tokens for request in requests)
