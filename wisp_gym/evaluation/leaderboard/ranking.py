"""Rows in order: the interquartile mean of goodput over the reference's in the same cell, with its interval."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wisp_gym.controllers.names import outside
from wisp_gym.errors import InputError
from wisp_gym.evaluation.leaderboard.rows import BoardRow
from wisp_gym.evaluation.leaderboard.suite import Suite
from wisp_gym.evaluation.statistics import Scores, interval, iqm, mean, resampled_iqm

GOODPUT, ATTAINMENT, STARVED, ENERGY = "goodput_tokens_per_s", "slo_attainment", "starved_share", "joules_per_1k_tokens"
BOUNDS = ("perfect", "oracle")  # told fates, so they are no controllers that anyone could run


@dataclass(frozen=True)
class Ranked:
    """A row's place and what it is judged by.

    Attributes:
        place: 1 for the first; None of a bound, which is told fates. score: interquartile mean of (worlds, cells) goodput over
            the mean of the reference's in the cell. low, high: 95 % bootstrap interval of it over worlds.
        attainment: share of requests within their SLO, mean over all worlds. least_attainment: in the cell with the least.
        starved: share of devices below 1 token/s. joules: per 1,000 tokens. goodput: mean over worlds of each cell, tokens/s.
    """

    place: int | None
    row: BoardRow
    score: float
    low: float
    high: float
    attainment: float | None
    least_attainment: float | None
    starved: float | None
    joules: float | None
    goodput: dict[str, float | None]


def ranked(rows: Sequence[BoardRow], suite: Suite) -> list[Ranked]:
    """Rows of a suite, best first.

    Raises:
        InputError: there is no row of the reference.
    """
    of_suite = [row for row in rows if row.suite_digest == suite.digest]
    reference = next((row for row in of_suite if row.controller == suite.reference), None)
    if reference is None:
        raise InputError(
            f"scores need a row of '{suite.reference}' in suite '{suite.name}': wisp-gym leaderboard run {suite.reference}"
        )
    base = goodput(reference, suite).mean(axis=0)
    found = sorted((judged(row, goodput(row, suite) / base) for row in of_suite), key=lambda one: -one.score)
    places = iter(range(1, len(found) + 1))
    return [one if is_bound(one.row) else Ranked(**{**vars(one), "place": next(places)}) for one in found]


def is_bound(row: BoardRow) -> bool:
    """Whether a row's controller is told fates."""
    return any(half.partition(":")[0].partition("(")[0] in BOUNDS for half in outside(row.controller, "+"))


def goodput(row: BoardRow, suite: Suite) -> Scores:
    """(worlds, cells) goodput in tokens/s."""
    return np.array([row.figures[cell][GOODPUT] for cell in suite.scenarios], np.float64).T


def judged(row: BoardRow, scores: Scores) -> Ranked:
    """A row by its (worlds, cells) scores, without a place yet."""
    low, high = interval(resampled_iqm(scores))
    cells = {metric: {cell: mean(each[metric]) for cell, each in row.figures.items()} for metric in of_row(row)}
    met = [value for value in cells[ATTAINMENT].values() if value is not None]
    return Ranked(
        place=None, row=row, score=iqm(scores), low=low, high=high, attainment=mean(met), least_attainment=min(met, default=None),
        starved=mean(list(cells[STARVED].values())), joules=mean(list(cells[ENERGY].values())), goodput=cells[GOODPUT],
    )  # fmt: skip


def of_row(row: BoardRow) -> list[str]:
    """The measures of a row."""
    return list(next(iter(row.figures.values())))
