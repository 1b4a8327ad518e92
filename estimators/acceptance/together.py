"""Two sources of drafts for one target: how each fares in rounds, and how often they are right at the same places.

    python -m estimators.acceptance together FILE.jsonl.gz [--most-tokens 512]       # SpecDecode-Bench
    python -m estimators.acceptance together DRAFT.jsonl HEAD.jsonl                  # Spec-Bench, one file a source

SpecDecode-Bench (arXiv 2601.11580) has, for each position of each answer, the tokens that a round of each source would commit
if it began there. Spec-Bench has the tokens that each round of one source committed; in greedy decoding all sources
write the same text, so that answers of equal length can be laid side by side, and each position has a fate: accepted, or
the one that ended a round.

What is found: survival and spreads of rounds that follow each other, as `estimators.acceptance.fit` takes them; the correlation of
fates at the same position; and the `correlation` of a server draft that gives it, found by simulation: request
effect and drift have so much in common, and so many positions the same draw.
"""

import gzip
import json
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit

from estimators.acceptance.fit import World, autocorrelation, between_cv, fates, survival
from estimators.acceptance.pairs import AUTOCORRELATION
from estimators.acceptance.process import Process
from estimators.rejection.models import MAX_SEED
from wisp_gym.cli import Parser, table, whole
from wisp_gym.errors import InputError

DRAFTS = 8  # drafts a round of a replay
LEAST_ROUNDS = 20  # of an answer whose spread and correlation are looked at
SHIFTS = (-2, -1, 0, 1, 2)  # places by which a source of Spec-Bench may begin later: some prefill the first token
SAME_TOKENS = 1  # answers whose lengths differ by more went different ways
RESAMPLES = 300
GRID = np.linspace(0.0, 1.0, 11)  # of correlations that are simulated
RESPONSES, POSITIONS = 2000, 240  # of a simulation
SPREADS = (0.0, 0.5, 1.0)  # of request effect and drift, logits, that are tried: the data do not tell them apart
DRIFT_TOKENS, STEPS = 80.0, 20  # of the drift; of the search for a process


Pair = tuple[NDArray[np.float64], NDArray[np.float64]]  # fates of one answer by both sources


@dataclass(frozen=True)
class Rows:
    """One source's answers.

    Attributes:
        name: of the source.
        fates: of each answer, shape (positions,): 1 accepted, 0 rejected, NaN not known.
        rounds: accepted tokens of rounds that follow each other, of each answer, shape (rounds,).
        tokens: of each whole answer, of which the fates may be the first part.
    """

    name: str
    fates: list[NDArray[np.float64]]
    rounds: list[NDArray[np.int64]]
    tokens: list[int]


def replay(run: NDArray[np.int64], drafts: int) -> NDArray[np.int64]:
    """Return accepted tokens of rounds of `drafts` drafts over one answer; run: accepted tokens of a round from each place."""
    lengths, n = [], 0
    while n + drafts <= len(run):
        lengths.append(min(int(run[n]), drafts))
        n += lengths[-1] + 1
    return np.array(lengths, dtype=np.int64)


def every_position(rows: Sequence[Mapping[str, Any]], source: str, most_tokens: int) -> Rows:
    """Return one source of SpecDecode-Bench, the first `most_tokens` positions of each answer."""
    runs = [np.array(row[source][:most_tokens], dtype=np.int64) - 1 for row in rows]
    known = [(run > 0).astype(float) for run in runs]
    return Rows(source, known, [replay(run, DRAFTS) for run in runs], [len(row[source]) for row in rows])


