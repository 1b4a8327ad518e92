"""The server's loop: compose a batch, verify it in a thread of its own, commit, launch the next, send the replies.

Replies leave after the next batch was launched, so that they carry its predicted end (docs/model/model.md, §7).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from wisp_gym.contract.averages import FRESH, KEEP
from wisp_gym.testbed.messages import Refused
from wisp_gym.testbed.metrics import Metrics
from wisp_gym.testbed.scheduling import (
    BatchScheduler,
    FirstComeFirstServed,
    Member,
    VerificationTime,
    WaitingRound,
)
from wisp_gym.testbed.sessions import RUNNING, WAITING, Session, SessionTable
from wisp_gym.testbed.settings import Limits
from wisp_gym.testbed.torch_engine.kv_cache import KvMemory
from wisp_gym.testbed.torch_engine.target import Job
from wisp_gym.testbed.wire_pb2 import FromServer, Refusal, Reply, ServerState

log = logging.getLogger(__name__)
SWEEP_S = 0.25  # pause between looks for silent sessions
ASK_AGAIN_S = 0.01


class Model(Protocol):
    """What verifies: `wisp_gym.testbed.torch_engine.target.Target`, or another."""

    def verify(self, jobs: Sequence[Job]) -> list[list[int]]:
        """The tokens that each round commits."""


@dataclass
class Batch:
    """A batch that runs.

    Attributes:
        sessions: its members. rounds: what each runs. complete: whether that is all of its round, or a chunk of its context.
        started_s, predicted_end_s: on the server's clock. result: the tokens that each member commits.
    """

    sessions: list[Session]
    rounds: list[WaitingRound]
    complete: list[bool]
    started_s: float
    predicted_end_s: float
    result: asyncio.Future[list[list[int]]]


class Verifier:
    """Verifies the rounds of a table's sessions.

    Args:
        model, memory, table, limits, metrics: of the server.
        scheduler, time: who decides.
        clock: seconds, never falling.
    """

    def __init__(
        self, model: Model, memory: KvMemory, table: SessionTable, limits: Limits, metrics: Metrics,
        scheduler: BatchScheduler, time: VerificationTime, clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self.model, self.memory, self.table, self.limits, self.metrics = model, memory, table, limits, metrics
        self.scheduler, self.time, self.clock = scheduler, time, clock
        self.queue: list[Session] = []
        self.running: Batch | None = None
        self.mean_batch_s = max(time.predict_s([]), 1e-4)
        self.utilisation, self.last_end_s = 0.0, clock()
        self.wake = asyncio.Event()
        self.thread = ThreadPoolExecutor(1, "verify")

    def enter(self, session: Session) -> None:
        """A session has a new round; raises Refused when too many wait."""
        if session in self.queue:
            return
        if len(self.queue) >= self.limits.max_waiting:
            session.pending = None
            wait_s = max(self.limits.retry_after_s, self._queue_work_s())
            raise Refused(Refusal.BUSY, f"{len(self.queue)} rounds wait, the most that are allowed", wait_s)
        self.queue.append(session)
        self.wake.set()

    async def run(self) -> None:
        """Serve until cancelled."""
        batch: Batch | None = None
        while True:
            batch = batch or self._launch()
            if batch is None:
                await self._rest()
                continue
            ended = batch
            await asyncio.wait([ended.result])
            succeeded = self._finish(ended)
            batch = self._launch()
            self._answer(ended, succeeded)

    async def sweep(self) -> None:
        """Forget silent sessions from time to time, until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_S)
            self.table.sweep()
            self._gauge()

    async def _rest(self) -> None:
        """Until a round arrives; a scheduler that waits for more is asked again after a while."""
        self.wake.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.wake.wait(), ASK_AGAIN_S if self.queue else None)

    def _launch(self) -> Batch | None:
        """Start the next batch, if rounds wait and the scheduler takes any."""
        self.queue = [s for s in self.queue if s.pending is not None and s.pending.stage == WAITING]
        if not self.queue:
            return None
        rounds = [self._seen(session) for session in self.queue]
        members = self._compose(rounds)
        if not members:
            return None
        sessions = [self.queue[member.place] for member in members]
        complete = [member.new_tokens == rounds[member.place].new_tokens for member in members]
        taken = [rounds[member.place]._replace(new_tokens=member.new_tokens) for member in members]
        keys = {session.key for session in sessions}
        self.queue = [session for session in self.queue if session.key not in keys]
        evictions = self.memory.evictions
        self.memory.reserve(keys, [row.cached_tokens + row.new_tokens for row in taken])
        self.metrics.evictions.inc(self.memory.evictions - evictions)
        jobs = [self._job(*member) for member in zip(sessions, taken, complete, strict=True)]
        now_s = self.clock()
        result = asyncio.get_running_loop().run_in_executor(self.thread, self.model.verify, jobs)
        self.running = Batch(sessions, taken, complete, now_s, now_s + self.time.predict_s(taken), result)
        return self.running

    def _compose(self, rounds: Sequence[WaitingRound]) -> list[Member]:
        """The scheduler's batch; where it fails or asks for what cannot be, first come first served."""
        try:
            members = self.scheduler.compose(rounds, self.clock(), lambda members: self._fits(rounds, members))
            if self._possible(rounds, members):
                return members
            log.error("the scheduler composed an impossible batch: %s", members)
        except Exception:
            log.exception("the scheduler failed")
        plain = FirstComeFirstServed(self.limits.prefill_chunk_tokens)
        return plain.compose(rounds, self.clock(), lambda members: self._fits(rounds, members))

    def _possible(self, rounds: Sequence[WaitingRound], members: Sequence[Member]) -> bool:
        places = [member.place for member in members]
        waiting = len(set(places)) == len(places) and all(0 <= place < len(rounds) for place in places)
        return waiting and all(1 <= n <= rounds[p].new_tokens for p, n in members) and self._fits(rounds, members)

    def _seen(self, session: Session) -> WaitingRound:
        pending = session.pending
        assert pending is not None
        cached, context = self.memory.cached_tokens(session.key), len(session.prompt) + len(session.committed)
        return WaitingRound(
            pending.arrived_s, pending.deadline_s, context - cached + len(pending.drafted), cached, len(pending.drafted),
            not session.committed, pending.expected_tokens, session.slo_tokens_per_s, pending.survivals,
        )  # fmt: skip

    def _fits(self, rounds: Sequence[WaitingRound], members: Sequence[Member]) -> bool:
        sizes = [rounds[place].cached_tokens + new_tokens for place, new_tokens in members]
        return len(members) <= self.limits.max_batch_rounds and self.memory.fits(sizes)

    def _job(self, session: Session, row: WaitingRound, complete: bool) -> Job:
        pending, cache = session.pending, self.memory.cache(session.key)
        assert pending is not None
        pending.stage = RUNNING
        if not complete:  # what it commits is not looked at
            return Job(cache, session.context[: row.cached_tokens + row.new_tokens], [], [], 0.0, 0, 0)
        return Job(
            cache,
            session.context,
            pending.drafted,
            pending.laws,
            session.temperature,
            session.seed,
            len(session.committed),
        )

    def _finish(self, batch: Batch) -> bool:
        """The batch has ended: tokens are committed, averages moved. Whether it succeeded."""
        now_s, self.running = self.clock(), None
        seconds, idle_s = now_s - batch.started_s, max(batch.started_s - self.last_end_s, 0.0)
        self.utilisation = KEEP * self.utilisation + FRESH * seconds / max(seconds + idle_s, 1e-9)
        self.mean_batch_s = KEEP * self.mean_batch_s + FRESH * seconds
        self.last_end_s = now_s
        error = batch.result.exception()
        if error is not None:
            log.error("verification failed", exc_info=error)
            self._fail(batch)
            return False
        self.time.observe(batch.rounds, seconds)
        for session, tokens, complete in zip(batch.sessions, batch.result.result(), batch.complete, strict=True):
            if complete:
                self._commit(session, tokens)
            else:
                self._wait_on(session)
        self._count(batch, seconds)
        return True

    def _wait_on(self, session: Session) -> None:
        """A chunk of the context is computed; the round keeps its place in the queue, unless its device is gone."""
        assert session.pending is not None
        session.pending.stage = WAITING
        if session.closed:
            self.table.forget(session.key)
        elif session.connection is None:
            session.pending = None
        else:
            self.queue.append(session)
            self.queue.sort(key=lambda s: s.pending.arrived_s if s.pending else 0.0)

    def _commit(self, session: Session, tokens: list[int]) -> None:
        before, pending = len(session.committed), session.pending
        assert pending is not None
        session.commit(tokens, self.table.model.end_tokens)
        self.metrics.rounds.inc()
        self.metrics.drafted.inc(len(pending.drafted))
        self.metrics.accepted.inc(len(tokens) - 1)
        self.metrics.committed.inc(len(session.committed) - before)
        self.metrics.held_s.observe(self.clock() - pending.arrived_s)
        session.held_s = self.clock() - pending.arrived_s
        if session.finished:
            self.metrics.answers.inc()
            self.memory.release(session.key)
        if session.closed:
            self.table.forget(session.key)

    def _fail(self, batch: Batch) -> None:
        """Nothing is committed; caches may be half written, so they are computed again."""
        self.metrics.failures.inc()
        for session in batch.sessions:
            self.memory.release(session.key)
            assert session.pending is not None
            session.last, session.pending = (session.pending.number, len(session.committed), 0, 0), None
            if session.closed:
                self.table.forget(session.key)

    def _answer(self, batch: Batch, succeeded: bool) -> None:
        """Send what became of the batch's rounds."""
        state = self.state()
        for session, complete in zip(batch.sessions, batch.complete, strict=True):
            if session.connection is None or (succeeded and not complete):
                continue
            number, position, _, _ = session.last
            if succeeded:
                reply = session.reply(number, position)
                reply.held_s = session.held_s
                session.connection.send(self.with_state(reply, state))
            else:
                refused = Refused(Refusal.FAILED, "the verification failed", self.limits.retry_after_s)
                session.connection.send(refused.message(session.key[1], number))

    def with_state(self, reply: Reply, state: ServerState) -> FromServer:
        """The reply, complete."""
        reply.state.CopyFrom(state)
        reply.state.suggested_tokens = self.scheduler.suggested_tokens(reply.session.hex())
        return FromServer(reply=reply)

    def state(self) -> ServerState:
        """What replies tell of the server now."""
        running = self.running
        return ServerState(
            busy=running is not None,
            batch_ends_in_s=running.predicted_end_s - self.clock() if running is not None else 0.0,
            mean_batch_s=self.mean_batch_s, queue_work_s=self._queue_work_s(), queue_rounds=len(self.queue),
            utilisation=min(self.utilisation, 1.0), price=self.scheduler.price,
        )  # fmt: skip

    def _queue_work_s(self) -> float:
        waiting = [self._seen(session) for session in self.queue if session.pending is not None]
        return self.time.predict_s(waiting) if waiting else 0.0

    def _count(self, batch: Batch, seconds: float) -> None:
        self.metrics.batch_s.observe(seconds)
        self.metrics.batch_rounds.observe(len(batch.sessions))
        self.metrics.computed.inc(sum(row.new_tokens for row in batch.rounds))
        self._gauge()

    def _gauge(self) -> None:
        self.metrics.sessions.set(len(self.table.sessions))
        self.metrics.waiting.set(len(self.queue))
        self.metrics.kv_tokens.set(self.memory.used_tokens)
        self.metrics.utilisation.set(self.utilisation)

    def close(self) -> None:
        """End the thread, once its batch is done."""
        self.thread.shutdown(wait=True)
