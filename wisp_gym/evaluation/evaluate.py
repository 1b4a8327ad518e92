"""Compare controllers on paired worlds: equal seeds, hence equal arrivals, lengths, links and token fates, for all.

    wisp-gym evaluate --controllers wisp,sled,centralized --devices 64 --seeds 20 --json rows.json

Every world is measured by `wisp_gym.evaluation.metrics`; a row holds the means over the worlds, with 95 % bootstrap intervals of
the goodput and of its paired difference to the reference. docs/guide/evaluation.md describes every column and key.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from agents.pool import Pool, Threads
from wisp_gym.cli import MAX_DEVICES, Parser, aligned, output_file, refuse_same_files, run, seed_list, whole, write_rows
from wisp_gym.controllers.resolve import ALIASES, listing
from wisp_gym.engine.feasibility import warnings
from wisp_gym.engine.worlds import NO_TRACE, Worlds, load_trace
from wisp_gym.errors import InputError, did_you_mean
from wisp_gym.evaluation.arguments import add_comparison, chosen_controllers, chosen_scenario
from wisp_gym.evaluation.comparison_plot import draw
from wisp_gym.evaluation.metrics import measure, per_class
from wisp_gym.evaluation.tables import bootstrap_interval, cell, interval_cell, mean
from wisp_gym.files import write_bytes
from wisp_gym.rules.controller import Controller
from wisp_gym.scenario import Scenario

PROGRAM = "wisp-gym evaluate"
DEFAULT_SEEDS = 20
Row = dict[str, Any]

# Columns of the printed tables: key, header, unit, digits, factor from the key's unit to the shown one.
SERVICE = (
    ("response_goodput_tokens_per_s", "by response", "tokens/s", 1, 1.0),
    ("throughput_tokens_per_s", "throughput", "tokens/s", 1, 1.0),
    ("slo_attainment", "SLO met", "%", 1, 100.0),
    ("token_attainment", "on time", "% tokens", 1, 100.0),
    ("starved_share", "starved", "%", 1, 100.0),
)
COSTS = (
    ("round_latency_p50_s", "round p50", "ms", 0, 1e3),
    ("round_latency_p95_s", "p95", "ms", 0, 1e3),
    ("ttft_p95_s", "TTFT p95", "s", 2, 1.0),
    ("wasted_drafting_share", "wasted", "%", 1, 100.0),
    ("interference_s", "interference", "ms", 1, 1e3),
    ("server_use", "server use", "%", 1, 100.0),
    ("joules_per_1k_tokens", "energy", "J/1k tokens", 0, 1.0),
    ("dollars_per_1k_tokens", "cost", "$/1k tokens", 5, 1.0),
)
CLASSES = (
    ("requests", "requests", "a world", 1, 1.0),
    ("slo_attainment", "SLO met", "%", 1, 100.0),
    ("goodput_tokens_per_s", "goodput", "tokens/s", 1, 1.0),
)


@dataclass(frozen=True)
class Outcome:
    """What one world gave: `metrics` by name, and one row per SLO class; None where nothing was counted."""

    metrics: Row
    classes: list[Row]


Outcomes = dict[str, list[Outcome]]  # controller's name → one outcome per seed


def run_world(scenario: Scenario, controller: Controller, seed: int, trace: np.ndarray = NO_TRACE) -> Outcome:
    """Run one world of `scenario.n_devices` devices to its end, on the calling thread."""
    worlds = Worlds(1, scenario.n_devices, trace=trace, threads=1)
    worlds.fill(0, scenario, seed, controller)
    worlds.run(early=True)
    rows = per_class(worlds.arrays, 0, scenario)
    classes = [{key: None if math.isnan(value) else value for key, value in row.items()} for row in rows]
    return Outcome(measure(worlds.arrays, 0, scenario).row(), classes)


def run_all(
    scenario: Scenario,
    controllers: Sequence[Controller],
    seeds: Sequence[int],
    trace: np.ndarray,
    bar: tqdm[Any],
    pool: Pool | None = None,
) -> list[list[Outcome]]:
    """Outcomes of every controller (outer) in every world (inner), run on all cores or in a pool; `bar` counts worlds."""
    jobs = [(scenario, controller, seed, trace) for controller in controllers for seed in seeds]
    outcomes = []
    for outcome in (pool or Threads()).map(run_world, jobs):
        outcomes.append(outcome)
        bar.update()
    return [outcomes[first : first + len(seeds)] for first in range(0, len(jobs), len(seeds))]


# --- rows ------------------------------------------------------------------------------------------------------------


def identity(name: str, scenario: Scenario, slo: float | None) -> Row:
    """The keys that say what a row is of; `slo_tokens_per_s` is None for the scenario's own mix."""
    return {"controller": name, "scenario": scenario.name, "devices": scenario.n_devices, "slo_tokens_per_s": slo}


