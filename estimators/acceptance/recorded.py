"""Fit the engine's acceptance process to a recorded trace, and say what the process cannot follow.

Fitted, each error in standard errors over requests: the run-length law P(run ≥ i) over all positions, the correlation of
"the first proposal is accepted" 1 … 20 positions apart, the spread of requests, acceptance by quarter of the answer and after
either fate, and long stretches. The sum of fourth powers is made small, so that what lies outside its interval counts most. The
same estimators are applied to the trace and to answers of the same lengths that the engine draws. The process has loops where
they make the fit better (`loops`). The AUC is what the MLP gets out of the statistics, cross-validated over prompts; the
process takes the value within its interval at which most statistics taken alone tell as much as they do in the trace.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm
from sklearn.model_selection import GroupKFold

from estimators.acceptance.loops import LoopProcess, recurrence_tokens, search_from
from estimators.acceptance.process import Process, answers, search_from_all
from estimators.rejection.models import MLP, classifiers, train
from estimators.rejection.scores import RESAMPLES, alone, auc
from estimators.rejection.tokens import PERCENT, interval, met, on_path, read_any, resampled
from wisp_gym.cli import table
from wisp_gym.engine.acceptance import VIEW_SHARES
from wisp_gym.engine.build import separation
from wisp_gym.errors import InputError
from wisp_gym.rules.rejection_predictor import INPUTS
from wisp_gym.traces.speculation import SpeculationTrace

LAGS = range(1, 21)
SMALLEST_ERROR = 0.005  # of a figure: below it the luck of the simulated answers counts
TIMES = 10  # simulated answers for each recorded one
LONG_TOKENS = 32  # a stretch of accepted tokens this long is what a repeating answer looks like
FOLDS = 5
ANY_AUC = 0.75  # fates do not depend on it
POWER = 4  # of errors in the cost
AUC_STEPS = 41  # values tried within the AUC's interval


@dataclass(frozen=True)
class Answers:
    """R answers of at most L tokens, K drafted at each position.

    Attributes:
        accepted: whether the first proposal at each position is accepted, shape (R, L), NaN beyond the end.
        run: accepted run of each position, 0 … K, shape (R, L), −1 where the end of the answer may cut it.
        draft_tokens: K.
    """

    accepted: NDArray[np.float64]
    run: NDArray[np.int64]
    draft_tokens: int

    @classmethod
    def cut(cls, accepted: NDArray[Any], run: NDArray[np.int64], lengths: NDArray[np.int64], draft_tokens: int) -> Self:
        """Answers of these lengths; runs that their ends may cut are left out."""
        to_the_end = lengths[:, None] - np.arange(accepted.shape[1])
        whole_run = np.where(to_the_end < draft_tokens, -1, run)
        return cls(np.where(to_the_end > 0, accepted, np.nan), whole_run, draft_tokens)


def recorded(trace: SpeculationTrace) -> Answers:
    """Return a trace's answers."""
    lengths = trace.output_tokens
    n = np.arange(lengths.max())
    place = np.minimum(trace.offsets[:-1, None] + n, len(trace.accepted_run) - 1)
    run = trace.accepted_run[place].astype(np.int64)
    return Answers.cut(run > 0, run, lengths, trace.draft_tokens)


def simulated(process: Process, lengths: NDArray[np.int64], draft_tokens: int, seed: int) -> Answers:
    """Return answers of these lengths by the engine's process."""
    fates, _ = answers(process, ANY_AUC, len(lengths), int(lengths.max()), seed)
    run = np.zeros((len(lengths), fates.shape[1] + 1), dtype=np.int64)
    for n in range(fates.shape[1] - 1, -1, -1):
        run[:, n] = np.where(fates[:, n] == 1, np.minimum(run[:, n + 1] + 1, draft_tokens), 0)
    return Answers.cut(fates == 1, run[:, :-1], lengths, draft_tokens)


