"""The command-line kit: one parser, one set of argument types, one way to end, one aligned table. It knows nothing of the model.

Every argument type raises `ArgumentTypeError`, which the parser turns into one line with the flag's name; what is found
wrong later is an `InputError` (wisp_gym.errors), which `run` turns into the same line.
"""

import argparse
import contextlib
import importlib
import math
import re
import sys
import tempfile
import time
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, NoReturn

from wisp_gym.errors import InputError, did_you_mean, one_line
from wisp_gym.files import csv_text, write_json, write_text
from wisp_gym.interrupts import Interrupt, on_signals, stop_words
from wisp_gym.streams import BROKEN_PIPE, OutputError, complain
from wisp_gym.values import MAX_SEED

BAD_INPUT = 2  # the exit code of every wrong flag, name or file
OUT_OF_TIME = 75  # something is left that the same command would do (EX_TEMPFAIL of sysexits.h)

MAX_SEEDS = 10_000

WHOLE = re.compile(r"[+-]?\d{1,18}", re.ASCII)
SEED_RANGE = re.compile(r"(\d{1,19})(?:-(\d{1,19}))?", re.ASCII)


class OutOfTime(Exception):
    """The time that was given is up and something is left; the message is one line that says what."""


# --- the command -----------------------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` whose errors are one line, without usage text, and whose flags are never abbreviated."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **keywords)

    def error(self, message: str) -> NoReturn:
        """Print `prog: message` on stderr and leave with exit code 2."""
        self.exit(BAD_INPUT, f"{self.prog}: {one_line(message)}\n")

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse; an unknown flag is named first, before a complaint about the one that it was meant to be."""
        given = list(sys.argv[1:] if args is None else args)
        flags = sorted(name for name in self._option_string_actions if name.startswith("--"))
        for word in takewhile(lambda word: word != "--", given):
            flag = word.partition("=")[0]
            if flag.startswith("--") and flag not in flags:
                self.error(f"unknown flag '{flag}'; {did_you_mean(flag, flags)}")
        return super().parse_args(given, namespace)


def run(
    main: Callable[[Sequence[str] | None], int | None], program: str, arguments: Sequence[str] | None = None
) -> int:
    """Call `main` and return its exit code: 0 or its own, 2 after wrong input (one line on stderr), 75 after `OutOfTime`,
    130 after Ctrl-C and 143 after SIGTERM (one line that says what is left: `wisp_gym.interrupts.leaves`), 141 where
    nobody reads what it prints.

    Args:
        main: takes the arguments after the program's name, None for the process's own. program: how its lines begin.
    """
    handler = Interrupt()
    with on_signals(handler):
        try:
            code = main(arguments) or 0
            print(end="", flush=True)
            return code
        except OutOfTime as error:
            code, message = OUT_OF_TIME, f"{error}; the same command continues"
        except KeyboardInterrupt as stop:
            number = getattr(stop, "number", handler.number)
            code, message = 128 + number, stop_words(number, stop, "nothing written")
        except OutputError as error:
            code, message = error.code, f"standard output: {error.strerror}"
        except OSError as error:  # a file that vanished, a name too long for the system, a full disk
            code, message = BAD_INPUT, f"{error.filename}: {error.strerror}" if error.filename else str(error)
        except MemoryError:
            code, message = BAD_INPUT, "out of memory; fewer --devices need less"
        except InputError as error:
            code, message = BAD_INPUT, str(error)
        if code != BROKEN_PIPE:  # nobody is there
            complain(f"{program}: {one_line(message)}")
        return code


def later(module: str) -> Callable[[Sequence[str] | None], int | None]:
    """The `main` of a module that is imported when it is called: what takes seconds happens inside of `run`."""
    return lambda arguments: importlib.import_module(module).main(arguments)


class Commands:
    """A command of several sub-commands, each a `main` in a module that is imported when it is called.

    Args:
        program: what a user types before the sub-command, such as `wisp-gym` or `python -m agents.training`.
        about: a line or a few, which `--help` begins with.
        modules: name of each sub-command → (module, or `Commands` of its own, what it does in a line).
        default: the sub-command that is meant where the first argument is none of the names; "" for none.
        extras: sub-command → the extra of the package that brings what its module imports.
    """

    def __init__(
        self, program: str, about: str, modules: Mapping[str, tuple["str | Commands", str]], default: str = "",
        extras: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.program, self.about, self.modules, self.default = program, about, dict(modules), default
        self.extras = extras or {}

    def help(self) -> str:
        """All sub-commands, a line each."""
        width = max(map(len, self.modules))
        lines = [f"  {name:<{width}}  {what}" for name, (_, what) in self.modules.items()]
        usage = f"usage: {self.program} {'[' if self.default else ''}COMMAND{']' if self.default else ''} [flags]"
        ending = f"`{self.program} COMMAND --help` lists the flags of one"
        ending += f"; without a name it is `{self.default}`." if self.default else "."
        return "\n".join([usage, "", self.about, "", "commands:", *lines, "", ending])

    def __call__(self, arguments: Sequence[str] | None = None) -> int:
        """Run the sub-command that the first argument names; its exit code."""
        given = list(sys.argv[1:] if arguments is None else arguments)
        name = given[0] if given else ""
        if name in self.modules:
            return self.call(name, given[1:])
        if self.default and (not name or name.startswith("-")):
            if name in ("-h", "--help"):
                print(f"{self.help()}\n")
            return self.call(self.default, given)
        if name in ("", "-h", "--help"):
            print(self.help())
            return 0 if name else BAD_INPUT
        if name == "--version":
            from wisp_gym import __version__

            print(f"{self.program} {__version__}")
            return 0
        print(f"{self.program}: unknown command '{name}'; {did_you_mean(name, self.modules)}", file=sys.stderr)
        return BAD_INPUT

    def call(self, name: str, arguments: Sequence[str]) -> int:
        """Import a sub-command's module and run its `main`; one line where its extra is not installed."""
        module, program = self.modules[name][0], f"{self.program} {name}"
        if isinstance(module, Commands):
            return module(arguments)

        def main(given: Sequence[str] | None) -> int | None:
            try:
                return later(module)(given)
            except ModuleNotFoundError as error:
                if name not in self.extras:
                    raise
                install = f"pip install 'wisp-gym[{self.extras[name]}]'"
                raise InputError(f"needs {error.name}, which is not installed: {install}") from None

        return run(main, program, arguments)


