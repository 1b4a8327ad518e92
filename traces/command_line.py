"""What the recorders of language models share: one-line errors, files written whole or not at all, hints."""

from __future__ import annotations

import difflib
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from wisp_gym.npz import write_whole

BAD_INPUT = 2  # exit code of every wrong flag or file
OUT_OF_TIME = 75  # something is left that the same command would do (EX_TEMPFAIL of sysexits.h)
INTERRUPTED = 130  # exit code after Ctrl-C, as shells have it


class InputError(ValueError):
    """Something the user gave is wrong; the message is one line that says what, and what is allowed."""


class OutOfTime(Exception):
    """The time that was given is up and something is left; the message is one line that says what."""


class Parser(ArgumentParser):
    """An `ArgumentParser` whose errors are one line, without the usage, and name the nearest flag."""

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Namespace:  # type: ignore[override]
        """The flags; an unknown one ends the program with the nearest known one."""
        given, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]
            hint = nearest(unknown[0].split("=")[0], flags)
            self.error(f"unknown argument {unknown[0]!r}{hint}; allowed: {', '.join(flags)}")
        return given

    def error(self, message: str) -> NoReturn:
        """Print `prog: message` on stderr and leave with exit code 2."""
        self.exit(BAD_INPUT, f"{self.prog}: {' '.join(message.split())}\n")

    def whole_numbers(self, given: Namespace, ranges: dict[str, tuple[int, int]]) -> None:
        """Leave with one line when a flag lies outside its range (least, most)."""
        for name, (least, most) in ranges.items():
            if not least <= getattr(given, name) <= most:
                flag = f"--{name.replace('_', '-')}"
                self.error(f"{flag} {getattr(given, name)}: allowed {least} to {most}")


def deadline(minutes: float) -> float:
    """When so many minutes from now are over, by `time.monotonic`; 0 is never."""
    return time.monotonic() + 60 * minutes if minutes else float("inf")


def nearest(given: str, choices: Iterable[str]) -> str:
    """A did-you-mean hint, or nothing."""
    near = difflib.get_close_matches(given, list(choices), 1)
    return f"; did you mean {near[0]!r}?" if near else ""


def run(main: Callable[[Sequence[str] | None], None], program: str, arguments: Sequence[str] | None = None) -> int:
    """Call `main`; its exit code: 0, 2 after an `InputError` (one line on stderr), 75 after `OutOfTime`, 130 after Ctrl-C."""
    try:
        main(arguments)
    except InputError as error:
        print(f"{program}: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    except OutOfTime as error:
        print(f"{program}: {error}; the same command continues", file=sys.stderr)
        return OUT_OF_TIME
    except KeyboardInterrupt:
        print(f"{program}: interrupted; the same command continues", file=sys.stderr)
        return INTERRUPTED
    return 0


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` whole or not at all.

    Raises:
        InputError: the place cannot be written.
    """
    try:
        write_whole(path, content)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None
