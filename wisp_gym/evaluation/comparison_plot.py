"""A comparison as a picture, a line a controller: goodput with its interval, throughput, and SLO attainment."""

import io
from collections.abc import Sequence
from typing import Any

from wisp_gym.errors import require


def draw(rows: Sequence[dict[str, Any]], suffix: str) -> bytes:
    """The picture of `rows` (those of `wisp_gym.evaluation.comparison`) as the bytes of a "png", "svg" or "pdf" file."""
    require("matplotlib", "plot")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.0, 1.6 + 0.4 * len(rows)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[2, 1])
    for y, row in enumerate(rows):
        value, low, high = (row[f"goodput_tokens_per_s{end}"] for end in ("", "_low", "_high"))
        left.plot(row["throughput_tokens_per_s"], y, "|", color="0.6", markersize=12, label="" if y else "throughput")
        left.plot(value, y, "o", color="C0", label="" if y else "goodput (95 %)")
        left.plot([value if low is None else low, value if high is None else high], [y, y], color="C0", linewidth=2)
        if row["slo_attainment"] is not None:
            right.plot(100.0 * row["slo_attainment"], y, "o", color="C1")
    left.set(xlabel="tokens/s", xlim=(0, None), title=f"{rows[0]['scenario']}, {rows[0]['devices']} devices")
    left.set_yticks(range(len(rows)), [row["controller"] for row in rows])
    left.invert_yaxis()
    left.legend(loc="best", fontsize="small")
    right.set(xlabel="requests within their SLO, %", xlim=(-2, 102))
    for axes in (left, right):
        axes.grid(axis="x", alpha=0.3)
    picture = io.BytesIO()
    figure.savefig(picture, format=suffix, dpi=150)
    return picture.getvalue()