# --- argument types --------------------------------------------------------------------------------------------------


def whole(low: int, high: int) -> Callable[[str], int]:
    """Type of a whole number from `low` to `high`."""

    def parse(text: str) -> int:
        if not WHOLE.fullmatch(text) or not low <= int(text) <= high:
            raise ArgumentTypeError(f"given '{text}', allowed is a whole number from {low} to {high}")
        return int(text)

    return parse


def number(inside: Callable[[float], bool], allowed: str) -> Callable[[str], float]:
    """Type of a number for which `inside` holds, as for NaN it never should; `allowed` says it in words."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not inside(value):
            raise ArgumentTypeError(f"given '{text}', allowed is {allowed}")
        return value

    return parse


def between(low: float, high: float) -> Callable[[str], float]:
    """Type of a number from `low` to `high`."""
    return number(lambda value: low <= value <= high, f"a number from {low:g} to {high:g}")


def positive(high: float) -> Callable[[str], float]:
    """Type of a number above 0 and up to `high`."""
    return number(lambda value: 0.0 < value <= high, f"a number above 0 and up to {high:g}")


share, share_or_zero = positive(1.0), between(0.0, 1.0)
speed = number(lambda value: 0.0 < value <= 1e6, "a speed in tokens/s above 0 and up to 1,000,000")


def whole_numbers(least: int) -> Callable[[str], list[int]]:
    """Type of comma-separated whole numbers of at least `least`."""

    def parse(text: str) -> list[int]:
        parts = text.split(",")
        if not all(WHOLE.fullmatch(part.strip()) and int(part) >= least for part in parts):
            raise ArgumentTypeError(f"given '{text}', allowed are whole numbers from {least} on, such as 1,2,4")
        return [int(part) for part in parts]

    return parse


def deadline(minutes: float) -> float:
    """When so many minutes from now are over, by `time.monotonic`; 0 is never."""
    return time.monotonic() + 60 * minutes if minutes else float("inf")


def address(text: str) -> tuple[str, int]:
    """Type of HOST:PORT."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65_535:
        raise ArgumentTypeError(f"given '{text}', allowed is HOST:PORT")
    return host, int(port)


