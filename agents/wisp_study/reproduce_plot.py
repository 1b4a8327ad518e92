"""Published against measured capacities as a picture."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from agents.study.page import picture_bytes

COLOURS = {
    "wisp": "#0072b2", "centralized": "#d55e00", "sled": "#009e73", "centralized, no cap": "#e69f00", "sled, no cap": "#56b4e9",
    "wisp, first come first served": "#cc79a7",
}  # fmt: skip


def draw(rows: Sequence[dict[str, Any]]) -> bytes:
    """Bars by SLO speed: measured with its 95 % interval, published as a black mark; a PNG's bytes."""
    systems = list(dict.fromkeys(row["system"] for row in rows))
    speeds = sorted({row["slo_tokens_per_s"] for row in rows})
    figure = Figure(figsize=(11.0, 4.8), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(systems)
    for k, system in enumerate(systems):
        own = sorted((row for row in rows if row["system"] == system), key=lambda row: row["slo_tokens_per_s"])
        x = np.arange(len(speeds)) + (k - (len(systems) - 1) / 2) * width
        axes.bar(x, [row["measured"] for row in own], 0.92 * width, color=COLOURS.get(system, "0.5"), label=system)
        for place, row in zip(x, own, strict=True):
            axes.plot([place, place], [row["low"], row["high"]], color="0.3", linewidth=1.5)
            if row["published"]:
                axes.plot(place, row["published"], "D", color="black", markersize=5)
    axes.plot([], [], "D", color="black", label="published (WISP)")
    axes.set_xticks(range(len(speeds)), [f"{speed:g}" for speed in speeds])
    axes.set(xlabel="SLO, tokens/s", ylabel="capacity, devices (95 % interval)", title=f"capacity, {rows[0]['target']}")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize="small", ncols=2)
    return picture_bytes(figure)
