"""How a command ends: by a signal, with a reader that is gone, on a full disk, in an encoding that lacks letters."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from wisp_gym import interrupts, streams
from wisp_gym.cli import run
from wisp_gym.evaluation.pool import Threads
from wisp_gym.interrupts import Interrupt, Stop, leaves, on_signals
from wisp_gym.streams import Output, OutputError

ROOT = Path(__file__).resolve().parents[2]
EVALUATE = ("-m", "wisp_gym", "evaluate", "--devices", "3", "--seeds", "2", "--controllers", "wisp")
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="a full disk is /dev/full")


def started(*words: str, **how: Any) -> subprocess.Popen[str]:
    """Python in the checkout, without what the environment says of its streams."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONIOENCODING", "PYTHONUNBUFFERED")}
    told = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT, **how}
    return subprocess.Popen([sys.executable, *words], env={**kept, **how.pop("env", {})} | told.pop("env", {}), **told)


def shell(line: str, folder: Path = ROOT) -> tuple[int, str, str]:
    """Exit code (of the first command of a pipe), output and errors of a line of bash, where $E is a small comparison."""
    words = f'E="{sys.executable} {" ".join(EVALUATE)}"; {line}; exit ${{PIPESTATUS[0]}}'
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", words], cwd=folder, env=environment, capture_output=True, check=False)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


# --- signals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", CODES)
def test_a_signal_is_one_line_and_the_shells_exit_code(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    before = [signal.getsignal(each) for each in CODES]

    def main(_: Any) -> None:
        signal.raise_signal(number)

    assert run(main, "prog") == CODES[number]
    by = "" if number == signal.SIGINT else f" by {number.name}"
    assert capsys.readouterr().err == f"prog: interrupted{by}, nothing written\n"
    assert [signal.getsignal(each) for each in CODES] == before


def test_a_library_may_raise_an_interrupt_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    def main(_: Any) -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            raise KeyboardInterrupt from None

    assert run(main, "prog") == 143
    assert "interrupted by SIGTERM" in capsys.readouterr().err


def test_the_innermost_word_of_what_is_left_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    @leaves("a folder")
    def main(_: Any) -> None:
        with leaves("half a folder; --resume goes on"):
            signal.raise_signal(signal.SIGTERM)

    assert run(main, "prog") == 143
    assert capsys.readouterr().err == "prog: interrupted by SIGTERM, half a folder; --resume goes on\n"


def test_the_same_signal_from_two_sides_interrupts_once() -> None:
    handler = Interrupt()
    with on_signals(handler):
        with pytest.raises(Stop):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)  # an echo: what cleans up goes on
        handler.heard_s -= interrupts.ECHO_S
        with pytest.raises(Stop):
            signal.raise_signal(signal.SIGTERM)


def test_a_library_does_not_take_our_signals() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with interrupts.kept_signals():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_was_started_to_ignore_a_signal_goes_on() -> None:
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert signal.SIGHUP not in interrupts.heard()
        assert run(lambda _: signal.raise_signal(signal.SIGHUP), "prog") == 0
    finally:
        signal.signal(signal.SIGHUP, former)


@pytest.mark.parametrize("number", CODES)
def test_a_command_ends_at_once_and_leaves_no_draft(number: signal.Signals, tmp_path: Path) -> None:
    """While its worlds run on other threads, which cannot be stopped."""
    words = ("--devices", "4000", "--seeds", "8", "--controllers", "wisp", "--json", str(tmp_path / "rows.json"))
    command = started("-m", "wisp_gym", "evaluate", *words)
    wait_until_busy(command)
    begun_s = time.monotonic()
    command.send_signal(number)
    out, err = command.communicate(timeout=60)
    assert (command.returncode, out) == (CODES[number], "")
    assert err.splitlines()[-1].startswith("wisp-gym evaluate: interrupted")
    assert "Traceback" not in err
    assert time.monotonic() - begun_s < 5
    assert not list(tmp_path.iterdir())


def wait_until_busy(command: subprocess.Popen[str]) -> None:
    """Wait until a command computes in several threads."""
    while command.poll() is None and len(os.listdir(f"/proc/{command.pid}/task")) < 2:
        time.sleep(0.02)
    time.sleep(0.5)


def test_a_signal_while_a_command_is_imported_ends_it_quietly() -> None:
    command = started("train.py", "--help")
    time.sleep(0.6)  # torch takes seconds
    command.send_signal(signal.SIGINT)
    out, err = command.communicate(timeout=60)
    assert (command.returncode, out, err) == (-signal.SIGINT, "", "")


