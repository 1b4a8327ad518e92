"""A device's connection to the server: one stream, rounds up, replies down."""

import queue
import threading
from collections.abc import Iterator
from typing import Any

import grpc

from wisp_gym.testbed.security import Options, keepalive, metadata_of
from wisp_gym.testbed.settings import SERVICE
from wisp_gym.testbed.wire_pb2 import FromDevice, FromServer

FATAL = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNIMPLEMENTED)


class LinkBroken(Exception):
    """The stream ended or no reply came in time; a new one may be opened."""


class NotWelcome(Exception):
    """The server will never take this device: a wrong token, or another service."""


class Link:
    """A stream that is open.

    Args:
        channel: to the server.
        token: access token.
    """

    def __init__(self, channel: grpc.Channel, token: str | None = None) -> None:
        self._out: queue.SimpleQueue[FromDevice | None] = queue.SimpleQueue()
        self._in: queue.SimpleQueue[FromServer | grpc.RpcError | None] = queue.SimpleQueue()
        serve = channel.stream_stream(f"/{SERVICE}/Serve", FromDevice.SerializeToString, FromServer.FromString)
        self._call: Any = serve(iter(self._out.get, None), metadata=metadata_of(token))
        self._reader = threading.Thread(target=self._read, args=(self._call,), daemon=True)
        self._reader.start()

    def _read(self, call: Iterator[FromServer]) -> None:
        try:
            for message in call:
                self._in.put(message)
            self._in.put(None)
        except grpc.RpcError as error:
            self._in.put(error)

    def send(self, message: FromDevice) -> None:
        """Put a message on its way."""
        self._out.put(message)

    def receive(self, timeout_s: float) -> FromServer:
        """The next message.

        Raises:
            LinkBroken: none came in time, or the stream ended. NotWelcome: for good.
        """
        try:
            message = self._in.get(timeout=timeout_s)
        except queue.Empty:
            raise LinkBroken(f"no reply within {timeout_s:g} s") from None
        if message is None:
            raise LinkBroken("the server ended the stream")
        if isinstance(message, grpc.RpcError):
            code, details = message.code(), message.details()
            raise (NotWelcome if code in FATAL else LinkBroken)(f"{code.name}: {details}")
        return message

    def finish(self) -> None:
        """End the stream once what was sent is on its way."""
        self._out.put(None)
        self._reader.join(2.0)
        self.close()

    def close(self) -> None:
        """End the stream at once."""
        self._call.cancel()
        self._out.put(None)
        self._reader.join(5.0)


def open_channel(
    address: str, credentials: grpc.ChannelCredentials | None, max_message_bytes: int, name: str = ""
) -> grpc.Channel:
    """A channel of its own to `host:port`.

    Args:
        credentials: TLS; None: in the clear. name: expected in the server's certificate, where it is not the host.
    """
    options: Options = [*keepalive(max_message_bytes), ("grpc.use_local_subchannel_pool", 1)]
    backoff_ms = {"initial": 100, "min": 100, "max": 2000}
    options += [(f"grpc.{end}_reconnect_backoff_ms", ms) for end, ms in backoff_ms.items()]
    if credentials is None:
        return grpc.insecure_channel(address, options)
    options += [("grpc.ssl_target_name_override", name)] if name else []
    return grpc.secure_channel(address, credentials, options)
