"""What decides on the server: which waiting rounds a batch takes, and how long a batch is predicted to take.

Both are narrow protocols; here are the plainest that serve.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

KEEP, FRESH = 0.9, 0.1  # weights of running averages, as in the model (docs/model.md, §3)


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


class VerificationTime(Protocol):
    """Predicts how long a batch takes, and learns from those that ended."""

    def predict_s(self, rounds: Sequence[WaitingRound]) -> float:
        """Seconds of a batch of these rounds."""

    def observe(self, rounds: Sequence[WaitingRound], seconds: float) -> None:
        """A batch of these rounds took so long."""


class BatchScheduler(Protocol):
    """Composes batches."""

    def compose(self, queue: Sequence[WaitingRound], now_s: float, fits: Callable[[Sequence[int]], bool]) -> list[int]:
        """Places in the queue of the rounds that the next batch takes; none: wait for more.

        Args:
            queue: waiting rounds in order of arrival, at least one.
            now_s: the server's clock.
            fits: whether memory and the largest batch allow the rounds at these places together.
        """

    @property
    def price(self) -> float:
        """What a draft token costs the others, in expected accepted tokens; replies carry it."""

    def suggested_tokens(self, device: str) -> int:
        """Length that replies suggest to a device (0: none)."""


class FirstComeFirstServed:
    """Takes what waits in order of arrival and passes over what does not fit."""

    price = 0.0

    def compose(self, queue: Sequence[WaitingRound], now_s: float, fits: Callable[[Sequence[int]], bool]) -> list[int]:
        """All that fit, in order."""
        taken: list[int] = []
        for place in range(len(queue)):
            if fits([*taken, place]):
                taken.append(place)
        return taken

    def suggested_tokens(self, device: str) -> int:
        """Suggests nothing."""
        return 0


class RunningTime:
    """Time in proportion to new tokens beyond a fixed part, both from running averages of the batches seen.

    Args:
        first_s: prediction before any batch was seen.
    """

    def __init__(self, first_s: float = 0.05) -> None:
        self.mean_s, self.mean_tokens, self.slope_sum, self.square_sum = first_s, 0.0, 0.0, 1e-9
        self.seen = 0

    def predict_s(self, rounds: Sequence[WaitingRound]) -> float:
        """The line through the mean batch with the slope seen; never under a tenth of the mean."""
        tokens = sum(row.new_tokens for row in rounds)
        slope = max(self.slope_sum / self.square_sum, 0.0) if self.seen > 1 else 0.0
        return max(self.mean_s + slope * (tokens - self.mean_tokens), 0.1 * self.mean_s)

    def observe(self, rounds: Sequence[WaitingRound], seconds: float) -> None:
        """Move the averages towards this batch."""
        tokens = sum(row.new_tokens for row in rounds)
        fresh = max(FRESH, 1.0 / (self.seen + 1))
        apart_tokens, apart_s = tokens - self.mean_tokens, seconds - self.mean_s
        if self.seen:
            self.slope_sum = KEEP * self.slope_sum + apart_tokens * apart_s
            self.square_sum = KEEP * self.square_sum + apart_tokens**2
        self.mean_tokens += fresh * apart_tokens
        self.mean_s += fresh * apart_s
        self.seen += 1
