"""Put recorded speculation traces beside published figures: acceptance by position, correlation, AUC.

    python -m estimators.acceptance report python-150m-15m.npz python-150m-15m-sampled.npz

Where TRACE-predictor.json stands beside TRACE.npz, as `python -m estimators.rejection TRACE.npz --json` writes it, the
AUC of the statistics and of the MLP, on held-out prompts, are in the table too.
Published: `estimators.acceptance.pairs` names each source; WISP's AUC is derived from its operating point.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from estimators.acceptance.pairs import AUTOCORRELATION, PAIRS
from estimators.rejection.models import MLP
from estimators.rejection.operating_point import published
from traces.describe_speculation import LAGS, acceptance_by_position, autocorrelation, by_quarter
from wisp_gym.cli import Parser, output_file, table
from wisp_gym.errors import InputError
from wisp_gym.files import read_text, write_json
from wisp_gym.traces.requests import TraceError
from wisp_gym.traces.speculation import SpeculationTrace, read_speculation_trace

POSITIONS = (1, 2, 3, 4, 6, 8)
BESIDE = ("qwen3-1.7b--qwen3-32b", "qwen3-1.7b--qwen3-32b-code", "vicuna-68m--vicuna-7b")  # measured by position


def figures(trace: SpeculationTrace, predictor: dict[str, Any] | None) -> dict[str, float]:
    """Return the figures of a trace by name; NaN where it is too short for one."""
    acceptance = acceptance_by_position(trace)
    found = {"requests": float(len(trace)), "positions": float(len(trace.accepted_run)),
             "mean accepted run": float(trace.accepted_run.mean())}  # fmt: skip
    found |= {f"P(run >= {k})": float(acceptance[k - 1]) for k in POSITIONS if k <= trace.draft_tokens}
    found |= {f"accepted, quarter {i + 1} of the answer": float(share) for i, share in enumerate(by_quarter(trace))}
    found |= {f"correlation, lag {lag}": autocorrelation(trace, lag) for lag in LAGS}
    if predictor:
        mlp = next(row for row in predictor["predictors"] if row["predictor"] == MLP)
        found |= {f"AUC, {name}": value[0] for name, value in predictor["statistics_alone"].items()}
        found["AUC, MLP"] = mlp["auc"][0]
    return found


def beside() -> dict[str, dict[str, float]]:
    """Return the published figures under the same names, by pair; correlations are of accepted lengths, by rounds."""
    survival = {name: PAIRS[name].survival for name in BESIDE}
    columns = {name: {f"P(run >= {k})": s[k - 1] for k in POSITIONS if k <= len(s)} for name, s in survival.items()}
    columns["Spec-Bench"] = {f"correlation, lag {lag}": value for lag, value in AUTOCORRELATION.items()}
    columns["WISP"] = {"AUC, MLP": published()["auc"]}
    return columns


def text(columns: dict[str, dict[str, float]]) -> str:
    """Return all figures as a table, a column for each trace and source."""
    names = list(dict.fromkeys(name for figures_of in columns.values() for name in figures_of))

    def cell(value: float | None) -> str:
        if value is None or np.isnan(value):
            return "-"
        return f"{value:.0f}" if value == round(value) and abs(value) > 1 else f"{value:.3f}"

    return table(["figure", *columns], [[name, *(cell(c.get(name)) for c in columns.values())] for name in names])


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the figures where asked, and print the table."""
    parser = Parser(prog="python -m estimators.acceptance report", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("trace", nargs="+", type=Path, metavar="TRACE", help="speculation traces (NPZ)")
    parser.add_argument("--json", type=output_file(), metavar="FILE", help="write the figures of the traces")
    given = parser.parse_args(arguments)
    columns = {}
    for path in given.trace:
        beside_it = path.with_name(f"{path.stem}-predictor.json")
        try:
            predictor = json.loads(read_text(beside_it)) if beside_it.exists() else None
            columns[path.stem] = figures(read_speculation_trace(path), predictor)
        except (TraceError, OSError, ValueError) as error:
            raise InputError(f"{path}: {error}") from None
    if given.json:
        clean = {name: {k: None if np.isnan(v) else v for k, v in c.items()} for name, c in columns.items()}
        write_json(given.json, clean)
    print(text({**columns, **beside()}))