def by_steps(path: Path, committed: Mapping[tuple[Any, int], list[int]]) -> Rows:
    """Return one source of Spec-Bench from the tokens that its rounds committed.

    Nothing is known of the place after a full round, nor of the last: the answer's end may have cut that round.
    """
    longest = max(max(steps) for steps in committed.values()) - 1
    known = []
    for steps in committed.values():
        ends = [np.nan if c - 1 == longest or i == len(steps) - 1 else 0.0 for i, c in enumerate(steps)]
        known.append(np.concatenate([[*[1.0] * (c - 1), end] for c, end in zip(steps, ends, strict=True)]))
    return Rows(path.stem, known, [np.array(steps) - 1 for steps in committed.values()], list(map(len, known)))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSONL file, gzipped or not."""
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except (OSError, EOFError, ValueError) as error:
        raise InputError(f"cannot read {path}: {' '.join(str(error).split())}") from None


def steps_of(path: Path) -> dict[tuple[Any, int], list[int]]:
    """Return tokens committed by each round, by (question, turn), of a Spec-Bench answer file."""
    found: dict[tuple[Any, int], list[int]] = {}
    try:
        for row in read_lines(path):
            choice = row["choices"][0]
            lengths, ends = choice["accept_lengths"], np.cumsum(choice["decoding_steps"])
            for turn, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
                if end > start:
                    found[row["question_id"], turn] = list(map(int, lengths[start:end]))
    except (KeyError, IndexError, TypeError) as error:
        raise InputError(
            f"{path}: no Spec-Bench answers (choices with accept_lengths, decoding_steps): {error!r}"
        ) from None
    if not found:
        raise InputError(f"{path}: no answers")
    return found


def read(paths: Sequence[Path], most_tokens: int) -> tuple[Rows, Rows]:
    """Return the two sources of one SpecDecode-Bench file or two Spec-Bench files, answers in the same order."""
    if len(paths) == 2:
        first, second = map(steps_of, paths)
        both = sorted(first.keys() & second.keys())
        if not both:
            raise InputError(f"{paths[0]} and {paths[1]}: no question in common")
        return by_steps(paths[0], {key: first[key] for key in both}), by_steps(paths[1], {k: second[k] for k in both})
    rows = read_lines(paths[0])
    if not rows or not all(isinstance(row, dict) and {"eagle", "ngram"} <= row.keys() for row in rows):
        raise InputError(f"{paths[0]}: each line needs the lists 'eagle' and 'ngram' (SpecDecode-Bench)")
    return every_position(rows, "eagle", most_tokens), every_position(rows, "ngram", most_tokens)


# --- figures ---------------------------------------------------------------------------------------------------------


def stacked(rounds: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Return rounds of answers as columns, -1 after the last, shape (rounds, answers)."""
    most = max(map(len, rounds))
    return np.array([np.pad(lengths, (0, most - len(lengths)), constant_values=-1) for lengths in rounds]).T


def figures(rows: Rows) -> dict[str, float]:
    """Return survival by position in rounds that follow each other, and their spreads, under readable names."""
    drafts = min(DRAFTS, max(int(lengths.max(initial=0)) for lengths in rows.rounds))
    found = {f"P(accepted >= {i})": float(s) for i, s in enumerate(survival(stacked(rows.rounds), drafts), 1)}
    long = [lengths for lengths in rows.rounds if len(lengths) >= LEAST_ROUNDS]
    if long:
        lags = [lag for lag in AUTOCORRELATION if lag < LEAST_ROUNDS]
        values = autocorrelation(stacked(long), lags)
        found |= {f"correlation, lag {lag}": float(value) for lag, value in zip(lags, values, strict=True)}
        found["spread of responses"] = between_cv(stacked(long))
    known = np.concatenate(rows.fates)
    return found | {"accepted, any position": float(np.nanmean(known))}


def aligned(a: Rows, b: Rows, shifts: Sequence[int] = SHIFTS) -> tuple[int, list[Pair]]:
    """Return by how many places `a` begins later, where they agree best, and the fates of answers that both wrote alike."""
    found = {shift: alike(a, b, shift) for shift in shifts}
    most = max(map(len, found.values()))
    if not most:
        raise InputError("no answer of equal length in both sources")
    often = [shift for shift in shifts if 2 * len(found[shift]) > most]
    best = max(often, key=lambda shift: joint(found[shift])[0])
    return best, found[best]


def alike(a: Rows, b: Rows, shift: int) -> list[Pair]:
    """Return the fates at the same places of answers of equal length, if `a` begins `shift` places later than `b`."""
    found = []
    for i, (x, y) in enumerate(zip(a.fates, b.fates, strict=True)):
        x, y = x[max(0, -shift) :], y[max(0, shift) :]
        places = min(len(x), len(y))
        if abs(a.tokens[i] + shift - b.tokens[i]) <= SAME_TOKENS and places > LEAST_ROUNDS:
            found.append((x[:places], y[:places]))
    return found


def joint(pairs: Sequence[Pair]) -> tuple[float, float, float]:
    """Return the correlation of two sources' fates at the same place, and each one's share of accepted places."""
    x, y = (np.concatenate(side) for side in zip(*pairs, strict=True))
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    return float(np.corrcoef(x, y)[0, 1]), float(x.mean()), float(y.mean())


def interval(pairs: Sequence[Pair], seed: int) -> tuple[float, float]:
    """Return the correlation's 95 % interval over answers (bootstrap)."""
    rng, n = np.random.default_rng(seed), len(pairs)
    found = [joint([pairs[i] for i in rng.integers(n, size=n)])[0] for _ in range(RESAMPLES)]
    low, high = np.percentile(found, (2.5, 97.5))
    return float(low), float(high)


# --- what it implies -------------------------------------------------------------------------------------------------


