"""Goodput of controllers in paired worlds, each beside one that it is measured against."""

from collections.abc import Sequence

import numpy as np

from wisp_gym.cli import cell, interval_cell
from wisp_gym.evaluation.outcomes import Row
from wisp_gym.evaluation.statistics import bootstrap_interval

GOODPUT = "goodput_tokens_per_s"


def paired_row(name: str, goodput: Sequence[float], other: Sequence[float]) -> Row:
    """A row: goodput of each world, and how far it is from the other's in the same one, each with its 95 % interval."""
    low, high = bootstrap_interval(goodput)
    apart = [mine - theirs for mine, theirs in zip(goodput, other, strict=True)]
    apart_low, apart_high = bootstrap_interval(apart)
    return {"name": name, GOODPUT: float(np.mean(goodput)), "low": low, "high": high, "against": float(np.mean(apart)),
            "against_low": apart_low, "against_high": apart_high, "worlds": list(goodput)}  # fmt: skip


def paired_cells(row: Row) -> list[str]:
    """Its cells in a table: name, goodput, interval, difference, interval."""
    return [row["name"], cell(row[GOODPUT]), interval_cell(row["low"], row["high"]), cell(row["against"]),
            interval_cell(row["against_low"], row["against_high"])]  # fmt: skip
