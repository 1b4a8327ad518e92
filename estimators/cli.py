"""What the command lines of this package share: one-line errors, atomic files, aligned tables."""

from __future__ import annotations

import csv
import difflib
import io
import json
import os
import sys
import tempfile
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

BAD_INPUT = 2  # the exit code of every wrong flag, name or file
OUT_OF_TIME = 75  # something is left that the same command would do (EX_TEMPFAIL of sysexits.h)


class InputError(ValueError):
    """Something the user gave is wrong; the message is one line that says what, and what is allowed."""


class OutOfTime(Exception):
    """The time that was given is up and something is left; the message is one line that says what."""


class Parser(ArgumentParser):
    """An `ArgumentParser` whose errors are one line, without usage text, and name the nearest flag."""

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Namespace:  # type: ignore[override]
        """Return the flags; an unknown one ends the program with the nearest known one."""
        given, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]
            near = difflib.get_close_matches(unknown[0].split("=")[0], flags, n=1)
            self.error(f"unknown flag {unknown[0]!r}{_hint(near)} (one of: {', '.join(flags)})")
        return given

    def error(self, message: str) -> NoReturn:
        """Print `prog: message` on stderr and leave with exit code 2."""
        self.exit(BAD_INPUT, f"{self.prog}: {message}\n")


def run(main: Callable[[Sequence[str] | None], None], program: str, arguments: Sequence[str] | None = None) -> int:
    """Call `main` and return its exit code: 0, 2 after an `InputError`, 75 after `OutOfTime`, 130 after Ctrl-C."""
    try:
        main(arguments)
    except InputError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return BAD_INPUT
    except OutOfTime as error:
        print(f"{program}: {error}", file=sys.stderr)
        return OUT_OF_TIME
    except KeyboardInterrupt:
        print(f"{program}: interrupted, nothing written", file=sys.stderr)
        return 130
    return 0


def choose(kind: str, given: str, allowed: Iterable[str]) -> str:
    """Return `given` when it is allowed.

    Raises:
        InputError: names the kind, what was given, the nearest valid choice and all of them.
    """
    choices = sorted(allowed)
    if given in choices:
        return given
    near = difflib.get_close_matches(given, choices, n=1)
    raise InputError(f"unknown {kind} {given!r}{_hint(near)} (one of: {', '.join(choices)})")


def _hint(near: Sequence[str]) -> str:
    """Return "did you mean", or nothing."""
    return f"; did you mean {near[0]!r}?" if near else ""


def whole_numbers(least: int) -> Callable[[str], list[int]]:
    """Return a parser of comma-separated whole numbers of at least `least`."""

    def parse_list(text: str) -> list[int]:
        try:
            values = [int(part) for part in text.split(",")]
        except ValueError:
            raise ArgumentTypeError(f"{text!r}: whole numbers with commas between are needed, like 1,2,4") from None
        if min(values) < least:
            raise ArgumentTypeError(f"{min(values)} in {text!r}: at least {least} is needed")
        return values

    return parse_list


def check_writable(path: str | Path) -> Path:
    """Return `path` when a file can be written there, so that a long run does not end without its result.

    Raises:
        InputError: the folder is missing, or `path` is a folder.
    """
    target = Path(path)
    if target.is_dir():
        raise InputError(f"cannot write {target}: it is a folder, a file name is needed")
    if not target.parent.is_dir():
        raise InputError(f"cannot write {target}: the folder {target.parent} does not exist")
    if not os.access(target.parent, os.W_OK):
        raise InputError(f"cannot write {target}: the folder {target.parent} is not writable")
    return target


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` whole or not at all (a temporary file beside it, then a rename)."""
    target = check_writable(path)
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            file.write(text)
        os.chmod(temporary, 0o644)  # mkstemp makes files that only their owner can read
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON; NaN and infinity are refused, as JSON has neither."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_csv(path: str | Path, rows: Sequence[dict[str, Any]], comment: str = "") -> None:
    """Write `rows` (same keys in each) as CSV, with `comment` lines marked by `#` before the header."""
    text = io.StringIO()
    for line in comment.splitlines():
        text.write(f"# {line}\n")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return an aligned text table: the first column to the left, the others to the right."""
    lines = [list(header), *[list(row) for row in rows]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )
