"""Fit the batch time to measured profiles, score it by configuration held out, compare it, and write presets.

    python -m estimators.batch_time profiles profile-qwen3-32b.csv --presets presets --plots pictures

Profiles come from `python -m estimators.profiling batches`. Four forms, each fitted 20 times to 123 of 173 configurations and
scored on the others, as WISP divides its own: WISP's four terms, the engine's soft roofline without and with its
attention term, and the convex regression. A preset holds the soft roofline with attention as the true time and the four
terms as the scheduler's estimator; memory, price and noise stay those of the preset that it starts from.
"""

import json
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from estimators.batch_time.fit import PUBLISHED, Profile, read, slug, split, versions
from estimators.batch_time.regression import ConvexRegressor, WispRegressor, scores
from estimators.batch_time.roofline import SoftRooflineRegressor
from estimators.profiling.shapes import SHAPES
from wisp_gym import scenario as scenarios
from wisp_gym.cli import Parser, output_file, table, whole
from wisp_gym.engine.verification import batch_time_s
from wisp_gym.errors import InputError, one_of
from wisp_gym.files import csv_rows, write_bytes, write_json, write_text

PROGRAM = "python -m estimators.batch_time profiles"
PAIRS = "soft roofline, attention"
FORMS = {"four terms": WispRegressor, "soft roofline": SoftRooflineRegressor, PAIRS: SoftRooflineRegressor,
         "convex": ConvexRegressor}  # fmt: skip
VERIFIED_TOKENS = 16  # a batch whose longest request has no more new tokens verifies alone: it prefills nothing
SIZES = ((1, 16), (17, 64), (65, 256), (257, 1024), (1025, 1 << 30))  # new tokens
BASES = {"H200": "h200-qwen3-32b", "H100": "h100-qwen3-32b", "A100": "wisp-a100-qwen3-32b"}
INTERVAL = (2.5, 97.5)


@dataclass(frozen=True)
class Measured:
    """One profile with what it was measured on.

    Attributes:
        profile: sums and seconds, one row a configuration.
        path: of the CSV.
        shape, device, dtype, commit: of the rows.
        kinds: "equal", "prompt" or "mixed", shape (rows,).
        verifies: rows without a prompt, shape (rows,).
        power_w: median power, W; NaN where none was read.
        best_share: share of the bound that one request and one token reach, the median; NaN without such a row.
    """

    profile: Profile
    path: Path
    shape: str
    device: str
    dtype: str
    commit: str
    kinds: NDArray[np.str_]
    verifies: NDArray[np.bool_]
    power_w: float
    best_share: float

    @property
    def name(self) -> str:
        """Name of its preset: h200-measured-qwen3-32b, or with the whole device's name where it is not one of those."""
        known = [key for key in BASES if key in self.device]
        return f"{(known[0] if known else slug(self.device)).lower()}-measured-{self.shape}"

    @property
    def base(self) -> str:
        """Preset that it starts from: of the same device, else the default one."""
        return next((preset for key, preset in BASES.items() if key in self.device), BASES["A100"])


def load(path: Path) -> Measured:
    """Return the profile in a CSV of `estimators.profiling.batches`.

    Raises:
        InputError: a column or a value is wrong.
    """
    profile, rows = read(path), [row for _, row in csv_rows(path)]
    needed = ("shape", "device", "dtype", "commit", "longest_new", "power_w", "share_of_bound")
    missing = [name for name in needed if name not in rows[0]]
    if missing:
        raise InputError(f"{path}: no column {missing[0]!r}; allowed: a CSV of python -m estimators.profiling batches")
    one_of("shape", rows[0]["shape"], SHAPES)
    watts = [float(row["power_w"]) for row in rows if row["power_w"]]
    shares = [float(row["share_of_bound"]) for row in rows if row["kind"] == "equal" and row["new_tokens"] == "1"]
    return Measured(
        profile=profile,
        path=path,
        **{name: rows[0][name] for name in needed[:4]},
        kinds=np.array([row["kind"] for row in rows]),
        verifies=np.array([int(row["longest_new"]) <= VERIFIED_TOKENS for row in rows]),
        power_w=float(np.median(watts)) if watts else float("nan"),
        best_share=float(np.median(shares)) if shares else float("nan"),
    )


