"""What a device tells its controller: what it knows beforehand, each token's statistics, each reply; and what is in range."""

from dataclasses import dataclass
from operator import attrgetter

MISSING, LATE, OUT_OF_RANGE, FAILED = "missing", "late", "out of range", "failed"  # why WISP's rule decides
MOST_S = 1e6  # seconds beyond which a time is no time


@dataclass(frozen=True)
class DeviceProfile:
    """What a device knows before its first round.

    Attributes:
        slo_tokens_per_s: speed that its service class promises, > 0. grace_s, ttft_s: seconds, ≥ 0.
        draft_token_s: time to draft one token, > 0. one_way_s: delay to the server, ≥ 0.
        accept_share: share of drafted tokens expected to be accepted, 0 to 1.
        batch_s: time of a small batch, > 0: what T is before the first reply.
        clock_from_arrival: whether a response's schedule counts from the request's arrival or from its first token.
        drafts_on: whether the device can draft on while a round is away.
    """

    slo_tokens_per_s: float
    draft_token_s: float
    one_way_s: float
    accept_share: float
    batch_s: float
    grace_s: float = 0.0
    ttft_s: float = 0.0
    clock_from_arrival: bool = False
    drafts_on: bool = False


@dataclass(frozen=True, slots=True)
class Token:
    """Statistics of a token that the draft model has just proposed.

    Attributes:
        accept_probability: rejection predictor's output, or the draft's confidence where there is no predictor; 0 to 1.
        confidence: draft's probability of it, 0 to 1. entropy: of the draft's distribution, nats, ≥ 0.
        margin: difference of the two highest probabilities, 0 to 1. logit_spread: standard deviation of the logits, ≥ 0.
    """

    accept_probability: float
    confidence: float
    entropy: float
    margin: float
    logit_spread: float


@dataclass(frozen=True, slots=True)
class Reply:
    """A verification's outcome and the server state that it carries; durations, so that no clocks need agree.

    Attributes:
        accepted_tokens: drafted tokens accepted. committed_tokens: these and the target's own, at most those still wanted (1 for a
            prompt). verified_tokens: drafted tokens that the server looked at.
        busy: a batch was running when the reply left. running_left_s: predicted seconds until it ends (0 when idle).
        mean_batch_s: running mean of batch times, T. queue_s: predicted time of the requests waiting.
        utilisation: running share of time that the server verifies, 0 to 1. price: of one draft token, in tokens.
        suggested_tokens: length that the server suggests (0: none).
        held_s: seconds from the message's arrival at the server to the reply's departure.
        by_server: nobody's message is answered: the server drafts for the session, and streams. Its drafts are counted only where
            they come from the device's own model, else 0.
        takes_over: the server would draft for the session if it were asked. server_tokens: that it last drafted for each of its
            sessions. server_rate: tokens per batch time that it expects the session to get there. server_share: of the last
            batch's members it drafted for. Servers that draft nothing leave these five out.
    """

    accepted_tokens: int
    committed_tokens: int
    verified_tokens: int
    busy: bool
    running_left_s: float
    mean_batch_s: float
    queue_s: float
    utilisation: float
    held_s: float
    price: float = 0.0
    suggested_tokens: int = 0
    by_server: bool = False
    takes_over: bool = False
    server_tokens: int = 0
    server_rate: float = 0.0
    server_share: float = 0.0


statistics = attrgetter("accept_probability", "confidence", "entropy", "margin", "logit_spread")  # of a token


def is_within(value: object, low: float, high: float) -> bool:
    """Whether a value is a number from `low` to `high`; what is no number is not."""
    try:
        return bool(low <= value <= high)  # type: ignore[operator]
    except (TypeError, ValueError):
        return False


def reply_fault(reply: Reply) -> str:
    """Why a reply cannot be used, or nothing."""
    counts = (
        reply.accepted_tokens, reply.verified_tokens, reply.committed_tokens, reply.suggested_tokens, reply.server_tokens, reply.server_rate,
    )  # fmt: skip
    times = (reply.running_left_s, reply.queue_s, reply.held_s)
    told = (
        *counts,
        *times,
        reply.mean_batch_s,
        reply.utilisation,
        reply.price,
        reply.busy,
        reply.by_server,
        reply.takes_over,
        reply.server_share,
    )
    if any(value is None for value in told):
        return MISSING
    usable = all(is_within(n, 0, 1e6) for n in counts) and all(is_within(s, 0, MOST_S) for s in times)
    usable = (
        usable
        and is_within(reply.server_share, 0, 1)
        and is_within(reply.utilisation, 0, 1)
        and is_within(reply.price, 0, MOST_S)
    )
    return "" if usable and is_within(reply.mean_batch_s, 1e-6, MOST_S) else OUT_OF_RANGE


def check_profile(p: DeviceProfile) -> None:
    """A profile is given once, before serving: what is wrong with it is said."""
    for name, low, high in (
        ("slo_tokens_per_s", 1e-6, 1e6), ("draft_token_s", 1e-9, MOST_S), ("one_way_s", 0.0, MOST_S), ("accept_share", 0.0, 1.0),
        ("batch_s", 1e-6, MOST_S), ("grace_s", 0.0, MOST_S), ("ttft_s", 0.0, MOST_S),
    ):  # fmt: skip
        if not is_within(getattr(p, name), low, high):
            raise ValueError(f"{name}: given {getattr(p, name)!r}, allowed is {low:g} to {high:g}")
