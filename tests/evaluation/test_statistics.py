"""Aggregates over worlds and cells: worked numbers, the published definitions, paired intervals."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import trim_mean

from wisp_gym.evaluation.statistics import (
    interval,
    iqm,
    middle_mean,
    performance_profile,
    probability_of_improvement,
    profile_interval,
    resampled_improvement,
    resampled_iqm,
    strata,
)

X = np.array([[1.0, 4, 2], [3, 6, 2], [5, 7, 9], [2, 8, 3], [7, 1, 4]])
Y = np.array([[2.0, 3, 2], [3, 5, 1], [4, 9, 9], [1, 8, 2], [6, 2, 5]])


def test_interquartile_mean_is_that_of_the_middle_half() -> None:
    assert iqm(np.array([[8.0, 1, 3, 6], [5, 7, 2, 4]])) == 4.5  # 3, 4, 5, 6 remain
    assert iqm(np.array([[1.0], [2], [3], [1000]])) == 2.5


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 8, 19, 100, 1003])
def test_the_mean_of_the_middle_half_is_scipys_to_the_last_bit(size: int) -> None:
    rng = np.random.default_rng(size)
    for values in (
        rng.normal(size=(50, size)) * 10.0 ** rng.integers(-9, 9, (50, size)),
        rng.integers(0, 3, (50, size)) / 3.0,
    ):
        assert middle_mean(values).tobytes() == np.asarray(trim_mean(values, 0.25, axis=1)).tobytes()
        assert iqm(values) == trim_mean(values, 0.25, axis=None)
        drawn = np.stack([values, values[::-1]], axis=2)[:, :, 0]  # strided, as a study's cells are
        assert middle_mean(drawn).tobytes() == np.asarray(trim_mean(drawn, 0.25, axis=1)).tobytes()


def test_worked_numbers_of_rliable() -> None:
    # rliable 1.2.0: metrics.aggregate_iqm and metrics.probability_of_improvement of these arrays
    assert iqm(X) == pytest.approx(4.0, abs=1e-12)
    assert iqm(Y) == pytest.approx(3.5555555555555554, abs=1e-12)
    assert probability_of_improvement(X, Y) == pytest.approx(0.5266666666666667, abs=1e-12)


def test_probability_of_improvement_by_hand() -> None:
    # 1 against 1, 3: ½ and 0; 2 against 1, 3: 1 and 0
    assert probability_of_improvement(np.array([[1.0], [2]]), np.array([[1.0], [3]])) == 0.375
    assert probability_of_improvement(X, X) == 0.5
    assert probability_of_improvement(X, Y) + probability_of_improvement(Y, X) == pytest.approx(1.0)


def test_performance_profile_counts_worlds_above_a_threshold() -> None:
    scores = np.array([[0.5, 1.0], [1.0, 2.0]])
    np.testing.assert_allclose(performance_profile(scores, np.array([0.0, 0.5, 1.0, 2.0])), [1.0, 0.75, 0.25, 0.0])


def test_the_interval_of_a_profile_is_that_of_resampled_profiles() -> None:
    thresholds = np.array([0.0, 2.5, 4.5, 10.0])
    low, high = profile_interval(X, thresholds)
    drawn = [np.take_along_axis(X, sample, axis=0) for sample in strata(*X.shape)]
    profiles = np.array([performance_profile(sample, thresholds) for sample in drawn])
    np.testing.assert_allclose((low, high), np.quantile(profiles, [0.025, 0.975], axis=0), atol=1e-12)
    assert (low[0], high[0], low[-1], high[-1]) == (1.0, 1.0, 0.0, 0.0)
    assert low[1] < performance_profile(X, thresholds)[1] < high[1]


def test_resamples_are_stratified_and_paired() -> None:
    drawn = strata(5, 3)
    assert drawn.shape[1:] == (5, 3)
    assert (drawn[:, :, 0] != drawn[:, :, 1]).any(), "each cell draws worlds of its own"
    constant = np.tile([1.0, 2.0, 3.0, 4.0], (5, 1))  # cells differ, worlds do not: nothing to resample
    assert np.ptp(resampled_iqm(constant)) == 0.0
    # the same worlds for both: a constant lead has no interval, however much the worlds differ
    noisy = np.random.default_rng(1).normal(size=(20, 4)) * 10.0
    np.testing.assert_allclose(interval(resampled_iqm(noisy + 1.0) - resampled_iqm(noisy)), (1.0, 1.0))
    assert np.ptp(interval(resampled_iqm(noisy))) > 1.0


def test_a_resampled_improvement_is_that_of_the_drawn_worlds() -> None:
    first = np.take_along_axis(X, strata(*X.shape)[0], axis=0), np.take_along_axis(Y, strata(*X.shape)[0], axis=0)
    assert resampled_improvement(X, Y)[0] == pytest.approx(probability_of_improvement(*first))


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    # 100 studies of 20 worlds in 5 cells of normal scores, whose interquartile mean is 0
    covered = 0
    for study in range(100):
        low, high = interval(resampled_iqm(np.random.default_rng(study).normal(size=(20, 5)))[:400])
        covered += low <= 0.0 <= high
    assert 0.88 <= covered / 100 <= 0.99
