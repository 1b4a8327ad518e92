"""A rejection predictor as one picture: ROC curves beside WISP's published points, and its reliability."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import norm
from sklearn.metrics import roc_curve

from estimators.rejection.operating_point import PUBLISHED_FALSE, PUBLISHED_RECALL, PUBLISHED_TREES, published
from estimators.rejection.scores import RESAMPLES, reliability
from estimators.rejection.tokens import Tokens, interval, resampled

COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7")  # told apart by the colour-blind (Okabe and Ito)
GRID = np.linspace(0.0, 1.0, 101)  # false acceptances at which the band is drawn


def draw(
    title: str, p: Mapping[str, NDArray[np.float64]], raw: NDArray[np.float64], tokens: Tokens, point: dict[str, Any]
) -> bytes:
    """Return a PNG.

    Args:
        title: of the picture.
        p: calibrated probabilities of each predictor, the exported one first, shape (n,) each.
        raw: those of the first one before calibration, shape (n,).
        tokens: the held-out tokens.
        point: false_acceptance and recall of the exported predictor, each as value, low and high end.
    """
    figure = Figure(figsize=(10.5, 5.2), layout="constrained")
    figure.suptitle(title)
    left, right = figure.subplots(1, 2)
    draw_roc(left, p, tokens, point)
    draw_reliability(right, {"calibrated": next(iter(p.values())), "before": raw}, tokens)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    return picture.getvalue()


def recall_at(p: NDArray[np.float64], tokens: Tokens, weight: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """Return the recall at each false acceptance of `GRID`, shape (101,)."""
    false, recall, _ = roc_curve(tokens.accepted, p, sample_weight=weight)
    return np.interp(GRID, false, recall)


def draw_roc(axes: Axes, p: Mapping[str, NDArray[np.float64]], tokens: Tokens, point: dict[str, Any]) -> None:
    """Curves of all predictors, the first one's 95 % band, its operating point with intervals, and WISP's points."""
    weights = resampled(tokens.prompt, RESAMPLES // 2)
    for colour, (name, values) in zip(COLOURS, p.items(), strict=False):
        axes.plot(GRID, recall_at(values, tokens), color=colour, label=name, linewidth=1.3)
    first = next(iter(p.values()))
    band = interval(lambda weight: recall_at(first, tokens, weight), weights)
    axes.fill_between(GRID, *band, color=COLOURS[0], alpha=0.2, linewidth=0)
    (x, *x_ends), (y, *y_ends) = point["false_acceptance"], point["recall"]
    axes.errorbar(x, y, xerr=spread(x, x_ends), yerr=spread(y, y_ends), fmt="o", color=COLOURS[0], capsize=3, zorder=3)
    axes.plot(PUBLISHED_FALSE, PUBLISHED_RECALL, "k*", markersize=12, label="WISP's MLP, published")
    axes.plot(*np.array(PUBLISHED_TREES).T, "k-", linewidth=4, label="WISP's trees, published range")
    d_prime = np.sqrt(2.0) * norm.ppf(published()["auc"])
    axes.plot(GRID, norm.cdf(norm.ppf(GRID) + d_prime), "k:", linewidth=1, label="normal curve through WISP's MLP")
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=0.8)
    axes.set(xlabel="rejected tokens passed (false acceptance)", ylabel="accepted tokens passed (recall)",
             title="ROC on held-out prompts", xlim=(0, 1), ylim=(0, 1), aspect="equal")  # fmt: skip
    axes.legend(fontsize="small", loc="lower right")
    axes.grid(alpha=0.3)


def spread(value: float, ends: list[float]) -> NDArray[np.float64]:
    """Return the lengths of an error bar below and above, shape (2, 1)."""
    return np.array([[value - ends[0]], [ends[1] - value]])


def draw_reliability(axes: Axes, p: Mapping[str, NDArray[np.float64]], tokens: Tokens) -> None:
    """Share of accepted tokens over the mean prediction of each bin, with 95 % intervals."""
    for colour, style, (name, values) in zip(COLOURS, ("o-", "s--"), p.items(), strict=False):
        rows = reliability(values, tokens)
        x, y = ([row[key] for row in rows] for key in ("predicted", "accepted"))
        ends = np.array([[row["accepted"] - row["low"], row["high"] - row["accepted"]] for row in rows]).T
        axes.errorbar(x, y, yerr=ends, fmt=style, color=colour, capsize=3, markersize=4, linewidth=1, label=name)
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=0.8)
    axes.set(xlabel="predicted probability of acceptance", ylabel="share accepted",
             title="reliability on held-out prompts, ten bins", xlim=(0, 1), ylim=(0, 1), aspect="equal")  # fmt: skip
    axes.legend(fontsize="small", loc="upper left")
    axes.grid(alpha=0.3)
