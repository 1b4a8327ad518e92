"""Fit step times of a running engine that drafts for itself, for `wisp-gym table --profile`.

    python -m estimators.batch_time steps steps.csv -o steps.json

A CSV of measured steps in decoding; # starts a comment line, other columns are ignored:

    batch    sessions in the step           k        tokens drafted for each of them, 0 for none
    context  mean tokens of a session       seconds  of the step: drafting, verification and what lies between

The form is `wisp_gym.serving.tables.steps`: the engine's soft roofline with pairs, and drafting. All ten coefficients are at least
0; relative errors are minimised. The error is that of configurations left out, over `SPLITS` splits as WISP divides its own.
"""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from estimators.batch_time.fit import Profile, split
from estimators.batch_time.regression import scores
from estimators.batch_time.roofline import SoftRooflineRegressor
from wisp_gym.cli import Parser, output_file, refuse_same_files, table
from wisp_gym.errors import InputError
from wisp_gym.files import csv_rows, write_json
from wisp_gym.serving.tables.steps import LIMITS, Measured, StepTime, sha256

COLUMNS = (*LIMITS, "seconds")
MOST_S = 3600.0  # of a step
CONFIGURATIONS = 20  # the fewest that are fitted and scored, as for a profile of batches
SPLITS = 20
LEAST_SHARPNESS = 0.25  # of a processor, whose time is concave in the new tokens


def read(path: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (n, 3) batch, k, context and (n,) seconds of a CSV.

    Raises:
        InputError: names file, line and what is allowed.
    """
    try:
        rows = csv_rows(path)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    missing = [name for name in COLUMNS if not rows or name not in rows[0][1]]
    if missing:
        raise InputError(f"{path}: no column '{missing[0]}', or no rows; needed: {', '.join(COLUMNS)}")
    values = np.array([[number(row[name], name, f"{path}, line {line}") for name in COLUMNS] for line, row in rows])
    return values[:, :3], values[:, 3]


def number(text: str | None, name: str, place: str) -> float:
    """Return a value of a row, checked."""
    low, high = LIMITS.get(name, (0, MOST_S))
    try:
        value = float(text or "")
    except ValueError:
        value = np.nan
    if (
        not low <= value <= high
        or (name in ("batch", "k") and value != int(value))
        or (name == "seconds" and not value)
    ):
        kind = (
            "a whole number" if name in ("batch", "k") else "a number above 0, up" if name == "seconds" else "a number"
        )
        allowed = f"{kind} to {high:g}" if name == "seconds" else f"{kind} from {low} to {high}"
        raise InputError(f"{place}: {name} given {text!r}, allowed is {allowed}")
    return value


def design(measured: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sums of each step, shape (n, 8): those of `SoftRooflineRegressor`, pairs again, and drafting."""
    batch, k, context = measured.T
    new = batch * (k + 1.0)
    pairs = new * (context + k + 1.0)
    return np.column_stack([new, pairs, batch * context, pairs, k > 0, k, k * batch, k * batch * context])


def profile_of(path: Path) -> tuple[NDArray[np.float64], Profile]:
    """Return measured batch, k, context, and the profile of their sums.

    Raises:
        InputError: too few configurations, or some that cannot tell lengths apart.
    """
    measured, seconds = read(path)
    configuration = np.unique(measured, axis=0, return_inverse=True)[1].ravel()
    if (count := int(configuration.max()) + 1) < CONFIGURATIONS:
        raise InputError(f"{path}: {count} configurations, allowed are at least {CONFIGURATIONS} to fit and score")
    low, high = measured.min(axis=0), measured.max(axis=0)
    if low[1] > 0 or high[1] == 0:
        raise InputError(f"{path}: k is {low[1]:g} to {high[1]:g}, allowed is from 0 to at least 1")
    if low[0] == high[0]:
        raise InputError(f"{path}: batch is always {low[0]:g}, allowed are at least two sizes")
    return measured, Profile(design(measured), seconds, configuration, f"measured: {path.name}")


def fitted(X: NDArray[np.float64], seconds: NDArray[np.float64]) -> SoftRooflineRegressor:
    """Return the regression of steps."""
    return SoftRooflineRegressor(least_sharpness=LEAST_SHARPNESS).fit(X, seconds)


def step_time(model: SoftRooflineRegressor) -> StepTime:
    """Return a fitted regression as the table's form."""
    cached, pair, overhead, step, sequence, draft_cached = map(float, model.linear_s_)
    return StepTime(
        float(model.launch_s_), float(model.weights_s_), float(model.token_s_), float(model.sharpness_),
        cached, pair, overhead, step, sequence, draft_cached,
    )  # fmt: skip


def held_out_percent(profile: Profile) -> float:
    """Return the mean relative error of configurations that a fit has not seen, in percent, over `SPLITS` splits."""
    errors = []
    for seed in range(SPLITS):
        kept, left = split(profile, seed)
        model = fitted(profile.X[kept], profile.seconds[kept])
        errors.append(scores(profile.seconds[left], model.predict(profile.X[left]))["mape_percent"])
    return float(np.mean(errors))


def study(path: Path) -> Measured:
    """Return the fit to a CSV of steps, with what was measured and its error."""
    measured, profile = profile_of(path)
    batch, k, context = ((float(column.min()), float(column.max())) for column in measured.T)
    time = step_time(fitted(profile.X, profile.seconds))
    count = int(profile.configuration.max()) + 1
    error = round(held_out_percent(profile), 2)
    return Measured(time, batch, k, context, count, error, path.name, sha256(path))


def parse(arguments: Sequence[str] | None) -> Namespace:
    """Return the flags."""
    parser = Parser(prog="python -m estimators.batch_time steps", description=__doc__)
    parser.add_argument("profile", type=Path, metavar="CSV", help="columns batch, k, context, seconds")
    parser.add_argument("-o", "--output", type=output_file(".json"), required=True, metavar="FILE", help="the fit")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit, write, and print."""
    given = parse(arguments)
    refuse_same_files({"CSV": given.profile}, {"-o": given.output})
    found = study(given.profile)
    write_json(given.output, found.document())
    print(table(["coefficient", "value"], [[name, f"{value:.4g}"] for name, value in asdict(found.time).items()]))
    error = f"{found.held_out_error_percent:g} % mean relative error of configurations left out"
    print(f"{found.source}: {found.configurations} configurations, {error}; wrote {given.output.name}")
