"""Lengths learned by trial: scores by hand, the regression against its closed form, the optimum of a toy problem."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from tests.controllers.test_lengths import Device
from tests.controllers.test_stopping import CAP, seen
from wisp_gym.rules import bandits
from wisp_gym.rules.lengths import expected_tokens
from wisp_gym.rules.suggestions import KNOWLEDGE

INF = float("inf")
BANDITS = ("specstop", "banditspec")


def with_record(name: str, c: float, rounds: list[tuple[int, float, float]]) -> Device:
    """A device that has had rounds of (length, tokens, seconds)."""
    device = Device(name, c, 1, 2)
    for k, tokens, seconds in rounds:
        device.memory[bandits.CHOSEN] = k
        bandits.bandit_learns(device.memory, k, tokens, seconds, name == "specstop")
    return device


@pytest.mark.parametrize("name", BANDITS)
def test_every_length_is_tried_once_first(name: str) -> None:
    device = Device(name, 0.1, 2, 5)
    tried = []
    for _ in range(4):
        tried.append(device.length(seen()))
        device.learn(tried[-1], 1)
    assert tried == [2, 3, 4, 5]


def test_a_ratio_of_means_is_not_a_mean_of_ratios() -> None:
    """Length 1: 2 tokens in 1 s, twice. Length 2: 1 in 0.25 s and 3 in 3 s.

    Means of the rates are 2 and (4 + 1)/2 = 2.5; the ratios of the means are 2 and 4/3.25 = 1.23 tokens/s, what counts.
    """
    rounds = [(1, 2, 1.0), (1, 2, 1.0), (2, 1, 0.25), (2, 3, 3.0)]
    assert with_record("specstop", 0.0, rounds).length(seen()) == 1
    assert with_record("banditspec", 0.0, rounds).length(seen()) == 2


def test_scores_by_hand() -> None:
    rounds = [(1, 2, 1.0)] * 3 + [(2, 2, 1.0)]
    # t = 4: √(2 ln 4 / 3) = 0.9613, √(2 ln 4 / 1) = 1.6651
    m = with_record("specstop", 0.0, rounds).memory
    assert bandits.specstop_score(m, 1, 1.0) == pytest.approx(2.9613, abs=1e-4)
    assert bandits.specstop_score(m, 2, 0.5) == pytest.approx(2 + 1.6651, abs=1e-4)
    m = with_record("banditspec", 0.0, rounds).memory
    assert bandits.rate_of_all(m, 1, 2) == pytest.approx(2.0)
    assert bandits.banditspec_score(m, 1, 0.5, 2.0) == pytest.approx(2 + 0.9613, abs=1e-4)
    assert bandits.banditspec_score(m, 2, 0.5, 2.0) == pytest.approx(2 + 1.6651, abs=1e-4)


@pytest.mark.parametrize("name", BANDITS)
def test_of_equal_lengths_the_one_tried_less_is_chosen(name: str) -> None:
    rounds = [(1, 2, 1.0)] * 3 + [(2, 2, 1.0)]
    assert with_record(name, 0.5, rounds).length(seen()) == 2
    assert with_record(name, 0.0, rounds).length(seen()) == 1  # no bonus: the shorter of equals


@pytest.mark.parametrize("name", [*BANDITS, "contextual"])
def test_a_round_cut_short_teaches_nothing(name: str) -> None:
    device = Device(name, 0.1, 1, INF)
    chosen = device.length(seen(draft_time=0.1, acceptance_average=0.5))
    before = device.memory.copy()
    device.learn(chosen - 1, 0)
    np.testing.assert_array_equal(device.memory, before)
    device.learn(chosen, 0)
    assert (device.memory != before).any()


def test_the_recursive_regression_is_the_ridge_regression() -> None:
    """θ = θ₀ + (XᵀX + ridge·1)⁻¹·Xᵀ(y − X·θ₀), for tokens and for time."""
    rng, device = np.random.default_rng(0), Device("contextual", 0.5, 2.0, INF)
    first, seen_, tokens, times = None, [], [], []
    for _ in range(60):
        names = ("acceptance_average", "draft_time", "one_way_delay", "jitter", "utilisation", "boundary_left")
        row = seen(server_busy=1, batch_time=0.5, **{name: rng.uniform(0.1, 0.9) for name in names})
        k = device.length(row)
        if first is None:
            first = device.memory.copy()
        seen_.append(device.memory[bandits.SEEN_AT : bandits.SEEN_AT + bandits.FEATURES].copy())
        tokens.append(rng.integers(0, k + 1) + 1)
        times.append(rng.uniform(1.0, 3.0))
        device.learn(k, tokens[-1] - 1, times[-1] * 0.05, row)  # T = 0.05 s
    x = np.array(seen_)
    inverse = np.linalg.inv(x.T @ x + 2.0 * np.eye(bandits.FEATURES))
    for at, y in ((bandits.TOKENS_AT, tokens), (bandits.SECONDS_AT, times)):
        start = first[at : at + bandits.FEATURES]
        expected = start + inverse @ x.T @ (np.array(y) - x @ start)
        np.testing.assert_allclose(device.memory[at : at + bandits.FEATURES], expected, rtol=1e-8, atol=1e-8)
    kept = device.memory[bandits.INVERSE_AT : bandits.INVERSE_AT + bandits.FEATURES**2]
    np.testing.assert_allclose(kept.reshape(bandits.FEATURES, -1), inverse, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("c", "ridge", "expected"), [(0.0, 1.0, 1), (3.0, 1.0, 0), (3.0, 100.0, 1)])
def test_the_first_contextual_length_by_hand(c: float, ridge: float, expected: int) -> None:
    """α = 1/2, a token takes 0.4 batches, an idle server, no delay; lengths 0 and 1 of a cap of 12.

    Tokens and batches foreseen: 1/1 = 1 and 1.5/1.4 = 1.071. √(xᵀx): √(1 + 1/16) = 1.031 and
    √(1 + 1/144 + 1.5²/16 + 0.16) = 1.144; three of them: 4.092/1 and 4.931/1.4 = 3.522; with a tenth: 1.309 and 1.843/1.4 = 1.317.
    """
    device = Device("contextual", c, ridge, 1)
    assert device.length(seen(acceptance_average=0.5, draft_time=0.4)) == expected


@pytest.mark.parametrize(("name", "c"), [("specstop", 0.03), ("banditspec", 0.1), ("contextual", 0.3)])
def test_they_find_the_best_length_of_a_toy_problem(name: str, c: float) -> None:
    """Acceptances are independent (0.7), a round lasts 1 + 0.15·k batches: the rate is best at k = 3.

    The regression starts misled: a token seems to take a twentieth of a batch, for which 6 would be best.
    """
    rng, device = np.random.default_rng(1), Device(name, c, 1, INF)
    row, chosen = seen(acceptance_average=0.7, draft_time=0.05, batch_time=1.0), []
    for _ in range(3000):
        k = device.length(row)
        accepted = min(int(np.log(rng.random()) / np.log(0.7)), k)
        device.learn(k, accepted, 0.1 * (1 + 0.15 * k), row)
        chosen.append(k)
    rates = [expected_tokens(0.7, k) / (1 + 0.15 * k) for k in range(CAP + 1)]
    assert int(np.argmax(rates)) == 3
    assert np.mean([rates[k] for k in chosen[-1000:]]) > 0.97 * max(rates)
    assert abs(Counter(chosen[-1000:]).most_common(1)[0][0] - 3) <= 1


def test_a_memory_holds_the_longest_length_and_the_regression() -> None:
    assert bandits.MEMORY >= bandits.ARMS + 33 * bandits.ARM
    assert bandits.MEMORY >= bandits.INVERSE_AT + bandits.FEATURES**2
    assert bandits.MEMORY >= KNOWLEDGE
