"""Aligned tables, and means with bootstrap intervals over paired worlds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2_000
CONFIDENCE = 0.95


def aligned(headers: Sequence[Sequence[str]], rows: Sequence[Sequence[str]]) -> str:
    """Text table of header lines, a rule and rows: the first column to the left, the others to the right."""
    lines = [*headers, *rows]
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    shown = [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([*shown[: len(headers)], "-" * max(len(line) for line in shown), *shown[len(headers) :]])


def cell(value: float | None, digits: int = 1, factor: float = 1.0) -> str:
    """A number for a table, `-` where nothing was counted."""
    return "-" if value is None or math.isnan(value) else f"{value * factor:,.{digits}f}"


def interval_cell(low: float | None, high: float | None, digits: int = 1) -> str:
    """An interval for a table, empty where one world gives none."""
    return "" if low is None or high is None else f"[{low:,.{digits}f}, {high:,.{digits}f}]"


def mean(values: Sequence[float | None]) -> float | None:
    """Mean of the values that exist (a world in which nothing was counted has none); None without any."""
    counted = [value for value in values if value is not None]
    return math.fsum(counted) / len(counted) if counted else None


def resampled(n: int) -> NDArray[np.int64]:
    """(RESAMPLES, n) indices of bootstrap samples of `n` worlds; the same ones every time, so that results repeat."""
    return np.random.default_rng(0).integers(n, size=(RESAMPLES, n))


def bootstrap_interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    """95 % percentile-bootstrap interval of the mean over worlds (Efron and Tibshirani, 1993, section 13.3).

    Args:
        values: one of each world; for a comparison the differences of paired worlds.

    Returns:
        Low and high; None for fewer than two worlds, of which no spread can be told.
    """
    if len(values) < 2:
        return None, None
    means = np.asarray(values, dtype=np.float64)[resampled(len(values))].mean(axis=1)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
