"""What decides on the server: which waiting rounds a batch takes, and how long a batch is predicted to take.

Both are narrow protocols; here are first come first served, and the policies and rules of bundles.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from wisp_gym import serving
from wisp_gym.serving import Bundle, ServerLimits, VerificationTimeEstimator
from wisp_gym.testbed.settings import NO_SLO_TOKENS_PER_S, Limits

NEVER_S = 1e6  # from now: the deadline of a round without a service class

# Where nothing was measured: a small model on a processor (assumption; the first batches correct it).
FIRST_COEFFICIENTS = {"launch_s": 0.01, "new_token_s": 5e-4, "pair_s": 1e-7, "cached_token_s": 1e-6}


class WaitingRound(NamedTuple):
    """What a scheduler sees of a round in the queue.

    Attributes:
        arrived_s, deadline_s: on the server's clock; without a service class the deadline is infinite.
        new_tokens: that the model must run for it, uncached context and draft. cached_tokens: already in memory.
        drafted_tokens: of the new ones. prompt: whether it asks for the answer's first token.
        expected_tokens: that the round commits, as the device predicts.
        slo_tokens_per_s: speed of the service class, 0 without one.
        survivals: predicted chance of each drafted token that it and all before it are accepted; may be empty.
    """

    arrived_s: float
    deadline_s: float
    new_tokens: int
    cached_tokens: int
    drafted_tokens: int
    prompt: bool
    expected_tokens: float
    slo_tokens_per_s: float
    survivals: Sequence[float]

    @property
    def uncached_tokens(self) -> int:
        """Context to compute besides its last token, which is always run."""
        return self.new_tokens - 1 - self.drafted_tokens


class VerificationTime(Protocol):
    """Predicts how long a batch takes, and learns from those that ended."""

    def predict_s(self, rounds: Sequence[WaitingRound]) -> float:
        """Seconds of a batch of these rounds."""

    def observe(self, rounds: Sequence[WaitingRound], seconds: float) -> None:
        """A batch of these rounds took so long."""


class Member(NamedTuple):
    """A round that joins a batch.

    Attributes:
        place: in the queue. new_tokens: to run for it; fewer than it has where its context is prefilled in chunks, and then it is
            not complete: the rest of it waits on.
    """

    place: int
    new_tokens: int


Fits = Callable[[Sequence[Member]], bool]


class BatchScheduler(Protocol):
    """Composes batches."""

    def compose(self, queue: Sequence[WaitingRound], now_s: float, fits: Fits) -> list[Member]:
        """The members of the next batch; none: wait for more.

        Args:
            queue: waiting rounds in order of arrival, at least one.
            now_s: the server's clock.
            fits: whether memory and the largest batch allow these members together.
        """

    @property
    def price(self) -> float:
        """What a draft token costs the others, in expected accepted tokens; replies carry it."""

    def suggested_tokens(self, device: str) -> int:
        """Length that replies suggest to a device (0: none)."""


class FirstComeFirstServed:
    """Takes what waits in order of arrival and passes over what does not fit.

    Args:
        prefill_chunk_tokens: uncached context that a batch computes (0: any).
    """

    price = 0.0

    def __init__(self, prefill_chunk_tokens: int = 0) -> None:
        self.prefill_chunk_tokens = prefill_chunk_tokens

    def compose(self, queue: Sequence[WaitingRound], now_s: float, fits: Fits) -> list[Member]:
        """All that fit, in order; contexts share the chunk (docs/model/model.md, §5)."""
        members: list[Member] = []
        left = self.prefill_chunk_tokens or sum(row.new_tokens for row in queue)
        for place, row in enumerate(queue):
            whole = row.uncached_tokens <= left
            member = Member(place, row.new_tokens if whole else left)
            if member.new_tokens > 0 and fits([*members, member]):
                members.append(member)
                left -= row.uncached_tokens if whole else left
        return members

    def suggested_tokens(self, device: str) -> int:
        """Suggests nothing."""
        return 0


class LearnedTime:
    """Predicts by the four terms of WISP's estimator, refitted from every batch.

    Args:
        coefficients: to begin with, as of `VerificationTimeEstimator`.
    """

    def __init__(self, coefficients: Mapping[str, float]) -> None:
        self.estimator = VerificationTimeEstimator(dict(coefficients))

    def predict_s(self, rounds: Sequence[WaitingRound]) -> float:
        """Seconds of a batch of these rounds."""
        return self.estimator.predict(*sums(rounds))

    def observe(self, rounds: Sequence[WaitingRound], seconds: float) -> None:
        """Refit."""
        self.estimator.observe(*sums(rounds), seconds)


class BundleScheduler(LearnedTime):
    """A batching policy or rule from a bundle, with the estimator that it asks and teaches.

    Args:
        bundle: that orders a queue, such as the shipped `batching-wisp.onnx`.
        coefficients: of the estimator to begin with.
        limits: of the server.

    Raises:
        BundleError: a bundle of another decision.
    """

    price = 0.0

    def __init__(self, bundle: Bundle, coefficients: Mapping[str, float], limits: Limits) -> None:
        super().__init__(coefficients)
        kept = ServerLimits(limits.kv_capacity_tokens, limits.max_batch_rounds, limits.prefill_chunk_tokens)
        self.scheduler = serving.BatchScheduler(bundle, self.estimator, kept)

    def compose(self, queue: Sequence[WaitingRound], now_s: float, fits: Fits) -> list[Member]:
        """The bundle's batch, its last members left out where memory, in whole blocks, is short of them."""
        batch = self.scheduler.compose([request_of(place, row, now_s) for place, row in enumerate(queue)], now_s)
        members = [Member(*member) for member in zip(batch.members, batch.new_tokens, strict=True)]
        while members and not fits(members):
            members.pop()
        return members

    def observe(self, rounds: Sequence[WaitingRound], seconds: float) -> None:
        """Refit; the mean batch time moves too."""
        new, pairs, cached = sums(rounds)
        self.scheduler.finished(serving.Batch(new_tokens=[new], pairs=pairs, cached_tokens=cached), seconds)

    def suggested_tokens(self, device: str) -> int:
        """Suggests nothing."""
        return 0


def request_of(place: int, row: WaitingRound, now_s: float) -> serving.Request:
    """A waiting round as bundles see it."""
    context = row.cached_tokens + row.uncached_tokens + 1
    return serving.Request(
        place, row.arrived_s, min(row.deadline_s, now_s + NEVER_S), context, row.cached_tokens, row.drafted_tokens,
        row.expected_tokens, row.slo_tokens_per_s or NO_SLO_TOKENS_PER_S,
    )  # fmt: skip


def sums(rounds: Sequence[WaitingRound]) -> tuple[int, int, int]:
    """New tokens, pairs of a new token with a token of its context, cached tokens (docs/model/model.md, §5)."""
    new = sum(row.new_tokens for row in rounds)
    pairs = sum(row.new_tokens * (row.new_tokens + row.cached_tokens) for row in rounds)
    return new, pairs, sum(row.cached_tokens for row in rounds)
