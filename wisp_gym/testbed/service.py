"""The verification server: gRPC streams of devices, their sessions, the verifier, health and metrics."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from prometheus_client import start_http_server

from wisp_gym.serving import Scheduler
from wisp_gym.testbed.engine import Engine
from wisp_gym.testbed.messages import Model, Refused, check_round
from wisp_gym.testbed.metrics import ServerMetrics
from wisp_gym.testbed.scheduling import make_scheduler
from wisp_gym.testbed.security import ANYONE, AccessTokens, keepalive
from wisp_gym.testbed.sessions import SessionTable
from wisp_gym.testbed.settings import SERVICE, Limits
from wisp_gym.testbed.verifier import Verifier
from wisp_gym.testbed.wire_pb2 import FromDevice, FromServer, Refusal, Round

log = logging.getLogger(__name__)
OUTBOX_MESSAGES = 16  # replies that wait for a device to read them; one more is dropped, and can be asked for again


class Connection:
    """The way back to a device: a bounded box of messages that its stream empties."""

    def __init__(self, client: str, metrics: ServerMetrics) -> None:
        self.client, self.metrics = client, metrics
        self.outbox: asyncio.Queue[FromServer | None] = asyncio.Queue(OUTBOX_MESSAGES)

    def send(self, message: FromServer) -> None:
        """Put a message into the box, or drop it: the verifier waits for no device."""
        try:
            self.outbox.put_nowait(message)
        except asyncio.QueueFull:
            self.metrics.dropped.inc()

    async def send_when_read(self, message: FromServer | None) -> None:
        """Put a message into the box once there is room; until then no further message of the device is read."""
        await self.outbox.put(message)


@dataclass(frozen=True)
class ServerSettings:
    """What a server is told besides its model and its scheduler.

    Attributes:
        limits: of memory, sessions, queue and messages. tokens: who may connect; None: anyone.
        clock: seconds, never falling; no other machine's clock matters.
    """

    limits: Limits = field(default_factory=Limits)
    tokens: AccessTokens | None = None
    clock: Callable[[], float] = time.monotonic


class Server:
    """A verification server.

    Args:
        engine: what verifies. tokenizer: SHA-256 of its vocabulary.
        scheduler: composes batches; None: first come first served. settings: all else.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: bytes,
        scheduler: Scheduler | None = None,
        settings: ServerSettings | None = None,
    ) -> None:
        settings = settings or ServerSettings()
        self.limits, self.tokens, self.metrics = settings.limits, settings.tokens, ServerMetrics()
        most_tokens = min(engine.max_tokens, engine.kv_capacity_tokens)
        self.model = Model(engine.vocabulary, most_tokens, tokenizer, engine.end_tokens, engine.samples)
        self.table = SessionTable(self.limits, self.model, settings.clock, lambda key: self.verifier.forgotten(key))
        scheduler = scheduler or make_scheduler(None, engine, self.limits)
        self.verifier = Verifier(engine, self.table, scheduler, self.limits, self.metrics, settings.clock)
        self.health = health.aio.HealthServicer()
        self.draining = False
        self._tasks: list[asyncio.Task[None]] = []
        self._grpc: grpc.aio.Server | None = None
        self._metrics_server: Any = None

    async def start(self, host: str, port: int, credentials: grpc.ServerCredentials | None = None) -> int:
        """Listen; returns the port, which the system chooses where 0 is given."""
        options = [*keepalive(self.limits.max_message_bytes), ("grpc.so_reuseport", 0)]
        server = grpc.aio.server(options=options, maximum_concurrent_rpcs=2 * self.limits.max_sessions + 16)
        serve = grpc.stream_stream_rpc_method_handler(self.Serve, FromDevice.FromString, FromServer.SerializeToString)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Serve": serve}),))
        health_pb2_grpc.add_HealthServicer_to_server(self.health, server)
        address = f"{host}:{port}"
        bound = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
        self._grpc = server
        await server.start()
        self._tasks = [asyncio.create_task(self.verifier.run()), asyncio.create_task(self.verifier.sweep())]
        await self._tell_health(health_pb2.HealthCheckResponse.SERVING)
        return bound

    def serve_metrics(self, host: str, port: int) -> int:
        """Serve Prometheus metrics over HTTP; returns the port."""
        self._metrics_server, _ = start_http_server(port, host, self.metrics.registry)
        return int(self._metrics_server.server_port)

    async def _tell_health(self, status: int) -> None:
        for service in ("", SERVICE):
            await self.health.set(service, status)

    async def drain(self, grace_s: float) -> None:
        """Take no new sessions, and wait until the connected devices have their answers, or for `grace_s`."""
        self.draining = True
        await self._tell_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                while any(s.connection is not None and not s.finished for s in self.table.sessions.values()):
                    await asyncio.sleep(0.02)
                await asyncio.sleep(0.1)  # the last replies are on their way

    async def stop(self) -> None:
        """End all connections, the loop and the thread; a running verification is waited for."""
        if self._grpc is not None:
            await self._grpc.stop(0.2)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.verifier.close()
        if self._metrics_server is not None:
            self._metrics_server.shutdown()
            self._metrics_server.server_close()

    async def Serve(self, requests: AsyncIterator[FromDevice], context: Any) -> None:
        """One device's stream, until either side ends it."""
        client = self.tokens.client(context.invocation_metadata()) if self.tokens else ANYONE
        if client is None:
            self.metrics.refusals.labels("UNAUTHENTICATED").inc()
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "authorization: a known access token is needed")
            return  # abort raises
        connection = Connection(client, self.metrics)
        self.metrics.connections.inc()
        reader = asyncio.create_task(self._read(requests, connection))
        try:
            while (message := await connection.outbox.get()) is not None:
                async with asyncio.timeout(self.limits.stalled_s):
                    await context.write(message)
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "replies were left unread")
        finally:
            reader.cancel()
            self.metrics.connections.dec()
            self.table.detach(connection)

    async def _read(self, requests: AsyncIterator[FromDevice], connection: Connection) -> None:
        """Handle a device's messages in turn; one that breaks the protocol ends the stream."""
        try:
            async for message in requests:
                if message.WhichOneof("message") == "close":
                    self.table.forget((connection.client, message.close.session))  # no other client's
                elif not await self._round(connection, message.round):
                    break
        except Exception as error:  # a stream that broke, or bytes that are no message
            log.warning("a stream ended: %s: %s", type(error).__name__, error)
        await connection.send_when_read(None)

    async def _round(self, connection: Connection, message: Round) -> bool:
        """Take a round; whether the stream may go on."""
        try:
            check_round(message, self.limits, self.model)
            session = self.table.find(connection.client, message, connection, self.draining)
            if self.table.attached(connection) > self.limits.max_sessions_per_connection:
                session.connection = None
                text = f"a connection may have {self.limits.max_sessions_per_connection} sessions"
                raise Refused(Refusal.TOO_MANY_SESSIONS, text, self.limits.retry_after_s)
            reply = self.table.take(session, message)
            if reply is not None:
                await connection.send_when_read(self.verifier.with_state(reply, session, self.verifier.state()))
            else:
                self.verifier.enter(session)
        except Refused as refused:
            self.metrics.refusals.labels(Refusal.Reason.Name(refused.reason)).inc()
            await connection.send_when_read(refused.message(message.session, message.round))
            return refused.reason != Refusal.INVALID
        return True
