"""A time as a sum of terms, none below 0, refitted with every time that is observed.

Recursive least squares with forgetting, in relative errors, since noise grows with the time. A drift alarm says when what is
observed has become another: a two-sided CUSUM (Page 1954) of the one-step errors; it also lets the fit follow quickly.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

FORGET = 0.995  # weight that an observation leaves to earlier ones: about 200 count (assumption)
SURENESS = 0.1  # relative error of the first coefficients (offline fits: 2-5 %, serving stacks differ by 40 %)
CLIP = 4.0  # standard deviations beyond which one error counts no more: a stall is no trend
SLACK, ALARM = 0.5, 10.0  # CUSUM, in standard deviations: errors above half of one add up, ten are an alarm
NOISE_KEEP, FIRST_NOISE, LEAST_NOISE = 0.98, 0.05, 0.005  # running relative error
MOST_S = 60.0  # nothing takes longer


class RunningFit:
    """Predicts a time from the sizes of its terms, and learns.

    Args:
        first: (n,) seconds of each term's unit size, finite and at least 0, their sum above 0.
        units: (n,) sizes of a middling case, which bring the coefficients to one scale, in which the fit begins equally sure of each.
        sureness: relative error of the first coefficients.

    Attributes:
        coefficients: (n,) float64 seconds, at least 0 each. observed: times learned from. ignored: times that could not be used.
        alarms: how often they have drifted. noise: running relative error.
    """

    def __init__(self, first: Floats, units: Floats, sureness: float = SURENESS):
        self.first, self.units, self.sureness = first, units, sureness
        self.coefficients = first.copy()
        self.observed = self.ignored = self.alarms = 0
        self.noise = FIRST_NOISE
        self.begin()

    def begin(self) -> None:
        """As sure of the coefficients as at first, and no error noted yet."""
        scale = np.maximum(self.coefficients * self.units, 0.02 * float((self.coefficients * self.units).sum()))
        self.weights = self.coefficients * self.units  # what the fit moves: seconds of a middling case
        self.covariance = np.diag((scale * self.sureness / FIRST_NOISE) ** 2)
        self.above = self.below = 0.0

    def learn(self, sizes: Floats, seconds: float, fixed_s: float = 0.0) -> bool:
        """Learn from (n,) finite sizes, at least 0 each, and how long they took; returns whether it raises the drift alarm.

        Args:
            fixed_s: of these seconds, what no term is to explain.
        """
        predicted_s = float(self.coefficients @ sizes) + fixed_s
        if not (0.0 < seconds <= MOST_S and 0.0 < predicted_s <= 1e6):
            self.ignored += 1
            return False
        error = math.log(seconds / predicted_s)
        self.refit(sizes / self.units / predicted_s, error)
        return self.watch(error)

    def refit(self, row: Floats, error: float) -> None:
        """One step of recursive least squares on the relative error; row: (n,) its gradient in the weights."""
        limit = CLIP * self.noise
        gain = self.covariance @ row
        gain /= FORGET + float(row @ gain)
        self.weights = np.maximum(self.weights + gain * min(max(error, -limit), limit), 0.0)
        self.covariance = (self.covariance - np.outer(gain, row @ self.covariance)) / FORGET
        self.covariance = (self.covariance + self.covariance.T) / 2.0
        most = float((self.first * self.units).sum()) ** 2 * 100.0
        if float(np.trace(self.covariance)) > most:  # what nothing observed tells of must not become ever less sure
            self.covariance *= most / float(np.trace(self.covariance))
        self.coefficients = self.weights / self.units
        self.observed += 1

    def watch(self, error: float) -> bool:
        """CUSUM of the errors before the step; on alarm the fit becomes as unsure as at first."""
        z = min(max(error / max(self.noise, LEAST_NOISE), -CLIP), CLIP)
        self.above, self.below = max(self.above + z - SLACK, 0.0), max(self.below - z - SLACK, 0.0)
        square = min(error**2, (CLIP * self.noise) ** 2)
        self.noise = max(math.sqrt(NOISE_KEEP * self.noise**2 + (1.0 - NOISE_KEEP) * square), LEAST_NOISE)
        if max(self.above, self.below) < ALARM:
            return False
        self.alarms += 1
        self.noise = max(self.noise, min(abs(error), 1.0))  # let the fit take steps of this size
        self.begin()
        return True
