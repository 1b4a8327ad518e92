"""Flags that several of the commands share."""

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
