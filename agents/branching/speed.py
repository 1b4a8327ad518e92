"""Branches a second: a world is copied, drawn afresh, decided in both ways and run on.

    python -m agents.branching speed

Medians of several repetitions after one that compiles. The figures are of this machine as it is used now; compare ratios.
"""

import argparse
import time
from collections.abc import Sequence

import numpy as np

from agents.branching.place import at_decision, both_ways
from wisp_gym import cli
from wisp_gym.controllers.resolve import resolve
from wisp_gym.engine.branch import Branches
from wisp_gym.evaluation.arguments import add_world
from wisp_gym.evaluation.outcomes import chosen_scenario
from wisp_gym.machine import machine, shown
from wisp_gym.scenario import Scenario

PROGRAM = "python -m agents.branching speed"
CONTROLLERS = ("wisp+wisp", "aligned+fcfs", "speculation-v1+fcfs")


def rates(scenario: Scenario, name: str, draws: int, horizon_s: float, repetitions: int) -> list[float]:
    """Branches a second in each repetition, on all cores."""
    world = at_decision(scenario, resolve(name, scenario), 0)
    copies, seeds, found = Branches(world.worlds, 2 * draws), np.arange(draws), []
    for _ in range(repetitions + 1):
        began = time.perf_counter()
        both_ways(world, copies, seeds, [horizon_s])
        found.append(2 * draws / (time.perf_counter() - began))
    return found[1:]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The flags."""
    parser = cli.Parser(prog=PROGRAM, description=(__doc__ or "").splitlines()[0])
    add_world(parser, CONTROLLERS)
    add = parser.add_argument
    add("--devices", type=cli.whole(1, 100_000), default=64, metavar="N", help="default 64")
    add("--horizon", type=cli.positive(1e4), default=5.0, metavar="S", help="seconds that each is run on (default 5)")
    add("--draws", type=cli.whole(1, 10_000), default=32, metavar="N", help="pairs of copies at once (default 32)")
    add("--repetitions", type=cli.whole(1, 1000), default=7, metavar="N", help="of each figure (default 7)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    given = parse(arguments)
    scenario = chosen_scenario(given.scenario, given.devices)
    rows = []
    for name in given.controllers:
        found = rates(scenario, name, given.draws, given.horizon, given.repetitions)
        rows.append([name, *(f"{of(found):,.0f}" for of in (np.median, min, max))])
    print(shown(machine("numba", "numpy")) + "\n")
    print(
        cli.table(
            [f"branches of {given.devices} devices x {given.horizon:g} s, a second", "median", "least", "most"], rows
        )
    )
