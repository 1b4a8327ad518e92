"""What every comparison asks for on its command line: a scenario, a service class, controllers, seeds, files."""

import argparse
import re
from argparse import ArgumentTypeError
from collections.abc import Sequence
from typing import Any

from wisp_gym.cli import Parser, output_file, seeds, speed
from wisp_gym.controllers.describe import listing
from wisp_gym.controllers.names import outside
from wisp_gym.scenario import DEFAULT_SCENARIO

# A further setting of the controller before it: a number, to the end or up to the next '+'.
PARAMETER = re.compile(r"\s*[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|inf|nan)\s*(\+.*)?", re.ASCII | re.DOTALL | re.I)
EPILOG = f"""controllers, separated by commas: aligned(thr=0.2, A=0.6)+fcfs or, shorter, aligned:0.2,0.6+fcfs. A comma inside
brackets or before a number belongs to the controller; with a semicolon anywhere, semicolons alone separate.
docs/guide/names.md explains names.

{listing()}"""


def controller_names(text: str) -> list[str]:
    """Type of `--controllers`: names with commas between them. A comma inside brackets, or before a number (to the end or up to
    a '+'), belongs to the controller. With a semicolon anywhere, semicolons alone separate.

    Raises:
        ArgumentTypeError: a name is empty.
    """
    names: list[str] = []
    for piece in text.split(";") if ";" in text else outside(text, ","):
        if names and ";" not in text and PARAMETER.fullmatch(piece):
            names[-1] += f",{piece.strip()}"
        else:
            names.append(piece.strip())
    if not all(names):
        raise ArgumentTypeError(f"given '{text}', allowed are names separated by commas, none of them empty")
    return names


class EachOnce(argparse.Action):
    """Several lists of names as one list, in which no name appears twice."""

    def __call__(self, parser: Any, given: argparse.Namespace, groups: Any, option: str | None = None) -> None:
        """Store it."""
        names = [name for group in groups for name in group]
        if twice := [name for name in names if names.count(name) > 1]:
            raise argparse.ArgumentError(self, f"'{twice[0]}' is given twice, allowed is every controller once")
        setattr(given, self.dest, names)


def add_world(parser: Parser, default: Sequence[str], allowed: str = "controllers") -> None:
    """Add the flags of everything that runs worlds: the scenario, and the controllers that meet in it."""
    add = parser.add_argument
    add("--scenario", default=DEFAULT_SCENARIO, metavar="NAME|FILE", help="preset or TOML file (default %(default)s)")
    add(
        "--controllers", type=controller_names, nargs="+", action=EachOnce, default=list(default), metavar="a,b,...",
        help=f"{allowed}, listed below (default {','.join(default)})",
    )  # fmt: skip


def add_comparison(
    parser: Parser, default_seeds: int, default: Sequence[str] = ("wisp", "sled", "centralized")
) -> None:
    """Add the flags of every comparison: scenario, SLO, controllers, seeds, files."""
    add_world(parser, default)
    add = parser.add_argument
    add("--slo", type=speed, metavar="V", help="one class of V tokens/s for all devices (default: the scenario's mix)")
    add(
        "--seeds", type=seeds, default=tuple(range(default_seeds)), metavar="S",
        help=f"a count, or seeds and ranges such as 7,10-19 (default {default_seeds}: seeds 0-{default_seeds - 1})",
    )  # fmt: skip
    add("--json", type=output_file(), metavar="FILE", help="write the rows as JSON")
    add("--csv", type=output_file(), metavar="FILE", help="write the rows as CSV")
