"""Fit the acceptance process of the engine to published acceptance figures or to recorded traces, by simulation.

The process, at position n of a response r:

    logit_n = logit_mean + request_std * g_r + drift_std * d_b(n) - after_rejection_logit * [token n - 1 is rejected]
    accepted_n ~ Bernoulli(sigmoid(logit_n))

with g_r ~ N(0, 1) and d an AR(1) over blocks of 8 positions, N(0, 1), correlation exp(-8 / drift_tokens). A round of
K drafts that starts at s has A = run of accepted tokens from s, at most K, accepted; the next one starts at s + A + 1.
Survival by position fixes how much acceptance differs in all; correlation along a response says how much of that is
slow, and the first position against the later ones how much harder the token after a rejection is.

    python -m estimators.acceptance --pair qwen3-0.6b--qwen3-32b
    python -m estimators.acceptance --trace python-10m-1m.npz
"""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from estimators.acceptance import recorded as recorded_acceptance
from estimators.acceptance.pairs import ASSUMED_LIKE, PAIRS, Pair
from estimators.acceptance.process import BLOCK_TOKENS, RARE, START, STARTS, Process, search, search_from_all, to_free
from estimators.rejection.models import MAX_SEED
from wisp_gym.cli import Parser, output_file, table, whole
from wisp_gym.errors import one_of
from wisp_gym.files import write_json

TYPICAL_ROUNDS = 116  # rounds of the response in which an average Spec-Bench round stands; correlations depend on it
RATE_TOLERANCE = 0.01  # a published acceptance that is missed by this much costs as much as ...
DERIVED_TOLERANCE = 0.03  # ... one recovered from a throughput missed by this much, or ...
CORRELATION_TOLERANCE = 0.03  # ... a correlation or a spread of responses missed by this much (most pairs borrow them)
RARELY = 0.3  # a source whose first draft is accepted less often is rare
PRIOR_WEIGHT = 0.05  # a weak pull to START, so that parameters on which nothing is published stay ordinary


