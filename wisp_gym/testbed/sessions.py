"""Sessions of a server: what is committed, which round is awaited, and what is told twice or out of turn.

A session belongs to a client (the name of its access token) and an identifier of 16 random bytes. What a device says of
it when it comes back is believed only as far as it agrees with what the server knows; what the server does not know any
more, it takes from the device.
"""

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from wisp_gym.serving import Request
from wisp_gym.testbed.messages import Model, Refused, invalid, laws_of
from wisp_gym.testbed.sampling import Law
from wisp_gym.testbed.settings import NEVER_S, NO_SLO_TOKENS_PER_S, Limits
from wisp_gym.testbed.wire_pb2 import Refusal, Reply, Round, Start

Key = tuple[str, bytes]
WAITING, RUNNING = range(2)
STAND_IN_LINE_S = 5.0  # a connection that has not asked again for so long waits no more


@dataclass
class PendingRound:
    """A round that waits for verification or is being verified.

    Attributes:
        number: the device's; position, drafted, laws: what it drafts, and where.
        request: what a scheduler sees of it, with nothing cached; times are of the server's clock.
        superseded: the device has come back with another draft at this position, and gets this one's result.
    """

    number: int
    position: int
    drafted: list[int]
    laws: list[Law]
    request: Request
    stage: int = WAITING
    superseded: bool = False


@dataclass
class Session:
    """One request being answered.

    Attributes:
        connection: to which replies go, None when it is gone.
        last: number, position, examined and accepted tokens of the last round verified.
        held_s: from that round's arrival to the end of its verification.
        used_s: when the device was last heard, on the server's clock. requested_s: when it made the request.
        first_left_s: when the answer's first token left the server; infinite before.
        closed: its device needs it no more; it leaves when its running round has ended.
    """

    key: Key
    prompt: tuple[int, ...]
    committed: list[int]
    max_new_tokens: int
    temperature: float
    seed: int
    slo_tokens_per_s: float
    ttft_s: float
    used_s: float
    requested_s: float
    first_left_s: float = math.inf
    connection: Any = None
    finished: bool = False
    pending: PendingRound | None = None
    last: tuple[int, int, int, int] = (0, 0, 0, 0)
    held_s: float = 0.0
    closed: bool = False

    @property
    def context(self) -> list[int]:
        """Prompt and answer so far."""
        return [*self.prompt, *self.committed]

    def commit(self, tokens: list[int], ends: frozenset[int]) -> None:
        """Append what the pending round's verification gave, up to the answer's end."""
        pending = self.pending
        assert pending is not None
        accepted = len(tokens) - 1
        examined = min(accepted + 1, len(pending.drafted))
        told = (0, 0) if pending.superseded else (examined, accepted)
        self.last = (pending.number, len(self.committed), *told)
        for token in tokens:
            self.committed.append(token)
            self.finished = token in ends or len(self.committed) >= self.max_new_tokens
            if self.finished:
                break
        self.pending = None

    def request(self, message: Round, now_s: float) -> Request:
        """A round that has just arrived, as schedulers see it: nothing of it is cached.

        No clock is compared with another: what the device tells are ages and its mean one-way delay, taken for this message's too.
        Deadline: `round start + E[tokens]/v − downlink`, of a prompt `request + ttft − downlink` (docs/model/model.md, §6). Due: when the
        answer's next token must leave, `first token's leaving + committed/v`, of the first one as the deadline. Without a service
        class, or a wanted time to the first token, both are never.
        """
        delay_s, speed, committed = message.one_way_delay_s, self.slo_tokens_per_s, len(self.committed)
        expected = max(message.expected_tokens, 1.0)
        never_s = now_s + NEVER_S
        if committed:
            begun_s = now_s - delay_s - message.round_age_s
            deadline_s = begun_s + expected / speed - delay_s if speed else never_s
            due_s = self.first_left_s + committed / speed if speed else never_s
        else:
            deadline_s = due_s = self.requested_s + self.ttft_s - delay_s if self.ttft_s else never_s
        return Request(
            self.key, now_s, min(deadline_s, never_s), len(self.prompt) + committed, 0, len(message.tokens), expected,
            max(speed, NO_SLO_TOKENS_PER_S), self.requested_s, committed, min(due_s, never_s),
        )  # fmt: skip

    def reply(self, number: int, position: int) -> Reply:
        """All that is committed from `position` on, in reply to a round; the caller adds times and state."""
        same = (number, position) == self.last[:2]
        examined, accepted = self.last[2:] if same else (0, 0)
        return Reply(
            session=self.key[1], round=number, position=position, tokens=self.committed[position:],
            examined=examined, accepted=accepted, finished=self.finished,
        )  # fmt: skip


