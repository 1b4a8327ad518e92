"""What the plain reference simulator lets a device see: the observation, written again from docs/guide/environments.md."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from wisp_gym.contract.averages import FRESH, KEEP, PRIOR_TOKENS
from wisp_gym.contract.tables import TABLES


@dataclass(frozen=True)
class ServerState:
    """What a reply carries: the server just after the next batch was launched."""

    left_s: float
    busy: bool
    boundary_s: float
    mean_batch_s: float
    queue_s: float
    utilisation: float
    server_tokens: int  # that it last drafted for each of its sessions
    share: float  # of the batch that has ended were its sessions


def odds(p: float) -> float:
    """Of a probability kept off 0 and 1."""
    p = min(max(p, 0.001), 0.999)
    return p / (1.0 - p)


@dataclass
class Sight:
    """A device's own running averages and the server state of its last reply."""

    expected_acceptance: float
    delay_mean_s: float
    slo_tokens_per_s: float
    delay_spread_s: float = 0.0

    def __post_init__(self) -> None:
        self.accepted, self.examined = 0.0, 0.0  # beside the prior of four tokens
        self.tokens, self.seconds = self.slo_tokens_per_s, 1.0
        self.server: ServerState | None = None
        self.suggested, self.last_rejected = 0, False

    def learn_delay(self, delay_s: float) -> None:
        """One more one-way delay."""
        self.delay_spread_s = KEEP * self.delay_spread_s + FRESH * abs(delay_s - self.delay_mean_s)
        self.delay_mean_s = KEEP * self.delay_mean_s + FRESH * delay_s

    def learn_fates(self, verified: int, accepted: int, of_another: bool) -> None:
        """A reply: of the verified tokens, those up to the first rejected one have been examined.

        Tokens `of_another` draft, the server's, tell the device nothing of its own.
        """
        if not of_another:
            self.accepted = KEEP * self.accepted + accepted
            self.examined = KEEP * self.examined + min(accepted + 1, verified)
        self.last_rejected = accepted < verified

    def learn_rate(self, tokens: int, seconds: float) -> None:
        """A round."""
        self.tokens, self.seconds = KEEP * self.tokens + tokens, KEEP * self.seconds + seconds

    @property
    def acceptance(self) -> float:
        """Share of accepted tokens, with a prior worth four."""
        return (self.accepted + PRIOR_TOKENS * self.expected_acceptance) / (self.examined + PRIOR_TOKENS)

    def adapted(self, chances: list[float]) -> float:
        """Probability that tokens of these predicted acceptances are all accepted, their odds scaled to the running acceptance."""
        ratio = odds(self.acceptance) / odds(self.expected_acceptance)
        return math.prod(p * ratio / (1.0 - p + p * ratio) for p in chances)

    def row(self, now_s: float, cap: int, token_s: float, **own: float) -> np.ndarray:
        """(SIZE,) float32 observation; `own`: quantities that the round itself gives, by the name of their entry."""
        s = self.server
        left_s, missed = 0.0, 0
        if s.busy:
            left_s = s.boundary_s - (now_s + self.delay_mean_s)
            missed = max(math.ceil(-left_s / s.mean_batch_s), 0)
            left_s += missed * s.mean_batch_s
        quantities = own | {
            "acceptance_average": self.acceptance, "draft_time": token_s, "one_way_delay": self.delay_mean_s,
            "jitter": self.delay_spread_s, "slo_period": 1.0 / self.slo_tokens_per_s, "server_busy": s.busy,
            "queue_work": s.queue_s, "utilisation": s.utilisation, "own_rate": self.tokens / self.seconds * s.mean_batch_s,
            "batch_time": s.mean_batch_s, "info_age": now_s - s.left_s, "boundary_left": left_s,
            "draftable_tokens": math.floor(left_s / token_s), "boundaries_missed": missed,
            "suggested_tokens": self.suggested, "last_rejected": self.last_rejected,
        }  # fmt: skip
        o = np.zeros(len(TABLES["observation"]), np.float32)
        for k, entry in enumerate(TABLES["observation"].values()):
            value = quantities.get(entry.name, 0.0) / entry.scale_in(s.mean_batch_s, cap)
            o[k] = min(max(value, entry.low), entry.high)
        return o
