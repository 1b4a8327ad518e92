"""What the command lines of this package share: argument types, one-line errors, files written whole or not at all.

Every argument type raises `ArgumentTypeError`, which the parser turns into one line with the flag's name; what is found
wrong later is an `InputError` or one of the library's own errors, which `run` turns into the same line.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from estimators.cli import BAD_INPUT, InputError, write_text
from wisp_gym.controllers.catalogue import Controller as Controller
from wisp_gym.controllers.catalogue import ControllerError, did_you_mean, resolve
from wisp_gym.controllers.policy import PolicyError
from wisp_gym.predictor import PredictorError
from wisp_gym.request_trace import TraceError
from wisp_gym.scenario import Scenario, ScenarioError, load, with_, with_slo
from wisp_gym.serving.schema import BundleError

DEFAULT_SCENARIO = "wisp-a100-qwen3-32b"
MAX_DEVICES = 100_000  # about 10 GB of state: more is a slip of the finger
MAX_SEEDS = 10_000
MAX_SEED = 2**63 - 1  # the engine's counter-based draws take 64 bits; numpy's and SB3's seeds are signed
FAULTS = (InputError, ScenarioError, ControllerError, PolicyError, PredictorError, TraceError, BundleError)

WHOLE = re.compile(r"[+-]?\d{1,18}", re.ASCII)
SEED_RANGE = re.compile(r"(\d{1,19})(?:-(\d{1,19}))?", re.ASCII)
# A further parameter of the controller before it: a number, to the end or up to the next '+'.
PARAMETER = re.compile(r"\s*[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|inf|nan)\s*(\+.*)?", re.ASCII | re.DOTALL | re.I)


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
        for word in given:
            flag = word.partition("=")[0]
            if flag.startswith("--") and flag not in flags:
                self.error(f"unknown flag '{flag}'; {did_you_mean(flag, flags)}")
        return super().parse_args(given, namespace)


def add_log_folder(parser: argparse.ArgumentParser) -> None:
    """The flag `--log-folder` of commands that make a run's folder."""
    help_ = "where the run's folder is made, never over another (default runs)"
    parser.add_argument("-f", "--log-folder", type=Path, default=Path("runs"), metavar="DIR", help=help_)


def one_line(message: str) -> str:
    """The message with every run of white space as one blank."""
    return " ".join(message.split())


def run(main: Callable[[Sequence[str] | None], None], program: str, arguments: Sequence[str] | None = None) -> int:
    """Call `main` and return its exit code: 0, 2 after wrong input (one line on stderr), 130 after Ctrl-C."""
    try:
        main(arguments)
        return 0
    except FAULTS as error:
        message = str(error)
    except OSError as error:  # a file that vanished, a name too long for the system, a full disk
        message = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    except MemoryError:
        message = "out of memory; fewer --devices need less"
    except KeyboardInterrupt:
        print(f"{program}: interrupted, nothing written", file=sys.stderr)
        return 130
    print(f"{program}: {one_line(message)}", file=sys.stderr)
    return BAD_INPUT


# --- argument types --------------------------------------------------------------------------------------------------


def whole(low: int, high: int) -> Callable[[str], int]:
    """Type of a whole number from `low` to `high`."""

    def parse(text: str) -> int:
        if not WHOLE.fullmatch(text) or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"given '{text}', allowed is a whole number from {low} to {high}")
        return int(text)

    return parse


def share(text: str) -> float:
    """Type of a share above 0 and up to 1."""
    return number(text, 1.0, "a number above 0 and up to 1")


def share_or_zero(text: str) -> float:
    """Type of a share from 0 to 1."""
    return 0.0 if text in ("0", "0.0") else number(text, 1.0, "a number from 0 to 1")


def speed(text: str) -> float:
    """Type of a speed in tokens/s."""
    return number(text, 1e6, "a speed in tokens/s above 0 and up to 1,000,000")


