"""What an operator hands to server and device: certificates, tokens, addresses, prompts; the right thing is blamed in one line."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

trustme = pytest.importorskip("trustme")
pytest.importorskip("grpc")

from wisp_gym.cli import run
from wisp_gym.testbed import device, server
from wisp_gym.testbed.security import AccessTokens, SecurityError, channel_credentials, read_token, server_credentials

TOKEN = "abcdefghijklmnopqrst"
BOM = b"\xef\xbb\xbf"


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the certificates and keys of two hosts, and their authority."""
    folder, authority = tmp_path_factory.mktemp("tls"), trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    for name in ("one", "other"):
        issued = authority.issue_cert(f"{name}.test")
        issued.cert_chain_pems[0].write_to_path(str(folder / f"{name}.pem"))
        issued.private_key_pem.write_to_path(str(folder / f"{name}.key"))
    (folder / "junk").write_text("no PEM")
    return folder


def refused(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    """The line with which the server refuses."""
    assert run(server.main, server.PROGRAM, ["--listen", "127.0.0.1:0", *flags]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1), err
    return err.removeprefix(f"{server.PROGRAM}: ").rstrip("\n")


@pytest.mark.parametrize(
    ("certificate", "key", "blamed"),
    [
        ("one.pem", "other.key", "--tls-key {}/other.key: not the key of --tls-certificate {}/one.pem"),
        ("one.key", "one.pem", "--tls-certificate {}/one.key: no certificate in PEM"),
        ("junk", "one.key", "--tls-certificate {}/junk: no certificate in PEM"),
        ("one.pem", "junk", "--tls-key {}/junk: no private key in PEM without a password"),
        ("one.pem", "gone", "{}/gone: cannot be read (No such file or directory)"),
    ],
)
def test_the_file_that_is_wrong_is_blamed(
    certificate: str, key: str, blamed: str, tls: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--tls-certificate", str(tls / certificate), "--tls-key", str(tls / key))
    assert refused(capsys, *flags) == blamed.format(tls, tls)
    with pytest.raises(SecurityError):
        channel_credentials(tls / "ca.pem", tls / certificate, tls / key)


def test_an_authority_must_be_one(tls: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = ("--tls-certificate", str(tls / "one.pem"), "--tls-key", str(tls / "one.key"))
    assert "--tls-client-ca" in refused(capsys, *pair, "--tls-client-ca", str(tls / "junk"))
    with pytest.raises(SecurityError, match=r"--tls-ca .*junk"):
        channel_credentials(tls / "junk", None, None)


def test_certificates_of_other_editors_are_read(tls: Path, tmp_path: Path) -> None:
    for name in ("one.pem", "one.key", "ca.pem"):
        (tmp_path / name).write_bytes(BOM + (tls / name).read_bytes().replace(b"\n", b"\r\n"))
    assert server_credentials(tmp_path / "one.pem", tmp_path / "one.key", tmp_path / "ca.pem") is not None


@pytest.mark.parametrize("flag", ["--listen", "--metrics"])
def test_a_taken_port_is_blamed_before_a_model_is_loaded(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        address = f"127.0.0.1:{holder.getsockname()[1]}"
        said = refused(capsys, "--target", "/gone", flag, address)
    assert said.startswith(f"{flag} {address}: cannot be bound (Address already in use); allowed is a free port")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no token; nobody could connect"),
        (b"# nobody\n", "no token; nobody could connect"),
        (b"dev short\n", ":1: allowed is 'NAME TOKEN' with at least 16 ASCII characters"),
        (f"dev {TOKEN}\nother {TOKEN}é\n".encode(), ":2: allowed is 'NAME TOKEN'"),
        (f"dev {TOKEN}\nother {TOKEN}\n".encode(), ":2: the token is that of 'dev' already"),
        (f"dev {TOKEN}\n".encode("utf-16"), "byte 0 is no UTF-8 text"),
    ],
)
def test_tokens_that_nobody_could_use_are_refused(content: bytes, words: str, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_bytes(content)
    with pytest.raises(SecurityError) as found:
        AccessTokens.read(file)
    assert str(file) in str(found.value)
    assert words in str(found.value)


def test_tokens_of_other_editors_are_read(tmp_path: Path) -> None:
    tokens, token = tmp_path / "tokens", tmp_path / "token"
    tokens.write_bytes(BOM + f"dev {TOKEN}\r\n\r\n# more\r\n".encode())
    token.write_bytes(BOM + f"{TOKEN}\r\n".encode())
    assert AccessTokens.read(tokens).client([("authorization", f"Bearer {read_token(token)}")]) == "dev"


def test_secrets_that_everybody_can_read_are_noted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    token = tmp_path / "token"
    token.write_text(TOKEN)
    for mode, notes in ((0o600, 0), (0o644, 1)):
        token.chmod(mode)
        with caplog.at_level(logging.WARNING):
            read_token(token)
        assert len(caplog.records) == notes


@pytest.mark.parametrize(
    ("encode", "found"),
    [
        (lambda text: BOM + text.encode(), ["w1 w2"]),
        (lambda text: text.replace("\n", "\r\n").encode(), ["w1 w2"]),
        (lambda text: text.encode("utf-16"), None),
    ],
)
def test_prompts_of_other_editors(encode: Callable[[str], bytes], found: list[str] | None, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(encode('{"prompt": "w1 w2"}\n'))
    given = device.parse(["--prompts", str(file)])
    if found is None:
        with pytest.raises(ValueError, match="no UTF-8 text"):
            list(device.prompts(given))
    else:
        assert list(device.prompts(given)) == found
