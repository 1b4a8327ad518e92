"""WISP's evaluation on the calibrated model, side by side with the published figures.

    python -m agents.wisp_study reproduce                           # Qwen3-32B, to which the calibration was fitted
    python -m agents.wisp_study reproduce --target qwen3-14b        # fitted too, its goodputs
    python -m agents.wisp_study reproduce --target llama-3.1-70b    # a prediction: the same parameters, the model's own constants

Writes report.md, capacity.png and rows.json into a new run folder. Every table also holds continuous batching and first come first
served without a cap, on the same cost and memory model.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import wisp_gym
from agents.study.page import Page, Picture, Table, as_markdown
from agents.training.run_folder import check_parent, describe_run, new_folder
from agents.wisp_study import calibration, published
from agents.wisp_study.calibration import (
    GOODPUT_SLO,
    SLED_LENGTH,
    TARGETS,
    Calibration,
    controllers,
    study_scenario,
    system_scenario,
)
from agents.wisp_study.reproduce_plot import draw
from estimators.rejection.operating_point import closed_form, d_prime_of
from wisp_gym.cli import Bar, Parser, add_log_folder, output_file, progress, table, whole, write_rows
from wisp_gym.controllers.resolve import resolve
from wisp_gym.errors import one_of
from wisp_gym.evaluation.capacity_search import capacity_interval, mean_attainment
from wisp_gym.evaluation.pool import Threads
from wisp_gym.evaluation.statistics import bootstrap_interval
from wisp_gym.files import read_text, write_bytes, write_text
from wisp_gym.rules.controller import Controller
from wisp_gym.scenario import Scenario, with_slo
from wisp_gym.simulation import simulate

PROGRAM = "python -m agents.wisp_study reproduce"
DEFAULT_SEEDS = 8
ESTIMATORS = Path(wisp_gym.__file__).parent / "data" / "verification_time"
ABLATION_DEVICES = 64  # assumption: the load of WISP's ablation is not published
Row = dict[str, Any]

# Published besides capacities and goodputs (arXiv 2601.11652).
ESTIMATOR = {"r2": 0.992, "mae_ms": 3.38, "mape_percent": 4.93}
PREDICTOR = {"recall_on_accepted": 0.801, "false_acceptance": 0.425}
PREDICTOR_COST_MS = {"raspberry-pi-5": 0.459, "raspberry-pi-4b": 2.038}
ABLATION = {"acceptance gain, %": (34.0, 54.0), "goodput gain, %": (20.0, 30.0)}


@dataclass
class Curve:
    """Attainment of a system by number of devices, measured where it is asked for."""

    scenario: Scenario
    controller: Controller
    seeds: Sequence[int]
    attained: dict[int, NDArray[np.float64]] = field(default_factory=dict)

    def __call__(self, n: int) -> float:
        """Mean attainment of `n` devices."""
        if n not in self.attained:
            metrics = simulate(self.scenario, self.controller, self.seeds, n, threads=1)
            self.attained[n] = np.array([m.slo_attainment for m in metrics])
        return float(mean_attainment(self.attained[n]))

    def capacity(self, target: float, guess: int) -> int:
        """Largest number of devices that reaches the target."""
        return calibration.largest(self, target, guess)

    def interval(self, target: float, found: int) -> tuple[int, int]:
        """95 % interval of the capacity over seeds."""
        for share in (0.7, 0.85):  # where a resampled curve that misses the target at `found` can still reach it
            self(max(1, int(share * found)))
        low, high = capacity_interval(self, target, found)
        return low or 0, found if high is None else high  # None only for a single seed, which `parse` refuses


def row(name: str, target: str, system: str, known: float | None, measured: float | None, low: float | None = None,
        high: float | None = None, slo: float | None = None) -> Row:  # fmt: skip
    """One row of the report."""
    return {
        "table": name, "target": target, "slo_tokens_per_s": slo, "system": system, "published": known, "measured": measured,
        "low": low, "high": high,
    }  # fmt: skip


def known_capacity(target: str, system: str, k: int) -> int | None:
    """Published capacity, None where there is none."""
    return published.CAPACITY[system][k] if target == "qwen3-32b" and system in published.CAPACITY else None


def capacity_rows(target: str, given: dict[str, float], seeds: Sequence[int], bar: Bar) -> tuple[list[Row], list[Row]]:
    """Capacities of every system at every speed, and goodputs at capacity."""
    jobs = []
    for k, speed in enumerate(published.SLO_TOKENS_PER_S):
        for system, controller in controllers(given, study_scenario(target, given)).items():
            scenario = with_slo(system_scenario(target, given, system), speed)
            jobs.append((k, speed, system, Curve(scenario, controller, seeds)))

    def one(k: int, speed: int, system: str, curve: Curve) -> tuple[Row, Row | None]:
        known = known_capacity(target, system, k)
        found = curve.capacity(given["attainment"], known or published.CAPACITY["wisp"][k])
        low, high = curve.interval(given["attainment"], found)
        bar.update()
        goodput = goodput_row(target, system, found, low, high, curve) if speed == GOODPUT_SLO and found else None
        return row("capacity", target, system, known, found, low, high, speed), goodput

    pairs = list(Threads().map(one, jobs))
    return [capacity for capacity, _ in pairs], [goodput for _, goodput in pairs if goodput is not None]


def goodput_row(target: str, system: str, found: int, low: int, high: int, curve: Curve) -> Row:
    """Goodput at capacity at 8 tokens/s."""
    known = published.GOODPUT.get(target, {}).get(system)
    here, below, above = (calibration.served_goodput(n, curve(found)) for n in (found, low, high))
    return row("goodput", target, system, known, here, below, above, GOODPUT_SLO)


def ratio_rows(target: str, capacities: list[Row], goodputs: list[Row]) -> list[Row]:
    """The headline ratios: WISP against centralized and SLED."""
    at = {r["system"]: r["measured"] for r in capacities if r["slo_tokens_per_s"] == GOODPUT_SLO}
    good = {r["system"]: r["measured"] for r in goodputs}
    known = [ratios.get(target, (None, None)) for ratios in (published.CAPACITY_RATIOS, published.GOODPUT_RATIOS)]
    return [
        row(f"ratio of {name}", target, f"wisp / {other}", ratios[index], of["wisp"] / of[other], slo=GOODPUT_SLO)
        for index, other in enumerate(("centralized", "sled"))
        for name, of, ratios in zip(("capacities", "goodputs"), (at, good), known, strict=True)
        if of.get(other) and of.get("wisp")
    ]


def estimator_rows(target: str, scenario: Scenario) -> list[Row]:
    """Scores of the four-term estimator that the scheduler uses, on held-out configurations of the modelled server."""
    known = ESTIMATOR if target == "qwen3-32b" else dict.fromkeys(ESTIMATOR)
    path = ESTIMATORS / f"{scenario.server.name}--{scenario.target.name}.json"
    if target in calibration.CHANGES:  # another batch time than the one that was fitted
        return []
    scores = json.loads(read_text(path))["scores"]["wisp"]
    return [row("estimator", target, name, known[name], scores[name]) for name in ESTIMATOR]


def predictor_rows(target: str, scenario: Scenario) -> list[Row]:
    """The rejection predictor's operating point in the model, and its cost (an input, taken from the publication)."""
    recall, false_acceptance = PREDICTOR["recall_on_accepted"], PREDICTOR["false_acceptance"]
    point = closed_form(d_prime_of(scenario.draft.statistics.auc), recall)
    cost_ms = {d.name: 1e3 * d.predictor_s for d in scenario.devices if d.name in PREDICTOR_COST_MS}
    return [
        row("predictor", target, "recall on accepted tokens", recall, point["recall"]),
        row("predictor", target, "false acceptance of rejected tokens", false_acceptance, point["false_acceptance"]),
        *(row("predictor cost, ms a token (input)", target, name, PREDICTOR_COST_MS[name], ms) for name, ms in cost_ms.items()),
    ]  # fmt: skip


