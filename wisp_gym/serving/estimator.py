"""Verification time of a batch, predicted by four terms and refitted from every batch that a server observes.

`t = launch + new_token·Σn + pair·Σn·L + cached_token·Σc` (WISP, arXiv 2601.11652; docs/model/model.md), and where a profile told
them, levels by size of batch (Σn), which stay. The coefficients begin as fitted offline (`wisp_gym/data/verification_time`) and
follow the server by recursive least squares with forgetting, in relative errors, since noise grows with the time. A drift alarm says
when the server has become another: a two-sided CUSUM (Page 1954) of the one-step errors; it also lets the fit follow quickly. No
method raises while serving.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wisp_gym.errors import InputError, path_of, shown
from wisp_gym.files import read_text
from wisp_gym.scenario import Estimator, ScenarioError, SizeTime

DATA = Path(__file__).resolve().parents[1] / "data" / "verification_time"
TERMS = ("launch_s", "new_token_s", "pair_s", "cached_token_s")
MAX_BYTES = 2**20

# The sums of a middling batch: they bring the four coefficients to one scale, in which the fit begins equally sure of each.
UNITS = np.array([1.0, 128.0, 128.0 * 1024.0, 16.0 * 1024.0])
FORGET = 0.995  # weight that a batch leaves to earlier ones: about 200 batches count (assumption)
SURENESS = 0.1  # relative error of the first coefficients (offline fits: 2-5 %, serving stacks differ by 40 %)
CLIP = 4.0  # standard deviations beyond which one error counts no more: a stall is no trend
SLACK, ALARM = 0.5, 10.0  # CUSUM, in standard deviations: errors above half of one add up, ten are an alarm
NOISE_KEEP, FIRST_NOISE, LEAST_NOISE = 0.98, 0.05, 0.005  # running relative error
MOST_S = 60.0  # no batch takes longer


class VerificationTimeEstimator:
    """Predicts the time of a batch and learns from those that have run.

    Args:
        coefficients: seconds by name of `TERMS`, each finite and at least 0, their sum above 0; `sizes`, if any, a list of objects
            with `tokens` and `add_s`, as a scenario's estimator has them.

    Raises:
        ValueError: coefficients that are missing or out of range.

    Attributes:
        coefficients: (4,) float64 seconds of each of TERMS, at least 0 each. observed: batches learned from. ignored: batches that
            could not be used. alarms: how often the server has drifted. noise: running relative error.
    """

    def __init__(self, coefficients: dict[str, float]):
        self.first = checked(coefficients)
        self.coefficients = self.first.copy()
        self.sizes, self.levels_s = levels(coefficients.get("sizes", []))
        self.observed = self.ignored = self.alarms = 0
        self.noise = FIRST_NOISE
        self.begin()

    @classmethod
    def load(cls, name: str | Path) -> VerificationTimeEstimator:
        """One whose coefficients are read from JSON: a file, or a shipped pair such as `a100-80gb--qwen3-32b`.

        Raises:
            ValueError: no such file, or no coefficients in it; one line.
        """
        path = path_of("estimator", name)
        if path.suffix != ".json":
            path = DATA / f"{name}.json"
        try:
            if not path.is_file() or path.stat().st_size > MAX_BYTES:
                raise OSError
            return cls(json.loads(read_text(path)))
        except OSError:
            shipped = ", ".join(sorted(file.stem for file in DATA.glob("*.json")))
            raise ValueError(f"{name}: no such file of at most {MAX_BYTES} bytes; shipped: {shipped}") from None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: {error}") from None

    def begin(self) -> None:
        """As sure of the coefficients as at first, and no error noted yet."""
        scale = np.maximum(self.coefficients * UNITS, 0.02 * float((self.coefficients * UNITS).sum()))
        self.weights = self.coefficients * UNITS  # what the fit moves: seconds of a middling batch
        self.covariance = np.diag((scale * SURENESS / FIRST_NOISE) ** 2)
        self.above = self.below = 0.0

    def predict(self, new_tokens: float, pairs: float, cached_tokens: float) -> float:
        """Seconds of a batch; sums over its requests as in `verification.batch_time_s`. Never below 0."""
        launch, new, pair, cached = self.coefficients
        try:
            terms_s = launch + new * new_tokens + pair * pairs + cached * cached_tokens
            return float(terms_s + self.level_s(new_tokens)) if len(self.sizes) else float(terms_s)
        except (TypeError, ValueError):
            given = shown((new_tokens, pairs, cached_tokens))
            raise InputError(f"new_tokens, pairs, cached_tokens: given {given}, allowed are three numbers") from None

    def level_s(self, new_tokens: float) -> float:
        """Seconds of the levels by size: straight lines between them, the first below, in proportion above."""
        return float(np.interp(new_tokens, self.sizes, self.levels_s)) * max(new_tokens / self.sizes[-1], 1.0)

    def observe(self, new_tokens: float, pairs: float, cached_tokens: float, seconds: float) -> bool:
        """Learn from a batch that has run; returns whether it raises the drift alarm."""
        try:
            x = np.array([1.0, new_tokens, pairs, cached_tokens], dtype=np.float64)
            usable = bool(np.isfinite(x).all()) and float(x.min()) >= 0.0 and 0.0 < seconds <= MOST_S
            predicted_s = self.predict(new_tokens, pairs, cached_tokens) if usable else 0.0
        except (TypeError, ValueError, OverflowError):
            usable, predicted_s = False, 0.0
        if not usable or not 0.0 < predicted_s <= 1e6:
            self.ignored += 1
            return False
        error = math.log(seconds / predicted_s)
        self.refit(x / UNITS / predicted_s, error)
        return self.watch(error)

    def refit(self, row: NDArray[np.float64], error: float) -> None:
        """One step of recursive least squares on the relative error; row: (4,) its gradient in the weights."""
        limit = CLIP * self.noise
        gain = self.covariance @ row
        gain /= FORGET + float(row @ gain)
        self.weights = np.maximum(self.weights + gain * min(max(error, -limit), limit), 0.0)
        self.covariance = (self.covariance - np.outer(gain, row @ self.covariance)) / FORGET
        self.covariance = (self.covariance + self.covariance.T) / 2.0
        most = float((self.first * UNITS).sum()) ** 2 * 100.0
        if float(np.trace(self.covariance)) > most:  # what no batch tells of must not become ever less sure
            self.covariance *= most / float(np.trace(self.covariance))
        self.coefficients = self.weights / UNITS
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


def checked(coefficients: dict[str, float]) -> NDArray[np.float64]:
    """(4,) seconds of each of TERMS; raises ValueError with one line."""
    if not isinstance(coefficients, dict):
        raise ValueError(
            f"coefficients: given {type(coefficients).__name__}, allowed is an object with {', '.join(TERMS)}"
        )
    values = []
    for name in TERMS:
        value = coefficients.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value <= MOST_S:
            raise ValueError(f"{name}: given {value!r}, allowed is a number of seconds from 0 to {MOST_S:g}")
        values.append(float(value))
    if sum(values) <= 0.0:
        raise ValueError("coefficients: all are 0, at least one must be above")
    return np.array(values)


def levels(sizes: object) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(n,) tokens and (n,) seconds of levels by size; raises ValueError with one line."""
    try:
        made = Estimator(0.0, 0.0, 0.0, 0.0, sizes=tuple(SizeTime(**size) for size in sizes))  # type: ignore[attr-defined]
    except (TypeError, ScenarioError) as error:
        raise ValueError(f"sizes: {' '.join(str(error).split())}") from None
    return np.array([s.tokens for s in made.sizes], float), np.array([s.add_s for s in made.sizes], float)
