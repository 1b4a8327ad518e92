"""Verification time of a batch, predicted by four terms and refitted from every batch that a server observes.

`t = launch + new_token·Σn + pair·Σn·L + cached_token·Σc` (WISP, arXiv 2601.11652; docs/model/model.md), and where a profile told
them, levels by size of batch (Σn), which stay. The coefficients begin as fitted offline (`wisp_gym/data/verification_time`) and
follow the server (`wisp_gym.serving.running_fit`). No method raises while serving.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wisp_gym.errors import InputError, path_of, shown
from wisp_gym.files import read_text
from wisp_gym.scenario import Estimator, ScenarioError, SizeTime
from wisp_gym.serving.running_fit import MOST_S, RunningFit

DATA = Path(__file__).resolve().parents[1] / "data" / "verification_time"
TERMS = ("launch_s", "new_token_s", "pair_s", "cached_token_s")
UNITS = np.array([1.0, 128.0, 128.0 * 1024.0, 16.0 * 1024.0])  # the sums of a middling batch
MAX_BYTES = 2**20


class VerificationTimeEstimator(RunningFit):
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
        super().__init__(checked(coefficients), UNITS)
        self.sizes, self.levels_s = levels(coefficients.get("sizes", []))

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

    def predict(self, new_tokens: float, pairs: float, cached_tokens: float) -> float:
        """Seconds of a batch; sums over its requests as in `verification.batch_time_s`. Never below 0."""
        launch, new, pair, cached = self.coefficients
        try:
            return float(launch + new * new_tokens + pair * pairs + cached * cached_tokens + self.level_s(new_tokens))
        except (TypeError, ValueError):
            given = shown((new_tokens, pairs, cached_tokens))
            raise InputError(f"new_tokens, pairs, cached_tokens: given {given}, allowed are three numbers") from None

    def level_s(self, new_tokens: Any) -> Any:
        """Seconds of the levels by size, of a number or an array: straight lines between them, the first below, in proportion above."""
        if not len(self.sizes):
            return 0.0
        return np.interp(new_tokens, self.sizes, self.levels_s) * np.maximum(new_tokens / self.sizes[-1], 1.0)

    def observe(self, new_tokens: float, pairs: float, cached_tokens: float, seconds: float) -> bool:
        """Learn from a batch that has run; returns whether it raises the drift alarm."""
        try:
            sizes = np.array([1.0, new_tokens, pairs, cached_tokens], dtype=np.float64)
            usable = bool(np.isfinite(sizes).all()) and float(sizes.min()) >= 0.0 and bool(seconds > 0.0)
        except (TypeError, ValueError, OverflowError):
            usable = False
        if not usable:
            self.ignored += 1
            return False
        return self.learn(sizes, seconds, float(self.level_s(new_tokens)))


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
