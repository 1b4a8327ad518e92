"""Compare controllers on paired worlds: equal seeds, hence equal arrivals, lengths, links and token fates, for all.

    wisp-gym evaluate --controllers wisp,sled,centralized --devices 64 --seeds 20 --json rows.json
    wisp-gym evaluate --controllers mypkg.rules:MyRule+fcfs,wisp      # one's own: docs/guide/own.md

Every world is measured by `wisp_gym.evaluation.metrics`; a row holds the means over the worlds, with 95 % bootstrap intervals of
the goodput and of its paired difference to the reference. docs/guide/compare.md describes every column and key.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from wisp_gym import cli
from wisp_gym.cli import Bar, Parser, output_file, refuse_same_files, whole
from wisp_gym.engine.feasibility import warnings
from wisp_gym.engine.trace_load import TraceUse, trace_use
from wisp_gym.errors import one_of, require
from wisp_gym.evaluation.arguments import EPILOG, add_comparison
from wisp_gym.evaluation.comparison_plot import draw
from wisp_gym.evaluation.comparison_tables import show
from wisp_gym.evaluation.outcomes import (
    EvaluatedControllers,
    Outcome,
    Row,
    chosen_or_own,
    chosen_scenario,
    chosen_seeds,
    goodput,
    run_all,
)
from wisp_gym.evaluation.pool import Pool
from wisp_gym.evaluation.statistics import bootstrap_interval, mean
from wisp_gym.files import write_bytes
from wisp_gym.rules.catalogue import ALIASES
from wisp_gym.scenario import DEFAULT_SCENARIO, AnyScenario, Scenario
from wisp_gym.values import MAX_DEVICES

PROGRAM = "wisp-gym evaluate"
DEFAULT_SEEDS = 20


@dataclass(frozen=True)
class Comparison:
    """What controllers made of the same worlds.

    Attributes:
        scenario: as it ran. slo: speed of its one SLO class in tokens/s, None for the scenario's own mix.
        seeds: one world each. outcomes: controller's name → one outcome per seed.
        reference: the controller that the others are compared with.
        trace: what became of the scenario's request trace, None without one.
    """

    scenario: Scenario
    slo: float | None
    seeds: tuple[int, ...]
    outcomes: dict[str, list[Outcome]]
    reference: str
    trace: TraceUse | None = None

    def rows(self, per_class: bool = False) -> list[Row]:
        """One row per controller: means over the worlds, with intervals; `classes` holds those of each SLO class."""
        seeds = {"seeds": len(self.seeds), "seed_list": cli.seed_list(self.seeds)}
        return [
            self.identity(name) | seeds | mean_row(own) | self.intervals(own)
            | ({"classes": class_rows(own)} if per_class else {})
            for name, own in self.outcomes.items()
        ]  # fmt: skip

    def worlds(self, per_class: bool = False) -> list[Row]:
        """One row per controller and seed."""
        return [
            self.identity(name) | {"seed": seed} | own.metrics | ({"classes": own.classes} if per_class else {})
            for name, outcomes in self.outcomes.items()
            for seed, own in zip(self.seeds, outcomes, strict=True)
        ]

    def table(self, per_class: bool = False) -> str:
        """The printed tables."""
        tables = show(self.rows(per_class), self.scenario)
        return f"{tables}\n\n{self.trace.line()}" if self.trace else tables

    def identity(self, name: str) -> Row:
        """The keys that say what a row is of."""
        world = self.scenario
        told = {"controller": name, "scenario": world.name, "devices": world.n_devices, "slo_tokens_per_s": self.slo}
        return told | (self.trace.row if self.trace else {})

    def intervals(self, own: Sequence[Outcome]) -> Row:
        """Intervals of the goodput and of its paired difference to the reference."""
        low, high = bootstrap_interval(goodput(own))
        differences = [a - b for a, b in zip(goodput(own), goodput(self.outcomes[self.reference]), strict=True)]
        difference_low, difference_high = bootstrap_interval(differences)
        return {
            "goodput_tokens_per_s_low": low,
            "goodput_tokens_per_s_high": high,
            "reference": self.reference,
            "goodput_difference_tokens_per_s": mean(differences),
            "goodput_difference_tokens_per_s_low": difference_low,
            "goodput_difference_tokens_per_s_high": difference_high,
        }


def evaluate(
    controllers: EvaluatedControllers,
    scenario: AnyScenario = DEFAULT_SCENARIO,
    devices: int | None = None,
    slo: float | None = None,
    seeds: Iterable[int] = range(DEFAULT_SEEDS),
    reference: str | None = None,
    *,
    pool: Pool | None = None,
    bar: Bar | None = None,
) -> Comparison:
    """Run controllers in the same worlds.

    Args:
        controllers: one or several, by name (`wisp_gym.controllers.resolve.listing`) or themselves; one's own are made by
            `wisp_gym.evaluation.own`, and an object with `predict` decides for every device, beside `fcfs`.
        scenario: a scenario, a preset's name or a TOML file.
        devices: population; default the scenario's.
        slo: speed of one SLO class for all devices, tokens/s; default the scenario's mix.
        seeds: one world each.
        reference: whom the others are compared with; default WISP if it takes part, else the first.
        pool: where worlds run; default all cores of this machine. bar: counts worlds.

    Raises:
        InputError: one line that names what is wrong.
    """
    world = chosen_scenario(scenario, devices, slo)
    chosen = chosen_or_own(controllers, world)
    wisp = (name for name in chosen if ALIASES.get(name, name) == ALIASES["wisp"])
    against = next(wisp, next(iter(chosen))) if reference is None else one_of("reference", reference, chosen)
    found = run_all(world, list(chosen.values()), each := chosen_seeds(seeds), pool, bar)
    return Comparison(world, slo, each, dict(zip(chosen, found, strict=True)), against, trace_use(world))


# --- rows ------------------------------------------------------------------------------------------------------------


def mean_row(outcomes: Sequence[Outcome]) -> Row:
    """Means over worlds of every metric."""
    return {key: mean([outcome.metrics[key] for outcome in outcomes]) for key in outcomes[0].metrics}


def class_rows(outcomes: Sequence[Outcome]) -> list[Row]:
    """Means over worlds of what each SLO class got."""
    worlds = zip(*(outcome.classes for outcome in outcomes), strict=True)
    return [{key: mean([row[key] for row in rows]) for key in rows[0]} for rows in worlds]


# --- the command -----------------------------------------------------------------------------------------------------


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The flags."""
    parser = Parser(prog=PROGRAM, description="Compare controllers on paired worlds.", epilog=EPILOG)
    add_comparison(parser, DEFAULT_SEEDS)
    add = parser.add_argument
    add("--devices", type=whole(1, MAX_DEVICES), metavar="N", help="number of devices (default: the scenario's)")
    add("--reference", metavar="NAME", help="the others are compared with it (default: wisp if there, else the first)")
    add("--per-seed", action="store_true", help="files hold one row per controller and seed, not means")
    add("--per-class", action="store_true", help="show each SLO class too, and add 'classes' to the JSON rows")
    add("--plot", type=output_file(".png", ".svg", ".pdf"), metavar="FILE.png", help="draw goodput and SLO attainment")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, write where asked, and print."""
    given = parse(arguments)
    refuse_same_files({"--scenario": given.scenario}, {"--json": given.json, "--csv": given.csv, "--plot": given.plot})
    if given.reference is not None:
        one_of("argument --reference", given.reference, given.controllers)
    if given.plot:
        require("matplotlib", "plot")
    scenario = chosen_scenario(given.scenario, given.devices, given.slo)
    chosen_or_own(given.controllers, scenario)  # a wrong name ends the command before a note is printed
    for warning in warnings(scenario):
        print(f"note: {warning}", file=sys.stderr)
    with cli.progress(len(given.controllers) * len(given.seeds)) as bar:
        found = evaluate(given.controllers, scenario, None, given.slo, given.seeds, given.reference, bar=bar)
    rows = found.worlds(given.per_class) if given.per_seed else found.rows(given.per_class)
    cli.write_rows(rows, given.json, given.csv)
    if given.plot:
        write_bytes(given.plot, draw(found.rows(), given.plot.suffix[1:].lower()))
    print(found.table(given.per_class))
