"""What asks a command to end: signals, as an exception that comes at once, or as a wish that is kept.

SIGTERM (schedulers, containers) and SIGHUP (a terminal that went away) mean what Ctrl-C means: each becomes a
KeyboardInterrupt, so that what cleans up after one cleans up after all. `wisp_gym.cli` turns it into one line.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
ECHO_S = 1.0


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
