"""The server's loop: compose a batch, verify it in a thread of its own, commit, launch the next, send the replies.

Replies leave after the next batch was launched, so that they carry its predicted end (docs/model/model.md, §7).
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from wisp_gym import serving
from wisp_gym.serving import FirstComeFirstServed, Request, Scheduler
from wisp_gym.testbed.engine import Engine, Job
from wisp_gym.testbed.messages import Refused
from wisp_gym.testbed.metrics import DEVICE, ServerMetrics
from wisp_gym.testbed.punctual import in_time
from wisp_gym.testbed.sessions import RUNNING, WAITING, Session, SessionTable
from wisp_gym.testbed.settings import Limits
from wisp_gym.testbed.wire_pb2 import FromServer, Refusal, Reply, ServerState

log = logging.getLogger(__name__)
SWEEP_S = 0.25  # pause between looks for silent sessions
LEAST_BATCH_S = 1e-4  # no batch is told to be shorter


@dataclass
class RunningBatch:
    """A batch that runs.

    Attributes:
        batch: as it was composed. sessions: its members. complete: whether it runs all of each round, or a chunk of its context.
        started_s, predicted_end_s: on the server's clock. result: the tokens that each member commits.
    """

    batch: serving.Batch
    sessions: list[Session]
    complete: list[bool]
    started_s: float
    predicted_end_s: float
    result: asyncio.Future[list[list[int]]]


class Verifier:
    """Verifies the rounds of a table's sessions.

    Args:
        engine, table, scheduler, limits, metrics: of the server. clock: seconds, never falling.
    """

    def __init__(
        self, engine: Engine, table: SessionTable, scheduler: Scheduler, limits: Limits, metrics: ServerMetrics,
        clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self.engine, self.table, self.scheduler = engine, table, scheduler
        self.limits, self.metrics, self.clock = limits, metrics, clock
        self.plain = FirstComeFirstServed(scheduler.estimator, scheduler.limits)  # in place of a scheduler that fails
        self.queue: list[Session] = []
        self.running: RunningBatch | None = None
        self.wait_s = 0.0  # for an arrival, as the scheduler wants it
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
        while True:
            running = self._launch()
            while running is not None:
                ended = running
                await asyncio.wait([ended.result])
                succeeded = self._finish(ended)
                running = self._launch()
                self._answer(ended, succeeded)
            await self._rest()

    async def sweep(self) -> None:
        """Forget silent sessions from time to time, until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_S)
            self.table.sweep()
            self._gauge()

    def forgotten(self, key: Hashable) -> None:
        """A session has left the table: its memory is free, and what waited for memory may run."""
        self.engine.forget(key)
        self.wake.set()

    async def _rest(self) -> None:
        """Until a round arrives; where rounds wait already, no longer than the scheduler wants to."""
        self.wake.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.wake.wait(), self.wait_s if self.queue else None)

    # --- a batch begins --------------------------------------------------------------------------------------------------

    def _launch(self) -> RunningBatch | None:
        """Start the next batch, if rounds wait and the scheduler takes any."""
        self.queue = [s for s in self.queue if s.pending is not None and s.pending.stage == WAITING]
        if not self.queue:
            return None
        requests = [self._seen(session) for session in self.queue]
        batch = self._compose(requests)
        if not batch.members:
            self.wait_s = batch.wait_s
            return None
        sessions = [self.queue[place] for place in batch.members]
        taken = [(requests[place], new) for place, new in zip(batch.members, batch.new_tokens, strict=True)]
        complete = [new == request.new_tokens for request, new in taken]
        sizes = {request.name: request.cached_tokens + new for request, new in taken}
        self.queue = [session for session in self.queue if session.key not in sizes]
        self.metrics.evictions.inc(self.engine.reserve(sizes))
        jobs = [self._job(s, sizes[s.key], whole) for s, whole in zip(sessions, complete, strict=True)]
        now_s = self.clock()
        result = asyncio.get_running_loop().run_in_executor(self.thread, self.engine.verify, jobs)
        self.running = RunningBatch(batch, sessions, complete, now_s, now_s + batch.predicted_s, result)
        return self.running

    def _compose(self, requests: Sequence[Request]) -> serving.Batch:
        """The scheduler's batch; where it fails or asks for what cannot be, first come first served."""
        now_s, used_tokens = self.clock(), self.engine.kv_used_tokens
        before = self.scheduler.fallbacks.copy()
        try:
            batch = self.scheduler.compose(requests, now_s, used_tokens)
            for reason, count in (self.scheduler.fallbacks - before).items():
                self.metrics.fallbacks.labels(reason).inc(count)
            if self._possible(requests, batch):
                return batch
            log.error("the scheduler composed an impossible batch: %s", batch)
        except Exception:
            log.exception("the scheduler failed")
        self.metrics.fallbacks.labels("replaced").inc()
        return self.plain.compose(requests, now_s, used_tokens)

    def _possible(self, requests: Sequence[Request], batch: serving.Batch) -> bool:
        """Whether a batch names waiting rounds, each once, no more of any than it has, and fits; an empty one must say how long it waits."""
        places, limits = batch.members, self.scheduler.limits
        if batch.refused or not (places or batch.wait_s > 0.0):
            return False
        if len(set(places)) < len(places) or not all(0 <= place < len(requests) for place in places):
            return False
        taken = [(requests[q], new) for q, new in zip(places, batch.new_tokens, strict=True)]
        if not all(1 <= new <= request.new_tokens for request, new in taken):
            return False
        held = sum(limits.held(request.cached_tokens + new) for request, new in taken)
        return len(places) <= limits.requests and held <= limits.kv_tokens

    def _seen(self, session: Session) -> Request:
        """A waiting round as it stands now: what is cached changes while it waits."""
        assert session.pending is not None
        return replace(session.pending.request, cached_tokens=self.engine.cached_tokens(session.key))

    def _job(self, session: Session, tokens: int, complete: bool) -> Job:
        pending = session.pending
        assert pending is not None
        pending.stage = RUNNING
        chance = (session.temperature, session.seed, len(session.committed))
        if not complete:
            return Job(session.key, session.context, (), (), *chance, min(tokens, len(session.context)))
        return Job(session.key, session.context, pending.drafted, pending.laws, *chance)

    # --- a batch ends ----------------------------------------------------------------------------------------------------

    def _finish(self, ended: RunningBatch) -> bool:
        """The batch has ended: tokens are committed, the scheduler learns. Whether it succeeded."""
        now_s, self.running = self.clock(), None
        error = ended.result.exception()
        if error is not None:
            log.error("verification failed", exc_info=error)
            self._fail(ended)
            return False
        committed = 0
        for session, tokens, complete in zip(ended.sessions, ended.result.result(), ended.complete, strict=True):
            if complete:
                committed += self._commit(session, tokens, now_s)
            else:
                self._wait_on(session)
        self.scheduler.finished(ended.batch, now_s - ended.started_s, committed)
        self._count(ended, now_s - ended.started_s)
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
            self.queue.sort(key=lambda s: s.pending.request.arrived_s if s.pending else 0.0)

    def _commit(self, session: Session, tokens: list[int], now_s: float) -> int:
        """A round's tokens join the answer; how many."""
        before, pending = len(session.committed), session.pending
        assert pending is not None
        session.commit(tokens, self.table.model.end_tokens)
        committed = len(session.committed) - before
        session.held_s = now_s - pending.request.arrived_s
        session.first_left_s = min(session.first_left_s, now_s)
        timely = in_time(pending.request.due_s, session.slo_tokens_per_s, committed, now_s, not before)
        self.metrics.round(DEVICE, len(pending.drafted), len(tokens) - 1, not before)
        self.metrics.tokens(committed, sum(timely))
        self.metrics.held_s.observe(session.held_s)
        if session.finished:
            self.metrics.answer(session.slo_tokens_per_s, timely[-1])
            self.engine.forget(session.key)
        if session.closed:
            self.table.forget(session.key)
        return committed

    def _fail(self, ended: RunningBatch) -> None:
        """Nothing is committed; caches may be half written, so they are computed again."""
        self.metrics.failures.inc()
        for session in ended.sessions:
            self.engine.forget(session.key)
            assert session.pending is not None
            session.last, session.pending = (session.pending.number, len(session.committed), 0, 0), None
            if session.closed:
                self.table.forget(session.key)

    def _answer(self, ended: RunningBatch, succeeded: bool) -> None:
        """Send what became of the batch's rounds."""
        state = self.state()
        for session, complete in zip(ended.sessions, ended.complete, strict=True):
            if session.connection is None or (succeeded and not complete):
                continue
            number, position, _, _ = session.last
            if succeeded:
                reply = session.reply(number, position)
                reply.held_s = session.held_s
                session.connection.send(self.with_state(reply, session, state))
            else:
                refused = Refused(Refusal.FAILED, "the verification failed", self.limits.retry_after_s)
                session.connection.send(refused.message(session.key[1], number))

    # --- what is told of the server --------------------------------------------------------------------------------------

    def with_state(self, reply: Reply, session: Session, state: ServerState) -> FromServer:
        """The reply to a session, complete."""
        reply.state.CopyFrom(state)
        reply.state.suggested_tokens = self.scheduler.suggested_tokens(session.key)
        return FromServer(reply=reply)

    def state(self) -> ServerState:
        """What replies tell of the server now."""
        running, scheduler = self.running, self.scheduler
        return ServerState(
            busy=running is not None,
            batch_ends_in_s=running.predicted_end_s - self.clock() if running is not None else 0.0,
            mean_batch_s=max(scheduler.mean_batch_s, LEAST_BATCH_S), queue_work_s=self._queue_work_s(), queue_rounds=len(self.queue),
            utilisation=min(scheduler.utilisation, 1.0), price=scheduler.price,
        )  # fmt: skip

    def _queue_work_s(self) -> float:
        return self.scheduler.predict_s([self._seen(session) for session in self.queue if session.pending is not None])

    def _count(self, ended: RunningBatch, seconds: float) -> None:
        self.metrics.batch(ended.batch.predicted_s, seconds, len(ended.sessions), sum(ended.batch.new_tokens))
        self._gauge()

    def _gauge(self) -> None:
        self.metrics.sessions.set(len(self.table.sessions))
        self.metrics.waiting.set(len(self.queue))
        self.metrics.kv_tokens.set(self.engine.kv_used_tokens)
        self.metrics.utilisation.set(self.scheduler.utilisation)
        self.metrics.price.set(self.scheduler.price)

    def close(self) -> None:
        """End the thread, once its batch is done."""
        self.thread.shutdown(wait=True)
