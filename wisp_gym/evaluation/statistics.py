"""Bootstrap intervals over paired worlds, and aggregates over many cells and worlds.

The aggregates are those of Agarwal et al., *Deep Reinforcement Learning at the Edge of the Statistical Precipice*, 2021
(arXiv 2108.13264). Scores are (worlds, cells) arrays: world n of cell m under one controller. Worlds are resampled with
replacement within each cell (the paper's stratified bootstrap), with the same draws for every controller: worlds are common,
so intervals of differences are paired ones. docs/guide/study.md says why the package `rliable` is not used.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]
Values = NDArray[np.float64]
RESAMPLES = 2_000
CONFIDENCE = 0.95
TRIMMED = 0.25  # on each side: the middle half remains


def mean(values: Sequence[float | None]) -> float | None:
    """Mean of the values that exist (a world in which nothing was counted has none); None without any."""
    counted = [value for value in values if value is not None]
    return math.fsum(counted) / len(counted) if counted else None


def resampled(n: int) -> NDArray[np.int64]:
    """(RESAMPLES, n) indices of bootstrap samples of `n` worlds; the same ones every time, so that results repeat."""
    return np.random.default_rng(0).integers(n, size=(RESAMPLES, n))


def interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """The middle 95 % of bootstrap values: the percentile interval."""
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def bootstrap_interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    """95 % percentile-bootstrap interval of the mean over worlds (Efron and Tibshirani, 1993, section 13.3).

    Args:
        values: one of each world; for a comparison the differences of paired worlds.

    Returns:
        Low and high; None for fewer than two worlds, of which no spread can be told.
    """
    if len(values) < 2:
        return None, None
    return interval(np.asarray(values, dtype=np.float64)[resampled(len(values))].mean(axis=1))


# --- over cells and worlds -------------------------------------------------------------------------------------------


def middle_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the last axis of the middle half: scipy's `trim_mean(values, 0.25, axis=-1)`, to the last bit.

    The partition, not a sort, sets the order of the sum and so its last bits.
    """
    cut = int(TRIMMED * values.shape[-1])
    kept = slice(cut, values.shape[-1] - cut)
    return np.asarray(np.mean(np.partition(values, (kept.start, kept.stop - 1), axis=-1)[..., kept], axis=-1))


def iqm(scores: Scores) -> float:
    """Interquartile mean: the mean of the middle half of all (worlds, cells) scores [section 4.3 of the paper]."""
    return float(middle_mean(scores.ravel()))


def strata(worlds: int, cells: int) -> NDArray[np.int64]:
    """(RESAMPLES, worlds, cells) worlds drawn with replacement in every cell; the same ones every time."""
    return np.random.default_rng(0).integers(worlds, size=(RESAMPLES, worlds, cells))


def resampled_iqm(scores: Scores) -> NDArray[np.float64]:
    """(RESAMPLES,) interquartile means of stratified bootstrap samples; draws are common to all controllers."""
    drawn = np.take_along_axis(scores[np.newaxis], strata(*scores.shape), axis=1)
    return middle_mean(drawn.reshape(RESAMPLES, -1))


def wins(ours: Scores, others: Scores) -> NDArray[np.float64]:
    """(cells, worlds, worlds) 1 where our world i beats their world j in a cell, ½ where they are equal, else 0."""
    x, y = ours.T[:, :, np.newaxis], others.T[:, np.newaxis, :]
    return np.where(x == y, 0.5, np.where(x > y, 1.0, 0.0))


def probability_of_improvement(ours: Scores, others: Scores) -> float:
    """Mean over cells of P(X > Y), every world against every world, ties for a half [section 4.3, Mann-Whitney U]."""
    return float(wins(ours, others).mean())


def resampled_improvement(ours: Scores, others: Scores) -> NDArray[np.float64]:
    """(RESAMPLES,) probabilities of improvement of stratified bootstrap samples of common worlds."""
    n, cells = ours.shape
    drawn = strata(n, cells)
    counts = np.stack([(drawn == world).sum(axis=1) for world in range(n)], axis=2).astype(np.float64)  # (R, cells, n)
    won = wins(ours, others)
    by_cell = [((counts[:, m] @ won[m]) * counts[:, m]).sum(axis=1) for m in range(cells)]
    return np.asarray(np.mean(by_cell, axis=0) / n**2)


def performance_profile(scores: Scores, thresholds: NDArray[np.float64]) -> NDArray[np.float64]:
    """(T,) share of worlds, averaged over cells, whose score exceeds each of (T,) thresholds [section 4.2]."""
    return np.asarray((scores[np.newaxis] > thresholds[:, np.newaxis, np.newaxis]).mean(axis=(1, 2)))


def profile_interval(scores: Scores, thresholds: Values) -> tuple[Values, Values]:
    """Low and high (T,) of the profile at each of (T,) thresholds: pointwise 95 % of stratified bootstrap samples."""
    n, cells = scores.shape
    drawn = strata(n, cells)
    counts = np.stack([(drawn == world).sum(axis=1) for world in range(n)], axis=1)  # (R, n, cells)
    above = scores.reshape(-1, 1) > thresholds  # (n·cells, T)
    profiles = counts.reshape(RESAMPLES, -1) @ above / scores.size
    low, high = np.quantile(profiles, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    return low, high