def run_figures(given: Answers) -> dict[str, float]:
    """Return the law of runs, the correlations and the spread of requests, by name."""
    run, lengths = given.run[given.run >= 0], np.isfinite(given.accepted).sum(axis=1)
    x = np.nan_to_num(given.accepted - np.nanmean(given.accepted))
    variance = (x**2).sum() / lengths.sum()
    named = {f"P(run ≥ {i})": float(np.mean(run >= i)) for i in range(1, given.draft_tokens + 1)}
    near = {f"correlation, lag {lag}": float((x[:, lag:] * x[:, :-lag]).sum() / np.maximum(lengths - lag, 0).sum() / variance)
            for lag in LAGS}  # fmt: skip
    return named | near | {"spread of requests": float(np.nanstd(np.nanmean(given.accepted, axis=1)))}


def other_figures(given: Answers) -> dict[str, float]:
    """Return what the process has no parameter for: how acceptance changes along the answer, after either fate, in long stretches."""
    x, lengths = given.accepted, np.isfinite(given.accepted).sum(axis=1, keepdims=True)
    quarter = 4 * np.arange(x.shape[1]) // lengths
    named = {f"accepted, quarter {i + 1} of the answer": float(np.nanmean(x[quarter == i])) for i in range(4)}
    before, after = x[:, :-1], x[:, 1:]
    named |= {f"accepted after {what}": float(np.nanmean(after[before == fate]))
              for what, fate in (("an accepted token", 1.0), ("a rejected token", 0.0))}  # fmt: skip
    return named | {f"in stretches of {LONG_TOKENS} or more accepted": float(long_share(x == 1.0))}


def long_share(accepted: NDArray[np.bool_]) -> float:
    """Return the share of accepted tokens that stand in stretches of at least `LONG_TOKENS` accepted ones."""
    padded = np.pad(accepted, ((0, 0), (1, 1))).astype(np.int64)
    change = np.diff(padded, axis=1).ravel()
    stretch = np.flatnonzero(change == -1) - np.flatnonzero(change == 1)
    return stretch[stretch >= LONG_TOKENS].sum() / max(stretch.sum(), 1)


def figures(given: Answers) -> dict[str, float]:
    """Return all figures of fates, which are fitted."""
    return run_figures(given) | other_figures(given)


def bootstrap(given: Answers) -> NDArray[np.float64]:
    """Return all figures of bootstrap samples of requests, shape (RESAMPLES, figures)."""
    rng, n = np.random.default_rng(0), len(given.accepted)
    picks = (rng.integers(n, size=n) for _ in range(RESAMPLES))
    samples = (Answers(given.accepted[pick], given.run[pick], given.draft_tokens) for pick in picks)
    return np.array([list(figures(sample).values()) for sample in samples])


def fit(
    given: Answers, lengths: NDArray[np.int64], errors: NDArray[np.float64], seed: int, iterations: int = 150
) -> LoopProcess:
    """Return the process with the least sum of the errors' fourth powers, of all figures, in `errors`."""
    wanted = np.array(list(figures(given).values()))
    many = np.tile(lengths, TIMES)

    def cost(process: Process) -> float:
        got = figures(simulated(process, many, given.draft_tokens, seed))
        return float((((np.array(list(got.values())) - wanted) / errors) ** POWER).sum())

    plain = search_from_all(cost, "acceptance process", iterations)
    near = wanted[given.draft_tokens : given.draft_tokens + len(LAGS)]
    return search_from(cost, plain, recurrence_tokens(near), 2 * iterations)


def statistics_auc(trace: SpeculationTrace, seed: int) -> list[float]:
    """Return the MLP's AUC on tokens that a device meets, each prompt predicted by the folds without it, and its interval.

    Raises:
        InputError: fewer prompts than folds.
    """
    rows, seen = on_path(trace), met(trace)
    prompts = np.unique(rows.prompt)
    if len(prompts) < FOLDS:
        raise InputError(f"{len(prompts)} prompts: at least {FOLDS} are needed to cross-validate the AUC")
    p = np.empty(len(seen))
    for fold, _ in GroupKFold(FOLDS).split(prompts, groups=prompts):
        here, model = ~np.isin(seen.prompt, prompts[fold]), classifiers(seed)[MLP]
        p[here] = train(model, rows.of(prompts[fold]), seen.of(prompts[fold])).probability(seen.statistics[here])
    ends = interval(lambda weight: auc(p, seen.accepted, weight), resampled(seen.prompt, RESAMPLES))
    return [auc(p, seen.accepted, np.ones(len(p))), *ends.tolist()]


