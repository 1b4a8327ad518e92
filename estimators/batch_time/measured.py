"""Fit and score four forms of batch time on measured and reconstructed servers.

    python -m estimators.batch_time measured --data FOLDER --plots FOLDER

FOLDER holds the files that `measured_tables.TABLES` names. Each series (one server, model and data type) is fitted by
WISP's four terms, the engine's soft roofline, the convex regression and levels by size, and scored on what was held out, over repeated
splits with seeds 0, 1, 2, ... Two ways of holding out: whole configurations, and harder, every configuration with the
same number of new tokens, so that the fit has met no batch of that size. Rows are never split on their own.

`--write` stores scores and coefficients in `estimators/data`. The errors of the coefficients are delete-group
jackknife standard errors over the splits by new tokens (Shao and Wu 1989, Annals of Statistics 17(3), with the groups
fitted over those held out as its factor): a form's misfit is alike in batches of one size, so single configurations
would make the errors too small.
"""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from estimators.batch_time.by_size import SizeRegressor
from estimators.batch_time.fit import split
from estimators.batch_time.measured_levels import levels, show_levels
from estimators.batch_time.measured_tables import TABLES, Series, read
from estimators.batch_time.regression import ConvexRegressor, WispRegressor, scores
from estimators.batch_time.roofline import SoftRooflineRegressor
from wisp_gym.cli import Parser, output_file, table, whole
from wisp_gym.errors import InputError, one_of
from wisp_gym.files import check_writable, write_bytes, write_csv, write_json

FORMS = {
    "four-terms": WispRegressor,
    "soft-roofline": SoftRooflineRegressor,
    "convex": ConvexRegressor,
    "by-size": SizeRegressor,
}
HOLD_OUTS = ("configuration", "new-tokens")
SCORES = ("r2", "mae_ms", "mape_percent")
INTERVAL = (2.5, 97.5)  # percentiles over the splits
LEAST_CONFIGURATIONS = 30  # to fit and to score; a shorter series tells its level alone
DATA = Path(__file__).parent / "data"
COEFFICIENTS_FILE, SCORES_FILE, LEVELS_FILE = (
    DATA / f"measured-{name}.csv" for name in ("coefficients", "scores", "levels")
)


@dataclass(frozen=True)
class Study:
    """One form on one series, over repeated splits.

    Attributes:
        scores: by name, shape (splits,).
        coefficients: of each split's fit, by name, shape (splits,); empty where the form has none to ship.
        predicted_s: mean of each row's held-out predictions, seconds, shape (rows,); NaN where never held out.
        groups: number of groups fitted and held out in each split.
    """

    scores: dict[str, NDArray[np.float64]]
    coefficients: dict[str, NDArray[np.float64]]
    predicted_s: NDArray[np.float64]
    groups: tuple[int, int]


def coefficients(model: Any, columns: Sequence[str]) -> dict[str, float]:
    """Return a fitted form's coefficients by name, seconds per unit of the column (sharpness: a pure number).

    The convex form and levels by size have none: knots and sizes differ from split to split.
    """
    if isinstance(model, (ConvexRegressor, SizeRegressor)):
        return {}
    if isinstance(model, SoftRooflineRegressor):
        drafting = model.linear_s_[1:]
        return model.coefficients() | dict(zip(columns[3:], map(float, drafting), strict=True))
    terms = ("new_token_s", "pair_s", "cached_token_s", *columns[3:])
    return {"launch_s": model.intercept_} | dict(zip(terms, map(float, model.coef_), strict=True))


def study(series: Series, form: str, hold_out: str, splits: int) -> Study:
    """Fit `form` to a part of the series and score it on the rest, `splits` times.

    The share held out is WISP's, 50 of 173 groups; a group is a configuration, or with "new-tokens" all of one size.
    """
    X, seconds = series.profile.X, series.profile.seconds
    sizes = np.unique(X[:, 0], return_inverse=True)[1]
    groups = series.profile.configuration if hold_out == "configuration" else sizes
    results, fitted = [], []
    total, times = np.zeros(len(seconds)), np.zeros(len(seconds))
    for seed in range(splits):
        kept, left = split(replace(series.profile, configuration=groups), seed)
        model = FORMS[form]().fit(X[kept], seconds[kept])
        predicted = model.predict(X[left])
        results.append(scores(seconds[left], predicted))
        fitted.append(coefficients(model, series.columns))
        total[left] += predicted
        times[left] += 1
    held = len(np.unique(groups[left]))
    mean = np.divide(total, times, out=np.full(len(total), np.nan), where=times > 0)
    return Study(columnwise(results), columnwise(fitted), mean, (len(np.unique(groups)) - held, held))


def columnwise(rows: Sequence[Mapping[str, float]]) -> dict[str, NDArray[np.float64]]:
    """Return the values of equal rows by name, shape (rows,) each."""
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def standard_errors(result: Study) -> dict[str, float]:
    """Return the delete-group jackknife's standard errors: √(fitted/held · variance over the splits)."""
    fitted, held = result.groups
    return {name: float(np.sqrt(fitted / held) * values.std()) for name, values in result.coefficients.items()}


def score_row(series: Series, form: str, hold_out: str, result: Study) -> dict[str, Any]:
    """Return mean and interval of each score over the splits, as a row."""
    row: dict[str, Any] = {**series.key, "form": form, "hold_out": hold_out}
    row |= {"groups_fitted": result.groups[0], "groups_held_out": result.groups[1]}
    for name in SCORES:
        low, high = np.percentile(result.scores[name], INTERVAL)
        row |= {name: digits(result.scores[name].mean()), f"{name}_low": digits(low), f"{name}_high": digits(high)}
    return row


