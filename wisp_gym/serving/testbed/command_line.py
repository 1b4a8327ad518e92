"""What the commands of the testbed share: flags, one-line errors, exit codes."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

BAD_INPUT, INTERRUPTED = 2, 130


class InputError(ValueError):
    """Something the user gave is wrong; the message is one line that says what, and what is allowed."""


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` whose errors are one line and name the nearest flag."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(allow_abbrev=False, **keywords)

    def error(self, message: str) -> NoReturn:
        """Print `prog: message` on stderr and leave with exit code 2."""
        self.exit(BAD_INPUT, f"{self.prog}: {' '.join(message.split())}\n")

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """The flags; an unknown one ends the program with the nearest known one."""
        given, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flags = sorted(name for name in self._option_string_actions if name.startswith("--"))
            near = difflib.get_close_matches(unknown[0].split("=")[0], flags, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            self.error(f"unknown argument {unknown[0]!r}{hint}; allowed: {', '.join(flags)}")
        return given


def number(low: float, high: float, kind: type[int] | type[float] = float) -> Callable[[str], Any]:
    """An argument type: a number from `low` to `high`."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = kind(low) - 1
        if not low <= value <= high:
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"given {text!r}, allowed is {what} from {low:g} to {high:g}")
        return value

    return parse


def address(text: str) -> tuple[str, int]:
    """An argument type: HOST:PORT."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65_535:
        raise argparse.ArgumentTypeError(f"given {text!r}, allowed is HOST:PORT")
    return host, int(port)


def run(
    main: Callable[[Sequence[str] | None], int | None], program: str, arguments: Sequence[str] | None = None
) -> int:
    """Call `main`; its exit code, 2 after wrong input (one line on stderr), 130 after Ctrl-C."""
    try:
        return main(arguments) or 0
    except ValueError as error:
        if type(error) is ValueError:  # ours are subclasses with a line for the user; this one is a bug
            raise
        print(f"{program}: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return INTERRUPTED
