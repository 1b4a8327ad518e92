"""Fit the verification time estimators to a profile and score them on configurations that the fit has not seen.

    python -m estimators.batch_time fit --scenario wisp-a100-qwen3-32b
    python -m estimators.batch_time fit --profile estimators/batch_time/data/profile-cpu-llama-21m.csv

A profile comes from a real model (`python -m estimators.profiling batches`) or, with `--scenario`, from the scenario's own batch
time with its noise. As WISP does (arXiv 2601.11652), 123 of 173 configurations are fitted and 50 held out; a
configuration's repeats are never on both sides. `--write` stores the four coefficients for `wisp_gym` to read; with
`--by-size` the levels of `SizeRegressor` too.
"""

import platform
import re
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import sklearn
from numpy.typing import NDArray

import wisp_gym
from estimators.batch_time.by_size import SizeRegressor
from estimators.batch_time.regression import COLUMNS, ConvexRegressor, WispRegressor, scores, upper_quantile
from wisp_gym import scenario as scenarios
from wisp_gym.cli import MAX_SEED, Parser, output_file, table, whole
from wisp_gym.engine.verification import clean_batch_s
from wisp_gym.errors import InputError, one_of
from wisp_gym.files import csv_rows, write_json

PUBLISHED = {"r2": 0.992, "mae_ms": 3.38, "mape_percent": 4.93}  # WISP, Qwen3-32B on one A100-80GB, 50 held out
CONFIGURATIONS, HELD_OUT = 173, 50  # WISP's profile
REPEATS = 3  # measurements of each configuration in a simulated profile
COEFFICIENTS = Path(wisp_gym.__path__[0]) / "data" / "verification_time"

# What the scheduler meets, for simulated profiles (assumption: WISP's 173 configurations are not published).
REQUESTS, DRAFT_TOKENS, CONTEXT_TOKENS = (1, 64), (1, 13), (50, 1500)
COLD_SHARE, COLD_REQUESTS, COLD_TOKENS = 0.25, (1, 2), (32, 512)


@dataclass(frozen=True)
class Profile:
    """Measured or simulated batch times, one row a measurement.

    Attributes:
        X: sums of `COLUMNS` over the batch, shape (rows, 3).
        seconds: shape (rows,).
        configuration: which rows repeat the same configuration, shape (rows,), whole numbers.
        source: where the rows come from, one phrase.
    """

    X: NDArray[np.float64]
    seconds: NDArray[np.float64]
    configuration: NDArray[np.int64]
    source: str