def digits(value: float) -> float:
    """Return `value` with five significant digits, which is more than any of these figures carries."""
    return float(f"{value:.5g}")


def coefficient_rows(series: Series, form: str, result: Study) -> list[dict[str, Any]]:
    """Return the coefficients of the fit to the whole series, with their standard errors, as rows."""
    model = FORMS[form]().fit(series.profile.X, series.profile.seconds)
    key, errors = {**series.key, "form": form}, standard_errors(result)
    return [
        {**key, "coefficient": name, "value": digits(value), "standard_error": digits(errors[name])}
        for name, value in coefficients(model, series.columns).items()
    ]


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print the scores, a line a series and way of holding out, the forms side by side."""
    by_line: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in rows:
        name = f"{row['table']}: {row['gpu']} {row['model']} TP{row['tp']} {row['dtype']}"
        by_line.setdefault((name, row["hold_out"]), {})[row["form"]] = row
    for score, form in (("r2", ".3f"), ("mae_ms", ".2f"), ("mape_percent", ".2f")):
        print(f"\n{score}: mean over the splits (2.5 to 97.5 % of them)\n")
        lines = [
            [f"{name}, by {hold_out}"]
            + [f"{r[score]:{form}} ({r[f'{score}_low']:{form}}-{r[f'{score}_high']:{form}})" for r in forms.values()]
            for (name, hold_out), forms in by_line.items()
        ]
        print(table(["held out", *FORMS], lines))


def provenance(splits: int) -> str:
    """Return the comment above the shipped files: what they are, from where, under which licence."""
    written = f"Written by python -m estimators.batch_time measured --write --splits {splits}. Seconds per unit."
    lines = [f"{name}: {t.kind}; {t.source}; licence: {t.licence}" for name, t in TABLES.items()]
    return "\n".join([written, *lines])


def picture(path: Path, name: str, every: Sequence[Series], studies: Mapping[tuple, Study]) -> None:
    """Write the picture of one table: predictions of held-out configurations, all its series together."""
    from estimators.batch_time.measured_plot import draw  # here, as fits and tests do without matplotlib

    predicted = {
        form: np.concatenate([studies[series.name, form, "configuration"].predicted_s for series in every])
        for form in FORMS
    }
    labels = np.concatenate([series.labels for series in every])
    new_tokens = np.concatenate([series.profile.X[:, 0] for series in every])
    seconds = np.concatenate([series.profile.seconds for series in every])
    title = f"{name}: batch times of held-out configurations, {len(labels)} in {len(every)} series"
    write_bytes(path, draw(title, TABLES[name].kind, labels, new_tokens, seconds, predicted))


def parse(arguments: Sequence[str] | None) -> Namespace:
    """Return the flags, checked."""
    about = "Fit and score batch time on measured and reconstructed servers."
    parser = Parser(prog="python -m estimators.batch_time measured", description=about)
    help_ = "folder with the tables (docs/model/estimators.md)"
    parser.add_argument("--data", type=Path, metavar="FOLDER", required=True, help=help_)
    parser.add_argument("--table", default="all", help=f"all (default) or one of: {', '.join(TABLES)}")
    parser.add_argument(
        "--splits", type=whole(2, 10_000), default=20, help="repeated splits, seeds 0, 1, ... (default 20)"
    )
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="write measured-<table>.png there")
    parser.add_argument("--json", type=output_file(), metavar="FILE", help="write scores, coefficients and levels")
    parser.add_argument("--write", action="store_true", help="store scores, coefficients and levels in estimators/data")
    given = parser.parse_args(arguments)
    one_of("table", given.table, [*TABLES, "all"])
    if given.write and given.table != "all":
        raise InputError(f"--write with --table {given.table}: the shipped files hold all tables; leave --table out")
    if not given.data.is_dir():
        raise InputError(f"--data {given.data}: no such folder")
    if given.plots:
        check_writable(given.plots / "measured.png")
    return given


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit, score, write where asked, and print."""
    given = parse(arguments)
    names = list(TABLES) if given.table == "all" else [given.table]
    every = [series for name in names for series in read(given.data, name)]
    fitted = [s for s in every if s.profile.configuration.max() + 1 >= LEAST_CONFIGURATIONS]
    found: dict[str, list[dict[str, Any]]] = {"scores": [], "coefficients": [], "levels": levels(every)}
    studies: dict[str, dict[tuple, Study]] = {name: {} for name in names}
    for series in tqdm(fitted, desc="fits", unit="series", leave=False, disable=None):
        for hold_out in HOLD_OUTS:
            for form in FORMS:
                result = study(series, form, hold_out, given.splits)
                studies[series.table][series.name, form, hold_out] = result
                found["scores"].append(score_row(series, form, hold_out, result))
                if hold_out == "new-tokens":
                    found["coefficients"] += coefficient_rows(series, form, result)
    for name in names if given.plots else []:
        of_table = [series for series in fitted if series.table == name]
        picture(given.plots / f"measured-{name}.png", name, of_table, studies[name])
    if given.json:
        write_json(given.json, found)
    if given.write:
        for path, key in ((SCORES_FILE, "scores"), (COEFFICIENTS_FILE, "coefficients"), (LEVELS_FILE, "levels")):
            write_csv(path, found[key], provenance(given.splits))
    show(found["scores"])
    show_levels(found["levels"])
