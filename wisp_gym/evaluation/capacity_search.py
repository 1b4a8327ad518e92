"""The search for a capacity, and its interval: numbers alone, whatever is measured.

**Search.** A(N) is the mean attainment over the paired worlds of all seeds with N devices; device i is the same in
every world of a seed, so A changes little from N to N + 1. Doubling N finds the last rung that reaches the share (a few
devices may miss it although more reach it, because a small population need not hold the mix of device classes), and
bisection narrows the gap behind it to one device. Near the crossing A may cross the share more than once; the search
then ends at one of the crossings, and the interval tells how far apart they can lie.

**Interval.** Seeds are drawn with replacement 2,000 times; in each sample the capacity is read off the mean curve
through all N that were run (the largest N that reaches the share, and linearly on towards the next N); the interval
holds the middle 95 % of these readings.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from wisp_gym.evaluation.statistics import CONFIDENCE, resampled

MIX_DEVICES = 16  # from here on a population resembles the scenario's mix of device classes
MISSED_RUNGS = 2  # so many rungs missed in a row, the last of at least MIX_DEVICES, end the climb

Measure = Callable[[int], float]


class Attained(Protocol):
    """What an interval is computed from: the seeds, and N → (seeds,) attainment of each world."""

    seeds: Sequence[int]
    attained: dict[int, NDArray[np.float64]]


def mean_attainment(attained: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the last axis of the worlds that counted a request; NaN without any."""
    counted = (~np.isnan(attained)).sum(axis=-1)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.nansum(attained, axis=-1) / counted)


def margins(
    attained: NDArray[np.float64], target: float, starved: NDArray[np.float64], limit: float | None
) -> NDArray[np.float64]:
    """Mean attainment over the last axis less the target or, where less, what the limit leaves above the starved share.

    0 or more where both hold; NaN where no request was counted.
    """
    above = mean_attainment(attained) - target
    return above if limit is None else np.minimum(above, limit - starved.mean(axis=-1))


def rungs(limit: int) -> Iterator[int]:
    """1, 2, 4, … and `limit`."""
    n = 1
    while n < limit:
        yield n
        n *= 2
    yield limit


def climb(measured: Measure, target: float, limit: int) -> int:
    """The last rung that reaches the target, 0 if none does."""
    best, missed = 0, 0
    for n in rungs(limit):
        if measured(n) >= target:
            best, missed = n, 0
        else:
            missed += 1
        if missed >= MISSED_RUNGS and n >= MIX_DEVICES:
            break
    return best


def search(measured: Measure, target: float, limit: int) -> int:
    """The largest number of devices, up to `limit`, that reaches the target; 0 if no rung does."""
    low = climb(measured, target, limit)
    high = min(2 * low, limit + 1) if low else 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if measured(middle) >= target else (low, middle)
    return low


def crossings(devices: NDArray[np.float64], means: NDArray[np.float64], target: float) -> NDArray[np.float64]:
    """Capacity read off each of several mean curves.

    Args:
        devices: (P,) increasing numbers of devices. means: (R, P) mean attainment at each.

    Returns:
        (R,) whole numbers: the largest N that reaches the target, and on a straight line towards the next N.
    """
    reached = means >= target
    last = means.shape[1] - 1 - np.argmax(reached[:, ::-1], axis=1)
    after = np.minimum(last + 1, means.shape[1] - 1)
    curve = np.arange(len(means))
    here, there = means[curve, last], means[curve, after]
    with np.errstate(invalid="ignore", divide="ignore"):
        inside = np.where(after > last, (here - target) / (here - there), 0.0)
    inside = np.nan_to_num(inside, nan=0.0, posinf=0.0)
    # the next N misses the target, so at least one device of the gap is beyond the capacity
    found = np.floor(devices[last] + np.clip(inside, 0.0, 1.0) * np.maximum(devices[after] - devices[last] - 1.0, 0.0))
    return np.where(reached.any(axis=1), found, 0.0)


def capacity_interval(
    curve: Attained,
    target: float,
    found: int,
    starved: Mapping[int, NDArray[np.float64]] | None = None,
    limit: float | None = None,
) -> tuple[int | None, int | None]:
    """95 % interval of the capacity over seeds; None for fewer than two seeds.

    Args:
        found: the capacity. starved: N → (seeds,) share of starved devices, at most `limit` where there is one.
    """
    if len(curve.seeds) < 2:
        return None, None
    devices, samples = sorted(curve.attained), resampled(len(curve.seeds))  # (R, seeds)
    starved = starved or dict.fromkeys(devices, np.zeros(len(curve.seeds)))
    means = [margins(curve.attained[n][samples], target, starved[n][samples], limit) for n in devices]  # (R,) each
    values = crossings(np.array(devices, dtype=np.float64), np.stack(means, axis=1), 0.0)  # (R,)
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], method="inverted_cdf")
    return min(int(low), found), max(int(high), found)
