"""What becomes of each request in time: tokens and answers, on time or late.

A request says what it was promised in `SamplingParams.extra_args` (over HTTP `vllm_xargs`): `slo_tokens_per_s` and `ttft_s`.
Without them nothing of it is ever late.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wisp_gym.testbed.metrics import Metrics
from wisp_gym.testbed.punctual import in_time

MOST = 1e6  # tokens/s, and s


@dataclass
class Account:
    """A request.

    Attributes:
        requested_s: on the scheduler's clock. tokens_per_s, ttft_s: promised, 0: nothing. committed: tokens so far.
        first_left_s: when the first one left.
    """

    requested_s: float
    tokens_per_s: float
    ttft_s: float
    committed: int = 0
    first_left_s: float = math.inf

    def due_s(self) -> float:
        """When the next token must leave."""
        if not self.committed:
            return self.requested_s + self.ttft_s if self.ttft_s else math.inf
        return self.first_left_s + self.committed / self.tokens_per_s if self.tokens_per_s else math.inf


class Accounts:
    """The open requests of a scheduler.

    Args:
        metrics: in which their tokens are counted.
    """

    def __init__(self, metrics: Metrics) -> None:
        self.metrics, self.open = metrics, dict[str, Account]()

    def begin(self, name: str, extra: Mapping[str, Any] | None, now_s: float) -> None:
        """A request has come."""
        told = extra or {}
        self.open[name] = Account(now_s, promised(told.get("slo_tokens_per_s")), promised(told.get("ttft_s")))

    def tokens(self, name: str, count: int, now_s: float, ended: bool) -> None:
        """Tokens of a request leave, its last ones where it has `ended`."""
        each = self.open.get(name)
        if each is None:
            return
        first = not each.committed
        timely = in_time(each.due_s(), each.tokens_per_s, count, now_s, first)
        each.first_left_s = now_s if first and count else each.first_left_s
        each.committed += count
        self.metrics.tokens(count, sum(timely))
        if ended:
            self.metrics.answer(each.tokens_per_s, all(timely[-1:]))
            del self.open[name]

    def forget(self, name: str) -> None:
        """A request was aborted."""
        self.open.pop(name, None)


def promised(value: Any) -> float:
    """A number of a request, 0 where it is none that can be kept."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and 0.0 < value <= MOST
    return float(value) if good else 0.0
