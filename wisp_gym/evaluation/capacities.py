"""Capacity: the largest number of devices whose SLO attainment is at least a stated share, with its interval.

    wisp-gym capacity --slo 8 --controllers wisp,sled,centralized --json capacity.json

How it is searched for, and what the interval is: `wisp_gym.evaluation.capacity_search`. With `--starved X` a load counts only
where, besides, the mean share of starved devices (under 1 token/s) is at most X: in a closed loop a starved device asks for
little, so its requests hardly count in the attainment.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from wisp_gym import cli
from wisp_gym.cli import Bar, Parser, cell, refuse_same_files, share, share_or_zero, whole
from wisp_gym.controllers.resolve import resolve
from wisp_gym.controllers.shipped import is_choice
from wisp_gym.engine.feasibility import warnings
from wisp_gym.errors import InputError
from wisp_gym.evaluation.arguments import EPILOG, add_comparison
from wisp_gym.evaluation.capacity_search import capacity_interval, margins, mean_attainment, search
from wisp_gym.evaluation.comparison_tables import slo_words
from wisp_gym.evaluation.outcomes import Controllers, Row, chosen_controllers, chosen_scenario, chosen_seeds, run_all
from wisp_gym.evaluation.pool import Pool
from wisp_gym.evaluation.statistics import mean
from wisp_gym.rules.controller import Controller
from wisp_gym.scenario import DEFAULT_SCENARIO, AnyScenario, Scenario
from wisp_gym.values import DEVICES, MAX_DEVICES, Checked, number, optional

PROGRAM = "wisp-gym capacity"
DEFAULT_SEEDS = 10


@dataclass(frozen=True)
class Goal(Checked):
    """What a population must reach to count.

    Attributes:
        attainment: least share of requests within their SLO, above 0 and up to 1.
        starved: largest share of devices that get less than 1 token/s; None for any.
        max_devices: where the search ends.

    Raises:
        InputError: a goal that cannot be.
    """

    attainment: Annotated[float, number(lambda value: 0.0 < value <= 1.0, "a share above 0 and up to 1")] = 0.9
    starved: Annotated[float | None, optional(number(lambda value: 0.0 <= value <= 1.0, "a share from 0 to 1"))] = None
    max_devices: Annotated[int, DEVICES] = 1024


@dataclass
class Curve:
    """Attainment of one controller by number of devices, measured where it is asked for.

    Attributes:
        pool: where worlds run; None for all cores of this machine. bar: counts them.
        attained: N → (seeds,) attainment of each world, NaN where no request was counted.
        starved: N → (seeds,) share of starved devices in each world.
        goodput_tokens_per_s: N → mean over the worlds.
    """

    scenario: Scenario
    controller: Controller
    seeds: Sequence[int]
    bar: Bar | None = None
    pool: Pool | None = None
    attained: dict[int, NDArray[np.float64]] = field(default_factory=dict)
    starved: dict[int, NDArray[np.float64]] = field(default_factory=dict)
    goodput_tokens_per_s: dict[int, float | None] = field(default_factory=dict)

    def run(self, n_devices: int) -> list[Row]:
        """The measures of each world with `n_devices` devices."""
        scenario = replace(self.scenario, n_devices=n_devices)
        name = self.controller.name
        controller = resolve(name, scenario) if is_choice(name) else self.controller  # a choice hangs on the population
        (outcomes,) = run_all(scenario, [controller], self.seeds, self.pool, self.bar)
        return [outcome.metrics for outcome in outcomes]

    def margin(self, n_devices: int, goal: Goal) -> float:
        """By how much the worlds with `n_devices` devices reach the goal (see `margins`), run where they have not been."""
        if n_devices not in self.attained:
            worlds = self.run(n_devices)
            self.attained[n_devices] = np.array([world["slo_attainment"] for world in worlds], dtype=np.float64)
            self.starved[n_devices] = np.array([world["starved_share"] for world in worlds], dtype=np.float64)
            self.goodput_tokens_per_s[n_devices] = mean([world["goodput_tokens_per_s"] for world in worlds])
        return float(margins(self.attained[n_devices], goal.attainment, self.starved[n_devices], goal.starved))


@dataclass(frozen=True)
class Capacities:
    """The capacities of several controllers: one row each."""

    rows: list[Row]

    def table(self) -> str:
        """The printed table."""
        return show(self.rows)


def capacity(
    controllers: Controllers,
    scenario: AnyScenario = DEFAULT_SCENARIO,
    slo: float | None = None,
    seeds: Iterable[int] = range(DEFAULT_SEEDS),
    attainment: float = Goal.attainment,
    starved: float | None = Goal.starved,
    max_devices: int = Goal.max_devices,
    *,
    pool: Pool | None = None,
    bar: Bar | None = None,
) -> Capacities:
    """The largest number of devices that each controller serves within their SLO.

    Args: as for `wisp_gym.evaluation.evaluate`; attainment, starved, max_devices: as of `Goal`.

    Raises:
        InputError: one line that names what is wrong.
    """
    world, each = chosen_scenario(scenario, None, slo), chosen_seeds(seeds)
    if world.workload.arrivals == "trace":
        reason = "given 'trace', whose load does not grow with the devices; allowed: closed, open"
        raise InputError(f"{world.name}: workload.arrivals: {reason}")
    chosen, goal = chosen_controllers(controllers, world), Goal(attainment, starved, max_devices)
    curves = {name: Curve(world, one, each, bar, pool) for name, one in chosen.items()}
    return Capacities([capacity_row(name, curve, slo, goal) for name, curve in curves.items()])


def capacity_row(name: str, curve: Curve, slo: float | None, goal: Goal) -> Row:
    """The row of one controller; slo: speed of its curve's one SLO class, None for the scenario's mix."""
    found = search(lambda n: curve.margin(n, goal), 0.0, goal.max_devices)
    if all(np.isnan(attained).all() for attained in curve.attained.values()):
        measure_s = curve.scenario.horizon.measure_s
        reason = f"no request was counted in {measure_s:g} s, allowed is a longer horizon"
        raise InputError(f"{curve.scenario.name}: horizon.measure_s: {reason}")
    low, high = capacity_interval(curve, goal.attainment, found, curve.starved, goal.starved)
    return {
        "controller": name,
        "scenario": curve.scenario.name,
        "slo_tokens_per_s": slo,
        "attainment_target": goal.attainment,
        "starved_limit": goal.starved,
        "capacity_devices": found,
        "capacity_low": low,
        "capacity_high": high,
        "at_limit": found == goal.max_devices,
        "max_devices": goal.max_devices,
        "slo_attainment": float(mean_attainment(curve.attained[found])) if found else None,
        "starved_share": float(curve.starved[found].mean()) if found else None,
        "goodput_tokens_per_s": curve.goodput_tokens_per_s.get(found),
        "seeds": len(curve.seeds),
        "seed_list": cli.seed_list(curve.seeds),
    }


def show(rows: Sequence[Row]) -> str:
    """The printed table of rows that `capacity_row` gave."""
    first, limit = rows[0], rows[0]["starved_limit"]
    starved = "" if limit is None else f", at most {100 * limit:g} % of devices starved"
    title = (
        f"{first['scenario']}: {slo_words(first['slo_tokens_per_s'])}, at least {100 * first['attainment_target']:g} % of requests within "
        f"their SLO{starved}, {first['seeds']} paired worlds (seeds {first['seed_list']})"
    )
    names = ["controller", "capacity", "", "SLO met there", "starved there", "goodput there"]
    units = ["", "devices", "95 %", "%", "%", "tokens/s"]
    return f"{title}\n\n{cli.aligned([names, units], [cells(row) for row in rows])}"


def cells(row: Row) -> list[str]:
    """A row of the printed table."""
    return [
        row["controller"],
        ("≥ " if row["at_limit"] else "") + str(row["capacity_devices"]),
        cli.interval_cell(row["capacity_low"], row["capacity_high"], 0),
        cell(row["slo_attainment"], 1, 100.0),
        cell(row["starved_share"], 1, 100.0),
        cell(row["goodput_tokens_per_s"]),
    ]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The flags."""
    about = "The largest number of devices that a controller serves within their SLO."
    parser = Parser(prog=PROGRAM, description=about, epilog=EPILOG)
    add_comparison(parser, DEFAULT_SEEDS)
    add, limit = parser.add_argument, whole(1, MAX_DEVICES)
    add("--attainment", type=share, default=0.9, metavar="SHARE", help="of requests in their SLO (default %(default)s)")
    add(
        "--starved", type=share_or_zero, metavar="SHARE",
        help="count only loads at which at most this share of devices gets less than 1 token/s (default: any)",
    )  # fmt: skip
    add("--max-devices", type=limit, default=1024, metavar="N", help="where the search ends (default %(default)s)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Search, write where asked, and print."""
    given = parse(arguments)
    refuse_same_files({"--scenario": given.scenario}, {"--json": given.json, "--csv": given.csv})
    scenario, goal = chosen_scenario(given.scenario, 1, given.slo), (given.attainment, given.starved, given.max_devices)
    chosen_controllers(given.controllers, scenario)  # a wrong name ends the command before a note is printed
    for warning in warnings(scenario):  # of one device: the population is what is searched for
        print(f"note: {warning}", file=sys.stderr)
    with cli.progress(desc="capacity") as bar:
        found = capacity(given.controllers, scenario, given.slo, given.seeds, *goal, bar=bar)
    cli.write_rows(found.rows, given.json, given.csv)
    print(found.table())