@dataclass(frozen=True)
class World:
    """Draws that do not depend on the parameters, so that two parameter sets meet the same luck.

    Attributes:
        logistic: threshold of each token, standard logistic, shape (positions, responses).
        request: response effects, N(0, 1), shape (responses,).
        innovation: of the drift, N(0, 1), shape (blocks, responses).
    """

    logistic: NDArray[np.float64]
    request: NDArray[np.float64]
    innovation: NDArray[np.float64]

    @classmethod
    def draw(cls, responses: int, positions: int, seed: int) -> Self:
        """Return a world of `responses` responses of `positions` tokens each."""
        rng = np.random.default_rng(seed)
        logistic, request = rng.logistic(size=(positions, responses)), rng.standard_normal(responses)
        return cls(logistic, request, rng.standard_normal((-(-positions // BLOCK_TOKENS), responses)))


def drift(process: Process, innovation: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the stationary AR(1) over blocks, N(0, 1), shape (blocks, responses)."""
    correlation = np.exp(-BLOCK_TOKENS / process.drift_tokens)
    blocks = np.sqrt(1.0 - correlation**2) * innovation
    blocks[0] = innovation[0]
    for b in range(1, len(blocks)):
        blocks[b] += correlation * blocks[b - 1]
    return blocks


def fates(process: Process, world: World) -> NDArray[np.bool_]:
    """Return whether the draft's token would be accepted at each position, shape (positions, responses)."""
    slow = process.drift_std * drift(process, world.innovation) + process.request_std * world.request
    logit = process.logit_mean + np.repeat(slow, BLOCK_TOKENS, axis=0)[: len(world.logistic)]
    margin = logit - world.logistic  # accepted where positive
    accepted = np.empty(margin.shape, dtype=bool)
    accepted[0] = margin[0] > 0.0
    for n in range(1, len(margin)):
        accepted[n] = margin[n] > np.where(accepted[n - 1], 0.0, process.after_rejection_logit)
    return accepted


def rounds(accepted: NDArray[np.bool_], drafts: int) -> NDArray[np.int64]:
    """Return accepted tokens of each round of `drafts` drafts, shape (rounds, responses), -1 after the last round."""
    positions, responses = accepted.shape
    run_length = np.zeros((positions + 1, responses), dtype=np.int64)
    for n in range(positions - 1, -1, -1):
        run_length[n] = np.where(accepted[n], run_length[n + 1] + 1, 0)
    start, column, lengths = np.zeros(responses, dtype=np.int64), np.arange(responses), []
    while (alive := start + drafts <= positions).any():
        length = np.minimum(run_length[np.minimum(start, positions), column], drafts)
        lengths.append(np.where(alive, length, -1))
        start += length + 1
    return np.array(lengths)


def survival(lengths: NDArray[np.int64], drafts: int) -> NDArray[np.float64]:
    """Return P(accepted >= i) for i = 1..drafts over all rounds, shape (drafts,)."""
    counts = np.bincount(lengths[lengths >= 0], minlength=drafts + 1)
    return counts[::-1].cumsum()[::-1][1:] / counts.sum()


def autocorrelation(lengths: NDArray[np.int64], lags: Sequence[int]) -> NDArray[np.float64]:
    """Return the correlation of accepted lengths `lag` rounds apart, each response's mean removed, shape (lags,)."""
    real = lengths >= 0
    centred = np.where(real, lengths - np.where(real, lengths, 0).sum(0) / real.sum(0), 0.0)
    variance = (centred**2).sum() / real.sum()
    return np.array([(centred[lag:] * centred[:-lag]).sum() / real[lag:].sum() / variance for lag in lags])


def between_cv(lengths: NDArray[np.int64]) -> float:
    """Return the spread of responses' mean accepted lengths over the mean, without the rounds' own noise.

    The covariance between the means of a response's two halves: noise of single rounds is in one half only.
    """
    real, middle = lengths >= 0, (lengths >= 0).sum(0).min() // 2
    first = lengths[:middle].mean(0)
    second = np.where(real[middle:], lengths[middle:], 0).sum(0) / real[middle:].sum(0)
    covariance = ((first - first.mean()) * (second - second.mean())).mean()
    return float(np.sqrt(max(covariance, 0.0)) / lengths[real].mean())


def positions_of(pair: Pair) -> int:
    """Return tokens of a response of about `TYPICAL_ROUNDS` rounds, whole blocks."""
    accepted = sum(pair.survival) or max(k * rate for k, rate in pair.rates.items())
    return BLOCK_TOKENS * round(TYPICAL_ROUNDS * (1.0 + accepted) / BLOCK_TOKENS)


def tolerances(pair: Pair) -> list[float]:
    """Return the error that counts as one for each of `targets(pair)`, in their order."""
    others = len(pair.autocorrelation) + (pair.between_cv is not None)
    rates = [DERIVED_TOLERANCE if k in pair.derived else RATE_TOLERANCE for k in pair.rates]
    return [pair.survival_tolerance] * len(pair.survival) + rates + [CORRELATION_TOLERANCE] * others


def targets(pair: Pair) -> dict[str, float]:
    """Return the published figures of `pair` under readable names."""
    named = {f"P(accepted >= {i})": value for i, value in enumerate(pair.survival, 1)}
    named |= {f"accepted/drafted, K = {k}": value for k, value in pair.rates.items()}
    named |= {f"correlation, lag {lag}": value for lag, value in pair.autocorrelation.items()}
    return named | ({"spread of responses": pair.between_cv} if pair.between_cv is not None else {})


def simulate(process: Process, pair: Pair, world: World) -> dict[str, float]:
    """Return the process's own values of everything in `targets(pair)`, under the same names."""
    return measures(fates(process, world), pair)


def measures(accepted: NDArray[np.bool_], pair: Pair) -> dict[str, float]:
    """Return the figures in `targets(pair)`, under the same names, of fates, shape (positions, responses)."""
    drafts = {*pair.rates, *([pair.max_draft_tokens] if pair.survival else [])}
    lengths = {k: rounds(accepted, k) for k in drafts}
    steps = {k: survival(lengths[k], k) for k in drafts}
    values = [*steps[pair.max_draft_tokens][: len(pair.survival)]] if pair.survival else []
    values += [steps[k].mean() for k in pair.rates]
    values += [*autocorrelation(lengths[max(drafts)], list(pair.autocorrelation))]
    values += [between_cv(lengths[max(drafts)])] if pair.between_cv is not None else []
    return dict(zip(targets(pair), map(float, values), strict=True))


def misfit(process: Process, pair: Pair, world: World) -> float:
    """Return the sum of squared errors in tolerances, plus the weak pull to `START`."""
    wanted, got, allowed = targets(pair).values(), simulate(process, pair, world).values(), tolerances(pair)
    error = sum(((g - w) / a) ** 2 for g, w, a in zip(got, wanted, allowed, strict=True))
    return float(error + PRIOR_WEIGHT * ((to_free(process) - to_free(START)) ** 2).sum())


def fit(pair: Pair, world: World, like: Process | None = None, iterations: int = 150) -> Process:
    """Return the parameters with the least misfit.

    With `pair.like`, `like` must be that pair's fit: its spreads are kept and `logit_mean` alone is fitted.
    """

    def cost(process: Process) -> float:
        return misfit(process, pair, world)

    if pair.like:
        assert like is not None, "a pair that leans on another needs that one's fit"
        return search(cost, like, iterations, free=1)[1]
    rare = pair.survival and pair.survival[0] < RARELY
    return search_from_all(cost, f"{pair.draft}, {pair.data}", iterations, (*STARTS, RARE) if rare else STARTS)


def fit_all(names: Sequence[str], responses: int, seed: int) -> dict[str, Process]:
    """Return fits of `names`, and of the pairs that they lean on, by name."""
    fitted: dict[str, Process] = {}
    for name in [*filter(None, (PAIRS[name].like for name in names)), *names]:
        pair = PAIRS[name]
        if name not in fitted:
            fitted[name] = fit(pair, World.draw(responses, positions_of(pair), seed), fitted.get(pair.like))
    return fitted


def report(name: str, process: Process, responses: int, seed: int) -> dict[str, Any]:
    """Return published beside fitted figures of one pair as a row."""
    pair = PAIRS[name]
    world = World.draw(responses, positions_of(pair), seed)
    wanted, got = targets(pair), simulate(process, pair, world)
    errors = {key: got[key] - wanted[key] for key in wanted}
    acceptance = max(abs(error) for key, error in errors.items() if key.startswith(("P(", "accepted")))
    row = {"pair": name, "draft": pair.draft, "target": pair.target, "data": pair.data, "source": pair.source}
    return row | asdict(process) | {"max_error": acceptance, "published": wanted, "fitted": got, "note": pair.note}


def show(row: dict[str, Any]) -> None:
    """Print published against fitted figures of a row."""
    wanted, got = row["published"], row["fitted"]
    print(f"\n{row['pair']}: {row['draft']} to {row['target']}, {row['data']} ({row['source']})")
    print(f"  {row['note']}\n" if row["note"] else "", end="")
    lines = [[key, f"{wanted[key]:.3f}", f"{got[key]:.3f}", f"{got[key] - wanted[key]:+.3f}"] for key in wanted]
    print(table(["figure", "published", "fitted", "error"], lines))
    print("  ".join(f"{field.name} = {row[field.name]:.4g}" for field in fields(Process)))
    print(f"largest error of an acceptance {row['max_error']:.3f}")


def parse(arguments: Sequence[str] | None) -> Namespace:
    """Return the flags."""
    about = "Fit the acceptance process to published figures or to recorded traces."
    parser = Parser(prog="python -m estimators.acceptance", description=about)
    help_ = "fit to these recorded speculation traces (NPZ), one by one, instead"
    parser.add_argument("--trace", nargs="+", metavar="FILE", help=help_)
    parser.add_argument("--pair", default="all", help=f"all (default) or one of: {', '.join(PAIRS)}")
    responses = whole(50, 1_000_000)
    parser.add_argument("--responses", type=responses, default=1000, help="simulated responses (default 1000)")
    parser.add_argument("--seed", type=whole(0, MAX_SEED), default=0)
    parser.add_argument("--json", type=output_file(), metavar="FILE", help="write the fits as a list of rows")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit the pairs, print them against what is published, on responses that the fit has not seen."""
    given = parse(arguments)
    names = list(PAIRS) if given.pair == "all" else [one_of("pair", given.pair, PAIRS)]
    if given.trace:
        rows = [recorded_acceptance.study(path, given.seed) for path in given.trace]
    else:
        fitted = fit_all(names, given.responses, given.seed)
        rows = [report(name, fitted[name], 4 * given.responses, given.seed + 1) for name in names]
    if given.json:
        write_json(given.json, rows)
    if given.trace:
        print("\n\n".join(map(recorded_acceptance.report, rows)))
        return
    for row in rows:
        show(row)
    if given.pair == "all":
        alike = ", ".join(f"{name} as {like}" for name, like in ASSUMED_LIKE.items())
        print(f"\nno published figures, the same parameters (assumption): {alike}")
