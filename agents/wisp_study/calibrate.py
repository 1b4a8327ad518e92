"""Fit the calibration again, or show the shipped one.

    python -m agents.wisp_study calibrate --search --out FILE.toml     # prints the progress and the fit
    python -m agents.wisp_study calibrate                              # prints the shipped calibration
    python -m agents.wisp_study calibrate --preset FILE.toml           # writes the calibrated scenario

The search takes damped Gauss–Newton steps on logarithms and, where none helps, a compass search. Residuals are
ln(measured / published) in units of what is aimed at: 15 % for the twelve capacities and the six goodputs, 10 % for
the ratios of capacities and of goodputs at the fastest class. The loss is their mean eighth power, so that the worst
figures count most; each least-squares step weights the residuals accordingly (iteratively reweighted least squares).
"""

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import lsq_linear

from agents.wisp_study.calibration import (
    FILES,
    MAIN,
    SECOND,
    Calibration,
    cells,
    find,
    lines,
    read,
    served_goodput,
    study_preset,
    text,
)
from agents.wisp_study.published import CAPACITY, GOODPUT, SYSTEMS
from wisp_gym.cli import Bar, Parser, output_file, progress, table, whole
from wisp_gym.files import write_text
from wisp_gym.interrupts import leaves
from wisp_gym.scenario import save

Keep = Callable[[Calibration, str], None]
PROGRAM = "python -m agents.wisp_study calibrate"

Vector = NDArray[np.float64]
BATCHES = {"sled_batch": "sled", "centralized_batch": "centralized"}  # whole numbers, each of one system alone
DIFFERENCE = 0.12  # of a logarithm: wide enough to rise above the noise of two worlds
LONGEST_STEP = 0.5  # of a logarithm
SHRINK = (1.0, 0.5, 0.2)  # lengths of a step that are tried in turn
RIDGE = 0.35
COMPASS, SMALLEST_COMPASS = 0.03, 0.01  # of a logarithm
POWER = 8
SMALL = 0.5  # residuals below are weighted as if they were so large, else the step would ignore them


def residuals(capacities: dict[str, list[float]], attainment: float) -> Vector:
    """(24,) residuals: twelve capacities, six goodputs; two ratios of capacities and four of goodputs at the fastest class.

    Args:
        capacities: of each system, Qwen3-32B's at the four speeds, then Qwen3-14B's at the fastest.
    """
    log = {
        s: [math.log(max(m, 0.5) / p) for m, p in zip(capacities[s][:-1], CAPACITY[s], strict=True)] for s in SYSTEMS
    }
    goods = [
        {s: math.log(served_goodput(max(capacities[s][k], 0.5), attainment) / GOODPUT[target][s]) for s in SYSTEMS}
        for target, k in ((MAIN, -2), (SECOND, -1))
    ]
    figures = [*(x for s in SYSTEMS for x in log[s]), *(x for good in goods for x in good.values())]
    ratios = [at["wisp"] - at[s] for at in ({s: log[s][-1] for s in SYSTEMS}, *goods) for s in SYSTEMS[1:]]
    return np.array([*(x / math.log(1.15) for x in figures), *(x / math.log(1.10) for x in ratios)])


def loss(r: Vector) -> float:
    """Mean eighth power: little more than the worst residual counts."""
    return float(np.mean(r**POWER))


class Fit:
    """A point of the search: parameters by name, capacities, residuals."""

    def __init__(self, given: dict[str, float], capacities: dict[str, list[float]]):
        self.given, self.capacities = given, capacities
        self.residuals = residuals(capacities, given["attainment"])
        self.loss = loss(self.residuals)

    def summary(self) -> str:
        """How near it is."""
        figures, ratios = np.split(self.residuals, [6 * len(SYSTEMS)])
        errors, ratio_errors = np.exp(figures * math.log(1.15)) - 1, np.exp(ratios * math.log(1.10)) - 1
        return (
            f"{np.sum(np.abs(errors) <= 0.15)} of {len(errors)} figures within 15 %, the furthest {100 * max(errors, key=abs):+.0f} %, "
            f"ratios at most {100 * max(ratio_errors, key=abs):+.0f} %, root mean square {np.sqrt(np.mean(errors**2)):.3f}"
        )