def ablation_rows(target: str, scenario: Scenario, seeds: Sequence[int]) -> list[Row]:
    """Predictor alone, scheduler alone, both, against a fixed length with first come first served."""
    fixed = f"fixed:{SLED_LENGTH}"
    names = {
        "neither": f"{fixed}+fcfs", "predictor alone": "wisp+fcfs", "scheduler alone": f"{fixed}+wisp", "both": "wisp+wisp",
    }  # fmt: skip
    found = {who: simulate(scenario, resolve(name, scenario), seeds, ABLATION_DEVICES) for who, name in names.items()}
    rows = []
    for label in list(names)[1:]:
        for measure, key in (("acceptance gain, %", "acceptance"), ("goodput gain, %", "goodput_tokens_per_s")):
            pairs = zip(found[label], found["neither"], strict=True)
            gains = [100 * (getattr(a, key) / getattr(b, key) - 1) for a, b in pairs]
            low, high = bootstrap_interval(gains)
            known = float(np.mean(ABLATION[measure])) if label == "predictor alone" else None
            rows.append(row(f"ablation: {measure}", target, label, known, float(np.mean(gains)), low, high))
    return rows


def shown(value: float | None) -> str:
    """A number for the tables."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 50 or float(value).is_integer() else f"{value:.3g}"


def cells(r: Row) -> list[str]:
    """A printed row with its relative error."""
    known = r["published"] and r["measured"] is not None
    error = f"{100 * (r['measured'] / r['published'] - 1):+.1f} %" if known else ""
    interval = "" if r["low"] is None else f"[{shown(r['low'])}, {shown(r['high'])}]"
    slo = "" if r["slo_tokens_per_s"] is None else f"{r['slo_tokens_per_s']:g}"
    return [r["table"], slo, r["system"], shown(r["published"]), shown(r["measured"]), interval, error]


HEADER = ["table", "SLO", "system", "published", "measured", "95 %", "error"]


def verdict(rows: list[Row]) -> str:
    """What holds and what does not, in one line."""
    apart = [(r["table"], r["measured"] / r["published"] - 1) for r in rows if r["published"]]
    errors = [error for table, error in apart if table in ("capacity", "goodput")]
    ratios = [error for table, error in apart if table.startswith("ratio")]
    if not errors:
        return "a prediction: no published figure of this target is held here"
    inside = sum(abs(e) <= 0.15 for e in errors)
    return (
        f"{inside} of {len(errors)} capacities and goodputs within 15 % of the published figures, the furthest {100 * max(errors, key=abs):+.0f} %; "
        f"{sum(abs(e) <= 0.10 for e in ratios)} of {len(ratios)} ratios within 10 %"
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The flags."""
    parser = Parser(prog=PROGRAM, description=__doc__)
    add = parser.add_argument
    add("--calibration", default="joint", metavar="NAME", help="joint, study, or a FILE.toml (default joint)")
    add("--target", default="qwen3-32b", help=f"one of {', '.join(TARGETS)} (default qwen3-32b)")
    worlds = f"worlds for each figure (default {DEFAULT_SEEDS})"
    add("--seeds", type=whole(2, 1000), default=DEFAULT_SEEDS, metavar="S", help=worlds)
    add("--json", type=output_file(), metavar="FILE", help="write the rows as JSON there too")
    add_log_folder(parser)
    given = parser.parse_args(arguments)
    one_of("argument --target", given.target, TARGETS)
    return given


