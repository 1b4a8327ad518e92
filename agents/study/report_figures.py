"""The figures of a study's report, as SVG text to stand inside a page."""

import io
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from agents.study.frontier import asks_who_drafts, frontier_figure
from agents.study.page import Picture
from agents.study.report_tables import IN_A_CLOSED_LOOP
from agents.study.results import AS_THEY_ARE, LADDER, WISP_TUNED, Results, bounds_of
from agents.study.rows import GOODPUT, Row
from agents.study.tables import capacity_title
from wisp_gym.evaluation.statistics import bootstrap_interval, mean, performance_profile, profile_interval

PALETTE = [*(f"C{i}" for i in range(10)), "navy", "darkgoldenrod", "black"]
COLOURS = dict(zip(dict.fromkeys([*LADDER, *AS_THEY_ARE]), PALETTE, strict=False))


def figures(results: Results) -> list[Picture]:
    """Every figure that the study has data for."""
    drawn = [
        *against_devices(results),
        *who_drafts(results),
        (
            "Goodput of each rung over that of tuned WISP, with 95 % intervals of the paired difference; a choice among "
            "several was made in training worlds. Bounds, where drawn, are black.", relative_ladder(results),
        ),
        *profile_figures(results),
        *capacity_figures(results),
        (
            "Left: drafting time beyond the first rejected token. Right: batch time less the time of the request alone. "
            "Means over cells and test worlds with 95 % intervals.",
            bars(results, ("wasted_drafting_share", "wasted drafting, %", 100.0), ("interference_s", "interference, ms", 1e3)),
        ),
        (
            "Left: energy of devices and server. Right: price of the server. For 1,000 tokens delivered, means over "
            "cells and test worlds with 95 % intervals.",
            bars(results, ("joules_per_1k_tokens", "J / 1,000 tokens", 1.0), ("dollars_per_1k_tokens", "$ / 1,000 tokens", 1.0)),
        ),
    ]  # fmt: skip
    return [Picture(caption, svg(figure)) for caption, figure in drawn]


def who_drafts(results: Results) -> list[tuple[str, Figure]]:
    """Where drafting at the edge pays, of studies that ask."""
    caption = "Best of each way to draft over the best whose devices draft, 95 % intervals of the paired difference."
    return [(caption, frontier_figure(results))] if asks_who_drafts(results) else []


def against_devices(results: Results) -> list[tuple[str, Figure]]:
    """Goodput and attainment against the number of devices, a figure for each scenario with several populations."""
    loads = defaultdict(list)
    for name in results.cells:
        row = results.reference(name)[0]
        if row["group"] == "load":
            loads[row["scenario"]].append(name)
    caption = (
        "goodput and SLO attainment against the number of devices; bars are 95 % intervals over paired worlds. "
        "Open marks: held-out cells."
    )
    return [(f"{scenario}: {caption}", load_figure(results, names)) for scenario, names in loads.items() if names[1:]]