def columns(form: str, X: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what a form is given: a profile's columns, and once more the pairs where they are a linear term of the roofline."""
    return np.column_stack([X, X[:, 1]]) if form == PAIRS else X


def held_out(profile: Profile, form: str, splits: int) -> tuple[dict[str, list[float]], NDArray[np.float64]]:
    """Return mean, low and high end of each score over the splits by name, and each row's mean held-out prediction, s."""
    found, predicted = [], np.full((splits, len(profile.seconds)), np.nan)
    for seed in range(splits):
        kept, left = split(profile, seed)
        X = columns(form, profile.X)
        predicted[seed, left] = FORMS[form]().fit(X[kept], profile.seconds[kept]).predict(X[left])
        found.append(scores(profile.seconds[left], predicted[seed, left]))
    each = {name: np.array([row[name] for row in found]) for name in found[0]}
    spans = {name: [float(v.mean()), *map(float, np.percentile(v, INTERVAL))] for name, v in each.items()}
    times = (~np.isnan(predicted)).sum(0)
    return spans, np.divide(np.nansum(predicted, 0), times, out=np.full(len(times), np.nan), where=times > 0)


def study(measured: Measured, splits: int) -> tuple[dict[str, Any], dict[str, NDArray[np.float64]]]:
    """Return scores of all forms on all batches and on those without a prompt, with the coefficients fitted to all;
    and each form's held-out predictions of all batches, seconds."""
    profile = measured.profile
    some = {"all": np.ones(len(profile.seconds), bool), "without prompts": measured.verifies}
    parts = {
        name: Profile(profile.X[rows], profile.seconds[rows], profile.configuration[rows], profile.source)
        for name, rows in some.items()
        if rows.sum() >= 20
    }
    tried = {name: {form: held_out(each, form, splits) for form in FORMS} for name, each in parts.items()}
    found = {
        "profile": measured.path.name, "device": measured.device, "shape": measured.shape, "dtype": measured.dtype,
        "commit": measured.commit, "batches": {name: len(each.seconds) for name, each in parts.items()},
        "scores": {name: {form: spans for form, (spans, _) in forms.items()} for name, forms in tried.items()},
        "four_terms": WispRegressor().fit(profile.X, profile.seconds).coefficients(), "roofline": roofline(profile),
        "power_w": None if np.isnan(measured.power_w) else measured.power_w,
        "share_of_bound_one_token": None if np.isnan(measured.best_share) else measured.best_share,
        "versions": versions(),
    }  # fmt: skip
    return found, {form: predicted for form, (_, predicted) in tried["all"].items()}


def roofline(profile: Profile, least_sharpness: float = 1.0) -> dict[str, float]:
    """Return the coefficients of the soft roofline with attention, under the names of `VerificationTime`."""
    model = SoftRooflineRegressor(least_sharpness=least_sharpness).fit(columns(PAIRS, profile.X), profile.seconds)
    return possible(model.coefficients() | {"pair_s": float(model.linear_s_[1])})


def possible(coefficients: dict[str, float]) -> dict[str, float]:
    """The nearest coefficients that a scenario takes: it wants some above zero."""
    least = {"weights_s": 1e-9, "token_s": 1e-12}
    return {name: max(value, least.get(name, 0.0)) for name, value in coefficients.items()}


def compare(measured: Measured, preset: str) -> list[dict[str, Any]]:
    """Return measured time over a preset's roofline (without host time), by new tokens of the batch."""
    X, v = measured.profile.X, scenarios.load(preset).verification
    terms = (v.launch_s, v.weights_s, v.token_s, v.sharpness, v.cached_token_s, v.pair_s)
    ratio = measured.profile.seconds / batch_time_s.py_func(0.0, *terms, *X.T)  # the same formula on arrays
    rows = []
    for low, high in SIZES:
        inside = (X[:, 0] >= low) & (X[:, 0] <= high)
        if inside.any():
            p5, p50, p95 = np.percentile(ratio[inside], (5, 50, 95))
            rows.append({"new_tokens": [low, high], "batches": int(inside.sum()), "p5": float(p5), "factor": float(p50),
                         "p95": float(p95)})  # fmt: skip
    return rows


def preset(measured: Measured, found: dict[str, Any]) -> str:
    """Return the preset as TOML."""
    base, shape = scenarios.load(measured.base), SHAPES[measured.shape]
    estimator = {**found["four_terms"], "launch_s": found["four_terms"]["launch_s"] + base.server.host_s}
    target = {"name": measured.shape, "parameters": shape.parameters, "layers": shape.layers, "heads": shape.heads,
              "kv_heads": shape.kv_heads, "head_dim": shape.head_dim, "dtype_bytes": 4 if measured.dtype == "float32" else 2}  # fmt: skip
    score = found["scores"]["all"]
    about = [
        f"Batch time measured on {measured.device}, commit {measured.commit or 'unknown'}, {measured.path.name}, "
        f"{len(measured.profile.seconds)} batches; written by {PROGRAM}.",
        f"Held out by configuration: roofline R2 {score[PAIRS]['r2'][0]:.4f}, MAPE {score[PAIRS]['mape_percent'][0]:.2f} %; "
        f"four terms R2 {score['four terms']['r2'][0]:.4f}, MAPE {score['four terms']['mape_percent'][0]:.2f} %.",
        f"The rest is that of {measured.base}; the estimator's launch holds its host time, {base.server.host_s:g} s.",
    ]
    description = f"{measured.shape} on {measured.device}: batch time measured, the rest as {measured.base}"
    lines = [*(f"# {line}" for line in about), f'use = "{measured.base}"', f'name = "{measured.name}"',
             f"description = {json.dumps(description)}"]  # fmt: skip
    tables: dict[str, dict[str, Any]] = {"target": target, "verification": found["roofline"], "estimator": estimator}
    if not np.isnan(measured.power_w):
        tables["server"] = {"busy_w": round(measured.power_w, 1)}  # the median over the profile
    if measured.shape != base.target.name:  # acceptance by this target: as by the base's (assumption)
        tables["draft.acceptance"] = asdict(base.draft.acceptance)
    for name, values in tables.items():
        lines += ["", f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
    return "\n".join(lines) + "\n"


def show(found: dict[str, Any]) -> None:
    """Print scores beside WISP's, the target, coefficients and the comparison."""
    r2, mape = PUBLISHED["r2"], PUBLISHED["mape_percent"]
    for name, forms in found["scores"].items():
        batches = f"{found['batches'][name]} batches ({name}), held out"
        print(f"\n{found['profile']}: {found['shape']} on {found['device']}, {batches}\n")
        lines = [["WISP, published (its server)", f"{r2:.3f}", f"{PUBLISHED['mae_ms']:.2f}", f"{mape:.2f}", ""]]
        for form, score in forms.items():
            reached = score["r2"][0] >= r2 and score["mape_percent"][0] <= mape
            spans = [f"{v:.{d}f} ({low:.{d}f}-{high:.{d}f})" for (v, low, high), d in
                     ((score["r2"], 4), (score["mae_ms"], 3), (score["mape_percent"], 2))]  # fmt: skip
            lines.append([form, *spans, "reached" if reached else "missed"])
        print(table(["form", "R²", "MAE, ms", "MAPE, %", f"R² >= {r2}, MAPE <= {mape}"], lines))
    print()
    for coefficients, form in ((found["roofline"], PAIRS), (found["four_terms"], "four terms")):
        print(", ".join(f"{name} {value:.4g}" for name, value in coefficients.items()) + f"  ({form})")
    if "against" in found:
        print(f"\nmeasured over the roofline of {found['against']['preset']}, without host time: median (5 to 95 %)\n")
        print(table(["new tokens", "batches", "factor"], [
            [f"{r['new_tokens'][0]}-{r['new_tokens'][1] if r['new_tokens'][1] < SIZES[-1][1] else ''}", str(r["batches"]),
             f"{r['factor']:.3f} ({r['p5']:.3f}-{r['p95']:.3f})"] for r in found["against"]["factors"]]))  # fmt: skip


def parse(arguments: Sequence[str] | None) -> Namespace:
    """Return the flags, checked."""
    parser = Parser(prog=PROGRAM, description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "profile", nargs="+", type=Path, metavar="CSV", help="of python -m estimators.profiling batches"
    )
    parser.add_argument(
        "--splits", type=whole(2, 10_000), default=20, help="repeated splits, seeds 0, 1, ... (default 20)"
    )
    help_ = "compare with the roofline of a preset; by default that of the same device and model, where there is one"
    parser.add_argument("--against", default="", metavar="PRESET", help=help_)
    parser.add_argument("--presets", type=Path, metavar="FOLDER", help="write DEVICE-measured-SHAPE.toml there")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="write DEVICE-measured-SHAPE.png there")
    parser.add_argument("--json", type=output_file(), metavar="FILE", help="write all figures")
    given = parser.parse_args(arguments)
    if given.against:
        one_of("preset", given.against, scenarios.presets())
    return given


def rival(measured: Measured) -> str:
    """Return the preset of the same device and model that was not measured; "" where there is none."""
    name = measured.name.replace("-measured-", "-")
    return next((p for p in scenarios.presets() if p in (name, f"wisp-{name}")), "")


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit, score, compare, write where asked, and print."""
    given = parse(arguments)
    results, made = [], []
    for measured in [load(path) for path in given.profile]:
        found, predicted = study(measured, given.splits)
        if against := given.against or rival(measured):
            found["against"] = {"preset": against, "factors": compare(measured, against)}
        results.append(found)
        if given.presets:
            given.presets.mkdir(parents=True, exist_ok=True)
            path = given.presets / f"{measured.name}.toml"
            write_text(path, preset(measured, found))
            made.append(f"\n{path}: {scenarios.load(path).description}")
        if given.plots:
            given.plots.mkdir(parents=True, exist_ok=True)
            write_bytes(given.plots / f"{measured.name}.png", picture(measured, predicted))
    if given.json:
        write_json(given.json, results)
    for found in results:
        show(found)
    print(*made, sep="\n")


def picture(measured: Measured, predicted: dict[str, NDArray[np.float64]]) -> bytes:
    """Return a PNG of held-out predictions against measured times."""
    from estimators.batch_time.measured_plot import draw  # here, as fits and tests do without matplotlib

    title = f"{measured.shape} on {measured.device}: {len(measured.kinds)} batches, each held out"
    profile = measured.profile
    return draw(title, "measured", measured.kinds, profile.X[:, 0], profile.seconds, predicted)
