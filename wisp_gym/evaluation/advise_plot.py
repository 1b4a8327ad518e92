"""Advice as a picture: for each who may draft, goodput with its interval, SLO attainment and energy."""

import io
import re
import textwrap
from collections.abc import Sequence

from wisp_gym.errors import require
from wisp_gym.evaluation.outcomes import Row
from wisp_gym.scenario import Scenario

NAME_CHARACTERS = 44  # of a line of a controller's name


def draw(rows: Sequence[Row], scenario: Scenario, title: str) -> bytes:
    """The picture of `rows` (those of `wisp_gym.evaluation.advise`), the winner on top, as the bytes of a PNG."""
    require("matplotlib", "plot")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.0, 2.4 + 0.8 * len(rows)), layout="constrained")
    goodput, service, energy = figure.subplots(1, 3, sharey=True, width_ratios=[2, 1, 1])
    for y, row in enumerate(rows):
        value, low, high = (row[f"goodput_tokens_per_s{end}"] for end in ("", "_low", "_high"))
        colour = "C0" if y == 0 else "0.45"
        goodput.barh(y, value, height=0.55, color=colour, alpha=0.35)
        goodput.errorbar(value, y, xerr=[[value - low], [high - value]], fmt="o", color=colour, capsize=4)
        for axes, key, factor in ((service, "slo_attainment", 100.0), (energy, "joules_per_1k_tokens", 1.0)):
            if row[key] is not None:
                axes.barh(y, factor * row[key], height=0.55, color=colour, alpha=0.6)
    goodput.set(xlabel=f"goodput, tokens/s (95 % of {rows[0]['seeds']} worlds)")
    goodput.set_yticks(range(len(rows)), [label(row) for row in rows], fontsize="small")
    goodput.invert_yaxis()
    service.set(xlabel="requests within their SLO, %", xlim=(0, 108), xticks=(0, 50, 100))
    energy.set(xlabel="energy, J per 1,000 tokens")
    for axes in (goodput, service, energy):
        axes.grid(axis="x", alpha=0.3)
    about = f"{scenario.name}, {scenario.n_devices} devices"
    figure.suptitle(textwrap.fill(f"{about}: {title}", 130), fontsize="medium")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    return picture.getvalue()


def label(row: Row) -> str:
    """Who drafts, and the controller's name in lines that end where a rule does."""
    lines = [""]
    for piece in re.findall(r"[^+]+\+?", row["controller"]):
        lines = [*lines, piece] if len(lines[-1] + piece) > NAME_CHARACTERS else [*lines[:-1], lines[-1] + piece]
    return "\n".join([row["kind"].upper(), *lines])