def load_figure(results: Results, names: Sequence[str]) -> Figure:
    """Two panels, a line a rung."""
    figure = Figure(figsize=(11.0, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    ordered = sorted(names, key=lambda name: results.ladders[name][WISP_TUNED]["devices"])
    for rung in LADDER:
        there = [name for name in ordered if rung in results.ladders[name]]
        rows = [results.ladders[name][rung] for name in there]
        if rows:
            spans = [(row["goodput_low"], row["goodput_high"]) for row in rows]
            line(left, rung, rows, columns(rows, GOODPUT), spans)
            met = [[row["slo_attainment"] for row in results.rungs[name][rung]] for name in there]
            spans = [bootstrap_interval([100.0 * share for share in worlds if share is not None]) for worlds in met]
            line(right, rung, rows, columns(rows, "slo_attainment", 100.0), spans)
    left.set(ylabel="tokens/s on time", ylim=(0, None))
    right.set(ylabel="requests within their SLO, %", ylim=(-2, 102))
    for axes in (left, right):
        axes.set(xlabel="devices")
        axes.grid(alpha=0.3)
    bottom_legend(figure, [left])
    return figure


def columns(rows: Sequence[Row], key: str, factor: float = 1.0) -> list[float]:
    """One measure of several rows, as numbers."""
    return [float("nan") if row[key] is None else factor * float(row[key]) for row in rows]


def line(axes: Any, title: str, rows: Sequence[Row], values: Sequence[float], spans: Sequence[tuple[Any, Any]]) -> None:
    """A rung's line with intervals; marks of held-out cells are open."""
    colour = COLOURS[title]
    axes.plot([row["devices"] for row in rows], values, color=colour, linewidth=1.2, label=title)
    for row, value, (low, high) in zip(rows, values, spans, strict=True):
        face = "white" if row["held_out"] else colour
        axes.scatter(row["devices"], value, s=22, facecolor=face, edgecolor=colour, zorder=3)
        if low is not None:
            axes.vlines(row["devices"], low, high, color=colour, linewidth=1.0)


def relative_ladder(results: Results) -> Figure:
    """A row of marks for each cell."""
    ladders = results.ladders
    figure = Figure(figsize=(11.0, 1.4 + 0.42 * len(ladders)), layout="constrained")
    axes = figure.subplots()
    for y, rungs in enumerate(ladders.values()):
        wisp = rungs[WISP_TUNED][GOODPUT] or float("nan")
        for i, (title, row) in enumerate(rungs.items()):
            height = y + 0.08 * (i - (len(rungs) - 1) / 2)
            axes.plot(row[GOODPUT] / wisp, height, "o", color=COLOURS[title], markersize=4.5)
            if row["difference_low"] is not None:
                span = [1.0 + row[f"difference_{end}"] / wisp for end in ("low", "high")]
                axes.plot(span, [height, height], color=COLOURS[title], linewidth=1.2)
        for value in bounds_of(rungs[WISP_TUNED]).values():
            axes.plot(value / wisp, y, "|", color="black", markersize=12)
    for title in dict.fromkeys(title for rungs in ladders.values() for title in rungs):
        axes.plot([], [], "o", color=COLOURS[title], label=title)
    axes.axvline(1.0, color="0.6", linewidth=0.8)
    axes.set_yticks(range(len(ladders)), list(ladders))
    axes.invert_yaxis()
    axes.set(xlabel="goodput / tuned WISP", xlim=(0, None))
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=4, fontsize="small", frameon=False)
    return figure


def profile_figures(results: Results) -> list[tuple[str, Figure]]:
    """Performance profiles over the training and the held-out cells, a panel for each that has any."""
    parts = {"training cells": results.rung_scores(False), "held-out cells": results.rung_scores(True)}
    shown = [(where, scores) for where, scores in parts.items() if scores]
    if not shown:
        return []
    figure = Figure(figsize=(11.0, 4.6), layout="constrained")
    for axes, (where, scores) in zip(figure.subplots(1, len(shown), sharey=True, squeeze=False)[0], shown, strict=True):
        highest = max(float(np.quantile(own, 0.995)) for own in scores.values())
        thresholds = np.linspace(0.0, 1.05 * highest, 120)
        for title, own in scores.items():
            above = 100.0 * performance_profile(own, thresholds)
            axes.step(thresholds, above, where="post", color=COLOURS[title], linewidth=1.4, label=title)
            low, high = (100.0 * end for end in profile_interval(own, thresholds))
            axes.fill_between(thresholds, low, high, step="post", color=COLOURS[title], alpha=0.15, linewidth=0)
        axes.axvline(1.0, color="0.6", linewidth=0.8)
        axes.set(title=where, xlabel="threshold τ: goodput / tuned WISP", xlim=(0, thresholds[-1]), ylim=(-2, 102))
        axes.grid(alpha=0.3)
    figure.axes[0].set(ylabel="worlds above τ, %")
    bottom_legend(figure, figure.axes)
    caption = (
        "Performance profiles: share of worlds, mean over cells, in which a rung's goodput is more than τ times that of "
        "tuned WISP; bands are pointwise 95 % intervals. Higher is better; where curves cross, neither is better throughout."
    )
    return [(caption, figure)]


def bottom_legend(figure: Figure, panels: Sequence[Any]) -> None:
    """One legend below for all panels, every label once."""
    found = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=4, fontsize="small", frameon=False)


