"""The process of a command, from its beginning to its end, and those that it starts."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from wisp_gym.interrupts import SIGNALS
from wisp_gym.streams import LOST_OUTPUT, Output, OutputError, complain, open_streams

END_S = 60.0  # in which a process that was asked to end should have done so
PR_SET_PDEATHSIG = 1  # of Linux's <sys/prctl.h>


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


# --- those that it starts ---------------------------------------------------------------------------------------------


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
