"""How much the headline ratios depend on each calibrated number.

    python -m agents.wisp_study sensitivity --plot sensitivity.png

Each number in turn is divided and multiplied by 1.25 (held within its range; a batch size moves by one at least, attainment by
that factor on the violations it tolerates), and the capacities at 8 tokens/s of WISP, centralized serving and SLED are
searched again, in each world for itself. Ratios are geometric means over the worlds, with Student-t 95 % intervals of their
logarithms. Goodput at capacity is devices × speed × attainment, so its ratios are the same.
"""

import argparse
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import t as student

from agents.study.page import picture_bytes
from agents.wisp_study.calibration import GOODPUT_SLO, MAIN, Calibration, cell, find, read, values
from agents.wisp_study.published import CAPACITY, CAPACITY_RATIOS, SLO_TOKENS_PER_S, SYSTEMS
from wisp_gym.cli import Bar, Parser, aligned, output_file, progress, whole, write_rows
from wisp_gym.evaluation.pool import Threads
from wisp_gym.files import write_bytes

PROGRAM = "python -m agents.wisp_study sensitivity"
WIDEST = 2.0  # times the published ratio: an interval beyond leaves the picture
FACTOR = 1.25
OTHERS = ("centralized", "sled")
FASTEST = SLO_TOKENS_PER_S.index(GOODPUT_SLO)
Row = dict[str, Any]


def neighbours(calibration: Calibration, name: str) -> tuple[float, float]:
    """The number a factor lower and higher, within its range; a batch size by one at least; of attainment, what it tolerates."""
    p = calibration[name]
    low, high = p.value / FACTOR, p.value * FACTOR
    if name == "attainment":
        low, high = 1.0 - (1.0 - p.value) * FACTOR, 1.0 - (1.0 - p.value) / FACTOR
    if name.endswith("_batch"):
        low, high = min(round(low), round(p.value) - 1), max(round(high), round(p.value) + 1)
    return max(low, p.low), min(high, p.high)


def points(calibration: Calibration) -> list[tuple[str, float]]:
    """(parameter, value) of every point; the first is the calibration itself, under no name."""
    return [("", math.nan), *((name, value) for name in calibration for value in neighbours(calibration, name))]


def ratio_row(name: str, value: float, other: str, logs: np.ndarray) -> Row:
    """Geometric mean over worlds with its interval; logs: (worlds,) logarithms of the ratio."""
    n = len(logs)
    half = float(student.ppf(0.975, n - 1) * logs.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan
    ends = [math.exp(logs.mean() + sign * half) if n > 1 else None for sign in (-1, 1)]
    return {
        "parameter": name, "value": None if math.isnan(value) else value, "ratio": f"wisp / {other}",
        "measured": math.exp(logs.mean()), "low": ends[0], "high": ends[1],
    }  # fmt: skip


def measure(calibration: Calibration, seeds: Sequence[int], bar: Bar) -> list[Row]:
    """Both ratios at every point."""
    places = points(calibration)
    jobs = [(*place, system, seed) for place in places for system in SYSTEMS for seed in seeds]

    def one(name: str, value: float, system: str, seed: int) -> float:
        given = values(calibration) | ({name: value} if name else {})
        found = cell(MAIN, given, system, GOODPUT_SLO, [seed], CAPACITY[system][FASTEST])
        bar.update()
        return max(found, 0.5)

    found = np.log(np.reshape(list(Threads().map(one, jobs)), (len(places), len(SYSTEMS), len(seeds))))
    return [
        ratio_row(name, value, other, found[k, 0] - found[k, SYSTEMS.index(other)])
        for k, (name, value) in enumerate(places)
        for other in OTHERS
    ]


def table(rows: list[Row]) -> str:
    """The rows as text."""
    cells = [
        [
            r["parameter"] or "(calibrated)", "" if r["value"] is None else f"{r['value']:.3g}", r["ratio"], f"{r['measured']:.2f}",
            "" if r["low"] is None else f"[{r['low']:.2f}, {r['high']:.2f}]",
        ]
        for r in rows
    ]  # fmt: skip
    return aligned([["parameter", "value", "ratio of capacities at 8 tokens/s", "measured", "95 %"]], cells)


def draw(rows: list[Row], kind: str) -> bytes:
    """Both ratios at both ends of every parameter, the most influential on top; the picture's bytes."""
    figure = Figure(figsize=(11.0, 4.6), layout="constrained")
    for axes, other, published in zip(figure.subplots(1, 2), OTHERS, CAPACITY_RATIOS[MAIN], strict=True):
        draw_ratio(axes, [r for r in rows if r["ratio"] == f"wisp / {other}"], published)
        axes.set(xlabel=f"capacity of WISP / {other} at 8 tokens/s (95 % interval)")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return picture_bytes(figure, kind)


def draw_ratio(axes: Any, rows: list[Row], published: float) -> None:
    """One panel."""
    centre, rest = rows[0]["measured"], rows[1:]
    pairs = {r["parameter"]: [q for q in rest if q["parameter"] == r["parameter"]] for r in rest}
    order = sorted(pairs, key=lambda name: abs(pairs[name][1]["measured"] - pairs[name][0]["measured"]))
    for k, name in enumerate(order):
        for r, colour, shift in zip(pairs[name], ("#0072b2", "#d55e00"), (-0.12, 0.12), strict=True):
            axes.plot([centre, r["measured"]], [k, k], color=colour, linewidth=6, alpha=0.3, solid_capstyle="butt")
            if r["low"] is not None:
                axes.plot([r["low"], r["high"]], [k + shift] * 2, color=colour, linewidth=1.2)
            axes.plot(r["measured"], k + shift, "o", color=colour, markersize=5)
    axes.plot([], [], "o", color="#0072b2", label=f"smaller (÷ {FACTOR:g})")
    axes.plot([], [], "o", color="#d55e00", label=f"larger (× {FACTOR:g})")
    axes.axvline(centre, color="0.3", linewidth=1, label="calibrated")
    axes.axvline(published, color="black", linewidth=1, linestyle="--", label="published (WISP)")
    axes.set_yticks(range(len(order)), order)
    left, right = axes.get_xlim()
    axes.set_xlim(max(left, 0.0), min(right, WIDEST * published))
    axes.grid(axis="x", alpha=0.3)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The flags."""
    parser = Parser(prog=PROGRAM, description=__doc__)
    add = parser.add_argument
    add("--calibration", default="joint", metavar="NAME", help="joint, study, or a FILE.toml (default joint)")
    add("--seeds", type=whole(1, 1000), default=4, metavar="S", help="worlds for each point (default 4)")
    add("--plot", type=output_file(".png", ".svg", ".pdf"), metavar="FILE.png", help="draw it")
    add("--json", type=output_file(), metavar="FILE", help="write the rows as JSON")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, draw, print."""
    given = parse(arguments)
    calibration = read(find(given.calibration))
    with progress(len(points(calibration)) * len(SYSTEMS) * given.seeds, " capacities") as bar:
        rows = measure(calibration, range(given.seeds), bar)
    write_rows(rows, given.json)
    if given.plot:
        write_bytes(given.plot, draw(rows, given.plot.suffix[1:].lower()))
    print(table(rows))
