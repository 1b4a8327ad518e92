"""Train WISP's rejection predictor on recorded traces, score it on held-out prompts, and export it.

    python -m estimators.rejection python-10m-1m.npz --out predictor.json --onnx predictor.onnx

Prompts are split 60 : 20 : 20. Classifiers are trained on every token up to the first rejected one of each position's
row; calibration, threshold and scores are of the tokens that a device meets (`estimators.rejection.tokens` says why). The
threshold passes WISP's published share of rejected tokens unless told otherwise. The MLP is what is exported.
"""

from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
from numpy.typing import NDArray
from tqdm import tqdm

from estimators.profiling.machine import processor
from estimators.rejection import report
from estimators.rejection.cost import exported_s, median_s
from estimators.rejection.models import MAX_SEED, MLP, Trained, classifiers, isotonic, layers, log_odds, train
from estimators.rejection.onnx_file import graph
from estimators.rejection.operating_point import PUBLISHED_FALSE
from estimators.rejection.scores import alone, reliability, scores, threshold_at, with_intervals
from estimators.rejection.tokens import Tokens, met, on_path, read, split
from wisp_gym.cli import Parser, output_file, whole
from wisp_gym.errors import InputError
from wisp_gym.files import write_bytes, write_json
from wisp_gym.rules.rejection_predictor import Predictor, make_predictor, save_predictor
from wisp_gym.traces.speculation import SpeculationTrace

PROGRAM = "python -m estimators.rejection"
FEWEST_PROMPTS = 10  # two of them are scored


def divide(trace: SpeculationTrace, seed: int) -> tuple[Tokens, Tokens, Tokens]:
    """Return tokens to train on, to calibrate and choose the threshold on, and to score on; no prompt is in two.

    Raises:
        InputError: too few prompts, or a part without accepted or without rejected tokens.
    """
    rows, seen = on_path(trace), met(trace)
    if (prompts := len(np.unique(rows.prompt))) < FEWEST_PROMPTS:
        raise InputError(f"{prompts} prompts: at least {FEWEST_PROMPTS} are needed to train, choose and score")
    fit, check, test = split(rows, seed)
    parts = rows.of(fit), seen.of(check), seen.of(test)
    if any(part.accepted.all() or not part.accepted.any() for part in parts):
        raise InputError("accepted and rejected tokens are needed in every part of the split: record more prompts")
    return parts


def measure(p: NDArray[np.float64], test: Tokens, threshold: float) -> dict[str, Any]:
    """Return the scores at the threshold, and the operating point at a probability of one half, with intervals."""
    found: dict[str, Any] = with_intervals(lambda weight: scores(p, test, threshold, weight), test)
    half = scores(p, test, 0.5, np.ones(len(test)))
    return found | {"threshold": threshold, "at_half": [half["false_acceptance"], half["recall"]]}


def calibrations(trained: Trained, check: Tokens, test: Tokens, threshold: float) -> list[dict[str, Any]]:
    """Return the scores of the MLP's probabilities as trained, by Platt's scaling and by isotonic regression."""
    raw = log_odds(trained.model, test.statistics)
    ways = {
        "none": 1.0 / (1.0 + np.exp(-raw)),
        "Platt (exported)": trained.probability(test.statistics),
        "isotonic": isotonic(trained.model, check).predict(raw),
    }
    return [{"calibration": name, **measure(p, test, threshold)} for name, p in ways.items()]


def export(trained: Trained, row: dict[str, Any], trace: SpeculationTrace, given: Namespace) -> Predictor:
    """Return the MLP with its threshold, its scores and how it was made."""
    names = [Path(path).name for path in given.trace]
    target = f"--recall {given.recall}" if given.recall else f"--false-acceptance {given.false_acceptance}"
    return make_predictor(
        layers(trained), row["threshold"], "relu",
        command=f"{PROGRAM} {' '.join(names)} {target} --seed {given.seed}",
        trained_on={"traces": names, "requests": len(trace), "temperature": trace.temperature,
                    "settings": trace.header.get("settings")},
        scores_on_held_out_prompts={name: [round(value, 4) for value in row[name]]
                                    for name in ("auc", "false_acceptance", "recall", "ece", "brier")},
        scores_mean="value, low and high end of the 95 % interval over prompts",
        versions={"numpy": np.__version__, "scikit-learn": sklearn.__version__},
    )  # fmt: skip


