"""Drafting on the server: its cost fitted to measured steps, and every draft of the catalogue on every server.

    python -m estimators.batch_time drafting                          # the catalogue's times, from the shipped fit
    python -m estimators.batch_time drafting --data FOLDER [--write]  # the fit, anew

An engine step of vLLM that drafts k tokens for each of B sequences takes

    launch + token·B·(k + 1) + cached_token·C + [overhead + k·(step + sequence·B)]

up to `LINEAR_TOKENS` new tokens, where the verification is still a straight line. Each draft has its own overhead and
step, each draft model its own sequence. A head's sequence is not identified: k·B = B·(k + 1) − B makes it the same column as
tokens and sequences of the verification, so it is taken as 0 and stands in token. What a sequence costs is one number, too: all
contexts are 200 to 250 tokens long, so that it holds arithmetic, cached tokens and the rest (`draft_times`).
"""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from estimators.batch_time.draft_times import (
    DRAFTS,
    MEASURED,
    READS,
    TARGETS,
    Parts,
    catalogue,
    draft_time,
    layer_on,
    parts,
    reading,
)
from estimators.batch_time.measured import DATA
from estimators.batch_time.measured_tables import TABLES, Series, read
from estimators.batch_time.regression import row_weights, scores, solve
from wisp_gym.cli import Parser, output_file, table
from wisp_gym.errors import InputError
from wisp_gym.files import csv_rows, write_csv, write_json
from wisp_gym.scenario import DraftTime

STEPS_FILE = DATA / "draft-steps.csv"
LINEAR_TOKENS = 128  # half of the H100's knee of 288; beyond it the verification bends
LIMITS_TOKENS = (64, 128, 256)  # what the fit is repeated with, to show how much hangs on the limit
NAMES = {"Qwen3-1.7B": "qwen3-1.7b", "Qwen3-4B": "qwen3-4b", "Qwen3-32B-speculator.eagle3": "eagle3-qwen3-32b"}
GPU, OTHER_GPU = "H100-94GB", "H100 (brev)"
TARGET = "qwen3-32b"


@dataclass(frozen=True)
class Fit:
    """One fit of measured steps.

    Attributes:
        values, errors: by (draft or target, coefficient), seconds; errors are delete-group jackknife standard errors,
            a group all steps with one number of new tokens.
        scores: as `regression.scores`, and the largest relative error in percent, of the fitted steps themselves.
        context_tokens: mean context of a sequence.
    """

    values: dict[tuple[str, str], float]
    errors: dict[tuple[str, str], float]
    scores: dict[str, float]
    context_tokens: float


def columns(series: Series) -> tuple[list[tuple[str, str]], NDArray[np.float64]]:
    """Return the names of the coefficients and their columns, shape (rows, coefficients)."""
    given = dict(zip(series.columns, series.profile.X.T, strict=True))
    names = [(TARGET, "launch_s"), (TARGET, "token_s"), (TARGET, "cached_token_s")]
    found = [np.ones(len(series.profile.X)), given["new_tokens"], given["cached_tokens"]]
    for label, draft in NAMES.items():
        k = given[f"k[{label}]"]
        names += [(draft, "overhead_s"), (draft, "step_s")]
        found += [(k > 0).astype(float), k]
        if f"k·requests[{label}]" in given:
            names.append((draft, "sequence_s"))
            found.append(given[f"k·requests[{label}]"])
    return names, np.column_stack(found)


def fit(series: Series, most_tokens: int = LINEAR_TOKENS) -> Fit:
    """Fit the steps of at most so many new tokens, in relative errors."""
    new_tokens, seconds = series.profile.X[:, 0], series.profile.seconds
    names, every = columns(series)
    inside = new_tokens <= most_tokens
    design, y, sizes = every[inside], seconds[inside], new_tokens[inside]
    weights = row_weights(y, None, relative=True)

    def solved(kept: NDArray[np.bool_]) -> NDArray[np.float64]:
        return solve(design[kept], y[kept], weights[kept], "nnls")

    value = solved(np.ones(len(y), dtype=bool))
    without = np.array([solved(sizes != size) for size in np.unique(sizes)])
    error = np.sqrt((len(without) - 1) * without.var(axis=0))
    predicted = design @ value
    found = scores(y, predicted) | {"steps": len(y), "largest_percent": float(100 * np.abs(predicted / y - 1).max())}
    cached, requests = series.profile.X[inside, 2], _requests(series)[inside]
    context = float(cached.sum() / requests.sum())
    return Fit(
        dict(zip(names, map(float, value), strict=True)),
        dict(zip(names, map(float, error), strict=True)),
        found,
        context,
    )