def study(path: str, seed: int) -> dict[str, Any]:
    """Return parameters, measured figures with intervals, and fitted ones on answers that the fit has not seen.

    Raises:
        InputError: the trace cannot be read or is too small.
    """
    trace = read_any([path])
    given, lengths = recorded(trace), trace.output_tokens
    if lengths.max() <= LAGS[-1] + trace.draft_tokens or len(trace) < FOLDS:
        raise InputError(f"{path}: answers of at least {LAGS[-1] + trace.draft_tokens + 1} tokens are needed")
    measured, samples = figures(given), bootstrap(given)
    process = fit(given, lengths, np.maximum(samples.std(axis=0), SMALLEST_ERROR), seed)
    got = figures(simulated(process, np.tile(lengths, TIMES), trace.draft_tokens, seed + 1))
    ends = np.nanpercentile(samples, PERCENT, axis=0).T.tolist()
    rows = {name: {"measured": measured[name], "interval": pair, "fitted": got[name], "is_fitted": True}
            for name, pair in zip(measured, ends, strict=True)}  # fmt: skip
    about = {"trace": Path(path).name, "temperature": trace.temperature} | asdict(process)
    if trace.statistics is None:
        return about | {"auc": None, "fitted": rows}
    together, singly = statistics_auc(trace, seed), alone(met(trace))
    chosen = fitted_auc(together, singly)
    for (name, (value, *pair)), engine in zip(singly.items(), auc_alone(chosen, singly), strict=True):
        rows[f"AUC of {name} alone"] = {"measured": value, "interval": pair, "fitted": engine, "is_fitted": False}
    return about | {"auc": together, "fitted_auc": chosen, "fitted": rows}


def auc_alone(together: float, names: Iterable[str]) -> list[float]:
    """Return the AUC of each statistic taken alone in the engine, at this AUC of all four together."""
    shares = dict(zip(INPUTS, VIEW_SHARES, strict=True))
    return [float(norm.cdf(separation(together) * np.sqrt(shares[name] / 2))) for name in names]


def fitted_auc(together: Sequence[float], singly: Mapping[str, Sequence[float]]) -> float:
    """Return the AUC, within the interval of the MLP's, that leaves most single statistics inside theirs; of equals the MLP's or the nearest.

    Args:
        together: AUC of all statistics and its interval. singly: the same of each.
    """
    best, low, high = together

    def inside(value: float) -> int:
        pairs = zip(singly.values(), auc_alone(value, singly), strict=True)
        return sum(ends[1] <= engine <= ends[2] for ends, engine in pairs)

    return min(
        [best, *np.linspace(low, high, AUC_STEPS).tolist()], key=lambda value: (-inside(value), abs(value - best))
    )


def report(row: dict[str, Any]) -> str:
    """Return measured against fitted figures, aligned."""
    lines = []
    for name, figure in row["fitted"].items():
        low, high = figure["interval"]
        inside = "" if low <= figure["fitted"] <= high else "outside"
        lines.append([name if figure["is_fitted"] else f"not fitted: {name}",
                      f"{figure['measured']:.3f} ({low:.3f} to {high:.3f})", f"{figure['fitted']:.3f}", inside])  # fmt: skip
    outside = sum(bool(line[3]) for line in lines)
    said = "no statistics"
    if row["auc"]:
        said = "auc = {:.3f} ({:.3f} to {:.3f}) of the statistics, the MLP cross-validated over prompts; fitted {:.3f}".format(
            *row["auc"], row["fitted_auc"]
        )
    return "\n".join([
        f"{row['trace']}, temperature {row['temperature']:g}",
        table(["figure", "measured (95 %)", "fitted", ""], lines),
        "  ".join(f"{key} = {row[key]:.4g}" for key in asdict(LoopProcess())),
        said,
        f"{outside} of {len(lines)} figures lie outside the trace's interval",
    ])  # fmt: skip
