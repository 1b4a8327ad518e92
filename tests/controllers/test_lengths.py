"""Lengths in closed form and by moving averages: cases by hand, optimality, what must not lengthen a draft."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.controllers.test_stopping import CAP, INF, rows_at_random, seen
from wisp_gym.engine.state import PARAMETERS
from wisp_gym.rules import speculation as s
from wisp_gym.rules.adaptation import AVERAGE, OFFSET, ladder_index
from wisp_gym.rules.bandits import MEMORY
from wisp_gym.rules.catalogue import SPECULATION
from wisp_gym.rules.controller import NO_POLICY
from wisp_gym.rules.lengths import best_length, expected_tokens, ratio_optimal

alphas, times, fixed_times = st.floats(0.02, 0.98), st.floats(0.01, 3.0), st.floats(0.1, 10.0)


class Device:
    """A rule with a device's memory."""

    def __init__(self, name: str, *parameters: float):
        self.kind, self.memory, self.parameters = SPECULATION[name].kind, np.zeros(MEMORY), np.zeros(PARAMETERS)
        self.parameters[: len(parameters)] = parameters

    def length(self, row: np.ndarray) -> int:
        """Tokens to draft."""
        return int(s.choose_length(self.kind, self.parameters, NO_POLICY, self.memory, CAP, row))

    def learn(self, drafted: int, accepted: int, round_s: float = 0.1, row: np.ndarray | None = None) -> None:
        """A round's reply."""
        o = seen(batch_time=1.0) if row is None else row
        s.learn(self.kind, self.parameters, self.memory, o, drafted, accepted, accepted + 1, round_s)


# half of the tokens are accepted, a token takes a tenth of a batch
HALF = {"acceptance_average": 0.5, "draft_time": 0.1}


def test_expected_tokens_of_a_geometric_run() -> None:
    assert expected_tokens(0.5, 0) == 1.0
    assert expected_tokens(0.5, 2) == 1.75  # 1 + 1/2 + 1/4


def test_the_best_length_by_hand() -> None:
    # 1/1, 1.5/1.1 = 1.364, 1.75/1.2 = 1.458, 1.875/1.3 = 1.442
    assert best_length(0.5, 0.1, 1.0, CAP) == 2
    # 0.1·(1/0.5 − 0) = 0.2, 0.1·(3/0.5 − 1) = 0.5, 0.1·(7/0.5 − 2) = 1.2 ≥ 1
    assert ratio_optimal(0.5, 0.1, 1.0, CAP) == 2
    assert Device("ratio", INF).length(seen(**HALF)) == 2
    assert Device("ratio", 1).length(seen(**HALF)) == 1
    # a round trip of one batch: fixed 2 → 1.75/2.2 = 0.795, 1.875/2.3 = 0.815, 1.9375/2.4 = 0.807
    assert Device("ratio", INF).length(seen(**HALF, one_way_delay=0.5)) == 3
    # half a batch of waiting, where the server is always busy: 1.75/1.7 = 1.029, 1.875/1.8 = 1.042, 1.9375/1.9 = 1.020
    assert Device("leviathan", 0.5, INF).length(seen(**HALF, utilisation=1.0)) == 3
    assert Device("leviathan", 0.5, INF).length(seen(**HALF)) == 2


@settings(max_examples=300, deadline=None)
@given(alphas, times, fixed_times)
def test_the_closed_form_is_the_maximum(alpha: float, draft: float, fixed: float) -> None:
    def rate(k: int) -> float:
        return float(expected_tokens(alpha, k) / (k * draft + fixed))

    found = ratio_optimal(alpha, draft, fixed, 32)
    assert rate(found) == pytest.approx(max(rate(k) for k in range(33)), rel=1e-12)
    assert rate(best_length(alpha, draft, fixed, 32)) == pytest.approx(rate(found), rel=1e-12)


