"""The process of a command: what ends it, what its output can carry, and how it leaves.

SIGTERM (schedulers, containers) and SIGHUP (a terminal that went away) mean what Ctrl-C means: each becomes a
KeyboardInterrupt, so that what cleans up after one cleans up after all. `wisp_gym.cli` turns it into one line.
"""

import codecs
import contextlib
import ctypes
import errno
import io
import os
import signal
import subprocess
import sys
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

BROKEN_PIPE = 128 + 13  # the exit code of what writes to a reader that is gone, as shells have it (SIGPIPE)
LOST_OUTPUT = 2  # as of every file that cannot be written
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
ECHO_S = 1.0
END_S = 60.0  # in which a process that was asked to end should have done so
PR_SET_PDEATHSIG = 1  # of Linux's <sys/prctl.h>
PLAIN = "wisp_gym.plain"  # the way in which streams write what their encoding lacks
# Of one letter where that can be, so that tables stay aligned; names in other scripts are escaped.
LETTERS = {
    "×": "x", "·": ".", "–": "-", "−": "-", "±": "~", "→": "->", "←": "<-", "≤": "<=", "≥": ">=", "½": "1/2",
    "µ": "u", "μ": "u", "√": "sqrt", "Σ": "sum", "Φ": "Phi", "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta",
    "θ": "theta", "λ": "lambda", "ρ": "rho", "σ": "sigma", "τ": "tau",
}  # fmt: skip


# --- what ends it ----------------------------------------------------------------------------------------------------


class Stop(KeyboardInterrupt):
    """A signal asks the command to end.

    Attributes:
        number: the signal's.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def stop_words(number: int, stop: KeyboardInterrupt, left: str) -> str:
    """What a user is told after a signal: how it ended, and what is left (see `leaves`), else `left`."""
    how = "interrupted" if number == signal.SIGINT else f"interrupted by {signal.Signals(number).name}"
    return f"{how}, {next(iter(getattr(stop, '__notes__', [])), left)}"


@contextlib.contextmanager
def leaves(what: str) -> Iterator[None]:
    """What is left, or how to go on, where this context is interrupted; the innermost one is told. Also a decorator."""
    try:
        yield
    except KeyboardInterrupt as stop:
        stop.add_note(what)
        raise


def heard() -> list[int]:
    """The signals that ask to end, but those that the process was started to ignore (`nohup`)."""
    return [number for number in SIGNALS if signal.getsignal(number) not in (signal.SIG_IGN, None)]


@contextlib.contextmanager
def on_signals(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Every signal that asks to end goes to `handler`.

    Outside of the main thread, where no signal arrives, nothing is changed.
    """
    here = threading.current_thread() is threading.main_thread()
    former = {number: signal.getsignal(number) for number in heard()} if here else {}
    try:
        for number in former:
            signal.signal(number, handler)
        yield
    finally:
        for number, old in former.items():
            signal.signal(number, old)


@contextlib.contextmanager
def kept_signals() -> Iterator[None]:
    """Put the handlers back that a library replaces by its own (Ray ends the process at SIGTERM)."""
    here = threading.current_thread() is threading.main_thread()
    former = {number: signal.getsignal(number) for number in SIGNALS} if here else {}
    yield
    for number, old in former.items():
        if old is not None:
            signal.signal(number, old)


class Interrupt:
    """The handler that interrupts at once, by a `Stop`; a second signal interrupts what cleans up after the first.

    A signal often comes twice: to a process and to its group (`timeout`), from a terminal and from a parent. One that
    follows within `ECHO_S` is the same one.

    Attributes:
        number: of the last signal.
    """

    def __init__(self) -> None:
        self.heard_s = -ECHO_S
        self.number: int = signal.SIGINT

    def is_echo(self) -> bool:
        """Whether this signal is the one before."""
        before, self.heard_s = self.heard_s, time.monotonic()
        return self.heard_s - before < ECHO_S

    def __call__(self, number: int, _: Any = None) -> None:
        """What a signal does."""
        if not self.is_echo():
            self.number = number  # a library may catch our exception and raise a KeyboardInterrupt of its own
            raise Stop(number)


class StopRequest(Interrupt):
    """A signal as a wish, kept until the work can be stopped without a loss; the second one interrupts at once.

    A context manager.

    Args:
        said: the line that is shown at the first.

    Attributes:
        asked: the number of the signal that came, 0 before.
    """

    def __init__(self, said: str) -> None:
        super().__init__()
        self.said, self.asked = said, 0
        self.context = on_signals(self)

    def __enter__(self) -> "StopRequest":
        self.context.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.context.__exit__(*error)

    def __call__(self, number: int, _: Any = None) -> None:
        """What a signal does."""
        if self.is_echo():
            return
        if self.asked:
            raise Stop(number)
        self.asked = number
        with contextlib.suppress(OSError):  # of a terminal that is gone
            os.write(
                2, f"\n{self.said}; once more stops at once\n".encode()
            )  # not print(): a signal may come inside it

    def obey(self) -> None:
        """Interrupt here, if that was asked for.

        Raises:
            Stop: it was.
        """
        if self.asked:
            raise Stop(self.asked)


# --- what it starts --------------------------------------------------------------------------------------------------


