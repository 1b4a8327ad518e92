"""Messages of devices, checked before anything believes them; a hostile one ends as one line of text."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wisp_gym.testbed.sampling import Law
from wisp_gym.testbed.settings import PROTOCOL_VERSION, SESSION_ID_BYTES, Limits
from wisp_gym.testbed.wire_pb2 import FromServer, Refusal, Round, Start

MAX_ROUND_AGE_S = 3600.0
MOST = {"temperature": 100.0, "slo_tokens_per_s": 1e4, "ttft_s": 3600.0, "request_age_s": 1e6, "first_token_age_s": 1e6}


class Refused(Exception):
    """A message that is not served.

    Args:
        reason: of `Refusal.Reason`. text: one line. retry_after_s: 0 where trying again is useless.
    """

    def __init__(self, reason: Refusal.Reason, text: str, retry_after_s: float = 0.0) -> None:
        super().__init__(text)
        self.reason, self.text, self.retry_after_s = reason, text, retry_after_s

    def message(self, session: bytes, number: int) -> FromServer:
        """What is sent for it."""
        refusal = Refusal(session=session[:SESSION_ID_BYTES], round=number, reason=self.reason, text=self.text,
                          retry_after_s=self.retry_after_s)  # fmt: skip
        return FromServer(refusal=refusal)


def invalid(text: str) -> Refused:
    """The refusal of a message that breaks the protocol or a limit."""
    return Refused(Refusal.INVALID, text)


@dataclass(frozen=True)
class Model:
    """What messages are checked against of the served model.

    Attributes:
        vocabulary: tokens. max_tokens: longest sequence that model and memory hold. tokenizer: SHA-256 of the vocabulary.
        end_tokens: end an answer. samples: whether temperatures above 0 are served.
    """

    vocabulary: int
    max_tokens: int
    tokenizer: bytes
    end_tokens: frozenset[int] = frozenset()
    samples: bool = True


def check_tokens(what: str, tokens: Sequence[int], most: int, vocabulary: int) -> None:
    """At most so many tokens, all of the vocabulary."""
    if len(tokens) > most:
        raise invalid(f"{what}: {len(tokens)} tokens, allowed are {most}")
    if tokens and max(tokens) >= vocabulary:
        raise invalid(f"{what}: token {max(tokens)}, allowed are 0 to {vocabulary - 1}")


def check_number(what: str, value: float, most: float) -> None:
    """A finite number from 0 to `most`."""
    if not (math.isfinite(value) and 0.0 <= value <= most):
        raise invalid(f"{what}: {value}, allowed is 0 to {most:g}")


def check_round(message: Round, limits: Limits, model: Model) -> None:
    """Everything that can be said of a round without its session."""
    if len(message.session) != SESSION_ID_BYTES:
        raise invalid(f"session: {len(message.session)} bytes, allowed are {SESSION_ID_BYTES}")
    if not message.round:
        raise invalid("round: 0, allowed are numbers from 1")
    check_tokens("draft", message.tokens, limits.max_draft_tokens, model.vocabulary)
    if len(message.survivals) not in (0, len(message.tokens)):
        raise invalid(f"survivals: {len(message.survivals)} of {len(message.tokens)} drafted tokens")
    for survival in message.survivals:
        check_number("survivals", survival, 1.0)
    check_number("expected_tokens", message.expected_tokens, 1.0 + limits.max_draft_tokens)
    for name in ("round_age_s", "one_way_delay_s", "draft_s"):
        check_number(name, getattr(message, name), MAX_ROUND_AGE_S)
    if message.HasField("start"):
        check_start(message.start, message.position, limits, model)


def check_start(start: Start, position: int, limits: Limits, model: Model) -> None:
    """Everything that can be said of a session's beginning."""
    if start.version != PROTOCOL_VERSION:
        raise invalid(f"version: {start.version}, allowed is {PROTOCOL_VERSION}")
    if start.tokenizer != model.tokenizer:
        raise invalid("tokenizer: not that of the target; allowed is a draft of the same vocabulary")
    if not start.prompt or not 1 <= start.max_new_tokens <= limits.max_new_tokens:
        raise invalid(f"prompt of {len(start.prompt)} tokens, answer of at most {start.max_new_tokens}: allowed are from 1, "
                      f"at most {limits.max_new_tokens} in an answer")  # fmt: skip
    check_tokens("prompt", start.prompt, limits.max_prompt_tokens, model.vocabulary)
    check_tokens("committed", start.committed, start.max_new_tokens, model.vocabulary)
    if len(start.committed) != position:
        raise invalid(f"committed: {len(start.committed)} tokens at position {position}")
    if (tokens := len(start.prompt) + start.max_new_tokens) > model.max_tokens:
        raise invalid(f"prompt and answer: {tokens} tokens, allowed are {model.max_tokens}")
    if start.temperature > 0.0 and not model.samples:
        raise invalid(f"temperature: {start.temperature:g}, allowed is 0: this server does not sample")
    for name, most in MOST.items():
        check_number(name, getattr(start, name), most)


def laws_of(message: Round, temperature: float, vocabulary: int) -> list[Law]:
    """What the drafted tokens were drawn from: nothing at temperature 0, else one law for each."""
    wanted = len(message.tokens) if temperature > 0 else 0
    if len(message.laws) != wanted:
        raise invalid(f"laws: {len(message.laws)}, allowed are {wanted} at temperature {temperature:g}")
    laws = [Law(np.array(law.tokens, np.int64), np.array(law.weights, np.float32)) for law in message.laws]
    for law, token in zip(laws, message.tokens, strict=False):
        _check_law(law, vocabulary)
        if law.weight(token) <= 0.0:
            raise invalid(f"laws: drafted token {token} has probability 0")
    return laws


def _check_law(law: Law, vocabulary: int) -> None:
    if len(law.weights) > vocabulary or (len(law.tokens) and len(law.weights) != len(law.tokens)):
        raise invalid(f"laws: {len(law.weights)} weights of {len(law.tokens) or vocabulary} tokens")
    if len(law.tokens) and (law.tokens[-1] >= vocabulary or (np.diff(law.tokens) <= 0).any()):
        raise invalid(f"laws: tokens must rise strictly and be below {vocabulary}")
    total = float(law.weights.astype(np.float64).sum())
    if not (np.isfinite(law.weights).all() and (law.weights >= 0).all() and total > 0.0):
        raise invalid("laws: weights must be finite, not negative, and not all 0")
