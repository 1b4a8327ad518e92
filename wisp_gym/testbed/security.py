"""Who may talk to a server, and over what: access tokens and TLS."""

from __future__ import annotations

import codecs
import hashlib
import hmac
import logging
import os
import ssl
import stat
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import grpc

from wisp_gym.errors import InputError

log = logging.getLogger(__name__)
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
        found: dict[str, str] = {}  # token → name
        for number, line in enumerate(_words_of(path), 1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            if len(words) != 2 or len(words[1]) < MIN_TOKEN_CHARACTERS or not words[1].isascii():
                least = f"at least {MIN_TOKEN_CHARACTERS} ASCII characters of token"
                raise SecurityError(f"--tokens {path}:{number}: allowed is 'NAME TOKEN' with {least}")
            if words[1] in found:
                raise SecurityError(f"--tokens {path}:{number}: the token is that of '{found[words[1]]}' already")
            found[words[1]] = words[0]
        if not found:
            raise SecurityError(f"--tokens {path}: no token; nobody could connect")
        return cls((name, token) for token, name in found.items())

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
    """TLS of a server; with `client_ca`, devices must show a certificate that it signed.

    Raises:
        SecurityError: a file that cannot be used, or a key of another certificate.
    """
    check_pair(certificate, key)
    ca = check_authority(client_ca, "--tls-client-ca") if client_ca else None
    return grpc.ssl_server_credentials([(_secret(key), _read(certificate))], ca, require_client_auth=ca is not None)


def channel_credentials(ca: Path | None, certificate: Path | None, key: Path | None) -> grpc.ChannelCredentials:
    """TLS of a device; without `ca` the system's certificate authorities are trusted.

    Raises:
        SecurityError: as `server_credentials`.
    """
    if certificate and key:
        check_pair(certificate, key)
    authority = check_authority(ca, "--tls-ca") if ca else None
    return grpc.ssl_channel_credentials(
        authority, _secret(key) if key else None, _read(certificate) if certificate else None
    )


def check_pair(certificate: Path, key: Path) -> None:
    """Refuse files that are no certificate and its private key: gRPC would blame the address.

    Raises:
        SecurityError: names the file.
    """
    check_authority(certificate, "--tls-certificate")
    with tempfile.TemporaryDirectory() as folder:  # as we read them, without a byte order mark; private, as it is made
        both = Path(folder) / "both.pem"
        both.write_bytes(_read(certificate) + b"\n" + _read(key))
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(both, password=lambda: "")
        except ssl.SSLError as error:
            words = f"--tls-key {key}: no private key in PEM without a password"
            if error.reason == "KEY_VALUES_MISMATCH":
                words = f"--tls-key {key}: not the key of --tls-certificate {certificate}"
            raise SecurityError(words) from None


def check_authority(path: Path, flag: str) -> bytes:
    """A certificate in PEM.

    Raises:
        SecurityError: there is none in the file.
    """
    content = _read(path)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=content.decode("ascii"))
    except (ssl.SSLError, ValueError):
        raise SecurityError(f"{flag} {path}: no certificate in PEM") from None
    return content


def metadata_of(token: str | None) -> list[tuple[str, str]]:
    """The metadata that carries a token."""
    return [("authorization", f"Bearer {token}")] if token else []


def read_token(path: Path) -> str:
    """A device's own token: the only word of a file."""
    words = " ".join(_words_of(path)).split()
    if len(words) != 1 or not words[0].isascii():
        raise SecurityError(f"--token {path}: allowed is one token, of ASCII characters, and nothing else")
    return words[0]


def _words_of(path: Path) -> list[str]:
    """The lines of a file of secrets."""
    try:
        return _secret(path).decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise SecurityError(f"{path}: byte {error.start} is no UTF-8 text") from None


def _secret(path: Path) -> bytes:
    """A file that should be its owner's alone; a note where everybody can read it."""
    content = _read(path)
    if os.name == "posix" and path.stat().st_mode & stat.S_IROTH:
        log.warning("%s can be read by every user of this machine; chmod o-r keeps it secret", path)
    return content


def _read(path: Path) -> bytes:
    """A file's bytes, without the byte order mark that editors on Windows put before them."""
    try:
        return path.read_bytes().removeprefix(codecs.BOM_UTF8)
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