def mean_row(outcomes: Sequence[Outcome]) -> Row:
    """Means over worlds of every metric."""
    return {key: mean([outcome.metrics[key] for outcome in outcomes]) for key in outcomes[0].metrics}


def class_rows(outcomes: Sequence[Outcome]) -> list[Row]:
    """Means over worlds of what each SLO class got."""
    return [
        {key: mean([row[key] for row in rows]) for key in rows[0]}
        for rows in zip(*(o.classes for o in outcomes), strict=True)
    ]


def goodput(outcomes: Sequence[Outcome]) -> list[float]:
    """Goodput of every world, tokens/s."""
    return [outcome.metrics["goodput_tokens_per_s"] for outcome in outcomes]


def intervals(outcomes: Sequence[Outcome], reference: str, of_reference: Sequence[Outcome]) -> Row:
    """Intervals of the goodput and of its paired difference to the reference."""
    low, high = bootstrap_interval(goodput(outcomes))
    differences = [a - b for a, b in zip(goodput(outcomes), goodput(of_reference), strict=True)]
    difference_low, difference_high = bootstrap_interval(differences)
    return {
        "goodput_tokens_per_s_low": low,
        "goodput_tokens_per_s_high": high,
        "reference": reference,
        "goodput_difference_tokens_per_s": mean(differences),
        "goodput_difference_tokens_per_s_low": difference_low,
        "goodput_difference_tokens_per_s_high": difference_high,
    }


def compare(given: argparse.Namespace, scenario: Scenario, outcomes: Outcomes, reference: str) -> list[Row]:
    """One row per controller."""
    rows = []
    for name, own in outcomes.items():
        row = identity(name, scenario, given.slo) | {"seeds": len(given.seeds), "seed_list": seed_list(given.seeds)}
        row |= mean_row(own) | intervals(own, reference, outcomes[reference])
        rows.append(row | {"classes": class_rows(own)} if given.per_class else row)
    return rows


def every_world(given: argparse.Namespace, scenario: Scenario, outcomes: Outcomes) -> list[Row]:
    """One row per controller and seed."""
    rows = [
        identity(name, scenario, given.slo) | {"seed": seed} | own.metrics | {"classes": own.classes}
        for name, worlds in outcomes.items()
        for seed, own in zip(given.seeds, worlds, strict=True)
    ]
    return rows if given.per_class else [{key: row[key] for key in row if key != "classes"} for row in rows]


# --- what is shown ---------------------------------------------------------------------------------------------------


def show(rows: list[Row], scenario: Scenario) -> str:
    """The printed tables."""
    first = rows[0]
    title = (
        f"{scenario.name}: {scenario.n_devices} devices, {slo_words(first)}, {first['seeds']} paired worlds "
        f"(seeds {first['seed_list']}) of {scenario.horizon.measure_s:g} s each"
    )
    names = ["controller", "goodput", "", f"vs {first['reference']}", ""]
    units = ["", "tokens/s", "95 %", "tokens/s", "95 %"]
    service = [[row["controller"], *goodput_cells(row), *metric_cells(row, SERVICE)] for row in rows]
    costs = [[row["controller"], *metric_cells(row, COSTS)] for row in rows]
    tables = [
        title,
        aligned(with_columns([names, units], SERVICE), service),
        aligned(with_columns([["controller"], [""]], COSTS), costs),
    ]
    if "classes" in first:
        tables.append(show_classes(rows))
    return "\n\n".join(tables)


