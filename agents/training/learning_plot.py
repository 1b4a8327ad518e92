"""The result of a training as one picture: how it learned, and how it compares on held-out worlds."""

import io
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

LEARNED, OTHERS, BOUND = "#d55e00", "#0072b2", "#999999"  # told apart by the colour-blind (Okabe and Ito)


def colour(row: dict[str, Any], learned: str) -> str:
    """Colour of a controller's bar."""
    if row["controller"] == learned:
        return LEARNED
    return BOUND if row["controller"].startswith(("perfect", "oracle")) else OTHERS


def draw_learning(axes: Axes, scores: Sequence[tuple[int, float]], levels: dict[str, float]) -> None:
    """Goodput on validation worlds against decisions, with the held-out level of some controllers."""
    thousands, goodput = [n / 1e3 for n, _ in scores], [level for _, level in scores]
    axes.plot(thousands, goodput, "o-", color=LEARNED, label="learned (validation worlds)")
    for style, (name, level) in zip(("--", ":", "-."), levels.items(), strict=False):
        axes.axhline(level, linestyle=style, color=OTHERS, label=f"{name} (held-out worlds)")
    axes.set(xlabel="decisions, thousands", ylabel="goodput, tokens/s", title="learning")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="small", loc="lower right")
    axes.grid(alpha=0.3)


def draw_comparison(axes: Axes, rows: Sequence[dict[str, Any]], learned: str) -> None:
    """Goodput of every controller with its 95 % interval."""
    for y, row in enumerate(rows):
        low, high = row["goodput_tokens_per_s_low"], row["goodput_tokens_per_s_high"]
        axes.barh(y, row["goodput_tokens_per_s"], color=colour(row, learned), height=0.65)
        if low is not None and high is not None:
            axes.plot([low, high], [y, y], color="black", linewidth=1.5)
    names = ["learned" if row["controller"] == learned else row["controller"] for row in rows]
    axes.set_yticks(range(len(rows)), names)
    axes.invert_yaxis()
    title = f"held-out worlds: {rows[0]['scenario']}, {rows[0]['devices']} devices"
    axes.set(xlabel="goodput, tokens/s (95 % interval)", title=title)
    axes.grid(axis="x", alpha=0.3)


def draw(scores: Sequence[tuple[int, float]], rows: Sequence[dict[str, Any]], learned: str) -> bytes:
    """Both panels as the bytes of a PNG."""
    figure = Figure(figsize=(12.0, 1.8 + 0.32 * len(rows)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[2, 3])
    by_name = {row["controller"]: row["goodput_tokens_per_s"] for row in rows}
    fixed = max((name for name in by_name if name.startswith("fixed:")), key=lambda name: by_name[name], default="")
    draw_learning(left, scores, {name: by_name[name] for name in ("wisp", fixed, "perfect+fcfs") if name in by_name})
    draw_comparison(right, rows, learned)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=130)
    return picture.getvalue()