def _requests(series: Series) -> NDArray[np.float64]:
    """Return the sequences of each step, shape (rows,): new tokens over the k + 1 of each."""
    k = sum(column for name, column in zip(series.columns, series.profile.X.T, strict=True) if name.startswith("k["))
    return series.profile.X[:, 0] / (k + 1.0)


def digits(value: float) -> float:
    """Return a figure with five significant digits."""
    return float(f"{value:.5g}")


def rows(found: Fit) -> list[dict[str, Any]]:
    """Return a fit as rows of a table."""
    return [
        {
            "model": model,
            "coefficient": name,
            "value": digits(value),
            "standard_error": digits(found.errors[model, name]),
        }
        for (model, name), value in found.values.items()
    ] + [
        {"model": TARGET, "coefficient": "context_tokens", "value": digits(found.context_tokens), "standard_error": 0.0}
    ]


def shipped() -> dict[tuple[str, str], float]:
    """Return the shipped fit: value by (model, coefficient)."""
    return {(row["model"], row["coefficient"]): float(row["value"]) for _, row in csv_rows(STEPS_FILE)}


def parts_of(values: Mapping[tuple[str, str], float]) -> Parts:
    """Return what the derivation needs of a fit.

    What a sequence costs beyond arithmetic and memory is the mean over the measured draft models. The GPU's arithmetic is
    the other H100's; its memory is slower as its reading of weights is.
    """
    layer_s, s_per_byte = parts(launches(values))
    time, slower = catalogue("verification")["h100-80gb"][TARGET], s_per_byte / reading("h100-80gb", layer_s)
    left = []
    for draft in MEASURED:
        if (draft, "sequence_s") in values:
            shape, of_target = DRAFTS[draft], TARGETS[TARGET]
            token_s = time["token_s"] * shape.parameters / of_target.parameters
            cached_s = slower * time["cached_token_s"] * shape.kv_bytes / of_target.kv_bytes
            left.append(values[draft, "sequence_s"] - token_s - cached_s * values[TARGET, "context_tokens"])
    overhead_s = {draft: values[draft, "overhead_s"] for draft in MEASURED}
    return Parts(layer_s, s_per_byte, float(np.mean(left)), overhead_s)


def launches(values: Mapping[tuple[str, str], float]) -> dict[str, float]:
    """Return measured seconds of a step before any sequence: of the target and of each draft."""
    return {TARGET: values[TARGET, "launch_s"]} | {draft: values[draft, "step_s"] for draft in MEASURED}


# --- checks ----------------------------------------------------------------------------------------------------------


def checks(values: Mapping[tuple[str, str], float], found: Parts) -> list[list[str]]:
    """Return lines of measured against put-together launches, milliseconds."""
    lines = []
    for name, measured_s in launches(values).items():
        shape = (DRAFTS | TARGETS)[name]
        made_s = shape.layers * found.layer_s + shape.bytes * found.s_per_byte
        lines.append(
            [name, f"{1e3 * measured_s:.2f}", f"{1e3 * made_s:.2f}", f"{100 * (made_s / measured_s - 1):+.1f} %"]
        )
    return lines


def other_gpu(series: Series, found: Parts, values: Mapping[tuple[str, str], float]) -> str:
    """Return how the derivation meets the other H100, of which one sequence was measured: its slope in k."""
    given = dict(zip(series.columns, series.profile.X.T, strict=True))
    k, seconds, shape = given["k[Qwen3-1.7B]"], series.profile.seconds, DRAFTS["qwen3-1.7b"]
    slope_s, intercept_s = np.polyfit(k[k > 0], seconds[k > 0], 1)
    plain_s = float(seconds[given["drafting"] == 0].mean())
    of_target = TARGETS[TARGET]
    s_per_byte = (plain_s - of_target.layers * found.layer_s) / of_target.bytes
    step_s = shape.layers * found.layer_s + shape.bytes * s_per_byte
    made_s = step_s + values["qwen3-1.7b", "sequence_s"] + values[TARGET, "token_s"]
    return (
        f"{OTHER_GPU}, one sequence, qwen3-1.7b: {1e3 * slope_s:.2f} ms a draft measured, {1e3 * made_s:.2f} ms put together "
        f"from its target's {1e3 * plain_s:.2f} ms; overhead {1e3 * (intercept_s - plain_s):.2f} ms"
    )


