"""Flags that several of the commands share."""

import math
from argparse import ArgumentTypeError
from pathlib import Path

from wisp_gym import cli
from wisp_gym.scenario import DEFAULT_SCENARIO


def add_population(parser: cli.Parser) -> None:
    """Where worlds are drawn from: a scenario, and its smallest and largest population."""
    add = parser.add_argument
    add("--scenario", default=DEFAULT_SCENARIO, metavar="NAME|FILE", help="preset or TOML file (default %(default)s)")
    drawn = "population, drawn (default 8,130)"
    add("--devices", type=cli.whole_numbers(1), default=[8, 130], metavar="a,b", help=drawn)


def add_loads(parser: cli.Parser, loads: list[int], what: str) -> None:
    """Populations that something is asked of."""
    words = f"{what} (default {','.join(map(str, loads))})"
    parser.add_argument("--loads", type=cli.whole_numbers(1), default=loads, metavar="a,b,...", help=words)


def add_labels(parser: cli.Parser) -> None:
    """Which decisions of a policy branches label, and how far they look."""
    add = parser.add_argument
    add("--share", type=cli.between(0, 1), default=0.1, metavar="P", help="of decisions labelled (default 0.1)")
    add("--explore", type=cli.between(0, 1), default=0.05, metavar="P", help="of decisions drawn (default 0.05)")
    add("--pairs", type=cli.whole(1, 1000), default=4, metavar="N", help="of branches at each (default 4)")
    add("--horizon", type=cli.positive(1e4), default=0.4, metavar="S", help="seconds looked ahead (default 0.4)")
    add("--critic", type=Path, metavar="FILE", help="of `critic --out`, of what comes after the seconds looked ahead")


def increasing_seconds(text: str) -> list[float]:
    """Type of comma-separated seconds that increase from above 0 on.

    Raises:
        ArgumentTypeError: other words.
    """
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = [math.nan]
    if all(0.0 <= low < high <= 1e4 for low, high in zip([0.0, *found], found, strict=False)):
        return found
    raise ArgumentTypeError(f"given '{text}', allowed are seconds up to 10,000 that increase, such as 0.25,0.5,1")


def add_places(parser: cli.Parser, devices: list[int], worlds: int, places: int, draws: int) -> None:
    """Loads, how many worlds of each, where in them, and how many pairs of copies there."""
    add, told = parser.add_argument, ",".join(map(str, devices))
    add("--devices", type=cli.whole_numbers(1), default=devices, metavar="a,b,...", help=f"default {told}")
    add("--worlds", type=cli.whole(2, 100_000), default=worlds, metavar="N", help="of each load (default %(default)s)")
    add("--places", type=cli.whole(1, 1000), default=places, metavar="N", help="in each world (default %(default)s)")
    add("--draws", type=cli.whole(2, 10_000), default=draws, metavar="N", help="pairs at each (default %(default)s)")
    add("--json", type=cli.output_file(), metavar="FILE", help="write what was found at all places as JSON")


def add_horizons(parser: cli.Parser, horizons_s: list[float]) -> None:
    """How far copies are run on."""
    told = ",".join(f"{one:g}" for one in horizons_s)
    words = f"looked ahead (default {told})"
    parser.add_argument("--horizons", type=increasing_seconds, default=horizons_s, metavar="s,s,...", help=words)
