"""Ratios of sums over worlds, with intervals: what happens in one world is alike, so worlds are resampled."""

import numpy as np

from wisp_gym.cli import cell, interval_cell
from wisp_gym.evaluation.statistics import interval, resampled

Interval = tuple[float, float, float]  # value, low and high of its 95 % interval


def ratio(above: np.ndarray, below: np.ndarray) -> Interval:
    """Σ above / Σ below of (worlds,) sums."""
    chosen = resampled(len(above))
    return (float(above.sum() / below.sum()), *interval(above[chosen].sum(axis=1) / below[chosen].sum(axis=1)))


def pressure(gram: np.ndarray, moments: np.ndarray) -> tuple[Interval, Interval]:
    """Least squares y = a·x₀ + b·x₁ of worlds' (worlds, 2, 2) Σ x·xᵀ and (worlds, 2) Σ x·y: a, and b/a."""
    chosen = resampled(len(gram))
    a, b = np.linalg.pinv(gram.sum(axis=0)) @ moments.sum(axis=0)  # not singular but where all worlds drawn are one
    drawn = (np.linalg.pinv(gram[chosen].sum(axis=1)) @ moments[chosen].sum(axis=1)[..., None])[..., 0]
    return (float(a), *interval(drawn[:, 0])), (float(b / a), *interval(drawn[:, 1] / drawn[:, 0]))


def cells(*found: Interval) -> list[str]:
    """Cells of a table: each value, and its interval."""
    return [part for value, low, high in found for part in (cell(value, 2), interval_cell(low, high, 2))]