def catalogue_rows(found: Parts) -> list[dict[str, Any]]:
    """Return the time of every draft on every server."""
    pairs = [(draft, server) for draft in (*DRAFTS, "ngram") for server in READS]
    return [{"draft": d, "server": s} | asdict(draft_time(d, s, found)) for d, s in pairs]


def show(found: Parts, values: Mapping[tuple[str, str], float]) -> None:
    """Print what a step consists of, and the catalogue's times."""
    print(f"\na layer {1e6 * found.layer_s:.1f} µs; {GPU} reads {1e-12 / found.s_per_byte:.2f} TB/s", end="")
    for server in READS:
        s_per_byte = reading(server, layer_on(server, found.layer_s))
        print(f", {server} {1e-12 / s_per_byte:.2f}", end="")
    print(f"; a sequence {1e6 * found.sequence_s:.1f} µs beside arithmetic and memory\n")
    print(table(["step before any sequence", "measured, ms", "put together, ms", "difference"], checks(values, found)))
    print("\nmicroseconds\n")
    times = catalogue_rows(found)
    names = list(DraftTime.__dataclass_fields__)
    lines = [[r["draft"], r["server"], *(f"{1e6 * r[name]:.4g}" for name in names)] for r in times]
    print(table(["draft", "server", *names], lines))


def show_fit(limit: int, found: Fit) -> None:
    """Print one fit of measured steps."""
    s = found.scores
    print(f"\nup to {limit} new tokens, {s['steps']} steps: MAPE {s['mape_percent']:.2f} %, largest "
          f"{s['largest_percent']:.1f} %, R² {s['r2']:.4f}; context {found.context_tokens:.0f} tokens\n")  # fmt: skip
    lines = [[model, name, f"{1e6 * value:.4g}", f"{1e6 * found.errors[model, name]:.2g}"]
             for (model, name), value in found.values.items()]  # fmt: skip
    print(table(["model", "coefficient", "µs", "standard error"], lines))


# --- the command -----------------------------------------------------------------------------------------------------


def parse(arguments: Sequence[str] | None) -> Namespace:
    """Return the flags, checked."""
    about = "What drafting on the server costs: fitted to measured steps, derived for every draft and server."
    parser = Parser(prog="python -m estimators.batch_time drafting", description=about)
    help_ = "folder with the vLLM table (docs/model/estimators.md): fit anew instead of taking the shipped fit"
    parser.add_argument("--data", type=Path, metavar="FOLDER", help=help_)
    parser.add_argument("--json", type=output_file(), metavar="FILE", help="write the times as a list of rows")
    parser.add_argument("--write", action="store_true", help="store the fit in estimators/batch_time/data")
    given = parser.parse_args(arguments)
    if given.write and not given.data:
        raise InputError("--write: nothing is fitted without --data FOLDER")
    return given


def provenance() -> str:
    """Return the comment above the shipped fit."""
    made = "Written by python -m estimators.batch_time drafting --write. Seconds per unit; context_tokens: tokens."
    source = TABLES["vllm"]
    return f"{made}\n{GPU}: {source.kind}; {source.source}; licence: {source.licence}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit where asked, print, write where asked."""
    given = parse(arguments)
    values = fitted_anew(given.data, given.write) if given.data else shipped()
    found = parts_of(values)
    if given.json:
        write_json(given.json, catalogue_rows(found))
    show(found, values)


def fitted_anew(folder: Path, write: bool) -> dict[tuple[str, str], float]:
    """Return the fit to the table in a folder, as `shipped` does; print it, and store it where asked."""
    series = {one.gpu: one for one in read(folder, "vllm")}
    if GPU not in series:
        raise InputError(f"{folder}: no steps of {GPU} in the vLLM table")
    fits = {limit: fit(series[GPU], limit) for limit in LIMITS_TOKENS}
    for limit, one in fits.items():
        show_fit(limit, one)
    chosen = fits[LINEAR_TOKENS]
    values = chosen.values | {(TARGET, "context_tokens"): chosen.context_tokens}
    if OTHER_GPU in series:
        print("\n" + other_gpu(series[OTHER_GPU], parts_of(values), values))
    if write:
        write_csv(STEPS_FILE, rows(chosen), provenance())
    return values
