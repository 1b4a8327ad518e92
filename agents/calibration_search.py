"""The search behind `agents.calibration`: damped Gauss–Newton steps on logarithms, and steps of one for batch sizes.

Residuals are ln(measured / published) of the twelve capacities, the three goodputs and the two ratios of capacities at the
fastest class. The loss is their mean fourth power, so that the worst figure counts most; each least-squares step weights
the residuals accordingly (iteratively reweighted least squares).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import lsq_linear
from tqdm import tqdm

from agents.calibration import Calibration, cells, served_goodput, values
from agents.published import CAPACITY, GOODPUT, SYSTEMS

Vector = NDArray[np.float64]
BATCHES = {"sled_batch": "sled", "centralized_batch": "centralized"}  # whole numbers, each of one system alone
DIFFERENCE = 0.12  # of a logarithm: wide enough to rise above the noise of two worlds
LONGEST_STEP = 0.5  # of a logarithm
SHRINK = (1.0, 0.5, 0.2)  # lengths of a step that are tried in turn
RIDGE = 0.05
TYPICAL = 0.1  # residual from which on the fourth power outweighs the square


def residuals(capacities: dict[str, list[float]], attainment: float) -> Vector:
    """(17,) logarithms of measured / published: capacities, goodputs, ratios of capacities at the fastest class."""
    log = {s: [math.log(max(m, 0.5) / p) for m, p in zip(capacities[s], CAPACITY[s], strict=True)] for s in SYSTEMS}
    goodputs = [math.log(served_goodput(max(capacities[s][-1], 0.5), attainment) / GOODPUT[s]) for s in SYSTEMS]
    ratios = [log["wisp"][-1] - log[other][-1] for other in ("centralized", "sled")]
    return np.array([*(x for s in SYSTEMS for x in log[s]), *goodputs, *ratios])


def loss(r: Vector) -> float:
    """Mean fourth power."""
    return float(np.mean(r**4))


class Fit:
    """A point of the search: parameters by name, capacities, residuals."""

    def __init__(self, given: dict[str, float], capacities: dict[str, list[float]]):
        self.given, self.capacities = given, capacities
        self.residuals = residuals(capacities, given["attainment"])
        self.loss = loss(self.residuals)

    def summary(self) -> str:
        """How near it is."""
        figures = self.residuals[: -len(SYSTEMS) + 1]
        inside = int(np.sum((np.exp(figures) > 0.85) & (np.exp(figures) < 1.15)))
        furthest = 100 * (math.exp(figures[np.argmax(np.abs(figures))]) - 1)
        return f"{inside} of {len(figures)} figures within 15 %, the furthest {furthest:+.0f} %, root mean square {np.sqrt(np.mean(figures**2)):.3f}"


class Search:
    """Gauss–Newton steps from a calibration."""

    def __init__(self, start: Calibration, seeds: Sequence[int], bar: tqdm):  # type: ignore[type-arg]
        self.start, self.seeds, self.bar = start, seeds, bar
        self.names = [name for name in start if name not in BATCHES]
        self.best = self.measure(values(start))

    def measure(self, given: dict[str, float], systems: Sequence[str] = SYSTEMS) -> Fit:
        """Residuals of a point; systems that are not named keep the best point's capacities."""
        kept = {} if len(systems) == len(SYSTEMS) else self.best.capacities
        fit = Fit(given, kept | cells(given, self.seeds, systems))
        self.bar.update()
        return fit

    def moved(self, change: Vector) -> dict[str, float]:
        """The best point with its logarithms changed, held within the ranges."""
        given = dict(self.best.given)
        for name, x in zip(self.names, change, strict=True):
            p = self.start[name]
            given[name] = min(max(given[name] * math.exp(x), p.low), p.high)
        return given

    def jacobian(self) -> Vector:
        """(17, n) derivatives by the logarithms, by differences that stay within the ranges."""
        columns = []
        for k, name in enumerate(self.names):
            p, value = self.start[name], self.best.given[name]
            sign = 1.0 if value * math.exp(DIFFERENCE) <= p.high else -1.0
            change = np.zeros(len(self.names))
            change[k] = sign * DIFFERENCE
            there = self.measure(self.moved(change))
            columns.append((there.residuals - self.best.residuals) / math.log(there.given[name] / value))
        return np.array(columns).T

    def step(self) -> bool:
        """One Gauss–Newton step, as long as lowers the loss; whether any did."""
        r = self.best.residuals
        weight = np.sqrt(1.0 + (r / TYPICAL) ** 2)
        jacobian = self.jacobian() * weight[:, None]
        for share in SHRINK:
            rows = np.vstack([jacobian, RIDGE / share * np.eye(len(self.names))])
            aim = np.concatenate([-r * weight, np.zeros(len(self.names))])
            limit = LONGEST_STEP * share
            there = self.measure(self.moved(lsq_linear(rows, aim, (-limit, limit)).x))
            if there.loss < self.best.loss:
                self.best = there
                return True
        return False

    def step_batches(self) -> bool:
        """One more or one less in each batch size, where it lowers the loss; whether any did."""
        before = self.best.loss
        for name, system in BATCHES.items():
            for by in (-1.0, 1.0):
                there = self.measure(self.best.given | {name: round(self.best.given[name]) + by}, [system])
                if there.loss < self.best.loss:
                    self.best = there
        return self.best.loss < before


def search(start: Calibration, steps: int, seeds: Sequence[int]) -> tuple[Calibration, str]:
    """Fit; returns the calibration and how near it is. Ends early where nothing lowers the loss."""
    with tqdm(unit=" calibrations", disable=not sys.stderr.isatty()) as bar:
        found = Search(start, seeds, bar)
        print(f"start: {found.best.summary()}", flush=True)
        for index in range(steps):
            moved, stepped = found.step(), found.step_batches()
            print(f"step {index + 1}: {found.best.summary()}", flush=True)
            print("   " + ", ".join(f"{n} {v:.4g}" for n, v in found.best.given.items()), flush=True)
            if not moved and not stepped:
                break
    return {n: replace(p, value=found.best.given[n]) for n, p in start.items()}, found.best.summary()