def study(target: str, numbers: dict[str, float], seeds: Sequence[int]) -> list[Row]:
    """Every row of the report, capacities first."""
    scenario = study_scenario(target, numbers)
    with progress(24, " capacities") as bar:
        capacities, goodputs = capacity_rows(target, numbers, seeds, bar)
    found = [*capacities, *goodputs, *ratio_rows(target, capacities, goodputs)]
    found += [*estimator_rows(target, scenario), *predictor_rows(target, scenario)]
    return found + ablation_rows(target, scenario, seeds)


def write_report(folder: Path, target: str, fitted: Calibration, rows: list[Row]) -> None:
    """report.md, capacity.png and rows.json in the run's folder."""
    header, *parameters = calibration.lines(fitted)
    tables = [
        Table("figures", "Published and measured", "", HEADER, [cells(r) for r in rows]),
        Table("calibration", "Calibration", "", header, parameters),
    ]
    pictures = [Picture("capacity by SLO speed", file="capacity.png")]
    page = Page(f"WISP's evaluation, {target}", [verdict(rows)], pictures, tables)
    write_text(folder / "report.md", as_markdown(page))
    write_bytes(folder / "capacity.png", draw([r for r in rows if r["table"] == "capacity"]))
    write_rows(rows, folder / "rows.json")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study, print it, write the report."""
    given = parse(arguments)
    check_parent(given.log_folder)
    fitted = calibration.read(calibration.find(given.calibration))
    numbers, seeds = calibration.values(fitted), range(given.seeds)
    rows = study(given.target, numbers, seeds)
    folder = new_folder(given.log_folder, f"reproduce-{given.target}")
    settings = {"target": given.target, "seeds": list(seeds), "calibration": numbers}
    command = ["-m", *PROGRAM.split()[2:], *(sys.argv[1:] if arguments is None else arguments)]
    describe_run(folder, settings, study_scenario(given.target, numbers), command)
    write_report(folder, given.target, fitted, rows)
    write_rows(rows, given.json)
    print(f"{table(HEADER, [cells(r) for r in rows])}\n\n{verdict(rows)}\nreport: {folder / 'report.md'}")
