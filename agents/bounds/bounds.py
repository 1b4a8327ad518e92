"""Upper bounds on what any controller can reach in a scenario, beside what controllers reach.

    python -m agents.bounds --scenario wisp-a100-qwen3-32b --devices 64 --json bounds.json

Bounds are on long-run throughput, and so on goodput (`agents.bounds.fluid`; what they mean and assume: docs/model/bounds.md):
with the predictor's information, with every fate known once drafted (`perfect`), with every fate known beforehand
(`oracle`), and for centralized serving; where the scenario's server can draft, also for serving from the server alone
(`colocated`) and for rounds drafted by either (`+server`). With one device class there is also the best periodic schedule
(`agents.bounds.identical`). The controllers are simulated on paired worlds; each is compared with the bound of what it
knows and of who may draft.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence

from agents.bounds.fluid import Bound, bounds_of, capacity
from agents.bounds.identical import best_periodic, capacity_at_speed, is_identical
from agents.bounds.kinds import BOUNDS, CENTRALIZED, COLOCATED, INFORMATION, NAMES, SERVER_BOUNDS, named
from wisp_gym import cli
from wisp_gym.cli import aligned, cell, interval_cell
from wisp_gym.controllers.resolve import resolve
from wisp_gym.engine.feasibility import warnings
from wisp_gym.evaluation.arguments import add_comparison
from wisp_gym.evaluation.comparison_tables import slo_words
from wisp_gym.evaluation.outcomes import Outcome, Row, chosen_controllers, chosen_scenario, run_all
from wisp_gym.evaluation.statistics import bootstrap_interval, mean
from wisp_gym.rules.controller import Controller
from wisp_gym.rules.speculation import ORACLE, PERFECT
from wisp_gym.rules.trimming import NONE as NO_TRIMMING
from wisp_gym.scenario import Scenario
from wisp_gym.values import MAX_DEVICES

PROGRAM = "python -m agents.bounds"
DEFAULT_SEEDS = 10
DEFAULT_CONTROLLERS = ["oracle+fcfs", "perfect+fcfs", "survival:0.5+fcfs", "wisp", "centralized:0"]
MEASURES = ("throughput_tokens_per_s", "goodput_tokens_per_s")


def bound_for(controller: Controller) -> str:
    """Which bound a controller is held to: by what it knows, and by who may draft.

    A server that trims has seen the evidence of tokens that it does not verify; only an oracle is known to do no worse.
    """
    drafting = controller.drafting
    knows = {ORACLE: "oracle", PERFECT: "perfect"}.get(controller.speculation, INFORMATION)
    knows = "oracle" if controller.trim != NO_TRIMMING else knows
    if controller.centralized and drafting.hosted is None:
        return CENTRALIZED
    if controller.centralized and knows == INFORMATION:
        return COLOCATED
    return named(knows, server=controller.centralized or drafting.mixes, overlap=drafting.overlap_tokens > 0)


def bounds_shown(scenario: Scenario, controllers: Iterable[Controller]) -> list[str]:
    """Names of the bounds to compute: those of devices, of a server that can draft, and of each controller."""
    shown = {*BOUNDS, *(SERVER_BOUNDS if scenario.server_drafts else ()), *map(bound_for, controllers)}
    return [name for name in NAMES if name in shown]


def bound_row(name: str, bound: Bound) -> Row:
    """A bound as a row of the files."""
    measured = {f"{key}{end}": None for key in MEASURES for end in ("", "_low", "_high", "_share")}
    named = {"row": "bound", "name": name, "bound": name, "bound_tokens_per_s": bound.tokens_per_s}
    return named | measured | vars(bound)


def measured_row(name: str, kind: str, bound: Bound, outcomes: Sequence[Outcome]) -> Row:
    """What a controller reached, and its share of its bound."""
    row: Row = {"row": "measured", "name": name, "bound": kind, "bound_tokens_per_s": bound.tokens_per_s}
    for key in MEASURES:
        values = [outcome.metrics[key] for outcome in outcomes]
        low, high = bootstrap_interval(values)
        reached = mean(values)
        share = reached / bound.tokens_per_s if reached is not None and bound.tokens_per_s > 0.0 else None
        row |= {key: reached, f"{key}_low": low, f"{key}_high": high, f"{key}_share": share}
    return row


def show_bounds(bounds: dict[str, Bound]) -> str:
    """Table of the bounds."""
    names = ["bound", "throughput", "at the server", "batch", "server use", "a server second", "verifying a token"]
    units = ["", "tokens/s", "% of rounds", "requests", "%", "tokens", "tokens"]
    lines = [
        [name, cell(b.tokens_per_s), cell(b.at_server, 1, 100.0), cell(b.batch_requests), cell(b.server_use, 1, 100.0),
         cell(b.server_price), cell(b.token_price, 3)]
        for name, b in bounds.items()
    ]  # fmt: skip
    return aligned([names, units], lines)


def show_classes(bound: Bound) -> str:
    """Table of what each device class does where the bound is reached, and what its time is worth (A of a price rule)."""
    headers = [["device class", "throughput", "drafts", "a device second"], ["", "tokens/s", "a round", "tokens"]]
    lines = [
        [name, cell(rate), cell(bound.group_draft[name], 2), cell(bound.device_price[name], 2)]
        for name, rate in bound.group_tokens_per_s.items()
    ]
    return aligned(headers, lines)


def show_measured(rows: list[Row]) -> str:
    """Table of the controllers."""
    names = ["controller", "throughput", "", "of its bound", "goodput", "", "of its bound", "bound"]
    units = ["", "tokens/s", "95 %", "%", "tokens/s", "95 %", "%", ""]
    lines = []
    for row in rows:
        line = [row["name"]]
        for key in MEASURES:
            interval = interval_cell(row[f"{key}_low"], row[f"{key}_high"])
            line += [cell(row[key]), interval, cell(row[f"{key}_share"], 1, 100.0)]
        lines.append([*line, row["bound"]])
    return aligned([names, units], lines)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The flags."""
    about = "Upper bounds on throughput and goodput of any controller."
    parser = cli.Parser(prog=PROGRAM, description=about, epilog="controllers: `wisp-gym evaluate --help` lists them.")
    add_comparison(parser, DEFAULT_SEEDS, DEFAULT_CONTROLLERS)
    add = parser.add_argument
    add("--devices", type=cli.whole(1, MAX_DEVICES), metavar="N", help="number of devices (default: the scenario's)")
    floor = "every device class gets at least V tokens/s a device (default: none)"
    add("--fairness", type=cli.speed, metavar="V", help=floor)
    add("--capacity", type=cli.speed, metavar="V", help="also: how many devices can get V tokens/s each, at most")
    return parser.parse_args(arguments)


