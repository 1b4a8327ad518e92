"""Where drafting at the edge pays: for each cell the best of each way to draft, beside the best whose devices draft."""

import math
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from agents.study.results import BEST_RULE, COLOCATED, MIXED, Own, Results, goodput
from agents.study.rows import GOODPUT
from wisp_gym.evaluation.statistics import bootstrap_interval

DOLLARS_PER_J = 0.3 / 3.6e6  # 0.30 $ a kWh: assumption
PRICES = (0.1, 0.3, 1.0, 3.0)  # of the server, over the scenario's

WAYS = {  # rung → who drafts, colour
    BEST_RULE: ("device", "tab:blue"),
    "centralized": ("nobody", "tab:orange"),
    COLOCATED: ("server", "tab:red"),
    MIXED: ("device or server", "tab:green"),
}


@dataclass(frozen=True)
class Margin:
    """The best of a way to draft against the best whose devices draft, in one cell.

    Attributes:
        way: who drafts. setting: its controller. tokens_per_s: goodput.
        share, low, high: goodput over that of devices that draft, less 1, with the 95 % interval of the paired difference.
    """

    way: str
    setting: str
    tokens_per_s: float
    share: float
    low: float
    high: float


def margins(results: Results, cell: str) -> list[Margin]:
    """One for each way that entered a cell, devices first."""
    rungs = results.rungs[cell]
    edge = rungs[BEST_RULE]
    return [margin(way, rungs[rung], edge) for rung, (way, _) in WAYS.items() if rung in rungs]


def margin(way: str, own: Own, edge: Own) -> Margin:
    """A way against devices that draft, in the same worlds."""
    ours, theirs = goodput(own), goodput(edge)
    level = max(float(theirs.mean()), 1e-9)
    low, high = bootstrap_interval(list((ours - theirs) / level))
    share = float((ours - theirs).mean()) / level
    return Margin(
        way,
        own[0]["setting"],
        float(ours.mean()),
        share,
        share if low is None else low,
        share if high is None else high,
    )


def winners(results: Results, cell: str) -> list[Margin]:
    """The way that delivers most in a cell, and those whose paired difference to it may be nothing (95 %)."""
    rungs, found = results.rungs[cell], margins(results, cell)
    own = {way: goodput(rungs[rung]) for rung, (way, _) in WAYS.items() if rung in rungs}
    best = max(found, key=lambda one: one.tokens_per_s)
    order = sorted(found, key=lambda one: -one.tokens_per_s)
    return [
        one for one in order if one is best or (bootstrap_interval(list(own[best.way] - own[one.way]))[0] or 0.0) <= 0.0
    ]


def dollars_per_1k(own: Own, price: float) -> float:
    """Cost of 1,000 tokens on time: the server at so many times its price, and electricity for it and the devices."""
    worlds = [row for row in own if row[GOODPUT] > 0.0]
    if not worlds:
        return math.inf
    return float(np.mean([
        (price * row["dollars_per_1k_tokens"] + DOLLARS_PER_J * row["joules_per_1k_tokens"]) * row["throughput_tokens_per_s"] / row[GOODPUT]
        for row in worlds
    ]))  # fmt: skip


def cheapest(results: Results, cell: str, price: float) -> str:
    """The way to draft whose tokens on time cost least in a cell."""
    rungs = results.rungs[cell]
    costs = {way: dollars_per_1k(rungs[rung], price) for rung, (way, _) in WAYS.items() if rung in rungs}
    return min(costs, key=costs.__getitem__)


def asks_who_drafts(results: Results) -> bool:
    """Whether servers that draft entered every cell."""
    return all(COLOCATED in rungs or MIXED in rungs for rungs in results.rungs.values())


def frontier_figure(results: Results) -> Figure:
    """A row a cell: each way's gain over devices that draft, the winner named beside it."""
    cells = list(results.rungs)
    figure = Figure(figsize=(11.0, 1.6 + 0.3 * len(cells)), layout="constrained")
    axes = figure.subplots()
    colours = dict(WAYS.values())
    for y, cell in enumerate(cells):
        first = winners(results, cell)
        axes.axhspan(y - 0.5, y + 0.5, color=colours[first[0].way], alpha=0.12, linewidth=0)
        for i, one in enumerate(margins(results, cell)[1:]):
            height = y + 0.2 * (i - 1)
            axes.plot(100.0 * one.share, height, "o", color=colours[one.way], markersize=4.5)
            axes.plot([100.0 * one.low, 100.0 * one.high], [height, height], color=colours[one.way], linewidth=1.3)
        words = " = ".join(one.way for one in first)
        axes.annotate(
            words, (1.01, y), xycoords=("axes fraction", "data"), va="center", fontsize="small", annotation_clip=False
        )
    axes.axvline(0.0, color=colours["device"], linewidth=1.4)
    for way, colour in WAYS.values():
        axes.plot([], [], "o", color=colour, label=way)
    axes.set_yticks(range(len(cells)), [f"{results.reference(c)[0]['group']}: {c}" for c in cells], fontsize="small")
    axes.set(ylim=(len(cells) - 0.5, -0.5), xlabel="goodput over the best whose devices draft, %")
    axes.set_xlim(left=min(-30.0, float(np.floor(axes.get_xlim()[0]))))
    axes.grid(axis="x", alpha=0.3)
    axes.set_title(
        "Who drafts: shaded and named at the right, the winner (= ties within 95 %)", fontsize="medium", loc="left"
    )
    figure.legend(loc="outside lower center", ncols=4, fontsize="small", frameon=False)
    return figure
