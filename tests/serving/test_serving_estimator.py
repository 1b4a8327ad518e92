"""The verification time estimator follows a server, tells drift from noise, and is stopped by nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wisp_gym.serving.estimator import DATA, TERMS, VerificationTimeEstimator

FIRST = "a100-80gb--qwen3-32b"


def batches(seed: int, n: int) -> np.ndarray:
    """(n, 3) sums of batches of 1 to 48 rounds of 1 to 8 drafts over 100 to 1,500 tokens of context, some with a prompt."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(n):
        size = rng.integers(1, 48)
        new, cached = rng.integers(2, 10, size), rng.integers(100, 1500, size)
        if rng.random() < 0.3:
            new[0], cached[0] = rng.integers(100, 512), 0
        rows.append((new.sum(), (new * (new + cached)).sum(), cached.sum()))
    return np.array(rows, dtype=np.float64)


def times(
    estimator: VerificationTimeEstimator, rows: np.ndarray, noise: float, factor: float = 1.0, seed: int = 9
) -> np.ndarray:
    """Seconds that a server of the estimator's coefficients takes, times a factor, with log-normal noise."""
    clean = np.array([estimator.predict(*row) for row in rows])
    return clean * factor * np.exp(noise * np.random.default_rng(seed).standard_normal(len(rows)))


def error(estimator: VerificationTimeEstimator, rows: np.ndarray, seconds: np.ndarray) -> float:
    """Mean absolute relative error."""
    predicted = np.array([estimator.predict(*row) for row in rows])
    return float(np.mean(np.abs(predicted / seconds - 1.0)))


@pytest.mark.parametrize("path", sorted(DATA.glob("*.json")), ids=lambda path: path.stem)
def test_without_drift_there_is_no_alarm_and_no_harm(path: Path) -> None:
    estimator, truth = VerificationTimeEstimator.load(path), VerificationTimeEstimator.load(path)
    rows = batches(1, 3_000)
    for row, seconds in zip(rows, times(truth, rows, 0.05), strict=True):
        estimator.observe(*row, seconds)
    assert estimator.observed == 3_000
    assert estimator.alarms == 0
    test = batches(2, 300)
    assert error(estimator, test, times(truth, test, 0.0)) < 0.01
    assert (estimator.coefficients >= 0.0).all()


@pytest.mark.parametrize("factor", [0.6, 1.4, 2.0])
def test_a_server_that_becomes_another_is_noticed_and_followed(factor: float) -> None:
    estimator, truth = VerificationTimeEstimator.load(FIRST), VerificationTimeEstimator.load(FIRST)
    rows = batches(3, 700)
    before, after = times(truth, rows[:400], 0.04), times(truth, rows[400:], 0.04, factor)
    for row, seconds in zip(rows[:400], before, strict=True):
        estimator.observe(*row, seconds)
    quiet = estimator.alarms
    raised = [estimator.observe(*row, seconds) for row, seconds in zip(rows[400:], after, strict=True)]
    assert estimator.alarms > quiet
    assert raised.index(True) < 6
    test = batches(4, 300)
    assert error(estimator, test, times(truth, test, 0.0, factor)) < 0.01


def test_single_stalls_are_no_drift() -> None:
    estimator, truth = VerificationTimeEstimator.load(FIRST), VerificationTimeEstimator.load(FIRST)
    rows = batches(5, 1_000)
    seconds = times(truth, rows, 0.03)
    seconds[::100] *= 20.0
    for row, s in zip(rows, seconds, strict=True):
        estimator.observe(*row, s)
    assert estimator.alarms <= 2
    test = batches(6, 300)
    assert error(estimator, test, times(truth, test, 0.0)) < 0.03


def test_batches_that_are_all_alike_do_not_unsettle_it() -> None:
    estimator, truth = VerificationTimeEstimator.load(FIRST), VerificationTimeEstimator.load(FIRST)
    rng = np.random.default_rng(0)
    for _ in range(20_000):
        estimator.observe(
            40.0, 40_000.0, 8_000.0, truth.predict(40.0, 40_000.0, 8_000.0) * np.exp(0.03 * rng.standard_normal())
        )
    assert np.isfinite(estimator.covariance).all()
    assert estimator.predict(40.0, 40_000.0, 8_000.0) == pytest.approx(truth.predict(40.0, 40_000.0, 8_000.0), rel=0.02)
    test = batches(7, 300)
    assert error(estimator, test, times(truth, test, 0.0)) < 0.5


NUMBERS = st.one_of(st.none(), st.text(max_size=2), st.floats(), st.integers(-(10**30), 10**30), st.just([]))


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS), max_size=30))
def test_nothing_that_it_observes_stops_it(observed: list[tuple[Any, Any, Any, Any]]) -> None:
    estimator = VerificationTimeEstimator.load(FIRST)
    for row in observed:
        assert estimator.observe(*row) in (True, False)
    assert estimator.observed + estimator.ignored == len(observed)
    assert 0.0 < estimator.predict(30.0, 30_000.0, 6_000.0) < 1e6
    assert np.isfinite(estimator.coefficients).all()


def test_levels_by_size_stay_while_the_terms_follow() -> None:
    first = {**dict.fromkeys(TERMS, 0.0), "launch_s": 0.03, "new_token_s": 1e-4}
    estimator = VerificationTimeEstimator(
        {**first, "sizes": [{"tokens": 8, "add_s": 0.0}, {"tokens": 64, "add_s": 0.02}]}
    )
    assert estimator.predict(64, 0, 0) == pytest.approx(0.0364 + 0.02)
    assert estimator.predict(128, 0, 0) == pytest.approx(0.0428 + 0.04)
    for tokens in np.random.default_rng(0).integers(8, 64, 2000):
        estimator.observe(tokens, 0, 0, 0.045 + 1e-4 * tokens + 0.02 * (tokens - 8) / 56)
    assert estimator.predict(36, 0, 0) == pytest.approx(0.0486 + 0.01, rel=0.01)


def test_coefficients_are_checked_once(tmp_path: Path) -> None:
    good = dict.fromkeys(TERMS, 0.001)
    with pytest.raises(ValueError, match="pair_s: given -1"):
        VerificationTimeEstimator({**good, "pair_s": -1})
    with pytest.raises(ValueError, match="all are 0"):
        VerificationTimeEstimator(dict.fromkeys(TERMS, 0.0))
    with pytest.raises(ValueError, match=r"shipped: .*a100-80gb--qwen3-32b"):
        VerificationTimeEstimator.load("a100")
    with pytest.raises(ValueError, match=r"sizes: sizes\[1\].tokens: given 4, allowed: > 8"):
        VerificationTimeEstimator({**good, "sizes": [{"tokens": 8, "add_s": 0.1}, {"tokens": 4, "add_s": 0.1}]})
    (tmp_path / "x.json").write_text("[1]")
    with pytest.raises(ValueError, match="allowed is an object"):
        VerificationTimeEstimator.load(tmp_path / "x.json")