def measure_all(
    controllers: dict[str, Controller], scenario: Scenario, seeds: Sequence[int], bounds: dict[str, Bound]
) -> list[Row]:
    """Rows of the controllers and, of the fixed lengths, of the one with most throughput in these same worlds."""
    fixed = {f"fixed:{k}+fcfs": resolve(f"fixed:{k}+fcfs", scenario) for k in range(scenario.max_draft_tokens + 1)}
    everyone = [*controllers.values(), *fixed.values()]
    with cli.progress(len(everyone) * len(seeds)) as bar:
        outcomes = run_all(scenario, everyone, seeds, bar=bar)
    known = [(name, bound_for(controller)) for name, controller in controllers.items()]
    known += [(f"best fixed ({name})", INFORMATION) for name in fixed]
    rows = [measured_row(name, kind, bounds[kind], own) for (name, kind), own in zip(known, outcomes, strict=True)]
    best = max(rows[len(controllers) :], key=lambda row: row[MEASURES[0]] or 0.0)
    return [*rows[: len(controllers)], best]


def closed_forms(scenario: Scenario, speed_tokens_per_s: float | None) -> list[str]:
    """Lines on the periodic schedule and, where a speed is given, on capacity at it."""
    lines = []
    if is_identical(scenario):
        best = best_periodic(scenario)
        lines.append(
            f"periodic schedule of identical devices (no prompts, no think time): {best.tokens_per_s:,.1f} tokens/s with "
            f"{best.draft_tokens} drafts a round, {best.batch_requests:.1f} requests a batch"
        )
    if speed_tokens_per_s is not None:
        most = capacity(scenario, speed_tokens_per_s)
        alone = ", where devices alone draft, before they send" if scenario.server_drafts else ""
        lines.append(f"at most {most} devices can get {speed_tokens_per_s:g} tokens/s each{alone}")
        if is_identical(scenario):
            devices, k = capacity_at_speed(scenario, speed_tokens_per_s)
            lines.append(f"fixed lengths on a periodic schedule: {devices} devices, with {k} drafts a round")
    return lines


def title(scenario: Scenario, slo: float | None, seeds: Sequence[int], floor_tokens_per_s: float | None) -> str:
    """What the tables are of."""
    floor = f", at least {floor_tokens_per_s:g} tokens/s for every device in the bounds" if floor_tokens_per_s else ""
    worlds = f"{len(seeds)} paired worlds (seeds {cli.seed_list(seeds)})"
    return f"{scenario.name}: {scenario.n_devices} devices, {slo_words(slo)}, {worlds}{floor}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Bound, run, write where asked, and print."""
    given = parse(arguments)
    cli.refuse_same_files({"--scenario": given.scenario}, {"--json": given.json, "--csv": given.csv})
    scenario = chosen_scenario(given.scenario, given.devices, given.slo)
    controllers = chosen_controllers(given.controllers, scenario)  # wrong names end the command before the work starts
    for warning in warnings(scenario):
        print(f"note: {warning}", file=sys.stderr)
    bounds = bounds_of(scenario, given.fairness or 0.0, bounds_shown(scenario, controllers.values()))
    rows = measure_all(controllers, scenario, given.seeds, bounds)
    tables = [show_bounds(bounds), show_classes(bounds[INFORMATION]), show_measured(rows)]
    about = title(scenario, given.slo, given.seeds, given.fairness)
    cli.write_rows([*(bound_row(name, bound) for name, bound in bounds.items()), *rows], given.json, given.csv)
    print("\n\n".join([about, *tables, *closed_forms(scenario, given.capacity)]))