def mixed(own: World, other: World, correlation: float, seed: int) -> World:
    """Return a world that has `correlation` of its draws in common with another (docs/model/who-drafts.md, Fates)."""
    rest = np.sqrt(1.0 - correlation**2)
    same = np.random.default_rng(seed).random(own.logistic.shape) < correlation
    return World(
        np.where(same, other.logistic, own.logistic),
        correlation * other.request + rest * own.request,
        correlation * other.innovation + rest * own.innovation,
    )


def simulated(a: Process, b: Process, correlation: float, seed: int) -> float:
    """Return the correlation of fates at the same place of two processes that share so much."""
    ours, theirs = (World.draw(RESPONSES, POSITIONS, seed + i) for i in (0, 1))
    x, y = fates(a, ours), fates(b, mixed(theirs, ours, correlation, seed + 2))
    return float(np.corrcoef(x.ravel(), y.ravel())[0, 1])


def implied(a: Process, b: Process, phi: float, seed: int) -> float:
    """Return the `correlation` of draws that gives the fates a correlation of `phi`, in [0, 1]."""
    found = np.maximum.accumulate([simulated(a, b, float(value), seed) for value in GRID])
    return float(np.interp(phi, found, GRID))


def process_like(rows: Sequence[NDArray[np.float64]], spread: float, seed: int) -> Process:
    """Return a process that accepts as often after an accepted and after a rejected place; its spreads are given.

    Args:
        rows: fates of answers, NaN not known.
        spread: of request effect and drift, logits.
    """
    pairs = np.concatenate([np.stack([row[:-1], row[1:]]) for row in rows], axis=1)
    before, after = pairs[:, np.isfinite(pairs).all(axis=0)]
    wanted = logit([after[before == fate].mean() for fate in (1.0, 0.0)])
    mean, harder = float(wanted[0]), max(float(wanted[0] - wanted[1]), 0.0)
    world = World.draw(RESPONSES, POSITIONS, seed)
    for _ in range(STEPS):
        drawn = fates(Process(mean, spread, spread, DRIFT_TOKENS, harder), world)
        got = logit([drawn[1:][drawn[:-1] == fate].mean() for fate in (True, False)])
        mean += float(wanted[0] - got[0])
        harder = max(harder + float(wanted[0] - wanted[1] - got[0] + got[1]), 0.0)
    return Process(mean, spread, spread, DRIFT_TOKENS, harder)


# --- the command -----------------------------------------------------------------------------------------------------


def parse(arguments: Sequence[str] | None) -> Namespace:
    """Return the flags, checked."""
    about = "Two sources of drafts: how each fares, and how often they are right at the same places."
    parser = Parser(prog="python -m estimators.acceptance together", description=about)
    help_ = "one SpecDecode-Bench file, or two Spec-Bench answer files (JSONL, also gzipped)"
    parser.add_argument("file", nargs="+", type=Path, metavar="FILE", help=help_)
    help_ = "look at so many positions of an answer at most (default 512; SpecDecode-Bench)"
    parser.add_argument("--most-tokens", type=whole(LEAST_ROUNDS, 1_000_000), default=512, help=help_)
    parser.add_argument("--seed", type=whole(0, MAX_SEED), default=0)
    given = parser.parse_args(arguments)
    if len(given.file) > 2:
        raise InputError(f"given {len(given.file)} files, allowed: 1 of SpecDecode-Bench, or 2 of Spec-Bench")
    return given


def main(arguments: Sequence[str] | None = None) -> None:
    """Print both sources' figures, the correlation of their fates, and what it implies."""
    given = parse(arguments)
    first, second = read(given.file, given.most_tokens)
    columns = figures(first), figures(second)
    names = list(dict.fromkeys([*columns[0], *columns[1]]))
    lines = [[name, *(f"{c[name]:.3f}" if name in c else "-" for c in columns)] for name in names]
    print(table(["figure", first.name, second.name], lines))
    shift, pairs = aligned(first, second, SHIFTS if len(given.file) == 2 else (0,))
    phi, *shares = joint(pairs)
    low, high = interval(pairs, given.seed)
    places = sum(len(x) for x, _ in pairs)
    print(
        f"\n{len(pairs)} answers of {len(first.fates)} that both wrote alike, {places} places, {first.name} begins {shift} later"
    )
    print(
        f"accepted {shares[0]:.3f} and {shares[1]:.3f}; correlation at the same place {phi:.3f} ({low:.3f} to {high:.3f})"
    )
    for spread in SPREADS:
        a, b = (process_like([pair[side] for pair in pairs], spread, given.seed) for side in (0, 1))
        ends = ", ".join(f"{implied(a, b, value, given.seed):.2f}" for value in (low, phi, high))
        print(f"correlation of draws that gives it, where requests and drift spread by {spread:g}: {ends}")
