"""How certain a decision's effect is that branches tell: coupled branches against independent ones, by horizon and load.

    python -m agents.branching variance --devices 16,64,128

At decisions of running worlds the device sends in one copy and drafts one more token in the other; from then on the world's own
controller decides. The effect is the difference of the tokens that the whole fleet gets on time over H seconds, counted as they are
delivered, or with what rounds under way are worth (`wisp_gym.engine.under_way`). Coupled copies meet the same draws, independent ones
others. From the same branches come both spreads, and the spread of the effect itself over decisions: the variance of its means less
what chance alone would give them.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from agents.branching.place import at_decision, both_ways
from wisp_gym import cli
from wisp_gym.cli import aligned, cell
from wisp_gym.controllers.resolve import resolve
from wisp_gym.engine.branch import Branches
from wisp_gym.evaluation.arguments import add_world
from wisp_gym.evaluation.outcomes import chosen_scenario
from wisp_gym.rules.controller import Controller
from wisp_gym.scenario import Scenario

PROGRAM = "python -m agents.branching variance"
CONTROLLERS = ("speculation-v1+fcfs",)
DELIVERED, UNDER_WAY = "delivered", "and under way"
HORIZONS_S = (0.25, 0.5, 1.0, 2.0, 5.0)
SEEDS_PER_PLACE = 1_000_000


@dataclass(frozen=True)
class Spread:
    """What branches at many decisions say of one horizon, in tokens.

    Attributes:
        counted: DELIVERED or UNDER_WAY. tokens: mean over copies. independent, coupled: standard deviation of one pair's difference.
        effect: of its mean, over decisions.
    """

    controller: str
    devices: int
    counted: str
    horizon_s: float
    tokens: float
    independent: float
    coupled: float
    effect: float

    @property
    def pairs(self) -> float:
        """Coupled pairs after which an effect of this spread stands two standard errors off zero: `4·σ²/effect²`."""
        return 4.0 * self.coupled**2 / self.effect**2 if self.effect > 0.0 else np.inf


def branched(
    scenario: Scenario, controller: Controller, given: argparse.Namespace, horizons_s: list[float], bar: cli.Bar
) -> dict[str, np.ndarray]:
    """(places, 2, draws, horizons) tokens of either count."""
    found: dict[str, list[np.ndarray]] = {DELIVERED: [], UNDER_WAY: []}
    for place in range(given.places):
        world = at_decision(scenario, controller, place)
        seeds, copies = SEEDS_PER_PLACE * (place + 1) + np.arange(given.draws), Branches(world.worlds, 2 * given.draws)
        for counted, each in found.items():
            each.append(both_ways(world, copies, seeds, horizons_s, counted == UNDER_WAY))
        bar.update()
    return {counted: np.stack(each).astype(float) for counted, each in found.items()}


def spreads(tokens: np.ndarray) -> tuple[np.ndarray, ...]:
    """Mean tokens, spread of an independent and of a coupled pair, and of the effect: (horizons,) each, of (places, 2, draws, horizons)."""
    difference, draws = tokens[:, 1] - tokens[:, 0], tokens.shape[2]
    independent = tokens.var(axis=2, ddof=1).sum(axis=1).mean(axis=0)
    coupled = difference.var(axis=1, ddof=1).mean(axis=0)
    effect = difference.mean(axis=1).var(axis=0, ddof=1) - coupled / draws
    return tokens.mean(axis=(0, 1, 2)), independent**0.5, coupled**0.5, np.maximum(effect, 0.0) ** 0.5


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The flags."""
    parser = cli.Parser(prog=PROGRAM, description=(__doc__ or "").splitlines()[0])
    add_world(parser, CONTROLLERS)
    add = parser.add_argument
    add("--devices", type=cli.whole_numbers(1), default=[16, 64, 128], metavar="a,b,...", help="default 16,64,128")
    add(
        "--places",
        type=cli.whole(2, 10_000),
        default=40,
        metavar="N",
        help="decisions, each of another world (default 40)",
    )
    add("--draws", type=cli.whole(2, 10_000), default=32, metavar="N", help="pairs at each (default 32)")
    add("--json", type=cli.output_file(), metavar="FILE", help="write the rows as JSON")
    return parser.parse_args(arguments)


def measured(given: argparse.Namespace) -> list[Spread]:
    """A row for each controller, load and horizon."""
    rows = []
    with cli.progress(len(given.controllers) * len(given.devices) * given.places, unit="decision") as bar:
        for name in given.controllers:
            for n in given.devices:
                scenario = chosen_scenario(given.scenario, n)
                for counted, tokens in branched(
                    scenario, resolve(name, scenario), given, list(HORIZONS_S), bar
                ).items():
                    columns = zip(HORIZONS_S, *spreads(tokens), strict=True)
                    rows += [Spread(name, n, counted, horizon_s, *map(float, column)) for horizon_s, *column in columns]
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Branch, write where asked, and print."""
    rows = measured(given := parse(arguments))
    cli.write_rows([asdict(row) for row in rows], given.json)
    headers = [
        ["controller", "devices", "counted", "over", "tokens", "independent", "coupled", "effect", "pairs to see it"],
        ["", "", "", "s", "on time", "sd, tokens", "sd, tokens", "sd, tokens", ""],
    ]
    lines = [
        [row.controller, str(row.devices), row.counted, f"{row.horizon_s:g}", cell(row.tokens), cell(row.independent), cell(row.coupled, 2),
         cell(row.effect, 2), cell(row.pairs, 0) if np.isfinite(row.pairs) else "-"]
        for row in rows
    ]  # fmt: skip
    print(aligned(headers, lines))
