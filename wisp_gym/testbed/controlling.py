"""Controllers of a device by name: after each token, draft one more or send.

The shape is that of `wisp_gym.serving.device.controller.SpeculationController`, which runs policies and rules from bundles; the two
plainest rules do without one.
"""

from collections.abc import Callable
from typing import Protocol

from wisp_gym.contract.averages import FRESH, KEEP
from wisp_gym.errors import InputError
from wisp_gym.serving import DeviceProfile, Reply, SpeculationController, Token, load_bundle
from wisp_gym.testbed.settings import NO_SLO_TOKENS_PER_S

# Believed before anything was measured (assumptions; running averages forget them within some rounds).
FIRST_BATCH_S, FIRST_DRAFT_S, FIRST_DELAY_S, FIRST_ACCEPT_SHARE = 0.05, 0.02, 0.01, 0.7


class Controller(Protocol):
    """Decides how long a round's draft gets; all times are of the device's clock.

    Attributes:
        delay_mean_s: running mean of the one-way delay.
    """

    delay_mean_s: float

    def begin_request(self, arrival_s: float, prompt_tokens: int, output_tokens: int) -> None:
        """A request has come."""

    def begin_round(self, now_s: float, draft_token_s: float | None = None) -> None:
        """The device begins to draft."""

    def wants_more(self, now_s: float) -> bool:
        """Draft one more token (True) or send (False); asked before the first token too."""

    def drafted(self, token: Token, now_s: float) -> None:
        """One more token has been drafted."""

    def sent(self, now_s: float) -> None:
        """The round leaves for the server."""

    def receive(
        self, reply: Reply, now_s: float, uplink_s: float | None = None, downlink_s: float | None = None
    ) -> None:
        """The reply has come; without delays, each is half of the round trip."""


class FixedLength:
    """Drafts k tokens in every round."""

    def __init__(self, k: int) -> None:
        self.k, self.tokens, self.confidence = k, 0, 1.0
        self.delay_mean_s, self.sent_s = FIRST_DELAY_S, 0.0

    def begin_request(self, arrival_s: float, prompt_tokens: int, output_tokens: int) -> None:
        """Nothing of it matters."""

    def begin_round(self, now_s: float, draft_token_s: float | None = None) -> None:
        """Nothing is drafted yet."""
        self.tokens, self.confidence = 0, 1.0

    def wants_more(self, now_s: float) -> bool:
        """Until k are drafted."""
        return self.tokens < self.k

    def drafted(self, token: Token, now_s: float) -> None:
        """Count it."""
        self.tokens, self.confidence = self.tokens + 1, token.confidence

    def sent(self, now_s: float) -> None:
        """Note when."""
        self.sent_s = now_s

    def receive(
        self, reply: Reply, now_s: float, uplink_s: float | None = None, downlink_s: float | None = None
    ) -> None:
        """Learn the delay."""
        half_s = max(now_s - self.sent_s - reply.held_s, 0.0) / 2.0
        for delay_s in (uplink_s, downlink_s):
            self.delay_mean_s = KEEP * self.delay_mean_s + FRESH * (half_s if delay_s is None else delay_s)


class ConfidenceStop(FixedLength):
    """Drafts while the last token's confidence is at least `least`, at most `most` tokens (SLED's device rule)."""

    def __init__(self, least: float, most: int) -> None:
        super().__init__(most)
        self.least = least

    def wants_more(self, now_s: float) -> bool:
        """Until an unsure token is drafted."""
        return super().wants_more(now_s) and self.confidence >= self.least


def find_controller(name: str, slo_tokens_per_s: float = 0.0, ttft_s: float = 0.0) -> Callable[[], Controller]:
    """Makes controllers of a name: `fixed:4`, `confidence:0.6,8`, or a bundle's (`speculation-v1`, `wisp`, a file).

    Args:
        name: `fixed:K`, `confidence:C` or `confidence:C,K`, else that of a bundle (`wisp_gym.serving.load_bundle`).
        slo_tokens_per_s, ttft_s: the device's service class; 0: none.

    Raises:
        InputError: an impossible number. BundleError: a bundle that cannot be used; one line.
    """
    rule, _, numbers = name.partition(":")
    if rule == "fixed":
        (k,) = _numbers(name, numbers, [32])
        return lambda: FixedLength(int(k))
    if rule == "confidence":
        least, *most = _numbers(name, numbers, [1, 32])
        return lambda: ConfidenceStop(least, int(most[0]) if most else 32)
    profile = DeviceProfile(
        slo_tokens_per_s=slo_tokens_per_s or NO_SLO_TOKENS_PER_S, ttft_s=ttft_s, draft_token_s=FIRST_DRAFT_S,
        one_way_s=FIRST_DELAY_S, accept_share=FIRST_ACCEPT_SHARE, batch_s=FIRST_BATCH_S,
    )  # fmt: skip
    bundle = load_bundle(name, "token")
    return lambda: SpeculationController(bundle, profile)


def _numbers(name: str, text: str, most: list[float]) -> list[float]:
    """The numbers after a rule's colon, the first at least, each from 0 to its limit."""
    try:
        found = [float(word) for word in text.split(",")]
    except ValueError:
        found = []
    within = [0 <= value <= high for value, high in zip(found, most, strict=False)]
    if not found or len(found) > len(most) or not all(within):
        allowed = "fixed:K and confidence:C,K with K from 0 to 32 and C from 0 to 1"
        raise InputError(f"controller '{name}': allowed are {allowed}")
    return found