class SessionTable:
    """The sessions of a server, no more than its limits allow.

    Args:
        limits, model: what requests may ask for.
        clock: seconds, never falling, of this machine.
        forgotten: called with the key of each session that leaves, to free its memory.
    """

    def __init__(
        self, limits: Limits, model: Model, clock: Callable[[], float], forgotten: Callable[[Hashable], None]
    ) -> None:
        self.limits, self.model, self.clock, self.forgotten = limits, model, clock, forgotten
        self.sessions: dict[Key, Session] = {}  # least recently heard first
        self.line: dict[Any, float] = {}  # connections that wait for a session, and when each last asked

    def find(self, client: str, message: Round, connection: Any, draining: bool = False) -> Session:
        """The session of a checked round, made or made again from its start; its replies now go to `connection`."""
        key = (client, message.session)
        session = self.sessions.pop(key, None)
        if session is not None:
            self.sessions[key] = session  # the most recently heard
        if message.HasField("start"):
            session = self._agree(session, message.start) if session else self._make(key, message, connection, draining)
        elif session is not None and session.connection is not connection:
            session = None  # only who knows all of a session's start may take it over
        if session is None:
            raise Refused(Refusal.UNKNOWN_SESSION, "unknown session: send the round with its start")
        session.connection, session.used_s, session.closed = connection, self.clock(), False
        return session

    def _make(self, key: Key, message: Round, connection: Any, draining: bool) -> Session:
        if draining:
            raise Refused(Refusal.DRAINING, "the server shuts down", self.limits.retry_after_s)
        self._make_room(connection)
        start, now_s = message.start, self.clock()
        sent_s = now_s - message.one_way_delay_s
        made = Session(
            key, tuple(start.prompt), list(start.committed), start.max_new_tokens, start.temperature, start.seed,
            start.slo_tokens_per_s, start.ttft_s, now_s, sent_s - max(start.request_age_s, message.round_age_s),
        )  # fmt: skip
        if made.committed:
            made.first_left_s = sent_s - start.first_token_age_s - message.one_way_delay_s
        ended = made.committed[-1:] and made.committed[-1] in self.model.end_tokens
        made.finished = bool(ended) or len(made.committed) >= made.max_new_tokens
        self.sessions[key] = made
        return made

    def _make_room(self, connection: Any) -> None:
        """Places go to connections in the order in which they began to ask; sessions without a connection make room."""
        now_s, patience_s = self.clock(), max(STAND_IN_LINE_S, 40 * self.limits.retry_after_s)
        self.line = {other: asked_s for other, asked_s in self.line.items() if now_s - asked_s <= patience_s}
        orphans = [s.key for s in self.sessions.values() if s.connection is None and s.pending is None]
        ahead = list(self.line).index(connection) if connection in self.line else len(self.line)
        if ahead >= self.limits.max_sessions - len(self.sessions) + len(orphans):
            self.line[connection] = now_s
            text = f"{len(self.sessions)} sessions are open, allowed are {self.limits.max_sessions}"
            raise Refused(Refusal.TOO_MANY_SESSIONS, text, 10 * self.limits.retry_after_s)
        self.line.pop(connection, None)
        if len(self.sessions) >= self.limits.max_sessions:
            self.forget(orphans[0])  # the longest silent

    def _agree(self, session: Session, start: Start) -> Session:
        """The session, checked against what the device says of it."""
        asked = (tuple(start.prompt), start.max_new_tokens, start.temperature, start.seed)
        if asked != (session.prompt, session.max_new_tokens, session.temperature, session.seed):
            raise invalid("start: differs from that of the open session with this identifier")
        told = list(start.committed)
        if told != session.committed[: len(told)]:
            raise invalid("committed: differs from what this session was answered")
        return session

    def take(self, session: Session, message: Round) -> Reply | None:
        """Enter a round to be verified (None), or reply at once with what is committed beyond its position."""
        if message.position > len(session.committed):
            raise invalid(f"position: {message.position}, but {len(session.committed)} tokens are committed")
        if message.position < len(session.committed) or session.finished:
            return session.reply(message.round, message.position)
        # Sent again, or drafted anew by a device that came back: one verification is enough.
        if session.pending is not None:
            session.pending.superseded |= session.pending.number != message.round
            session.pending.number = message.round
            return None
        laws = laws_of(message, session.temperature, self.model.vocabulary)
        room = session.max_new_tokens - len(session.committed) - 1
        if len(message.tokens) > room:
            text = f"{len(message.tokens)} tokens, but the answer has room for {room} and the target's own"
            raise invalid(f"draft: {text}")
        request = session.request(message, self.clock())
        session.pending = PendingRound(message.round, message.position, list(message.tokens), laws, request)
        return None

    def forget(self, key: Key) -> None:
        """A session leaves: its device has the whole answer, is gone for long, or others need the place."""
        if (session := self.sessions.get(key)) is None:
            return
        session.closed, session.connection = True, None
        if session.pending is None or session.pending.stage == WAITING:
            session.pending = None
            del self.sessions[key]
            self.forgotten(key)

    def detach(self, connection: Any) -> None:
        """A connection is gone. Its sessions stay for a while; their rounds that no batch has taken yet do not."""
        self.line.pop(connection, None)
        for session in self.sessions.values():
            if session.connection is connection:
                session.connection, session.used_s = None, self.clock()
                if session.pending is not None and session.pending.stage == WAITING:
                    session.pending = None

    def sweep(self) -> None:
        """Forget the sessions whose devices have been silent for too long."""
        now_s = self.clock()
        for session in list(self.sessions.values()):
            kept_s = self.limits.idle_s if session.connection is not None else self.limits.orphan_s
            if session.pending is None and now_s - session.used_s > kept_s:
                self.forget(session.key)

    def attached(self, connection: Any) -> int:
        """Sessions whose replies go to a connection."""
        return sum(session.connection is connection for session in self.sessions.values())
