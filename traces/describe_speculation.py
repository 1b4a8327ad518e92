"""Say what a speculation trace holds: acceptance by position, what the statistics tell, memory along the output.

python -m traces.describe_speculation trace.npz
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from wisp_gym.cli import Parser, run
from wisp_gym.errors import InputError
from wisp_gym.process import program
from wisp_gym.traces.requests import TraceError
from wisp_gym.traces.speculation import STATISTICS, SpeculationTrace, read_speculation_trace

LAGS = (1, 2, 5, 10, 20)
SIGNS = {"confidence": 1, "entropy": -1, "margin": 1, "spread": 1}  # which way a statistic speaks for acceptance


def whole_rows(trace: SpeculationTrace) -> np.ndarray:
    """(P,) bool: positions with at least K more of the output, where the end does not cut the run."""
    to_the_end = np.repeat(trace.offsets[1:], trace.output_tokens) - np.arange(len(trace.accepted_run))
    return to_the_end >= trace.draft_tokens


def acceptance_by_position(trace: SpeculationTrace) -> np.ndarray:
    """(K,) share of positions whose run is at least 1 … K tokens; NaN where no answer has K tokens."""
    runs = trace.accepted_run[whole_rows(trace)]
    return np.array([np.mean(runs >= j) if len(runs) else np.nan for j in range(1, trace.draft_tokens + 1)])


def area_under_curve(scores: np.ndarray, labels: np.ndarray) -> float:
    """P(score of a true one > score of a false one), ties counted half (Mann and Whitney, 1947); NaN without both."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    true = int(labels.sum())
    false = len(labels) - true
    if not true or not false:
        return float("nan")
    return float((ranks[labels].sum() - true * (true + 1) / 2) / (true * false))


def tested_tokens(trace: SpeculationTrace, statistics: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n, 4) statistics and (n,) bool fates of all drafted tokens up to each first rejected one: those that count."""
    runs = trace.accepted_run[whole_rows(trace)].astype(int)[:, None]
    j = np.arange(trace.draft_tokens)[None]
    on_path = j <= runs
    return statistics[whole_rows(trace)][on_path].astype(float), (j < runs)[on_path]


def autocorrelation(trace: SpeculationTrace, lag: int) -> float:
    """Correlation of "the first proposal is accepted" at positions `lag` apart in one answer, pooled over requests."""
    fates = (trace.accepted_run > 0).astype(float) - np.mean(trace.accepted_run > 0)
    answers = [fates[trace.positions(request)] for request in range(len(trace))]
    products = np.concatenate([x[lag:] * x[: max(len(x) - lag, 0)] for x in answers])
    return float(products.mean() / fates.var()) if len(products) and fates.var() else float("nan")


def by_quarter(trace: SpeculationTrace) -> np.ndarray:
    """(4,) share of accepted first proposals in each quarter of the answers: small models fall into loops late."""
    n = np.arange(len(trace.accepted_run)) - np.repeat(trace.offsets[:-1], trace.output_tokens)
    quarter = (4 * n) // np.repeat(trace.output_tokens, trace.output_tokens)
    return np.array(
        [np.mean(trace.accepted_run[quarter == i] > 0) if (quarter == i).any() else np.nan for i in range(4)]
    )


def describe(trace: SpeculationTrace) -> str:
    """Some lines of text."""
    per_request = [np.mean(trace.accepted_run[trace.positions(r)] > 0) for r in range(len(trace))]
    lengths = trace.output_tokens
    lines = [
        f"{len(trace)} requests, {len(trace.accepted_run)} positions, {trace.draft_tokens} tokens drafted at each, "
        f"temperature {trace.temperature:g}{', independent runs' if trace.independent else ''}",
        f"answers of {lengths.min()} to {lengths.max()} tokens, prompts of {trace.prompt_tokens.min()} to {trace.prompt_tokens.max()}",
        line("P(run >= 1, 2, … K)", acceptance_by_position(trace)),
        line("accepted, by quarter of the answer", by_quarter(trace)),
        line("accepted, by request: mean, std", [np.mean(per_request), np.std(per_request)]),
        line(f"autocorrelation, lags {', '.join(map(str, LAGS))}", [autocorrelation(trace, lag) for lag in LAGS]),
    ]
    return "\n".join([*lines, *(areas(trace, trace.statistics) if trace.statistics is not None else ["no statistics"])])


def line(name: str, values: Sequence[float] | np.ndarray) -> str:
    """A line of figures."""
    return f"{name:<34}" + " ".join(f"{value:6.3f}" for value in values)


def areas(trace: SpeculationTrace, statistics: np.ndarray) -> list[str]:
    """A line for each statistic: its area under the curve for first proposals, and for all that count."""
    tested, fates = tested_tokens(trace, statistics)
    first, first_fates = statistics[:, 0].astype(float), trace.accepted_run > 0
    lines = []
    for i, name in enumerate(STATISTICS):
        both = [
            area_under_curve(SIGNS[name] * first[:, i], first_fates),
            area_under_curve(SIGNS[name] * tested[:, i], fates),
        ]
        lines.append(line(f"AUC of {name}: first, all", both))
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the header and the figures."""
    program = "python -m traces.describe_speculation"
    parser = Parser(prog=program, description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path, help="an NPZ of traces.record")
    given = parser.parse_args(arguments)
    try:
        trace = read_speculation_trace(given.file)
    except TraceError as error:
        raise InputError(str(error)) from None
    print(json.dumps(trace.header, indent=2, sort_keys=True))
    print(describe(trace))


if __name__ == "__main__":
    program(lambda: run(main, "python -m traces.describe_speculation"))
