"""The figures of a study's report, as SVG text to stand inside a page."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from agents.report_tables import columns
from agents.study_results import LADDER, WISP_TUNED, Choice, Results, bounds_of, ladder
from agents.study_run import GOODPUT, Row
from agents.tables import bootstrap_interval, mean

COLOURS = {rung.title: f"C{i}" for i, rung in enumerate(LADDER)}
Ladders = dict[str, dict[str, Row]]  # cell → rung → row


def figures(results: Results) -> list[tuple[str, str]]:
    """Caption and SVG of every figure that the study has data for."""
    ladders = {name: ladder(results, name) for name in results.cells}
    drawn = [
        *against_devices(results, ladders),
        (
            "Goodput of each rung over that of tuned WISP, with 95 % intervals of the paired difference; a choice among "
            "several was made in training worlds. Bounds, where drawn, are black.", relative_ladder(ladders),
        ),
        (
            "Left: drafting time beyond the first rejected token. Right: batch time less the time of the request alone. "
            "Means over cells and test worlds with 95 % intervals.", bars(results, ("wasted_drafting_share", "wasted drafting, %", 100.0),
                                          ("interference_s", "interference, ms", 1e3)),
        ),
        (
            "Left: energy of devices and server. Right: price of the server. For 1,000 tokens delivered, means over "
            "cells and test worlds with 95 % intervals.", bars(results, ("joules_per_1k_tokens", "J / 1,000 tokens", 1.0),
                           ("dollars_per_1k_tokens", "$ / 1,000 tokens", 1.0)),
        ),
    ]  # fmt: skip
    return [(caption, svg(figure)) for caption, figure in drawn]


def against_devices(results: Results, ladders: Ladders) -> list[tuple[str, Figure]]:
    """Goodput and attainment against the number of devices, a figure for each scenario with several populations."""
    loads: dict[str, list[str]] = {}
    for name, rungs in ladders.items():
        row = rungs[WISP_TUNED]
        if row["group"] == "load":
            loads.setdefault(results.reference(name)[0]["scenario"], []).append(name)
    return [
        (
            f"{scenario}: goodput and SLO attainment against the number of devices; bars are 95 % intervals over paired "
            "worlds. Open marks: held-out cells.", load_figure(results, ladders, names),
        )
        for scenario, names in loads.items() if len(names) > 1
    ]  # fmt: skip


def load_figure(results: Results, ladders: Ladders, names: Sequence[str]) -> Figure:
    """Two panels, a line a rung."""
    figure = Figure(figsize=(11.0, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    ordered = sorted(names, key=lambda name: ladders[name][WISP_TUNED]["devices"])
    for rung in LADDER:
        there = [name for name in ordered if rung.title in ladders[name]]
        rows = [ladders[name][rung.title] for name in there]
        if rows:
            spans = [(row["goodput_low"], row["goodput_high"]) for row in rows]
            line(left, rung.title, rows, columns(rows, GOODPUT), spans)
            met = [[row["slo_attainment"] for row in results.chosen(name, rung) or []] for name in there]
            spans = [bootstrap_interval([100.0 * share for share in worlds if share is not None]) for worlds in met]
            line(right, rung.title, rows, [100.0 * share for share in columns(rows, "slo_attainment")], spans)
    left.set(xlabel="devices", ylabel="tokens/s on time", ylim=(0, None))
    right.set(xlabel="devices", ylabel="requests within their SLO, %", ylim=(-2, 102))
    for axes in (left, right):
        axes.grid(alpha=0.3)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize="small", frameon=False)
    return figure


def line(axes: Any, title: str, rows: Sequence[Row], values: Sequence[float], spans: Sequence[tuple[Any, Any]]) -> None:
    """A rung's line with intervals; marks of held-out cells are open."""
    colour = COLOURS[title]
    axes.plot([row["devices"] for row in rows], values, color=colour, linewidth=1.2, label=title)
    for row, value, (low, high) in zip(rows, values, spans, strict=True):
        face = "white" if row["held_out"] else colour
        axes.scatter(row["devices"], value, s=22, facecolor=face, edgecolor=colour, zorder=3)
        if low is not None:
            axes.vlines(row["devices"], low, high, color=colour, linewidth=1.0)


def relative_ladder(ladders: Ladders) -> Figure:
    """A row of marks for each cell."""
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


def bars(results: Results, *shown: tuple[str, str, float]) -> Figure:
    """Horizontal bars of two measures, a bar a rung: means over cells and worlds, with 95 % intervals over worlds."""
    rungs = [rung for rung in LADDER if any(results.chosen(name, rung) for name in results.cells)]
    figure = Figure(figsize=(11.0, 1.0 + 0.32 * len(rungs)), layout="constrained")
    for axes, (key, label, factor) in zip(figure.subplots(1, 2, sharey=True), shown, strict=True):
        for y, rung in enumerate(rungs):
            values = [factor * value for value in over_cells(results, rung, key)]
            if values:
                axes.barh(y, sum(values) / len(values), color=COLOURS[rung.title], alpha=0.8)
                low, high = bootstrap_interval(values)
                if low is not None:
                    axes.hlines(y, low, high, color="black", linewidth=1.2)
        axes.set_yticks(range(len(rungs)), [rung.title for rung in rungs])
        axes.set(xlabel=label)
        axes.grid(axis="x", alpha=0.3)
    axes.invert_yaxis()
    return figure


def over_cells(results: Results, rung: Choice, key: str) -> list[float]:
    """One measure of a rung in each world, averaged over the cells in which it stands and was counted."""
    taken = [own for own in (results.chosen(name, rung) for name in results.cells) if own is not None]
    worlds = [mean([row[key] for row in rows]) for rows in zip(*taken, strict=True)]
    return [value for value in worlds if value is not None]


def svg(figure: Figure) -> str:
    """The figure as an SVG element, the same bytes every time; text stays text."""
    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "wisp-gym"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    element = re.sub(r"^.*?(?=<svg)", "", text.getvalue(), flags=re.DOTALL)
    return re.sub(r'<g id="[^"]*"', "<g", element)  # names of groups would stand in the page once for each figure
