"""The timeline as a picture: a panel for each world, devices as rows below the server, one time axis. It needs matplotlib.

Colours are those of Okabe and Ito (Color Universal Design, 2008), which people with any common colour vision tell apart;
they differ in lightness too, flights are thinner, and wasted drafting is hatched.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wisp_gym.errors import require
from wisp_gym.view import spans
from wisp_gym.view.spans import DRAFTING, KINDS, VERIFYING, WASTED, Stretch

WIDTH_IN, ROW_IN, SERVER_ROWS = 13.0, 0.27, 1.8
FRAME_IN, FRAME_DPI = (9.6, 4.2), 100  # of a frame of `render`
LABEL_S = 0.008  # of each second shown: a batch this long has room for one digit
PREDICTED: dict[str, Any] = {"color": "black", "linewidth": 0.7, "linestyle": (0, (2, 2))}
# The later is drawn over the earlier. Colour, and thickness as a share of the row.
LOOKS = {
    spans.THINKING: ("#DDDDDD", 0.1),
    spans.QUEUEING: ("#F0E442", 0.84),
    DRAFTING: ("#0072B2", 0.84),
    WASTED: ("white", 0.84),
    spans.DOWNLINK: ("#009E73", 0.4),
    spans.UPLINK: ("#CC79A7", 0.4),
    VERIFYING: ("#D55E00", 0.84),
}
LEGEND = (DRAFTING, WASTED, spans.UPLINK, spans.QUEUEING, VERIFYING, spans.DOWNLINK, spans.THINKING)


def png(panels: Mapping[str, Stretch], devices: Sequence[int], heading: str) -> bytes:
    """A PNG file of one stretch of several worlds.

    Args:
        panels: title → what happened. devices: to show, below the server.

    Raises:
        InputError: matplotlib is not installed.
    """
    height_in = (ROW_IN * (len(devices) + SERVER_ROWS) + 0.35) * len(panels) + 1.2
    figure = drawn(panels, devices, (WIDTH_IN, height_in))
    figure.suptitle(heading, fontsize=11)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=130)
    return file.getvalue()


def frame(shown: Stretch, devices: Sequence[int], tagged: int, hidden: int) -> np.ndarray:
    """(height, width, 3) uint8 RGB of one world, for `render`.

    Args:
        devices: to show, below the server. tagged: one of them that is marked. hidden: how many are not shown.

    Raises:
        InputError: matplotlib is not installed.
    """
    figure = drawn({"": shown}, devices, FRAME_IN, tagged)
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    if hidden > 0:
        figure.axes[0].set_xlabel(f"time, s (and {hidden} more devices)")
    figure.set_dpi(FRAME_DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def drawn(
    panels: Mapping[str, Stretch], devices: Sequence[int], size_in: tuple[float, float], tagged: int | None = None
) -> Any:
    """A matplotlib `Figure` of so many inches, with a panel for each world and a legend."""
    require("matplotlib", "plot")
    from matplotlib.figure import Figure

    figure = Figure(figsize=size_in, layout="constrained")
    largest = max(one.spans["tokens"][one.spans["kind"] == spans.BATCH].max(initial=1.0) for one in panels.values())
    axes_of = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (title, shown) in zip(axes_of, panels.items(), strict=True):
        panel(axes, shown, devices, largest, tagged)
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlim(shown.start_s, shown.end_s)
    axes_of[-1].set_xlabel("time, s")
    figure.legend(handles=legend(), loc="outside lower center", ncols=5, fontsize=9, frameon=False)
    return figure


def panel(axes: Any, shown: Stretch, devices: Sequence[int], largest: float, tagged: int | None) -> None:
    """Devices as rows, the server above them; the height of a batch is its share of the largest one."""
    server_rows(axes, shown, largest)
    rows = len(devices)
    row_of = {device: row for row, device in enumerate(devices)}
    for kind, (colour, thickness) in LOOKS.items():
        own = [span for span in shown.spans[shown.spans["kind"] == kind] if span["device"] in row_of]
        middle = np.array([row_of[span["device"]] for span in own])
        bars(axes, own, middle - thickness / 2, middle + thickness / 2, **look(kind, colour))
    names = ["server", *(f"device {device}" for device in devices)]
    axes.set_yticks([-0.5 - SERVER_ROWS / 2, *range(rows)], names)
    axes.set_ylim(rows - 0.5, -0.6 - SERVER_ROWS)
    axes.tick_params(axis="y", length=0, labelsize=8)
    if tagged in row_of:
        axes.get_yticklabels()[1 + row_of[tagged]].set_fontweight("bold")
    axes.grid(axis="x", alpha=0.4)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def bars(axes: Any, own: Sequence[Any], low: np.ndarray, high: np.ndarray, **looks: Any) -> None:
    """The rectangles of n spans, each from its low to its high (n,) ordinate, as one collection: many are slow to draw."""
    from matplotlib.collections import PolyCollection

    start_s, end_s = (np.array([span[name] for span in own]) for name in ("start_s", "end_s"))
    corners = np.stack([start_s, low, start_s, high, end_s, high, end_s, low], axis=-1).reshape(-1, 4, 2)
    axes.add_collection(PolyCollection(list(corners), **looks), autolim=False)


def look(kind: int, colour: str) -> dict[str, Any]:
    """How the bars of a kind are painted."""
    if kind == WASTED:
        return {"facecolor": colour, "hatch": "//////", "edgecolor": LOOKS[DRAFTING][0], "linewidth": 0.0}
    return {"facecolor": colour, "edgecolor": "white", "linewidth": 0.4 if kind == VERIFYING else 0.0}


def server_rows(axes: Any, shown: Stretch, largest: float) -> None:
    """Batches with their number of requests where there is room for it, and ticks where they were predicted to end."""
    low, label_s = -0.6, (shown.end_s - shown.start_s) * LABEL_S
    served = shown.spans[shown.spans["device"] == spans.SERVER]
    top = low - (SERVER_ROWS - 0.35) * served["tokens"] / largest
    bars(axes, served, np.full(len(served), low), top, facecolor=LOOKS[VERIFYING][0], edgecolor="white", linewidth=0.6)
    for (_, _, start_s, end_s, requests), above in zip(served.tolist(), top, strict=True):
        if end_s - start_s > label_s * len(f"{requests:.0f}"):
            middle_s = (start_s + end_s) / 2
            axes.text(middle_s, above, f"{requests:.0f}", ha="center", va="bottom", fontsize=7, clip_on=True)
    axes.vlines(shown.predicted_s, low - SERVER_ROWS + 0.35, low, **PREDICTED)


def legend() -> list[Any]:
    """A sample of every kind."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    found: list[Any] = [Patch(label=KINDS[kind], **look(kind, LOOKS[kind][0])) for kind in LEGEND]
    found.append(Patch(facecolor=LOOKS[VERIFYING][0], label="server: batch, height and number: requests"))
    found.append(Line2D([], [], label="predicted end of a batch", **PREDICTED))
    return found