@settings(max_examples=200, deadline=None)
@given(alphas, times, fixed_times, st.floats(1.0, 3.0))
def test_slow_drafting_shortens_and_a_dear_round_lengthens(
    alpha: float, draft: float, fixed: float, more: float
) -> None:
    k = ratio_optimal(alpha, draft, fixed, 32)
    assert ratio_optimal(alpha, draft * more, fixed, 32) <= k <= ratio_optimal(alpha, draft, fixed * more, 32)


def test_the_optimal_length_grows_with_the_logarithm_of_the_delay() -> None:
    """arXiv 2606.20591: a thousandfold delay adds about ln 1000 / ln(1/α) tokens."""
    near, far = (ratio_optimal(0.5, 0.1, fixed, 64) for fixed in (10.0, 10_000.0))
    assert far - near == pytest.approx(math.log(1000) / math.log(2), abs=1)


def test_awc_smooths_the_window() -> None:
    device = Device("awc", 0.4, INF)
    assert device.length(seen(**HALF)) == 2
    # the queue rose from 0 to 0.5 and is taken to rise on: fixed 2 → 3; 0.6·2 + 0.4·3 = 2.4
    assert device.length(seen(**HALF, queue_work=0.5)) == 2
    assert device.memory[AVERAGE] == pytest.approx(2.4)
    # no trend any more: fixed 1.5 → 3; 0.6·2.4 + 0.4·3 = 2.64
    assert device.length(seen(**HALF, queue_work=0.5)) == 3


def test_adaedl_moves_its_threshold_towards_the_target() -> None:
    device = Device("adaedl", 0.2, 0.4, 0.6, 0.01, INF)
    device.learn(4, 2)  # half accepted, below the target: 0.9·0.4 + 0.1·0.41
    assert device.memory[OFFSET] == pytest.approx(0.001)
    device.learn(4, 4)  # ½·0.5 + ½·1 = 0.75, above it
    assert device.memory[OFFSET] == pytest.approx(0.0)
    device.learn(0, 0)  # nothing was examined
    assert device.memory[AVERAGE] == 0.75
    for _ in range(2000):
        device.learn(4, 4)
    assert device.memory[OFFSET] == pytest.approx(-0.4)  # λ stays within [0, 1]


SGLANG = (1, 3, 7, 0.2, -0.25, 0.0, 5, 10)


@pytest.mark.parametrize(("accepted", "step"), [(3, 7), (0, 1), (1, 3)])
def test_sglang_climbs_its_ladder_after_fifteen_rounds(accepted: int, step: int) -> None:
    """From 2, fifteen rounds of a accepted tokens: a + (2 − a)·0.8¹⁵ (0.035).

    3: 2.965 > 3 − 0.5, up. 0: 0.07 ≤ 1 − 0.5 − 0.25, down. 1: 1.035 is above 0.25 and not above 2.5.
    """
    device = Device("sglang", *SGLANG)
    for _ in range(14):
        device.learn(3, accepted)
        assert device.length(seen()) == 3
    device.learn(3, accepted)
    assert device.length(seen()) == step


def test_a_step_of_zero_is_left_by_a_probe() -> None:
    ladder = np.array([0.0, 1.0, 3.0])
    assert ladder_index(ladder, 3, 0, 9.0, -0.25, 0.0) == 1
    assert ladder_index(ladder, 3, 1, 0.2, -0.25, 0.0) == 0  # 0.2 ≤ 1 − 0.5 − 0.25
    assert ladder_index(ladder, 3, 2, 0.2, -0.25, 0.0) == 0  # and from the top in one walk


@pytest.mark.parametrize("name", [name for name, rule in SPECULATION.items() if rule.kind >= s.POLICY_LENGTH])
def test_lengths_lie_within_the_cap(name: str) -> None:
    device = Device(name, *(setting.default for setting in SPECULATION[name].settings))
    for row in rows_at_random(300):
        assert 0 <= device.length(row) <= CAP
