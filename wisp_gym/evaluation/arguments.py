"""What every comparison asks for on its command line: a scenario, a service class, controllers, seeds, files."""

from __future__ import annotations

import argparse
import re
from argparse import ArgumentTypeError

from wisp_gym.cli import Parser, output_file, seeds, speed
from wisp_gym.controllers.resolve import resolve
from wisp_gym.errors import InputError
from wisp_gym.rules.controller import Controller
from wisp_gym.scenario import DEFAULT_SCENARIO, Scenario, load, with_, with_slo

# A further parameter of the controller before it: a number, to the end or up to the next '+'.
PARAMETER = re.compile(r"\s*[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|inf|nan)\s*(\+.*)?", re.ASCII | re.DOTALL | re.I)


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
        raise ArgumentTypeError(f"given '{text}', allowed are names separated by commas, none of them empty")
    return names


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