class Search:
    """Gauss–Newton steps from a calibration."""

    def __init__(self, start: Calibration, seeds: Sequence[int], bar: Bar):
        self.start, self.seeds, self.bar = start, seeds, bar
        self.names = [name for name in start if name not in BATCHES]
        self.best = self.measure({name: p.value for name, p in start.items()})

    def measure(self, given: dict[str, float], systems: Sequence[str] = SYSTEMS) -> Fit:
        """Residuals of a point; systems that are not named keep the best point's capacities."""
        kept = {} if len(systems) == len(SYSTEMS) else self.best.capacities
        fit = Fit(given, kept | cells(given, self.seeds, systems))
        self.bar.update()
        return fit

    def moved(self, change: Vector) -> dict[str, float]:
        """The best point with its logarithms changed, held within the ranges."""
        given = self.best.given
        moved = {name: given[name] * math.exp(x) for name, x in zip(self.names, change, strict=True)}
        return given | {name: min(max(x, self.start[name].low), self.start[name].high) for name, x in moved.items()}

    def jacobian(self) -> Vector:
        """(24, n) derivatives by the logarithms, by differences that stay within the ranges."""
        columns = []
        for k, name in enumerate(self.names):
            p, value = self.start[name], self.best.given[name]
            sign = 1.0 if value * math.exp(DIFFERENCE) <= p.high else -1.0
            there = self.measure(self.moved(sign * DIFFERENCE * np.eye(len(self.names))[k]))
            columns.append((there.residuals - self.best.residuals) / math.log(there.given[name] / value))
        return np.array(columns).T

    def calibration(self) -> Calibration:
        """The best so far."""
        return {name: replace(p, value=self.best.given[name]) for name, p in self.start.items()}

    def step(self) -> bool:
        """One Gauss–Newton step, as long as lowers the loss; whether any did."""
        r = self.best.residuals
        weight = np.maximum(np.abs(r), SMALL) ** (POWER / 2 - 1)
        weight /= weight.max()
        jacobian, aim = self.jacobian() * weight[:, None], np.pad(-r * weight, (0, len(self.names)))
        for share in SHRINK:
            rows = np.vstack([jacobian, RIDGE / share * np.eye(len(self.names))])
            limit = LONGEST_STEP * share
            there = self.measure(self.moved(lsq_linear(rows, aim, (-limit, limit)).x))
            if there.loss < self.best.loss:
                self.best = there
                return True
        return False

    def compass(self, by: float) -> bool:
        """Try a little more and a little less of each number (batch sizes: one); whether anything lowered the loss."""
        before = self.best.loss
        for name, p in self.start.items():
            for sign in (1.0, -1.0):
                value = self.best.given[name]
                value = round(value) + sign if name in BATCHES else value * math.exp(sign * by)
                systems = [BATCHES[name]] if name in BATCHES else SYSTEMS
                there = self.measure(self.best.given | {name: min(max(value, p.low), p.high)}, systems)
                if there.loss < self.best.loss:
                    self.best = there
                    break
        return self.best.loss < before


def search(
    start: Calibration, steps: int, seeds: Sequence[int], keep: Keep = lambda *_: None
) -> tuple[Calibration, str]:
    """Fit; returns the calibration and how near it is. Ends early where nothing lowers the loss any more.

    Args:
        keep: is given both after each step.
    """
    by = COMPASS
    with progress(unit=" calibrations") as bar:
        found = Search(start, seeds, bar)
        print(f"start: {found.best.summary()}", flush=True)
        for index in range(steps):
            if not found.step() and not found.compass(by):
                by /= 2.0
            keep(found.calibration(), found.best.summary())
            print(f"step {index + 1}: {found.best.summary()}", flush=True)
            print("   " + ", ".join(f"{n} {v:.4g}" for n, v in found.best.given.items()), flush=True)
            if by < SMALLEST_COMPASS:
                break
    return found.calibration(), found.best.summary()


# --- the command -----------------------------------------------------------------------------------------------------


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The flags."""
    parser = Parser(prog=PROGRAM, description=__doc__)
    add = parser.add_argument
    add("--search", action="store_true", help="fit again (minutes a step on two cores)")
    add("--steps", type=whole(1, 1000), default=8, metavar="N", help="steps of the search (default 8)")
    add("--seeds", type=whole(1, 1000), default=2, metavar="S", help="worlds for each capacity (default 2)")
    begins = f"which is shown, or where the search begins: {', '.join(FILES)} or FILE.toml (default joint)"
    add("--calibration", default="joint", metavar="NAME", help=begins)
    add("--out", type=output_file(".toml"), metavar="FILE.toml", help="write the fitted calibration there")
    add("--preset", type=output_file(".toml"), metavar="FILE.toml", help="write the calibrated scenario there")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Show the calibration, or fit it."""
    given = parse(arguments)
    calibration = read(find(given.calibration))

    def keep(found: Calibration, summary: str) -> None:
        if given.out:
            header = (
                "What WISP's evaluation leaves open, as eight numbers fitted once to all of its published capacities and goodputs.\n"
                "None of them is WISP's own value. low and high: the range that was searched.\n"
                f"{PROGRAM} --search --steps {given.steps} --seeds {given.seeds}: {summary}"
            )
            write_text(given.out, text(found, header))

    if given.search:
        with leaves(
            f"the best so far is in {given.out}, --calibration goes on from it" if given.out else "nothing written"
        ):
            calibration, summary = search(calibration, given.steps, range(given.seeds), keep)
        keep(calibration, summary)
    if given.preset:
        save(study_preset(calibration), given.preset)
    names, *rows = lines(calibration)
    print(table(names, rows))