def slo_words(row: Row) -> str:
    """What a row's devices are promised."""
    speed = row["slo_tokens_per_s"]
    return "the scenario's SLO mix" if speed is None else f"SLO {speed:g} tokens/s"


def goodput_cells(row: Row) -> list[str]:
    """Goodput and paired difference, each with its interval."""
    keys = ("goodput_tokens_per_s", "goodput_difference_tokens_per_s")
    return [text for key in keys for text in (cell(row[key]), interval_cell(row[f"{key}_low"], row[f"{key}_high"]))]


def metric_cells(row: Row, columns: Sequence[tuple[str, str, str, int, float]]) -> list[str]:
    """Cells of a row's metrics."""
    return [cell(row[key], digits, factor) for key, _, _, digits, factor in columns]


def with_columns(headers: list[list[str]], columns: Sequence[tuple[str, str, str, int, float]]) -> list[list[str]]:
    """The two header lines with those of the metrics behind them."""
    return [headers[0] + [column[1] for column in columns], headers[1] + [column[2] for column in columns]]


def show_classes(rows: list[Row]) -> str:
    """Attainment and goodput of each SLO class, one line per controller and class."""
    lines = [
        [row["controller"], f"{one['slo_tokens_per_s']:g}", *metric_cells(one, CLASSES)]
        for row in rows
        for one in row["classes"]
    ]
    return aligned(with_columns([["controller", "SLO"], ["", "tokens/s"]], CLASSES), lines)


# --- the command -----------------------------------------------------------------------------------------------------

EPILOG = f"""controllers, separated by commas; a piece that begins with a number, as in confidence:0.6,8+static:4,0.1,
is a parameter of the controller before it; with a semicolon anywhere, semicolons alone separate:

{listing()}"""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The flags."""
    parser = Parser(prog=PROGRAM, description="Compare controllers on paired worlds.", epilog=EPILOG)
    add_comparison(parser, DEFAULT_SEEDS)
    add = parser.add_argument
    add("--devices", type=whole(1, MAX_DEVICES), metavar="N", help="number of devices (default: the scenario's)")
    add(
        "--reference", metavar="NAME", help="what the others are compared with (default: wisp if there, else the first)"
    )
    add("--per-seed", action="store_true", help="files hold one row per controller and seed, not means")
    add("--per-class", action="store_true", help="show each SLO class too, and add 'classes' to the JSON rows")
    add("--plot", type=output_file(".png", ".svg", ".pdf"), metavar="FILE.png", help="draw goodput and SLO attainment")
    return parser.parse_args(arguments)


def chosen_reference(given: argparse.Namespace, names: list[str]) -> str:
    """The controller of `--reference`, which must be among those compared."""
    default = next((name for name in names if ALIASES.get(name, name) == ALIASES["wisp"]), names[0])
    if given.reference is not None and given.reference not in names:
        hint = did_you_mean(given.reference, names)
        raise InputError(f"argument --reference: '{given.reference}' is not among the controllers; {hint}")
    return given.reference or default


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, print, and write where asked."""
    given = parse(arguments)
    refuse_same_files({"--scenario": given.scenario}, {"--json": given.json, "--csv": given.csv, "--plot": given.plot})
    scenario = chosen_scenario(given, given.devices)
    controllers = chosen_controllers(given, scenario)
    reference = chosen_reference(given, list(controllers))
    trace = load_trace(scenario)
    for warning in warnings(scenario):
        print(f"note: {warning}", file=sys.stderr)
    with tqdm(total=len(controllers) * len(given.seeds), unit="world", disable=None, leave=False) as bar:
        results = run_all(scenario, list(controllers.values()), given.seeds, trace, bar)
    outcomes = dict(zip(controllers, results, strict=True))
    rows = compare(given, scenario, outcomes, reference)
    print(show(rows, scenario))
    write_rows(every_world(given, scenario, outcomes) if given.per_seed else rows, given.json, given.csv)
    if given.plot:
        write_bytes(given.plot, draw(rows, given.plot.suffix[1:].lower()))


if __name__ == "__main__":
    sys.exit(run(main, PROGRAM))
