"""What a study's rows say: who is compared with whom, normalised scores, aggregates with intervals, the ladder.

Everything is computed from the rows of `agents.study` alone, so that a report can be made again from their file. A
choice among several (WISP's better scheduler, the best rule) is made by goodput in training worlds and shown in test
worlds, so that being chosen is no advantage.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from agents.study.rows import CAPACITY, GOODPUT, METRICS, PER_CELL, TRAINING, TUNED, Row
from agents.study.suite import WISP
from wisp_gym.evaluation import statistics
from wisp_gym.evaluation.statistics import Scores, bootstrap_interval, interval, iqm, mean

BEST_RULE, COLOCATED, MIXED = "best rule", "server drafts", "device or server"
WISP_TUNED = "WISP, tuned, better scheduler"
AS_THEY_ARE = {"SLED": "sled", "centralized": "centralized", "centralized:0": "centralized:0"}  # rungs of capacities
Variant = tuple[str, str]  # controller, tuning
Own = list[Row]  # the rows of one variant in one cell, one for each test world


def tuned_there(row: Row) -> bool:
    """Whether a row shows the best tuning that its cell allows."""
    return bool(row["tuning"] == (TUNED if row["held_out"] else PER_CELL))


LADDER: dict[str, Callable[[Row], bool]] = {  # rung → the rows that may stand on it
    "SLED": lambda row: row["controller"] == "sled",
    "centralized": lambda row: row["kind"] == "centralized",
    WISP_TUNED: lambda row: row["controller"] in WISP and tuned_there(row),
    "fixed length": lambda row: row["controller"].startswith("fixed+") and tuned_there(row),
    BEST_RULE: lambda row: row["kind"] == "rule" and tuned_there(row),
    COLOCATED: lambda row: row["kind"] == "colocated" and tuned_there(row),
    MIXED: lambda row: row["kind"] == "mixed" and tuned_there(row),
    "learned": lambda row: row["kind"] == "learned",
    "perfect predictor": lambda row: row["controller"].startswith("perfect+"),
    "oracle": lambda row: row["controller"].startswith("oracle+"),
}
RIVALS = (
    "centralized",
    WISP_TUNED,
    BEST_RULE,
    COLOCATED,
    MIXED,
    "learned",
)  # who can win a cell: bounds know what no device can


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

    @cached_property
    def rungs(self) -> dict[str, dict[str, Own]]:
        """Cell → rung → rows of the variant that was best in training of those it allows; rungs without any are left out."""

        def best(variants: dict[Variant, Own], allowed: Callable[[Row], bool]) -> Own:
            return max(
                (own for own in variants.values() if allowed(own[0])), key=lambda own: own[0][TRAINING], default=[]
            )

        found = {
            cell: {rung: best(own, allowed) for rung, allowed in LADDER.items()} for cell, own in self.cells.items()
        }
        return {cell: {rung: own for rung, own in taken.items() if own} for cell, taken in found.items()}

    @cached_property
    def ladders(self) -> dict[str, dict[str, Row]]:
        """Cell → rung → its row, from SLED to the oracle; see `cell_row`."""
        return {
            cell: {rung: self.cell_row(cell, own) for rung, own in taken.items()} for cell, taken in self.rungs.items()
        }

    def reference(self, cell: str) -> Own:
        """WISP in a cell: tuned, with the better of its two schedulers; a suite always holds both."""
        return self.rungs[cell][WISP_TUNED]

    def comparable(self, held_out: bool) -> list[str]:
        """Training or held-out cells in which WISP delivers anything on time: elsewhere a ratio to it means nothing."""
        names = dict.fromkeys(row["cell"] for row in self.worlds if row["held_out"] == held_out)
        return [cell for cell in names if goodput(self.reference(cell)).any()]

    def relative(self, cells: Sequence[str], rows: Sequence[Own]) -> Scores:
        """(worlds, cells) goodput over the mean of tuned WISP in the same cell."""
        wisp = [goodput(self.reference(cell)).mean() for cell in cells]
        return np.column_stack([goodput(own) / level for own, level in zip(rows, wisp, strict=True)])

    def variants(self, cells: Sequence[str]) -> dict[Variant, list[Own]]:
        """Variants that entered every one of some cells, the reference first, and their rows in each."""
        everywhere = [v for v in self.cells[cells[0]] if all(v in self.cells[cell] for cell in cells)]
        tuning = TUNED if self.reference(cells[0])[0]["held_out"] else PER_CELL
        first = {(WISP_TUNED, tuning): [self.reference(cell) for cell in cells]}
        return first | {v: [self.cells[cell][v] for cell in cells] for v in everywhere}

    def aggregates(self, held_out: bool) -> list[Row]:
        """One row for each variant over the training or the held-out cells, by falling interquartile mean."""
        cells = self.comparable(held_out)
        variants = self.variants(cells) if cells else {}
        scores = {variant: self.relative(cells, rows) for variant, rows in variants.items()}
        rows = [aggregate(v, own, next(iter(scores.values()))) | means(variants[v]) for v, own in scores.items()]
        return sorted(rows, key=lambda row: -row["iqm"])

    def rung_scores(self, held_out: bool) -> dict[str, Scores]:
        """Rung → (worlds, cells) goodput over that of tuned WISP, for rungs that stand in every comparable cell."""
        cells = self.comparable(held_out)
        taken = {rung: [self.rungs[cell][rung] for cell in cells if rung in self.rungs[cell]] for rung in LADDER}
        return {rung: self.relative(cells, own) for rung, own in taken.items() if cells and len(own) == len(cells)}

    def cell_row(self, cell: str, own: Own) -> Row:
        """Means of a variant in a cell, with intervals of its goodput and of its paired difference to tuned WISP."""
        ours, wisp = goodput(own), goodput(self.reference(cell))
        low, high = bootstrap_interval(list(ours))
        less, more = bootstrap_interval(list(ours - wisp))
        keys = ("controller", "tuning", "setting", "kind", "cell", "group", "held_out", "devices")
        return {key: own[0][key] for key in keys} | means([own]) | {
            "goodput_low": low, "goodput_high": high, "difference": float((ours - wisp).mean()),
            "difference_low": less, "difference_high": more,
        }  # fmt: skip

    def leaders(self, cell: str) -> list[str]:
        """The rival that delivers most in a cell, and those whose paired difference to it may be nothing (95 %).

        The best rule goes by its name; where it is WISP itself it is not named twice.
        """
        taken = reversed(self.rungs[cell].items())
        own = {rows[0]["setting"]: (rung, rows) for rung, rows in taken if rung in RIVALS}
        order = sorted(own.values(), key=lambda one: -goodput(one[1]).mean())
        best = goodput(order[0][1])
        return [
            f"{rung} ({rows[0]['controller']})" if rung in (BEST_RULE, COLOCATED, MIXED) else rung
            for rung, rows in order
            if rows is order[0][1] or (bootstrap_interval(list(best - goodput(rows)))[0] or 0.0) <= 0.0
        ]


def goodput(own: Own) -> Scores:
    """(worlds,) goodput of a variant in a cell, tokens/s."""
    return np.array([row[GOODPUT] for row in own], dtype=np.float64)


def aggregate(variant: Variant, scores: Scores, wisp: Scores) -> Row:
    """Interquartile mean, its paired difference to tuned WISP and the probability of improvement, with intervals."""
    drawn = statistics.resampled_iqm(scores)
    low, high = interval(drawn)
    less, more = interval(drawn - statistics.resampled_iqm(wisp))
    worst, best = interval(statistics.resampled_improvement(scores, wisp))
    return {
        "controller": variant[0], "tuning": variant[1],
        "iqm": iqm(scores), "iqm_low": low, "iqm_high": high,
        "difference": iqm(scores) - iqm(wisp), "difference_low": less, "difference_high": more,
        "improvement": statistics.probability_of_improvement(scores, wisp), "improvement_low": worst, "improvement_high": best,
    }  # fmt: skip


def means(rows: Sequence[Own]) -> Row:
    """Means over cells and worlds of every measure, and of the bounds where there are any."""
    flat = [row for own in rows for row in own]
    keys = [*METRICS, *(key for key in flat[0] if key.startswith("bound_"))]
    return {key: mean([row[key] for row in flat]) for key in keys}


def bounds_of(rung: Row) -> dict[str, float]:
    """Upper bounds that stand in a row, by name."""
    return {key[6:-13]: value for key, value in rung.items() if key.startswith("bound_") and value is not None}
