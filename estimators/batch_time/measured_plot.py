"""Held-out predictions of batch time against the times of a table, with their errors, as one picture."""

import io
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from numpy.typing import NDArray

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")  # told apart by the colour-blind (Okabe and Ito)
LARGEST_ERROR_PERCENT = 40.0  # of the axis; the few larger errors are counted in the panel
TICKS, FINE_TICKS = (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)  # of a decade; fine: within one decade


def draw(
    title: str,
    kind: str,
    labels: NDArray[np.str_],
    new_tokens: NDArray[np.float64],
    seconds: NDArray[np.float64],
    predicted_s: Mapping[str, NDArray[np.float64]],
) -> bytes:
    """Return a PNG, a column a form: predicted over true times (ms) above, errors (%) over new tokens below.

    Args:
        title: of the picture.
        kind: what the true times are, "measured" or "reconstructed".
        labels: what a point is coloured by, shape (rows,).
        new_tokens, seconds: of each row, shape (rows,).
        predicted_s: held-out predictions by form, seconds, shape (rows,) each; NaN where never held out.
    """
    figure = Figure(figsize=(4.2 * len(predicted_s), 7.2), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(2, len(predicted_s), sharex="row", sharey="row", squeeze=False)
    for (upper, lower), (form, predicted) in zip(panels.T, predicted_s.items(), strict=True):
        error_percent = 100.0 * (predicted / seconds - 1.0)
        draw_times(upper, labels, 1e3 * seconds, 1e3 * predicted)
        draw_errors(lower, labels, new_tokens, error_percent)
        upper.set(title=f"{form}: MAPE {np.nanmean(np.abs(error_percent)):.1f} %", xlabel=f"{kind}, ms")
    panels[0, 0].set_ylabel("predicted, ms")
    panels[1, 0].set_ylabel(f"predicted − {kind}, % of {kind}")
    panels[0, 0].legend(fontsize="small", markerscale=2.5, loc="upper left")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    return picture.getvalue()


def scatter(axes: Axes, labels: NDArray[np.str_], x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
    """Draw points in their labels' colours, the rows mixed, so that no label hides the others."""
    names = sorted(set(labels.tolist()))
    colour = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    order = np.random.default_rng(0).permutation(len(labels))
    size = float(np.clip(3000.0 / len(labels), 2.0, 14.0))
    axes.scatter(x[order], y[order], s=size, c=[colour[name] for name in labels[order]], alpha=0.6, linewidths=0)
    for name in names:
        axes.scatter([], [], s=size, c=colour[name], label=name)
    axes.grid(alpha=0.3)


def draw_times(axes: Axes, labels: NDArray[np.str_], true_ms: NDArray[np.float64], got: NDArray[np.float64]) -> None:
    """Predicted against true milliseconds; on the line they are equal."""
    scatter(axes, labels, true_ms, got)
    ends = [true_ms.min(), true_ms.max()]
    axes.plot(ends, ends, color="black", linewidth=0.8)
    axes.set(xscale="log", yscale="log")
    ticks = TICKS if ends[1] > 10 * ends[0] else FINE_TICKS
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=ticks))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(NullLocator())


def draw_errors(axes: Axes, labels: NDArray[np.str_], tokens: NDArray[np.float64], error: NDArray[np.float64]) -> None:
    """Error in percent against the new tokens of the batch, up to `LARGEST_ERROR_PERCENT`."""
    scatter(axes, labels, tokens, error)
    axes.axhline(0.0, color="black", linewidth=0.8)
    axes.set(xscale="log", xlabel="new tokens of the batch", ylim=(-LARGEST_ERROR_PERCENT, LARGEST_ERROR_PERCENT))
    axes.xaxis.set_major_formatter("{x:g}")
    if beyond := int((np.abs(error) > LARGEST_ERROR_PERCENT).sum()):
        note, box = f"{beyond} beyond ±{LARGEST_ERROR_PERCENT:.0f} %", {"facecolor": "white", "edgecolor": "none"}
        axes.text(0.98, 0.98, note, transform=axes.transAxes, ha="right", va="top", bbox=box)