def readable() -> dict[str, Any]:
    """Arguments of `Popen` with which we read what a command of ours prints, whatever the encoding of the user's terminal."""
    return {"encoding": "utf-8", "env": {**os.environ, "PYTHONIOENCODING": "utf-8"}}


def call(command: Sequence[str], timeout_s: float | None = None, captured: bool = False) -> tuple[int, str]:
    """Run another command of ours to its end; its exit code, and what it printed where that is captured.

    A signal that comes meanwhile is passed on, and the command's orderly end waited for.

    Raises:
        KeyboardInterrupt: a signal came. subprocess.TimeoutExpired: it was ended because it took longer.
    """
    how: dict[str, Any] = {"stdout": subprocess.PIPE, **readable()} if captured else {}
    with subprocess.Popen(command, **how) as child:
        try:
            said, _ = child.communicate(timeout=timeout_s)
        except (KeyboardInterrupt, subprocess.TimeoutExpired):
            child.terminate()
            raise
        finally:
            end(child)
    return child.returncode, said or ""


def end(child: "subprocess.Popen[Any]", seconds: float = END_S) -> int:
    """Wait for the end of a process that was asked for it, and kill it where that takes too long; its exit code."""
    try:
        return child.wait(seconds)
    except BaseException:  # too long, or a second signal
        child.kill()
        child.wait()
        raise


def follow_parent() -> None:
    """Be asked to end when the process that started this one is gone, killed perhaps; on Linux alone."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


# --- what its output can carry ---------------------------------------------------------------------------------------


def plain(error: UnicodeError) -> tuple[str | bytes, int]:
    """A letter that an encoding lacks, in ASCII: `×` as x, `é` as e, else an escape; bytes of a file's name as they are."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letter = error.object[error.start]
    if "\udc80" <= letter <= "\udcff":
        return os.fsencode(letter), error.start + 1
    bare = unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode()
    return LETTERS.get(letter) or bare or letter.encode("ascii", "backslashreplace").decode(), error.start + 1


class OutputError(OSError):
    """A standard stream cannot be written: its reader is gone (`| head`), or its disk is full."""

    @property
    def code(self) -> int:
        """The exit code after it."""
        return BROKEN_PIPE if self.errno == errno.EPIPE else LOST_OUTPUT


class Output(io.TextIOWrapper):
    """Standard output or error: it can write any text, whatever its encoding, and its faults are an `OutputError`.

    Args:
        stream: what it replaces. One that was told what to do with strange letters (PYTHONIOENCODING=…:…) goes on so.

    Attributes:
        lost: the first fault.
    """

    lost: OutputError | None = None

    def __init__(self, stream: io.TextIOWrapper) -> None:
        codecs.register_error(PLAIN, plain)
        told = stream.errors not in ("strict", "backslashreplace", "surrogateescape")
        errors, lines, at_once = stream.errors if told else PLAIN, stream.line_buffering, stream.write_through
        super().__init__(stream.detach(), stream.encoding, errors, None, lines, at_once)

    def write(self, text: str) -> int:
        """As of every text stream."""
        with self.faults():
            return super().write(text)

    def flush(self) -> None:
        """As of every text stream."""
        with self.faults():
            super().flush()

    @contextlib.contextmanager
    def faults(self) -> Iterator[None]:
        """The system's faults as ours; argparse drops them, so the first one is kept."""
        try:
            yield
        except OSError as error:
            self.lost = self.lost or OutputError(*error.args)
            raise self.lost from None


def open_streams() -> None:
    """Fill the places of standard streams that are closed (`>&-`), so that no file of ours is opened there."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest place that is free
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - it stays open


def complain(line: str) -> None:
    """A line on standard error, if anybody can see it."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


# --- from its beginning to its end -----------------------------------------------------------------------------------


def begin() -> None:
    """Take over the process: a command calls it before the imports that take seconds.

    Until it runs, and after it has ended, a signal ends the process quietly; Python would print where it was.
    """
    open_streams()
    if not isinstance(sys.stdout, Output):
        sys.stdout = sys.__stdout__ = Output(sys.stdout)  # type: ignore[misc, arg-type]
        sys.stderr = sys.__stderr__ = Output(sys.stderr)  # type: ignore[misc, arg-type]
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def program(command: Callable[[], int]) -> NoReturn:
    """Run a command as the whole process, and end it with the command's exit code."""
    begin()
    try:
        code = command()
    except SystemExit as end:  # the parser's
        code = end.code if isinstance(end.code, int) else 0
    except OutputError as error:  # in what is printed outside of `wisp_gym.cli.run`
        code = error.code
    leave(code)


def leave(code: int) -> NoReturn:
    """End with an exit code, or with that of lost output."""
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        with contextlib.suppress(OutputError):
            stream.flush()
        if lost := getattr(stream, "lost", None):
            if not code and lost.code == LOST_OUTPUT:  # else it is told already, or nobody is there
                complain(f"standard output: {lost.strerror}")
            code = code or lost.code
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)  # else Python tries again at its end, and tells
    if code in {128 + number for number in SIGNALS}:
        os._exit(code)  # compiled worlds on other threads cannot be stopped, and nobody waits for them
    sys.exit(code)
