"""What a study's rows say: who is compared with whom, normalised scores, aggregates with intervals, the ladder.

Everything is computed from the rows of `agents.study` alone, so that a report can be made again from their file. A
choice among several (WISP's better scheduler, the best rule) is made by goodput in training worlds and shown in test
worlds, so that being chosen is no advantage.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from agents.study.rows import CAPACITY, GOODPUT, METRICS, PER_CELL, TRAINING, TUNED, Row
from agents.study.suite import WISP
from wisp_gym.evaluation.statistics import (
    Scores,
    bootstrap_interval,
    interval,
    iqm,
    mean,
    probability_of_improvement,
    resampled_improvement,
    resampled_iqm,
)

BEST_RULE = "best rule"
WISP_TUNED = "WISP, tuned, better scheduler"
AS_THEY_ARE = {"SLED": "sled", "centralized": "centralized", "centralized:0": "centralized:0"}  # rungs of capacities
Variant = tuple[str, str]  # controller, tuning
Own = list[Row]  # the rows of one variant in one cell, one for each test world


@dataclass(frozen=True)
class Choice:
    """A rung of the ladder: the best in training of what `allowed` lets in."""

    title: str
    allowed: Callable[[Row], bool]


def tuned_there(row: Row) -> bool:
    """Whether a row shows the best tuning that its cell allows."""
    return bool(row["tuning"] == (TUNED if row["held_out"] else PER_CELL))


LADDER = (
    Choice("SLED", lambda row: row["controller"] == "sled"),
    Choice("centralized", lambda row: row["kind"] == "centralized"),
    Choice(WISP_TUNED, lambda row: row["controller"] in WISP and tuned_there(row)),
    Choice("fixed length", lambda row: row["controller"].startswith("fixed+") and tuned_there(row)),
    Choice(BEST_RULE, lambda row: row["kind"] == "rule" and tuned_there(row)),
    Choice("learned", lambda row: row["kind"] == "learned"),
    Choice("perfect predictor", lambda row: row["controller"].startswith("perfect+")),
    Choice("oracle", lambda row: row["controller"].startswith("oracle+")),
)
REFERENCE = LADDER[2]
RIVALS = ("centralized", WISP_TUNED, BEST_RULE, "learned")  # who can win a cell: bounds know what no device can


@dataclass(frozen=True)
class Results:
    """The rows of a study."""

    rows: Sequence[Row]

    @cached_property
    def worlds(self) -> list[Row]:
        """The rows of test worlds."""
        return [row for row in self.rows if row.get("table") != CAPACITY]

    @cached_property
    def capacities(self) -> list[Row]:
        """The rows of capacities, one for each SLO speed and rung."""
        return [row for row in self.rows if row.get("table") == CAPACITY]

    @cached_property
    def cells(self) -> dict[str, dict[Variant, Own]]:
        """Cell → variant → its rows, in the order of the study."""
        found: dict[str, dict[Variant, Own]] = {}
        for row in self.worlds:
            found.setdefault(row["cell"], {}).setdefault((row["controller"], row["tuning"]), []).append(row)
        return found

    def cell_names(self, held_out: bool) -> list[str]:
        """The training cells or the held-out ones."""
        return list(dict.fromkeys(row["cell"] for row in self.worlds if row["held_out"] == held_out))

    def chosen(self, cell: str, choice: Choice) -> Own | None:
        """The rows of a rung in a cell: of the variants it allows, the one that was best in training; None without any."""
        allowed = [own for own in self.cells[cell].values() if choice.allowed(own[0])]
        return max(allowed, key=lambda own: own[0][TRAINING], default=None)

    def reference(self, cell: str) -> Own:
        """WISP in a cell: tuned, with the better of its two schedulers."""
        own = self.chosen(cell, REFERENCE)
        assert own is not None  # a suite always holds both
        return own

    def variants(self, cells: Sequence[str]) -> dict[Variant, list[Own]]:
        """Variants that entered every one of some cells, the reference first, and their rows in each."""
        everywhere = [v for v in self.cells[cells[0]] if all(v in self.cells[cell] for cell in cells)]
        tuning = TUNED if self.reference(cells[0])[0]["held_out"] else PER_CELL
        first = {(WISP_TUNED, tuning): [self.reference(cell) for cell in cells]}
        return first | {v: [self.cells[cell][v] for cell in cells] for v in everywhere}


def goodput(own: Own) -> NDArray[np.float64]:
    """(worlds,) goodput of a variant in a cell, tokens/s."""
    return np.array([row[GOODPUT] for row in own], dtype=np.float64)


def relative(results: Results, cells: Sequence[str], rows: Sequence[Own]) -> NDArray[np.float64]:
    """(worlds, cells) goodput over the mean of tuned WISP in the same cell."""
    wisp = [goodput(results.reference(cell)).mean() for cell in cells]
    return np.column_stack([goodput(own) / level for own, level in zip(rows, wisp, strict=True)])


def comparable(results: Results, held_out: bool) -> list[str]:
    """Cells in which WISP delivers anything on time: elsewhere a ratio to it means nothing."""
    return [cell for cell in results.cell_names(held_out) if goodput(results.reference(cell)).any()]


def aggregates(results: Results, held_out: bool) -> list[Row]:
    """One row for each variant over the training or the held-out cells, by falling interquartile mean."""
    cells = comparable(results, held_out)
    if not cells:
        return []
    variants = results.variants(cells)
    scores = {variant: relative(results, cells, rows) for variant, rows in variants.items()}
    wisp = next(iter(scores.values()))
    rows = [aggregate(variant, own, wisp) | means(variants[variant]) for variant, own in scores.items()]
    return sorted(rows, key=lambda row: -row["iqm"])


def rung_scores(results: Results, held_out: bool) -> dict[str, Scores]:
    """Rung → (worlds, cells) goodput over that of tuned WISP, for rungs that stand in every comparable cell."""
    cells = comparable(results, held_out)
    taken = {rung.title: [results.chosen(cell, rung) for cell in cells] for rung in LADDER}
    whole = {title: [own for own in rows if own is not None] for title, rows in taken.items()}
    return {title: relative(results, cells, own) for title, own in whole.items() if cells and len(own) == len(cells)}


def aggregate(variant: Variant, scores: NDArray[np.float64], wisp: NDArray[np.float64]) -> Row:
    """Interquartile mean, its paired difference to tuned WISP and the probability of improvement, with intervals."""
    drawn = resampled_iqm(scores)
    low, high = interval(drawn)
    less, more = interval(drawn - resampled_iqm(wisp))
    worst, best = interval(resampled_improvement(scores, wisp))
    return {
        "controller": variant[0], "tuning": variant[1],
        "iqm": iqm(scores), "iqm_low": low, "iqm_high": high,
        "difference": iqm(scores) - iqm(wisp), "difference_low": less, "difference_high": more,
        "improvement": probability_of_improvement(scores, wisp), "improvement_low": worst, "improvement_high": best,
    }  # fmt: skip


def means(rows: Sequence[Own]) -> Row:
    """Means over cells and worlds of every measure, and of the bounds where there are any."""
    flat = [row for own in rows for row in own]
    keys = [*METRICS, *(key for key in flat[0] if key.startswith("bound_"))]
    return {key: mean([row[key] for row in flat]) for key in keys}


def cell_row(results: Results, cell: str, own: Own) -> Row:
    """Means of a variant in a cell, with intervals of its goodput and of its paired difference to tuned WISP."""
    ours, wisp = goodput(own), goodput(results.reference(cell))
    low, high = bootstrap_interval(list(ours))
    less, more = bootstrap_interval(list(ours - wisp))
    keys = ("controller", "tuning", "setting", "kind", "cell", "group", "held_out", "devices")
    return {key: own[0][key] for key in keys} | means([own]) | {
        "goodput_low": low, "goodput_high": high, "difference": float((ours - wisp).mean()),
        "difference_low": less, "difference_high": more,
    }  # fmt: skip


def ladder(results: Results, cell: str) -> dict[str, Row]:
    """Rung → its row in a cell, from SLED to the oracle; rungs that nobody took are left out."""
    taken = {rung.title: results.chosen(cell, rung) for rung in LADDER}
    return {title: cell_row(results, cell, own) for title, own in taken.items() if own is not None}


def leaders(results: Results, cell: str) -> list[str]:
    """The rival that delivers most in a cell, and those whose paired difference to it may be nothing (95 %).

    The best rule goes by its name; where it is WISP itself it is not named twice.
    """
    taken = {rung.title: results.chosen(cell, rung) for rung in LADDER if rung.title in RIVALS}
    own = {own[0]["setting"]: (title, own) for title, own in reversed(taken.items()) if own is not None}
    order = sorted(own.values(), key=lambda one: -goodput(one[1]).mean())
    best = goodput(order[0][1])
    return [
        f"{title} ({rows[0]['controller']})" if title == BEST_RULE else title
        for title, rows in order
        if rows is order[0][1] or (bootstrap_interval(list(best - goodput(rows)))[0] or 0.0) <= 0.0
    ]


def bounds_of(rung: Row) -> dict[str, float]:
    """Upper bounds that stand in a row, by name."""
    return {key[6:-13]: value for key, value in rung.items() if key.startswith("bound_") and value is not None}
