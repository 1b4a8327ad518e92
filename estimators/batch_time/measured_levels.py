"""Levels of serving stacks: how many times slower one runs than another on the same batches.

A stack is a server, its software and the way its time was taken. The shape of the batch time is alike in all of them,
the level is not, so this is the error that a calibrated scenario carries over to a real server.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from estimators.batch_time.measured_tables import Series
from estimators.batch_time.roofline import SoftRooflineRegressor
from wisp_gym.cli import table

SIZES_TOKENS = ((1, 64), (65, 256), (257, 448), (449, 896))  # new tokens, up to and beyond the knee of an H100
SAME_MODEL = {"Llama-2-70b-hf": "Llama-2-70B"}  # Vidur's name and aiconfigurator's


def level(name: str, reference: Series, X: NDArray[np.float64], seconds: NDArray[np.float64]) -> dict[str, Any]:
    """Return how many times slower than a soft roofline fitted to `reference` batches ran, as a row.

    Args:
        name: of what ran.
        reference: series on which the roofline is fitted.
        X, seconds: batches in the reference's columns, shapes (rows, columns) and (rows,).
    """
    model = SoftRooflineRegressor().fit(reference.profile.X, reference.profile.seconds)
    ratio = seconds / model.predict(X)
    low, median, high = (float(f"{value:.4g}") for value in np.percentile(ratio, (5, 50, 95)))
    against = f"{reference.table}: {reference.name}"
    return {"measured": name, "against": against, "batches": len(ratio), "factor": median, "p5": low, "p95": high}


def levels(every: Iterable[Series]) -> list[dict[str, Any]]:
    """Return the level of each server of which two stacks tell the batch time, one against the other, as rows."""
    by_name = {(series.table, series.name): series for series in every}
    rows = []
    for (origin, name), series in by_name.items():
        other = by_name.get(("aiconfigurator", name.replace(series.model, SAME_MODEL.get(series.model, series.model))))
        if origin == "vidur" and other:
            rows.append(level(f"vidur: {name}", other, series.profile.X, series.profile.seconds))
    places = (("aiconfigurator", "H100"), ("vllm", "H100-94GB"), ("vllm", "H100 (brev)"))
    h100, slow, brev = (by_name.get((origin, f"{gpu} Qwen3-32B TP1 bfloat16")) for origin, gpu in places)
    if slow and brev:
        rows.append(level("vllm: H100 (brev), all steps", slow, brev.profile.X, brev.profile.seconds))
    if slow and h100:
        rows += verification_levels(slow, h100)
    if brev and h100:
        rows.append(plain_level(brev, h100))
    return rows


def plain_level(series: Series, reference: Series) -> dict[str, Any]:
    """Return the level of the steps that draft nothing."""
    plain = series.profile.X[:, 3] == 0
    seconds = series.profile.seconds[plain]
    return level(f"vllm: {series.gpu}, no draft", reference, series.profile.X[plain, :3], seconds)


def verification_levels(series: Series, reference: Series) -> list[dict[str, Any]]:
    """Return the level of steps without drafts, and of all steps less their fitted drafting time, by batch size."""
    rows, X = [plain_level(series, reference)], series.profile.X
    model = SoftRooflineRegressor().fit(X, series.profile.seconds)
    verify_s = series.profile.seconds - X[:, 3:] @ model.linear_s_[1:]
    for low, high in SIZES_TOKENS:
        inside = (X[:, 0] >= low) & (X[:, 0] <= high)
        name = f"vllm: {series.gpu}, {low}-{high} new tokens, drafting taken off"
        rows.append(level(name, reference, X[inside, :3], verify_s[inside]))
    return rows


def show_levels(rows: Sequence[dict[str, Any]]) -> None:
    """Print the levels of stacks against each other."""
    print("\nlevel: time over the soft roofline fitted to another stack, median (5 to 95 % of the batches)\n")
    lines = [
        [r["measured"], r["against"], str(r["batches"]), f"{r['factor']:.2f} ({r['p5']:.2f}-{r['p95']:.2f})"]
        for r in rows
    ]
    print(table(["what", "against", "batches", "factor"], lines))
