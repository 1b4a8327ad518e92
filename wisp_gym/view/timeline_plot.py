"""Timelines as a picture: a panel for each controller, devices as rows below the server, one time axis.

Colours are those of Okabe and Ito (Color Universal Design, 2008); they differ in lightness too, flights are thinner, and
wasted drafting is hatched.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from wisp_gym.scenario import Scenario
from wisp_gym.view.spans import BATCH, DOWNLINK, DRAFTING, KINDS, QUEUEING, SERVER, THINKING, UPLINK, VERIFYING, WASTED

MOST_ROWS = 12  # devices that a panel shows
WIDTH_IN, ROW_IN, SERVER_ROWS = 13.0, 0.27, 1.8
LABEL_S = 0.008  # of each second shown: a batch this long has room for one digit
# The later is drawn over the earlier. Colour, and thickness as a share of the row.
LOOKS = {
    THINKING: ("#DDDDDD", 0.1),
    QUEUEING: ("#F0E442", 0.84),
    DRAFTING: ("#0072B2", 0.84),
    WASTED: ("white", 0.84),
    DOWNLINK: ("#009E73", 0.4),
    UPLINK: ("#CC79A7", 0.4),
    VERIFYING: ("#D55E00", 0.84),
}
LEGEND = (DRAFTING, WASTED, UPLINK, QUEUEING, VERIFYING, DOWNLINK, THINKING)


class Shown(Protocol):
    """What a panel shows: see `wisp_gym.evaluation.timeline.Strip`."""

    @property
    def controller(self) -> str: ...
    @property
    def spans(self) -> np.ndarray: ...
    @property
    def predicted_s(self) -> np.ndarray: ...
    @property
    def metrics(self) -> dict[str, Any]: ...


def draw(strips: Sequence[Shown], scenario: Scenario, seed: int, start_s: float, end_s: float) -> bytes:
    """The panels as the bytes of a PNG file."""
    rows = min(scenario.n_devices, MOST_ROWS)
    panel_in = ROW_IN * (rows + SERVER_ROWS) + 0.35
    figure = Figure(figsize=(WIDTH_IN, panel_in * len(strips) + 1.2), layout="constrained")
    largest = max(strip.spans["tokens"][strip.spans["kind"] == BATCH].max(initial=1.0) for strip in strips)
    for axes, strip in zip(figure.subplots(len(strips), 1, sharex=True, squeeze=False)[:, 0], strips, strict=True):
        panel(axes, strip, rows, largest, (end_s - start_s) * LABEL_S)
        axes.set_title(title(strip, scenario), loc="left", fontsize=10)
    axes.set(xlim=(start_s, end_s), xlabel="time, s")
    some = f"the first {rows} of " if rows < scenario.n_devices else ""
    figure.suptitle(f"{scenario.name}, {some}{scenario.n_devices} devices, the same world (seed {seed})", fontsize=11)
    figure.legend(handles=legend(), loc="outside lower center", ncols=5, fontsize=9, frameon=False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=130)
    return picture.getvalue()


def title(strip: Shown, scenario: Scenario) -> str:
    """Controller and what it delivers in the whole world, in the window of measurement."""
    horizon, met = scenario.horizon, strip.metrics["slo_attainment"]
    until_s = horizon.warmup_s + horizon.measure_s
    words = f"{strip.controller}: goodput {strip.metrics['goodput_tokens_per_s']:,.1f} tokens/s"
    words += "" if met is None else f", {100.0 * met:.0f} % of requests within their SLO"
    return f"{words}  ({horizon.warmup_s:g} to {until_s:g} s)"


def panel(axes: Any, strip: Shown, rows: int, largest: float, label_s: float) -> None:
    """Devices as rows, the server above them; the height of a batch is its share of the largest one."""
    server_rows(axes, strip, largest, label_s)
    for kind, (colour, thickness) in LOOKS.items():
        for device in range(rows):
            own = strip.spans[(strip.spans["kind"] == kind) & (strip.spans["device"] == device)]
            bars = list(zip(own["start_s"], own["end_s"] - own["start_s"], strict=True))
            axes.broken_barh(bars, (device - thickness / 2, thickness), **look(kind, colour))
    axes.set_yticks([-0.5 - SERVER_ROWS / 2, *range(rows)], ["server", *(f"device {device}" for device in range(rows))])
    axes.set_ylim(rows - 0.5, -0.6 - SERVER_ROWS)
    axes.tick_params(axis="y", length=0, labelsize=8)
    axes.grid(axis="x", alpha=0.4)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def look(kind: int, colour: str) -> dict[str, Any]:
    """How the bars of a kind are painted."""
    if kind == WASTED:
        return {"facecolor": colour, "hatch": "//////", "edgecolor": LOOKS[DRAFTING][0], "linewidth": 0.0}
    return {"facecolor": colour, "edgecolor": "white", "linewidth": 0.4 if kind == VERIFYING else 0.0}


def server_rows(axes: Any, strip: Shown, largest: float, label_s: float) -> None:
    """Batches with their number of requests where there is room for it, and ticks where they were predicted to end."""
    low = -0.6
    for _, _, start_s, end_s, requests in strip.spans[strip.spans["device"] == SERVER].tolist():
        height = (SERVER_ROWS - 0.35) * requests / largest
        axes.broken_barh([(start_s, end_s - start_s)], (low - height, height), facecolor=LOOKS[VERIFYING][0],
                         edgecolor="white", linewidth=0.6)  # fmt: skip
        if end_s - start_s > label_s * len(f"{requests:.0f}"):
            axes.text((start_s + end_s) / 2, low - height, f"{requests:.0f}", ha="center", va="bottom", fontsize=7,
                      clip_on=True)  # fmt: skip
    axes.vlines(strip.predicted_s, low - SERVER_ROWS + 0.35, low, color="black", linewidth=0.7, linestyle=(0, (2, 2)))


def legend() -> list[Any]:
    """A sample of every kind."""
    found: list[Any] = [Patch(label=KINDS[kind], **look(kind, LOOKS[kind][0])) for kind in LEGEND]
    found.append(Patch(facecolor=LOOKS[VERIFYING][0], label="server: batch, height and number: requests"))
    found.append(Line2D([], [], color="black", linewidth=0.7, linestyle=(0, (2, 2)), label="predicted end of a batch"))
    return found
