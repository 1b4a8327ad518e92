"""Two sources of drafts at the same places: rounds by hand, rows laid side by side, what a correlation implies."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from estimators.acceptance import together
from estimators.acceptance.fit import World, fates
from estimators.acceptance.pairs import PAIRS
from estimators.acceptance.process import Process
from wisp_gym import cli

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data" / "C_accept"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the public tables are not beside this checkout")
EASY, HARD = Process(1.0, 0.5, 0.5, 80.0, 0.5), Process(0.2, 0.5, 0.5, 80.0, 1.5)


def runs_of(accepted: np.ndarray) -> list[int]:
    """Tokens that a round from each place would commit."""
    run = [0]
    for fate in accepted[::-1]:
        run.append(run[-1] + 1 if fate else 0)
    return [length + 1 for length in run[:0:-1]]


def both(correlation: float, answers: int = 300, places: int = 120) -> tuple[np.ndarray, np.ndarray]:
    """Fates of two processes that share so much, shape (places, answers)."""
    ours, theirs = (World.draw(answers, places, seed) for seed in (10, 11))
    return fates(EASY, ours), fates(HARD, together.mixed(theirs, ours, correlation, 12))


def every_place(path: Path, correlation: float) -> Path:
    """A file as SpecDecode-Bench has them."""
    x, y = both(correlation)
    rows = [{"eagle": runs_of(a), "ngram": runs_of(b)} for a, b in zip(x.T, y.T, strict=True)]
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    return path


def answers_file(path: Path, accepted: np.ndarray, start: int, drafts: int) -> Path:
    """A file as Spec-Bench has them: two turns a question, rounds from place `start` on."""
    lines = []
    for question in range(accepted.shape[1] // 2):
        turns = []
        for column in (2 * question, 2 * question + 1):
            run, n, steps = runs_of(accepted[:, column]), start, []
            while n < len(run):
                steps.append(min(run[n], drafts + 1, len(run) - n))
                n += steps[-1]
            turns.append(steps)
        choice = {"decoding_steps": list(map(len, turns)), "accept_lengths": [c for turn in turns for c in turn]}
        lines.append(json.dumps({"question_id": question, "choices": [choice]}))
    path.write_text("\n".join(lines))
    return path


def test_a_replay_by_hand() -> None:
    """Places 0 … 7 accept 2, 1, 0, 3, 2, 1, 0, 1: rounds of two drafts commit 3, 3 and then do not fit any more."""
    run = np.array([2, 1, 0, 3, 2, 1, 0, 1])
    assert together.replay(run, 2).tolist() == [2, 2, 0]
    assert together.replay(run, 8).tolist() == [2]


def test_fates_of_steps_by_hand() -> None:
    """Steps that commit 3, 1 and, full, 4; the last, 2, may be cut: after those two nobody asked about the next place."""
    rows = together.by_steps(Path("a.jsonl"), {(1, 0): [3, 1, 4, 2]})
    assert np.array_equal(rows.fates[0], [1, 1, 0, 0, 1, 1, 1, np.nan, 1, np.nan], equal_nan=True)
    assert (rows.rounds[0].tolist(), rows.tokens) == ([2, 0, 3, 1], [10])


def test_a_mixture_has_the_law_of_its_own_and_shares_as_much_as_is_said() -> None:
    ours, theirs = (World.draw(3000, 64, seed) for seed in (0, 1))
    for correlation in (0.0, 0.4, 1.0):
        mixed = together.mixed(theirs, ours, correlation, 2)
        assert np.corrcoef(mixed.request, ours.request)[0, 1] == pytest.approx(correlation, abs=0.05)
        assert (mixed.logistic == ours.logistic).mean() == pytest.approx(correlation, abs=0.01)
        assert mixed.request.std() == pytest.approx(1.0, abs=0.05)
        assert mixed.innovation.std() == pytest.approx(1.0, abs=0.01)
    assert np.array_equal(fates(HARD, together.mixed(theirs, ours, 1.0, 2)), fates(HARD, ours))


@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.7, 1.0])
def test_the_correlation_of_draws_is_found_again(tmp_path: Path, correlation: float) -> None:
    first, second = together.read([every_place(tmp_path / "a.jsonl.gz", correlation)], 1000)
    _, pairs = together.aligned(first, second, (0,))
    assert len(pairs) == 300
    phi, *shares = together.joint(pairs)
    assert shares == pytest.approx([fates_.mean() for fates_ in both(correlation)])
    likes = [together.process_like([pair[side] for pair in pairs], 0.5, 0) for side in (0, 1)]
    assert together.implied(*likes, phi, 0) == pytest.approx(correlation, abs=0.08)


@pytest.mark.parametrize("spread", together.SPREADS)
def test_a_process_is_like_what_it_is_made_of(spread: float) -> None:
    accepted = fates(Process(0.8, spread, spread, together.DRIFT_TOKENS, 1.2), World.draw(2000, 120, 5))
    found = together.process_like(list(accepted.T.astype(float)), spread, 0)
    assert (found.logit_mean, found.after_rejection_logit) == pytest.approx((0.8, 1.2), abs=0.15)


def test_rows_that_begin_later_are_laid_side_by_side(tmp_path: Path) -> None:
    x, y = both(0.8)
    files = [answers_file(tmp_path / "head.jsonl", x, 1, 5), answers_file(tmp_path / "model.jsonl", y, 0, 20)]
    first, second = together.read(files, 1000)
    assert (first.name, second.name) == ("head", "model")
    shift, pairs = together.aligned(first, second)
    assert (shift, len(pairs)) == (1, 300)
    for (a, b), left, right in zip(pairs, x.T, y.T, strict=True):
        for got, wanted in ((a, left[1:]), (b, right[1:])):
            known = np.isfinite(got)
            assert np.array_equal(got[known], wanted[: len(got)][known])


def test_answers_that_went_different_ways_are_left_out() -> None:
    same, longer, shorter = (together.by_steps(Path("x"), {(0, 0): steps}) for steps in ([1] * 40, [1] * 44, [1] * 10))
    assert len(together.alike(same, same, 0)) == 1
    assert together.alike(same, longer, 0) == []
    assert together.alike(shorter, shorter, 0) == []  # too few places


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "RESAMPLES", 20)
    assert cli.run(together.main, "program", [str(every_place(tmp_path / "a.jsonl.gz", 0.5))]) == 0
    said = capsys.readouterr().out
    assert "300 answers of 300 that both wrote alike" in said
    assert said.count("correlation of draws that gives it") == len(together.SPREADS)


@pytest.mark.parametrize(
    ("content", "files", "message"),
    [
        ("{", 1, "cannot read"),
        ('{"eagle": [1]}', 1, "each line needs the lists 'eagle' and 'ngram'"),
        ('{"eagle": [1, 2], "ngram": [1, 1]}', 1, "no answer of equal length"),
        ('{"eagle": [1], "ngram": [1]}', 2, "no Spec-Bench answers"),
        ("", 2, "no answers"),
        ("{}", 3, "given 3 files"),
    ],
)
def test_wrong_input_is_one_line(
    tmp_path: Path, content: str, files: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    assert cli.run(together.main, "program", [str(path)] * files) == cli.BAD_INPUT
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


@needs_shared
@pytest.mark.parametrize(
    ("file", "pair", "phi"), [("sharegpt", "ngram--llama-3.1-8b", 0.227), ("gsm8k", "ngram--llama-3.1-8b-math", 0.161)]
)
def test_what_is_written_down_of_the_public_rows_comes_back(file: str, pair: str, phi: float) -> None:
    first, second = together.read([SHARED / f"specdecode_bench_{file}.jsonl.gz"], 512)
    got, wanted = together.figures(second), PAIRS[pair]
    assert [got[f"P(accepted >= {i})"] for i in range(1, 9)] == pytest.approx(wanted.survival, abs=6e-4)
    for lag, value in wanted.autocorrelation.items():
        assert got[f"correlation, lag {lag}"] == pytest.approx(value, abs=6e-4)
    assert got["spread of responses"] == pytest.approx(wanted.between_cv, abs=6e-3)
    assert together.joint(together.aligned(first, second, (0,))[1])[0] == pytest.approx(phi, abs=6e-4)