def number(text: str, high: float, allowed: str) -> float:
    """A number above 0 and up to `high`; NaN is none."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 < value <= high:
        raise argparse.ArgumentTypeError(f"given '{text}', allowed is {allowed}")
    return value


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
            raise argparse.ArgumentTypeError(f"given '{text}', allowed is {allowed}")
        chosen += range(first, last + 1)
    if len(set(chosen)) < len(chosen):
        raise argparse.ArgumentTypeError(f"given '{text}', allowed is every seed once")
    return tuple(chosen)


def controller_names(text: str) -> list[str]:
    """Type of `--controllers`: split at commas, but a piece that begins with a number (to its end or up to a '+') is a
    parameter of the controller before it. With a semicolon anywhere, semicolons alone separate."""
    if ";" in text:
        names = [piece.strip() for piece in text.split(";")]
    else:
        names = []
        for piece in text.split(","):
            if names and PARAMETER.fullmatch(piece):
                names[-1] += f",{piece.strip()}"
            else:
                names.append(piece.strip())
    if not all(names):
        raise argparse.ArgumentTypeError(f"given '{text}', allowed are names separated by commas, none of them empty")
    return names


def output_file(*suffixes: str) -> Callable[[str], Path]:
    """Type of a file to write; it is tried whether a file can be made there, and nothing is left behind.

    Args:
        suffixes: endings that are allowed; any without one.
    """

    def parse(text: str) -> Path:
        try:
            path = Path(text).resolve()
            if suffixes and path.suffix.lower() not in suffixes:
                allowed = ", ".join(suffixes)
                raise argparse.ArgumentTypeError(f"given '{text}', allowed is a file that ends in {allowed}")
            if not text or (path.exists() and not path.is_file()):
                raise argparse.ArgumentTypeError(f"given '{text}', allowed is the name of a file")
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}."):
                return path
        except (OSError, ValueError, RuntimeError) as error:  # missing folder, null byte, loop of links
            reason = getattr(error, "strerror", None) or str(error)
            message = f"cannot write '{text}': {reason}; allowed is a file in a writable folder"
            raise argparse.ArgumentTypeError(message) from None

    return parse


# --- what both commands ask for --------------------------------------------------------------------------------------


def add_comparison(parser: Parser, default_seeds: int) -> None:
    """Add the flags of every comparison: scenario, SLO, controllers, seeds, files."""
    add = parser.add_argument
    add("--scenario", default=DEFAULT_SCENARIO, metavar="NAME|FILE", help="preset or TOML file (default %(default)s)")
    add("--slo", type=speed, metavar="V", help="one class of V tokens/s for all devices (default: the scenario's mix)")
    add(
        "--controllers", type=controller_names, nargs="+", default=[["wisp", "sled", "centralized"]], metavar="a,b,...",
        help="controllers, listed below (default wisp,sled,centralized)",
    )  # fmt: skip
    add(
        "--seeds", type=seeds, default=tuple(range(default_seeds)), metavar="S",
        help=f"a count, or seeds and ranges such as 7,10-19 (default {default_seeds}: seeds 0-{default_seeds - 1})",
    )  # fmt: skip
    add("--json", type=output_file(), metavar="FILE", help="write the rows as JSON")
    add("--csv", type=output_file(), metavar="FILE", help="write the rows as CSV")


def chosen_scenario(given: argparse.Namespace, n_devices: int | None = None) -> Scenario:
    """The scenario of the flags, with the SLO class and the population asked for."""
    scenario = load(given.scenario)
    scenario = scenario if given.slo is None else with_slo(scenario, given.slo)
    return scenario if n_devices is None else with_(scenario, n_devices=n_devices)


def chosen_controllers(given: argparse.Namespace, scenario: Scenario) -> dict[str, Controller]:
    """Name → controller, in the order given; a name that appears twice is refused."""
    names = [name for group in given.controllers for name in group]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"argument --controllers: '{name}' is given twice, allowed is every controller once")
    return {name: resolve(name, scenario) for name in names}


def refuse_same_files(given: argparse.Namespace, *flags: str) -> None:
    """Refuse to write two results into one file, or a result over the scenario."""
    taken = {Path(given.scenario).resolve(): "--scenario"}
    for flag in flags:
        path = getattr(given, flag)
        if path is not None and taken.setdefault(path, f"--{flag}") != f"--{flag}":
            raise InputError(f"argument --{flag}: {path} is the file of {taken[path]}, allowed is a file of its own")


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


# --- files -----------------------------------------------------------------------------------------------------------


def write_rows(given: argparse.Namespace, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows to the files of `--json` and `--csv`.

    CSV leaves out what is not a single value and rows of another `table` than the first one's; None is empty there.
    """
    if given.json:
        write_text(given.json, json.dumps(rows, indent=2, allow_nan=False) + "\n")
    if given.csv:
        text = io.StringIO()
        plain = [key for key in rows[0] if not isinstance(rows[0][key], list)]
        writer = csv.DictWriter(text, plain, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(row for row in rows if row.get("table") == rows[0].get("table"))
        write_text(given.csv, text.getvalue())


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
