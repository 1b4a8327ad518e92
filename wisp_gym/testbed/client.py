"""A device: drafts, sends rounds, takes replies, and comes through what goes wrong in between.

Whatever is lost is asked for again with the same round; whatever comes twice is known by its position and passed over; a
connection that broke is opened again and the session taken up where the device stands. So an answer is the target's own,
or there is an error; it is never a wrong one.
"""

import random
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from wisp_gym.contract.averages import FRESH, KEEP
from wisp_gym.rules.rejection_predictor import Predictor
from wisp_gym.serving import Reply as Outcome
from wisp_gym.serving import Token
from wisp_gym.testbed.connection import Link, LinkBroken
from wisp_gym.testbed.controlling import FIRST_DRAFT_S, Controller
from wisp_gym.testbed.drafting import Drafted
from wisp_gym.testbed.settings import PROTOCOL_VERSION
from wisp_gym.testbed.wire_pb2 import Close, FromDevice, Law, Refusal, Reply, Round, Start

BACKOFF_S, MOST_BACKOFF_S = 0.1, 5.0
TRY_AGAIN = (Refusal.BUSY, Refusal.TOO_MANY_SESSIONS, Refusal.DRAINING, Refusal.FAILED)


class GaveUp(Exception):
    """The request could not be answered: it was refused for good, or nothing helped for too long."""


class DraftModel(Protocol):
    """What drafts: `wisp_gym.testbed.draft.DraftModel`, or another."""

    def draft(self, context: Sequence[int], position: int, temperature: float, seed: int) -> Drafted:
        """The next token after a context."""


@dataclass(frozen=True)
class Request:
    """What is asked.

    Attributes:
        prompt: tokens. max_new_tokens: of the answer. temperature: 0 is greedy. seed: of all draws.
        slo_tokens_per_s, ttft_s: the service class; 0: none.
        session: 16 bytes. One that was answered in part before, by the same request, is taken up again.
    """

    prompt: Sequence[int]
    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 0
    slo_tokens_per_s: float = 0.0
    ttft_s: float = 0.0
    session: bytes = field(default_factory=lambda: uuid.uuid4().bytes)


@dataclass
class Answer:
    """What came.

    Attributes:
        tokens: the answer. rounds, drafted, examined, accepted: counts.
        first_token_s, seconds: from the request's beginning, on the device's clock. draft_s: spent on drafting.
        reconnects: connections opened after the first. refusals: rounds that had to be sent again later.
        ignored: messages passed over, doubled or late.
    """

    tokens: list[int] = field(default_factory=list)
    rounds: int = 0
    drafted: int = 0
    examined: int = 0
    accepted: int = 0
    first_token_s: float = 0.0
    seconds: float = 0.0
    draft_s: float = 0.0
    reconnects: int = 0
    refusals: int = 0
    ignored: int = 0


@dataclass(frozen=True)
class DeviceSettings:
    """What a device is told besides its models.

    Attributes:
        tokenizer: SHA-256 of the vocabulary.
        max_draft_tokens: cap K, no more than the server's limit and 32.
        predictor: of acceptance, from the tokens' statistics; without one the confidence stands for it.
        reply_timeout_s: after so long without a reply the connection is opened anew.
        give_up_s: without any token for so long, a request is given up.
        clock, sleep: the device's own.
    """

    tokenizer: bytes
    max_draft_tokens: int = 8
    predictor: Predictor | None = None
    reply_timeout_s: float = 10.0
    give_up_s: float = 120.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


