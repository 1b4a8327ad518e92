"""What the plain reference simulator moves about: requests, devices, drafted tokens, members of a batch and replies."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from tests.support.reference_sight import Sight
from wisp_gym.rules.drafters import FIRST_LENGTH
from wisp_gym.scenario import DeviceClass, SLOClass


def sigmoid(x: float) -> float:
    """Logistic function."""
    return 1.0 / (1.0 + math.exp(-x))


@dataclass
class Token:
    """A drafted token: its fate (given that all before it were accepted, else 0) and what is predicted of it."""

    fate: int
    p_accept: float
    confidence: float
    entropy: float
    margin: float
    spread: float


@dataclass
class Request:
    """A request, what each draft would get right at each position of its output, and how far it has come."""

    number: int
    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    counted: bool
    fates: list[int] = field(default_factory=list)
    server_fates: list[int] = field(default_factory=list)  # of a draft at the server that is not the devices'
    answer: int = -1
    committed: int = 0
    first_token_s: float = math.inf
    messages: int = 0

    @property
    def context_tokens(self) -> int:
        """Prompt and committed tokens."""
        return self.prompt_tokens + self.committed


@dataclass(frozen=True)
class Ahead:
    """A round that is away while its device drafts on from the guess that all of it is accepted and the next token too."""

    sent_s: float
    token_s: float
    drafted: int
    guess_place: int  # of the guess, in the output


@dataclass
class Head:
    """What a device has drafted of its next round while the one before was away: tokens that are there, and when one more is."""

    tokens: int
    under_way_s: float | None
    token_s: float


@dataclass
class Device:
    """A device with its link, its heat and the round that its session is in."""

    index: int
    kind: DeviceClass
    slo: SLOClass
    sight: Sight
    memory: np.ndarray
    request: Request | None = None
    next_number: int = 0
    link_state: float = 0.0
    link_used_s: float = -math.inf
    heat: float = 0.0
    heat_at_s: float = 0.0
    round_start_s: float = 0.0
    token_s: float = 0.0
    tokens: list[Token] = field(default_factory=list)  # of the round, whoever drafts it
    length: int | None = None  # that the rule chose at the start of the round
    row: np.ndarray | None = None  # the observation at its last decision
    verified: int = 0  # of the tokens, once a batch has been launched
    sent_s: float = 0.0
    arrived_s: float = 0.0
    deadline_s: float = 0.0
    delivered_s: float = 0.0
    running: bool = False
    owed_tokens: float = 0.0  # of pacing's floor, from its responses before
    group: int = 0  # in a pipelined plan
    turn_s: float = 0.0  # when it was last launched in its group's turn
    comes_back: bool = False  # answered, and not at the server
    at_server: bool = False  # its session: the server drafts for it, or nobody
    guessed_tokens: float = 1.0  # that a round at the server is expected to commit
    round_tokens: int = FIRST_LENGTH  # drafted in the last round of the device's own
    ahead: Ahead | None = None  # a round that is away while it drafts on
    head: Head | None = None  # of the round
    way: int | None = None  # in which its policy ends the round: 0 sends, 1 drafts on, 2 hands over
    asks: bool = False  # the server to draft for it
    takes: bool = False  # whether the server would, when its last round had ended
    hosting: dict[str, float] = field(default_factory=dict)  # what it sees of that

    @property
    def accepted(self) -> int:
        """Drafted tokens before the first rejected one."""
        return next((n for n, token in enumerate(self.tokens) if not token.fate), len(self.tokens))

    @property
    def kept(self) -> int:
        """Accepted ones of the verified tokens."""
        return min(self.accepted, self.verified)

    @property
    def survival(self) -> float:
        """Probability that all drafted tokens are accepted."""
        return math.prod(token.p_accept for token in self.tokens)

    @property
    def survivals(self) -> np.ndarray:
        """Probability that each token is accepted, in single precision as the message carries it."""
        return np.cumprod([token.p_accept for token in self.tokens]).astype(np.float32)

    @property
    def expected_tokens(self) -> float:
        """Expected tokens that the round commits: 1 + p₁ + p₁p₂ + …; at the server what was guessed before it began."""
        if self.at_server:
            return self.guessed_tokens
        return 1.0 + sum(np.cumprod([token.p_accept for token in self.tokens]))


@dataclass
class Member:
    """A request in a batch: tokens run through the model, and whether its context is complete after it."""

    device: Device
    take_tokens: int
    completes: bool


@dataclass(frozen=True)
class Reply:
    """What became of a round, on its way to the device."""

    request: Request
    first: int  # tokens committed before it
    drafted: int
    verified: int
    kept: int
    by_server: bool  # whether the session was at the server
    to_device: bool  # whether the device drafts the next round
    round_start_s: float
    token_s: float  # of the device's drafting

    @property
    def tokens(self) -> int:
        """Committed ones: the accepted and the target's own."""
        return self.kept + 1

    @property
    def completes(self) -> bool:
        """Whether it brings the last token of the response."""
        return self.first + self.tokens >= self.request.output_tokens

    @property
    def wasted_tokens(self) -> int:
        """Drafted tokens beyond the first rejected one, and those left out of the verification."""
        return self.drafted - self.verified + max(0, self.verified - self.kept - 1)