def capacity_figures(results: Results) -> list[tuple[str, Figure]]:
    """Capacity at each SLO speed, and the share of starved devices there, as groups of bars."""
    rows = results.capacities
    if not rows:
        return []
    speeds, titles = (list(dict.fromkeys(row[key] for row in rows)) for key in ("slo_tokens_per_s", "rung"))
    figure = Figure(figsize=(11.0, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    for i, title in enumerate(titles):
        own = [row for row in rows if row["rung"] == title]
        x = [speeds.index(row["slo_tokens_per_s"]) + 0.8 * ((i + 0.5) / len(titles) - 0.5) for row in own]
        look = {"width": 0.75 / len(titles), "color": COLOURS[title], "label": title}
        left.bar(x, columns(own, "capacity_devices"), **look)
        right.bar(x, columns(own, "starved_share", 100.0), **look)
        for place, row in zip(x, own, strict=True):
            if row["capacity_low"] is not None:
                left.vlines(place, row["capacity_low"], row["capacity_high"], color="black", linewidth=1.2)
            if row["at_limit"]:
                left.text(place, row["capacity_devices"], "≥", ha="center", va="bottom")
    right.axhline(100.0 * rows[0]["starved_limit"], color="0.4", linewidth=0.8, linestyle="--")
    left.set(ylabel="capacity, devices")
    right.set(ylabel="devices under 1 token/s at capacity, %", ylim=(0, None))
    for axes in (left, right):
        axes.set_xticks(range(len(speeds)), [f"{speed:g}" for speed in speeds])
        axes.set(xlabel="SLO, tokens/s")
        axes.grid(axis="y", alpha=0.3)
    bottom_legend(figure, [left])
    caption = f"{capacity_title(results)}; black: 95 % intervals over seeds, dashed: the limit. {IN_A_CLOSED_LOOP}"
    return [(caption, figure)]


def bars(results: Results, *shown: tuple[str, str, float]) -> Figure:
    """Horizontal bars of two measures, a bar a rung: means over cells and worlds, with 95 % intervals over worlds."""
    rungs = [rung for rung in LADDER if any(rung in taken for taken in results.rungs.values())]
    figure = Figure(figsize=(11.0, 1.0 + 0.32 * len(rungs)), layout="constrained")
    for axes, (key, label, factor) in zip(figure.subplots(1, 2, sharey=True), shown, strict=True):
        for y, rung in enumerate(rungs):
            values = [factor * value for value in over_cells(results, rung, key)]
            if values:
                axes.barh(y, sum(values) / len(values), color=COLOURS[rung], alpha=0.8)
                low, high = bootstrap_interval(values)
                if low is not None:
                    axes.hlines(y, low, high, color="black", linewidth=1.2)
        axes.set_yticks(range(len(rungs)), rungs)
        axes.set(xlabel=label)
        axes.locator_params(axis="x", nbins=5)
        axes.grid(axis="x", alpha=0.3)
    axes.invert_yaxis()
    return figure


def over_cells(results: Results, rung: str, key: str) -> list[float]:
    """One measure of a rung in each world, averaged over the cells in which it stands and was counted."""
    taken = [rungs[rung] for rungs in results.rungs.values() if rung in rungs]
    worlds = [mean([row[key] for row in rows]) for rows in zip(*taken, strict=True)]
    return [value for value in worlds if value is not None]


def svg(figure: Figure) -> str:
    """The figure as an SVG element, the same bytes every time; text stays text."""
    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "wisp-gym"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    element = re.sub(r"^.*?(?=<svg)", "", text.getvalue(), flags=re.DOTALL)
    return re.sub(r'<g id="[^"]*"', "<g", element)  # names of groups would stand in the page once for each figure