def study(trace: SpeculationTrace, given: Namespace) -> tuple[dict[str, Any], Predictor, Tokens, dict[str, Trained]]:
    """Train, score and export: everything that is printed, the predictor, the held-out tokens, all classifiers."""
    fit, check, test = divide(trace, given.seed)
    rows, trained = [], {}
    for name, model in tqdm(classifiers(given.seed).items(), desc="training", leave=False, disable=None):
        found = trained[name] = train(model, fit, check)
        at = threshold_at(found.probability(check.statistics), check, given.false_acceptance, given.recall)
        scored = measure(found.probability(test.statistics), test, at)
        one_s = median_s(partial(model.predict_proba, test.statistics[:1]))
        rows.append({"predictor": name, **scored, "sklearn_us": 1e6 * one_s})
    predictor = export(trained[MLP], rows[0], trace, given)
    times = exported_s(predictor, graph(predictor), test.statistics[:1])
    result = {
        "tokens": {"fit": len(fit), "check": len(check), "test": len(test)},
        "prompts": [len(np.unique(part.prompt)) for part in (fit, check, test)],
        "predictors": rows,
        "statistics_alone": alone(test),
        "calibrations": calibrations(trained[MLP], check, test, predictor.threshold),
        "reliability": reliability(trained[MLP].probability(test.statistics), test),
        "exported_us": {name: 1e6 * seconds for name, seconds in times.items()},
        "machine": processor(),
    }
    return result, predictor, test, trained


def picture(path: Path, title: str, result: dict[str, Any], test: Tokens, trained: dict[str, Trained]) -> None:
    """Write the ROC curves and the reliability as a PNG."""
    from estimators.rejection.plot import draw

    p = {name: found.probability(test.statistics) for name, found in trained.items()}
    raw = 1.0 / (1.0 + np.exp(-log_odds(trained[MLP].model, test.statistics)))
    write_bytes(path, draw(title, p, raw, test, result["predictors"][0]))


def parse(arguments: Sequence[str] | None) -> Namespace:
    """Return the flags, checked."""
    parser = Parser(prog=PROGRAM, description=(__doc__ or "").splitlines()[0])
    parser.add_argument("trace", nargs="+", metavar="TRACE", help="speculation traces (NPZ) of one draft and target")
    file, seed = output_file(), whole(0, MAX_SEED)
    help_ = "write the MLP for wisp_gym.rules.rejection_predictor"
    parser.add_argument("--out", type=file, metavar="FILE.json", help=help_)
    parser.add_argument("--onnx", type=file, metavar="FILE.onnx", help="write the MLP as an ONNX graph")
    point = parser.add_mutually_exclusive_group()
    point.add_argument("--false-acceptance", type=float, metavar="F",
                       help=f"share of rejected tokens that pass (default {PUBLISHED_FALSE}, WISP's)")  # fmt: skip
    point.add_argument("--recall", type=float, metavar="R", help="share of accepted tokens that pass, instead")
    parser.add_argument("--seed", type=seed, default=0, help="of the split and of the training (default 0)")
    parser.add_argument("--plot", type=file, metavar="FILE.png", help="write ROC curves and reliability")
    parser.add_argument("--json", type=file, metavar="FILE", help="write all figures")
    given = parser.parse_args(arguments)
    if given.false_acceptance is None and given.recall is None:
        given.false_acceptance = PUBLISHED_FALSE
    for name in ("false_acceptance", "recall"):
        value = getattr(given, name)
        if value is not None and not 0.0 < value < 1.0:
            raise InputError(f"--{name.replace('_', '-')} {value:g}: above 0 and below 1 is needed")
    return given


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, score, write what is asked for, and print."""
    given = parse(arguments)
    trace = read(given.trace)
    result, predictor, test, trained = study(trace, given)
    if given.out:
        save_predictor(predictor, given.out)
    if given.onnx:
        write_bytes(given.onnx, graph(predictor))
    if given.plot:
        title = f"rejection predictors on {', '.join(Path(path).name for path in given.trace)}"
        picture(given.plot, title, result, test, trained)
    if given.json:
        write_json(given.json, result)
    print(report.text(result))