class Device:
    """An edge device.

    Args:
        connect: opens a link; called again after it broke. draft: the draft model. controller: decides the rounds' lengths.
        settings: all else.
    """

    def __init__(
        self, connect: Callable[[], Link], draft: DraftModel, controller: Controller, settings: DeviceSettings
    ) -> None:
        self.connect, self.draft, self.controller, self.settings = connect, draft, controller, settings
        self.clock, self.predictor = settings.clock, settings.predictor
        self.draft_token_s, self.requested_s = FIRST_DRAFT_S, 0.0
        self._link: Link | None = None

    def answer(self, request: Request, deliver: Callable[[list[int]], None] = lambda tokens: None) -> Answer:
        """Answer a request; `deliver` gets the tokens as they are committed.

        Raises:
            GaveUp: refused for good, or no token for `give_up_s`. NotWelcome: a wrong access token.
        """
        answer, self.requested_s = Answer(), self.clock()
        self.controller.begin_request(self.requested_s, len(request.prompt), request.max_new_tokens)
        finished = False
        while not finished:
            message = self._round(request, answer)
            reply = self._exchange(request, message, answer)
            fresh = list(reply.tokens)
            if not answer.tokens:
                answer.first_token_s = self.clock() - self.requested_s
            answer.tokens += fresh
            answer.rounds, answer.drafted = answer.rounds + 1, answer.drafted + len(message.tokens)
            answer.examined, answer.accepted = answer.examined + reply.examined, answer.accepted + reply.accepted
            deliver(fresh)
            finished = reply.finished
        self._send(FromDevice(close=Close(session=request.session)))
        answer.seconds = self.clock() - self.requested_s
        return answer

    def _round(self, request: Request, answer: Answer) -> Round:
        """Draft until the controller sends; the first round asks for the prompt to be prefilled."""
        position, begun_s = len(answer.tokens), self.clock()
        if position:  # the prompt is no round
            self.controller.begin_round(begun_s, self.draft_token_s)
        message = Round(session=request.session, round=answer.rounds + 1, position=position)
        context = [*request.prompt, *answer.tokens]
        cap = min(self.settings.max_draft_tokens, request.max_new_tokens - position - 1) if position else 0
        while len(message.tokens) < cap and self.controller.wants_more(self.clock()):
            drafted = self.draft.draft(context, len(context) - len(request.prompt), request.temperature, request.seed)
            self._note(message, drafted)
            context.append(drafted.token)
        message.expected_tokens = 1.0 + sum(message.survivals)
        message.one_way_delay_s = self.controller.delay_mean_s
        message.draft_s = self.clock() - begun_s
        answer.draft_s += message.draft_s
        if message.tokens:
            self.draft_token_s = KEEP * self.draft_token_s + FRESH * message.draft_s / len(message.tokens)
        return message

    def _note(self, message: Round, drafted: Drafted) -> None:
        """A drafted token enters the message; the controller hears of it."""
        told = drafted.statistics
        chance = float(self.predictor.probability(told)) if self.predictor else float(told[0])
        self.controller.drafted(Token(chance, *(float(value) for value in told)), self.clock())
        message.tokens.append(drafted.token)
        message.survivals.append(chance * (message.survivals[-1] if message.survivals else 1.0))
        if drafted.law is not None:
            message.laws.append(Law(tokens=drafted.law.tokens.tolist(), weights=drafted.law.weights.tolist()))

    def _exchange(self, request: Request, message: Round, answer: Answer) -> Reply:
        """Send a round and get its reply, whatever it takes."""
        begun_s, copies, backoff_s = self.clock(), 0, BACKOFF_S
        while True:
            if self.clock() - begun_s > self.settings.give_up_s:
                raise GaveUp(f"no token for {self.settings.give_up_s:g} s")
            try:
                if self._link is None or message.HasField("start") or not (copies or answer.tokens):
                    message.start.CopyFrom(self._start(request, answer))
                message.round_age_s = max(message.draft_s, 0.0) + (self.clock() - begun_s)
                self._send(FromDevice(round=message))
                copies += 1
                return self._receive(message, answer, copies)
            except LinkBroken:
                self.close()
                answer.reconnects += 1
                # Devices of a restarted server do not come all at once.
                self.settings.sleep(backoff_s * random.uniform(0.5, 1.0))
                backoff_s = min(2 * backoff_s, MOST_BACKOFF_S)
            except _Again as again:
                answer.refusals += 1
                if again.reason == Refusal.UNKNOWN_SESSION:
                    message.start.CopyFrom(self._start(request, answer))
                self.settings.sleep(again.after_s * random.uniform(1.0, 1.5))

    def _start(self, request: Request, answer: Answer) -> Start:
        age_s = self.clock() - self.requested_s
        return Start(
            version=PROTOCOL_VERSION, tokenizer=self.settings.tokenizer, prompt=request.prompt, committed=answer.tokens,
            max_new_tokens=request.max_new_tokens, temperature=request.temperature, seed=request.seed,
            slo_tokens_per_s=request.slo_tokens_per_s, ttft_s=request.ttft_s, request_age_s=age_s,
            first_token_age_s=age_s - answer.first_token_s if answer.tokens else 0.0,
        )  # fmt: skip

    def _send(self, message: FromDevice) -> None:
        if self._link is None:
            self._link = self.connect()
        self.controller.sent(self.clock())
        self._link.send(message)

    def _receive(self, message: Round, answer: Answer, copies: int) -> Reply:
        """The reply to a round; what belongs to none, or to one before, is passed over."""
        assert self._link is not None
        until_s = self.clock() + self.settings.reply_timeout_s
        while True:
            got = self._link.receive(max(until_s - self.clock(), 0.001))
            if got.WhichOneof("message") == "refusal":
                self._refused(message, got.refusal)
            elif (got.reply.session, got.reply.position) == (message.session, message.position) and got.reply.tokens:
                # Of a round that was sent more than once nobody knows which copy was answered: nothing is learned of delays.
                delay_s = self.controller.delay_mean_s if copies > 1 else None
                self.controller.receive(outcome(got.reply), self.clock(), delay_s, delay_s)
                return got.reply
            answer.ignored += 1

    @staticmethod
    def _refused(message: Round, refusal: Refusal) -> None:
        """Raise what a refusal of this round asks for; one of another round means nothing."""
        if refusal.session != message.session or refusal.round not in (0, message.round):
            return
        if refusal.reason in TRY_AGAIN or refusal.reason == Refusal.UNKNOWN_SESSION:
            raise _Again(refusal.reason, refusal.retry_after_s)
        raise GaveUp(refusal.text)

    def close(self, finish: bool = False) -> None:
        """End the connection; with `finish`, what was sent is let out first."""
        if self._link is not None:
            (self._link.finish if finish else self._link.close)()
        self._link = None


def outcome(reply: Reply) -> Outcome:
    """What a controller is told of a reply."""
    state = reply.state
    return Outcome(
        accepted_tokens=reply.accepted, committed_tokens=len(reply.tokens), verified_tokens=reply.examined, busy=state.busy,
        running_left_s=max(state.batch_ends_in_s, 0.0), mean_batch_s=state.mean_batch_s, queue_s=state.queue_work_s,
        utilisation=state.utilisation, held_s=reply.held_s, price=state.price, suggested_tokens=state.suggested_tokens,
    )  # fmt: skip


class _Again(Exception):
    """The round must be sent again later."""

    def __init__(self, reason: int, after_s: float) -> None:
        super().__init__(Refusal.Reason.Name(reason))  # type: ignore[arg-type]
        self.reason, self.after_s = reason, after_s