def draw_batch(rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Return requests, new tokens, pairs and cached tokens of one batch as a scheduler would meet it.

    Longest draft and longest context are drawn per batch, so that tokens, context and requests can be told apart.
    """
    requests = int(rng.integers(*REQUESTS, endpoint=True))
    longest_draft = rng.integers(*DRAFT_TOKENS, endpoint=True)
    longest_context = np.exp(rng.uniform(np.log(2 * CONTEXT_TOKENS[0]), np.log(CONTEXT_TOKENS[1])))
    new = rng.integers(DRAFT_TOKENS[0], longest_draft, requests, endpoint=True)
    cached = rng.integers(CONTEXT_TOKENS[0], longest_context, requests, endpoint=True)
    if rng.random() < COLD_SHARE:  # prompts of which the cache holds nothing
        cold = min(requests, int(rng.integers(*COLD_REQUESTS, endpoint=True)))
        new[:cold], cached[:cold] = rng.integers(*COLD_TOKENS, cold, endpoint=True), 0
    return requests, int(new.sum()), int((new * (cached + new)).sum()), int(cached.sum())


def simulate(scenario: Any, seed: int, configurations: int = CONFIGURATIONS) -> Profile:
    """Return a profile of a `Scenario`'s server and target: its true batch time times log-normal noise."""
    rng = np.random.default_rng(seed)
    batches = [draw_batch(rng) for _ in range(configurations)]
    true_s = np.array([clean_batch_s(scenario, *batch) for batch in batches])
    X = np.array([sums for _, *sums in batches], dtype=np.float64)
    configuration = np.repeat(np.arange(configurations), REPEATS)
    noise = np.exp(scenario.server.noise * rng.standard_normal(len(configuration)))
    source = f"simulated: the calibrated batch time of {scenario.target.name} on {scenario.server.name} with noise"
    return Profile(X[configuration], true_s[configuration] * noise, configuration, source)


def read(path: str | Path) -> Profile:
    """Return the profile in a CSV with the columns new_tokens, pairs, cached_tokens and seconds; # starts a comment.

    Rows with equal sums are one configuration.

    Raises:
        InputError: the file, a column or a value is wrong; names file, line and what is allowed.
    """
    try:
        rows = csv_rows(path)
    except (OSError, InputError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise InputError(f"cannot read the profile {path}: {reason}") from None
    needed = (*COLUMNS, "seconds")
    missing = [name for name in needed if not rows or name not in rows[0][1]]
    if missing:
        raise InputError(f"{path}: no column {missing[0]!r} or no rows (needed: {', '.join(needed)})")
    values = np.array([[_number(row, name, f"{path}, line {line}") for name in needed] for line, row in rows])
    configuration = np.unique(values[:, :3], axis=0, return_inverse=True)[1]
    if configuration.max() + 1 < 20:
        raise InputError(f"{path}: {configuration.max() + 1} configurations; at least 20 are needed to fit and score")
    return Profile(values[:, :3], values[:, 3], configuration, f"measured: {Path(path).name}")


def _number(row: dict[str, str], name: str, place: str) -> float:
    """Return a finite number of at least zero (seconds: above zero)."""
    try:
        value = float(row[name])
    except (TypeError, ValueError):
        raise InputError(f"{place}: {name} is {row[name]!r}, a number is needed") from None
    if not np.isfinite(value) or value < 0 or (name == "seconds" and value == 0):
        least = "above" if name == "seconds" else "of at least"
        raise InputError(f"{place}: {name} is {value}, a finite number {least} 0 is needed")
    return value


def split(profile: Profile, seed: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return masks of the rows to fit and the rows held out, by configuration: 50 of 173, or that share."""
    names = np.unique(profile.configuration)
    held = np.random.default_rng(seed).permutation(names)[: round(len(names) * HELD_OUT / CONFIGURATIONS)]
    left = np.isin(profile.configuration, held)
    return ~left, left


def evaluate(profile: Profile, seed: int) -> dict[str, Any]:
    """Fit the regressions, score them on the held-out rows, and return coefficients, scores, levels by size and counts."""
    kept, left = split(profile, seed)
    X, seconds = profile.X[kept], profile.seconds[kept]
    wisp, convex, by_size = (form.fit(X, seconds) for form in (WispRegressor(), ConvexRegressor(), SizeRegressor()))
    held_X, held = profile.X[left], profile.seconds[left]
    factors = [upper_quantile(seconds / model.predict(X), 0.95) for model in (wisp, by_size)]
    found = {
        "wisp": score(held, wisp.predict(held_X), factors[0]),
        "convex": score(held, convex.predict(held_X), convex.margin_),
        "by_size": score(held, by_size.predict(held_X), factors[1]),
    }
    n_fit, n_held_out = (len(np.unique(profile.configuration[rows])) for rows in (kept, left))
    about = {"seed": seed, "n_fit": n_fit, "n_held_out": n_held_out, "source": profile.source, "versions": versions()}
    return {**wisp.coefficients(), "scores": found, **about, "by_size": by_size.coefficients()}


def score(measured: NDArray[np.float64], predicted: NDArray[np.float64], factor: float) -> dict[str, float]:
    """Return `scores`, the safety factor on the prediction, and how many batches in 100 it keeps below."""
    below = float(100 * (measured <= factor * predicted).mean())
    return {**scores(measured, predicted), "upper_factor_95": factor, "upper_held_percent": below}


def versions() -> dict[str, str]:
    """Return versions of what the fit depends on."""
    modules = {"numpy": np, "scipy": scipy, "scikit-learn": sklearn}
    return {"python": platform.python_version(), **{name: module.__version__ for name, module in modules.items()}}


def show(name: str, result: dict[str, Any]) -> None:
    """Print published against measured scores, and the coefficients."""
    labels, forms = ("R²", "MAE, ms", "MAPE, %", "95 % factor", "  held, %"), (".3f", ".2f", ".2f", ".3f", ".1f")
    columns = [PUBLISHED, *result["scores"].values()]
    rows = [
        [label, *(f"{column[key]:{form}}" if key in column else "-" for column in columns)]
        for label, key, form in zip(labels, columns[1], forms, strict=True)
    ]
    print(f"\n{name} ({result['source']}; {result['n_fit']} configurations fitted, {result['n_held_out']} held out)")
    print(table(["held out", "WISP published", "four terms", "convex", "by size"], rows))
    print(
        f"four terms: launch {1e3 * result['launch_s']:.2f} ms, new token {1e6 * result['new_token_s']:.2f} us, "
        f"pair {1e9 * result['pair_s']:.3f} ns, cached token {1e9 * result['cached_token_s']:.1f} ns"
    )


def slug(name: str) -> str:
    """Return `name` in lower-case letters, digits, dots and dashes, for file names."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


def profiles(given: Namespace) -> dict[str, tuple[str, Profile]]:
    """Return profiles, with the name of the coefficients' file, by the name to show."""
    if given.profile:
        return {given.profile: (slug(Path(given.profile).stem), read(given.profile))}
    known = scenarios.presets()
    if not given.scenario.endswith(".toml"):
        one_of("scenario", given.scenario, [*known, "all"])
    loaded = {name: scenarios.load(name) for name in (known if given.scenario == "all" else [given.scenario])}
    files = {name: f"{slug(s.server.name)}--{slug(s.target.name)}" for name, s in loaded.items()}
    return {name: (files[name], simulate(s, given.seed)) for name, s in loaded.items()}


def shipped(result: dict[str, Any], by_size: bool) -> dict[str, Any]:
    """Return what `wisp_gym` reads: the four terms, or those beside the levels by size, and what is known of them."""
    plain = {key: value for key, value in result.items() if key != "by_size"}
    return {**plain, **result["by_size"]} if by_size else plain


def parse(arguments: Sequence[str] | None) -> Namespace:
    """Return the flags."""
    parser = Parser(
        prog="python -m estimators.batch_time fit", description="Fit and score the verification time estimators."
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--profile", metavar="FILE", help="CSV of `python -m estimators.profiling batches`")
    source.add_argument("--scenario", metavar="NAME", help="preset, path of a TOML file, or all")
    help_ = "of the split, and of a simulated profile (default 0)"
    parser.add_argument("--seed", type=whole(0, MAX_SEED), default=0, help=help_)
    parser.add_argument("--write", action="store_true", help="store coefficients in wisp_gym/data/verification_time")
    parser.add_argument("--by-size", action="store_true", help="with --write: levels by size of batch too")
    parser.add_argument("--json", type=output_file(), metavar="FILE", help="write the results as a list of rows")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit, score, write where asked, and print."""
    given = parse(arguments)
    results = {name: (file, evaluate(profile, given.seed)) for name, (file, profile) in profiles(given).items()}
    for file, result in results.values():
        if given.write:
            write_json(COEFFICIENTS / f"{file}.json", shipped(result, given.by_size))
    if given.json:
        write_json(given.json, [{"name": name, **result} for name, (_, result) in results.items()])
    for name, (_, result) in results.items():
        show(name, result)