def seeds(text: str) -> tuple[int, ...]:
    """Type of `--seeds`: a count n (seeds 0 to n-1), or a list of seeds and ranges such as `7,` or `3,10-19`."""
    if WHOLE.fullmatch(text):
        return tuple(range(whole(1, MAX_SEEDS)(text)))
    chosen: list[int] = []
    for piece in text.removesuffix(",").split(","):
        match = SEED_RANGE.fullmatch(piece.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last <= MAX_SEED or last - first >= MAX_SEEDS - len(chosen):
            allowed = f"a count from 1 to {MAX_SEEDS}, or at most so many seeds and ranges such as 7,10-19"
            raise ArgumentTypeError(f"given '{text}', allowed is {allowed}")
        chosen += range(first, last + 1)
    if len(set(chosen)) < len(chosen):
        raise ArgumentTypeError(f"given '{text}', allowed is every seed once")
    return tuple(chosen)


def seed_list(chosen: Iterable[int]) -> str:
    """Seeds as `--seeds` reads them, with runs as ranges: `0-19`, `3,5,10-12`, `7,` for one alone."""
    runs: list[list[int]] = []
    for seed in chosen:
        if runs and seed == runs[-1][1] + 1:
            runs[-1][1] = seed
        else:
            runs.append([seed, seed])
    text = ",".join(f"{first}-{last}" if last > first else str(first) for first, last in runs)
    return text + "," if text.isdigit() else text


def output_file(*suffixes: str) -> Callable[[str], Path]:
    """Type of a file to write; it is tried whether a file can be made there, and nothing is left behind.

    Args:
        suffixes: endings that are allowed; any without one.
    """

    def parse(text: str) -> Path:
        try:
            path = Path(text).resolve()
            if suffixes and path.suffix.lower() not in suffixes:
                raise ArgumentTypeError(f"given '{text}', allowed is a file that ends in {', '.join(suffixes)}")
            if not text or (path.exists() and not path.is_file()):
                raise ArgumentTypeError(f"given '{text}', allowed is the name of a file")
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}."):
                return path
        except (OSError, ValueError, RuntimeError) as error:  # missing folder, null byte, loop of links
            reason = getattr(error, "strerror", None) or str(error)
            fault = f"cannot write '{text}': {reason}; allowed is a file in a writable folder"
            raise ArgumentTypeError(fault) from None

    return parse


def add_log_folder(parser: argparse.ArgumentParser) -> None:
    """The flag `--log-folder` of commands that make a run's folder."""
    help_ = "where the run's folder is made, never over another (default runs)"
    parser.add_argument("-f", "--log-folder", type=Path, default=Path("runs"), metavar="DIR", help=help_)


# --- progress --------------------------------------------------------------------------------------------------------


class Bar:
    """What counts what is done; tqdm's shows it, this one shows nobody."""

    def update(self, n: int = 1) -> Any:
        """So many more are done."""


@contextlib.contextmanager
def progress(total: float | None = None, unit: str = "world", shown: bool | None = None, **looks: Any) -> Iterator[Bar]:
    """A progress bar on standard error, gone when it is done; none where tqdm is not installed.

    Args:
        total: what it counts up to, None where that is not known. unit: what it counts.
        shown: whether anybody sees it; default where standard error is a terminal.
        looks: further arguments of tqdm.
    """
    try:
        from tqdm import tqdm
    except ImportError:
        shown = False
    if not (sys.stderr.isatty() if shown is None else shown):
        yield Bar()
        return
    with tqdm(total=total, unit=unit, leave=False, **looks) as bar:
        yield bar


# --- results ---------------------------------------------------------------------------------------------------------


def aligned(headers: Sequence[Sequence[str]], rows: Sequence[Sequence[str]]) -> str:
    """Text table of header lines, a rule and rows: the first column to the left, the others to the right."""
    lines = [*headers, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    form = "  ".join(f"{{:{'>' if i else '<'}{width}}}" for i, width in enumerate(widths))
    shown = [form.format(*line).rstrip() for line in lines]
    return "\n".join([*shown[: len(headers)], "-" * max(map(len, shown)), *shown[len(headers) :]])


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """`aligned` with one header line."""
    return aligned([header], rows)


def cell(value: float | None, digits: int = 1, factor: float = 1.0) -> str:
    """A number for a table, `-` where nothing was counted."""
    return "-" if value is None or math.isnan(value) else f"{value * factor:,.{digits}f}"


def interval_cell(low: float | None, high: float | None, digits: int = 1) -> str:
    """An interval for a table, empty where one world gives none."""
    return "" if low is None or high is None else f"[{low:,.{digits}f}, {high:,.{digits}f}]"


def write_rows(rows: Sequence[dict[str, Any]], json_file: Path | None = None, csv_file: Path | None = None) -> None:
    """Write rows to the files of `--json` and `--csv`, where they are given.

    CSV leaves out what is not a single value and rows of another `table` than the first one's; None is empty there.
    """
    if json_file:
        write_json(json_file, rows)
    if csv_file:
        plain = [key for key in rows[0] if not isinstance(rows[0][key], list)]
        write_text(csv_file, csv_text([row for row in rows if row.get("table") == rows[0].get("table")], plain))


def refuse_same_files(inputs: Mapping[str, str | Path], outputs: Mapping[str, Path | None]) -> None:
    """Refuse to write two results into one file, or a result over an input.

    Args:
        inputs, outputs: flag → file, None for a flag that was not given.

    Raises:
        InputError: names both flags.
    """
    taken = {Path(path).resolve(): flag for flag, path in inputs.items()}
    for flag, path in outputs.items():
        if path is not None and taken.setdefault(path, flag) != flag:
            raise InputError(f"argument {flag}: {path} is the file of {taken[path]}, allowed is a file of its own")
