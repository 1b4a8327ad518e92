"""The best draft length by batch size, as ranges that a batch may wander about in without losing much.

The rate of a step with K drafts for each of B sessions is `tokens(K) / seconds(B, K)`. The plain argmax flips between
neighbouring lengths where they are about equal, and an engine whose batch flaps at such a threshold pays for every flip. So

1. a longer length is taken only where it gains at least a margin at *every* batch size of a neighbourhood, else the shorter;
2. a length whose range holds no whole neighbourhood is not written: the range goes to the neighbour that loses less there.

Legend: B batch sizes 1, 2 … B; K longest length; `rates` (B, K + 1) tokens per second and session.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Range:
    """Batch sizes `low` to `high`, both included, for which `length` tokens are drafted."""

    low: int
    high: int
    length: int


def neighbourhood(batch: int, around: float, largest: int) -> tuple[int, int]:
    """First and last batch size within the share `around` of a batch size, at least one to each side unless it is 0."""
    reach = math.ceil(around * batch)
    return max(batch - reach, 1), min(batch + reach, largest)


def choices(rates: Floats, margin: float, around: float) -> NDArray[np.int64]:
    """(B,) the shortest length that no longer one beats by more than `margin` throughout the neighbourhood.

    With margin and neighbourhood 0 it is the argmax, ties to the shorter length.
    """
    chosen = np.empty(len(rates), dtype=np.int64)
    for batch in range(1, len(rates) + 1):
        low, high = neighbourhood(batch, around, len(rates))
        near = rates[low - 1 : high]
        least_gain = (near[:, None, :] / near[:, :, None]).min(axis=0)  # [K, K'] of K' over K
        beaten = np.triu(least_gain > 1.0 + margin, 1).any(axis=1)
        chosen[batch - 1] = np.argmin(beaten)  # the first that is not; the longest never is
    return chosen


def ranges(lengths: NDArray[np.int64]) -> list[Range]:
    """Runs of equal lengths, from batch size 1 on."""
    ends = [*(np.flatnonzero(np.diff(lengths)) + 1).tolist(), len(lengths)]
    starts = [0, *ends[:-1]]
    return [Range(start + 1, end, int(lengths[start])) for start, end in zip(starts, ends, strict=True)]


def is_wide(found: Range, around: float, largest: int) -> bool:
    """Whether a range holds the whole neighbourhood of one of its batch sizes."""
    sizes = range(found.low, found.high + 1)
    near = (neighbourhood(batch, around, largest) for batch in sizes)
    return any(found.low <= low and high <= found.high for low, high in near)


def steady(rates: Floats, lengths: NDArray[np.int64], around: float) -> list[Range]:
    """Ranges of `lengths` (B,) of which each holds a neighbourhood.

    The narrowest of the others goes first, to the neighbour whose length loses less of the rate there, ties to the shorter.
    """
    kept, left = np.array(lengths), ranges(lengths)
    while narrow := [place for place, one in enumerate(left) if not is_wide(one, around, len(kept))]:
        place = min(narrow, key=lambda place: left[place].high - left[place].low)
        here = slice(left[place].low - 1, left[place].high)
        beside = sorted(left[other].length for other in (place - 1, place + 1) if 0 <= other < len(left))
        kept[here] = max(beside, key=lambda length: float((rates[here, length] / rates[here].max(axis=1)).min()))
        left = ranges(kept)
    return left


def most_lost(rates: Floats, found: list[Range]) -> float:
    """Largest share of the best rate that the ranges give up, at any batch size."""
    lengths = np.concatenate([np.full(one.high - one.low + 1, one.length) for one in found])
    got = np.take_along_axis(rates, lengths[:, None], axis=1)[:, 0]
    return float((1.0 - got / rates.max(axis=1)).max())
