"""Who may talk to a server, and over what: access tokens and TLS."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import grpc

from wisp_gym.errors import InputError

MIN_TOKEN_CHARACTERS = 16
ANYONE = "anyone"  # the client's name on a server without tokens


class SecurityError(InputError):
    """A token or certificate file that cannot be used; the message is one line."""


class AccessTokens:
    """Names of clients by their access tokens; digests alone are kept.

    Args:
        tokens: name and token of each client.
    """

    def __init__(self, tokens: Iterable[tuple[str, str]]) -> None:
        self._names = [(hashlib.sha256(token.encode()).digest(), name) for name, token in tokens]

    @classmethod
    def read(cls, path: Path) -> AccessTokens:
        """Read a file of lines `NAME TOKEN`; empty lines and those that begin with # are passed over.

        Raises:
            SecurityError: the file cannot be read, or a line is not of this form.
        """
        found: list[tuple[str, str]] = []
        for number, line in enumerate(_read(path).decode("utf-8", "replace").splitlines(), 1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            if len(words) != 2 or len(words[1]) < MIN_TOKEN_CHARACTERS:
                least = f"at least {MIN_TOKEN_CHARACTERS} characters of token"
                raise SecurityError(f"{path}:{number}: allowed is 'NAME TOKEN' with {least}")
            found.append((words[0], words[1]))
        if not found:
            raise SecurityError(f"{path}: no token; nobody could connect")
        return cls(found)

    def client(self, metadata: Iterable[tuple[str, str | bytes]]) -> str | None:
        """The client of a call's metadata (`authorization: Bearer TOKEN`), or None."""
        value = next((text for name, text in metadata if name == "authorization"), "")
        scheme, _, token = value.partition(" ") if isinstance(value, str) else ("", "", "")
        digest, found = hashlib.sha256(token.encode()).digest(), None
        for known, name in self._names:  # all are compared, in constant time: how long it takes tells nothing
            if hmac.compare_digest(known, digest):
                found = name
        return found if scheme.lower() == "bearer" else None


def server_credentials(certificate: Path, key: Path, client_ca: Path | None) -> grpc.ServerCredentials:
    """TLS of a server; with `client_ca`, devices must show a certificate that it signed."""
    pair = [(_read(key), _read(certificate))]
    ca = _read(client_ca) if client_ca else None
    return grpc.ssl_server_credentials(pair, root_certificates=ca, require_client_auth=ca is not None)


def channel_credentials(ca: Path | None, certificate: Path | None, key: Path | None) -> grpc.ChannelCredentials:
    """TLS of a device; without `ca` the system's certificate authorities are trusted."""
    return grpc.ssl_channel_credentials(*(_read(path) if path else None for path in (ca, key, certificate)))


def metadata_of(token: str | None) -> list[tuple[str, str]]:
    """The metadata that carries a token."""
    return [("authorization", f"Bearer {token}")] if token else []


def read_token(path: Path) -> str:
    """A device's own token: the only word of a file."""
    words = _read(path).decode("utf-8", "replace").split()
    if len(words) != 1:
        raise SecurityError(f"{path}: allowed is one token and nothing else")
    return words[0]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SecurityError(f"{path}: cannot be read ({error.strerror})") from None


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    return host in ("localhost", "127.0.0.1", "::1", "[::1]")


Options = list[tuple[str, Any]]


def keepalive(max_message_bytes: int) -> Options:
    """Options of both sides: message sizes, and pings that find a dead peer within half a minute."""
    return [
        ("grpc.max_receive_message_length", max_message_bytes), ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.keepalive_time_ms", 20_000), ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000), ("grpc.http2.max_pings_without_data", 0),
    ]  # fmt: skip