def test_a_closed_pool_does_not_wait_for_what_runs() -> None:
    begun_s = time.monotonic()
    results = Threads().map(time.sleep, [(seconds,) for seconds in (0.0, 3.0, 3.0, 3.0)])
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert time.monotonic() - begun_s < 2


def test_a_signal_is_passed_on_to_a_command_that_was_started(tmp_path: Path) -> None:
    child = f"""
import pathlib, time
from wisp_gym.cli import run
from wisp_gym.interrupts import leaves
from wisp_gym.process import program
@leaves("its work")
def main(_):
    pathlib.Path({str(tmp_path / "begun")!r}).touch()
    time.sleep(60)
program(lambda: run(main, "child"))
"""
    parent = started("-c", f"""
import sys
from wisp_gym import process
from wisp_gym.cli import run
process.program(lambda: run(lambda _: process.call([sys.executable, "-c", {child!r}])[0], "parent"))
""")  # fmt: skip
    while not (tmp_path / "begun").exists() and parent.poll() is None:
        time.sleep(0.05)
    parent.send_signal(signal.SIGTERM)
    _, err = parent.communicate(timeout=30)
    assert parent.returncode == 143
    assert err.splitlines() == [
        "child: interrupted by SIGTERM, its work",
        "parent: interrupted by SIGTERM, nothing written",
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_a_server_of_a_killed_parent_is_asked_to_end(tmp_path: Path) -> None:
    child = f"""
import pathlib, time
from wisp_gym.process import follow_parent
follow_parent()
pathlib.Path({str(tmp_path / "begun")!r}).touch()
time.sleep(60)
"""
    words = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {child!r}]); print(p.pid, flush=True); p.wait()"
    with started("-c", words, stderr=None) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        while not (tmp_path / "begun").exists():
            time.sleep(0.05)
        parent.kill()
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2]:
            return
        time.sleep(0.05)
    pytest.fail("it lives on")


# --- standard streams ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    ["$E | true", "export PYTHONUNBUFFERED=1; $E 2>&1 | true", f"{sys.executable} -m wisp_gym evaluate --help | true"],
)
def test_a_reader_that_is_gone_ends_a_command_quietly(line: str) -> None:
    assert shell(line) == (streams.BROKEN_PIPE, "", "")


@FULL
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_under_the_output_is_one_line_and_the_file_is_there(unbuffered: str, tmp_path: Path) -> None:
    code, _, err = shell(f"export PYTHONUNBUFFERED={unbuffered}; $E --json rows.json > /dev/full", tmp_path)
    assert (code, err) == (2, "wisp-gym evaluate: standard output: No space left on device\n")
    assert (tmp_path / "rows.json").stat().st_size > 100


@FULL
def test_help_on_a_full_disk_is_one_line() -> None:
    assert shell(f"{sys.executable} -m wisp_gym evaluate --help > /dev/full") == (
        2, "", "standard output: No space left on device\n",
    )  # fmt: skip


@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
def test_closed_streams_change_nothing(closed: str, tmp_path: Path) -> None:
    code, _, err = shell(f"$E --json rows.json {closed}", tmp_path)
    assert (code, err) == (0, "")
    assert (tmp_path / "rows.json").read_bytes().startswith(b"[")


# --- letters ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encoding", "seen"),
    [
        ("ascii", b"2.0 x 3 - e rho -> \\u4f60 a.png"),
        ("cp1252", "2.0 × 3 – é rho -> \\u4f60 a.png".encode("cp1252")),
        ("utf-8", "2.0 × 3 – é ρ → 你 a.png".encode()),
    ],
)
def test_output_can_be_written_in_every_encoding(encoding: str, seen: bytes) -> None:
    assert written("2.0 × 3 – é ρ → 你 a.png", encoding) == seen


def written(text: str, encoding: str, errors: str = "strict") -> bytes:
    """What a stream of ours writes for a text."""
    raw = io.BytesIO()
    stream = Output(io.TextIOWrapper(raw, encoding, errors))
    print(text, end="", file=stream, flush=True)
    return raw.getvalue()


def test_bytes_of_a_files_name_are_printed_as_they_are() -> None:
    assert written(os.fsdecode(b"caf\xe9"), "ascii") == b"caf\xe9"


def test_what_the_environment_says_of_strange_letters_holds() -> None:
    assert written("a×b", "ascii", "ignore") == b"ab"


class Full(io.BytesIO):
    """A disk that is full."""

    def write(self, _: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_the_first_fault_of_a_stream_is_kept() -> None:
    stream = Output(io.TextIOWrapper(Full(), "ascii", write_through=True))
    with pytest.raises(OutputError) as found:
        print("a", file=stream, flush=True)
    assert found.value.code == streams.LOST_OUTPUT
    assert stream.lost is found.value
    stream.detach()
