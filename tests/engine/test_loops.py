"""Loops of a text: what the process does in them, that every draft meets the same ones, and who refuses them."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest

from agents.bounds.frontier import logits
from estimators.acceptance.loops import LoopProcess
from estimators.acceptance.process import answers
from wisp_gym.engine.build import loop_acceptance, loop_share, mean_acceptance
from wisp_gym.engine.loops import entered, loop_fate, next_loop
from wisp_gym.errors import InputError
from wisp_gym.scenario import Acceptance, ScenarioError, dumps, load, loads, with_

BASE = load("wisp-a100-qwen3-32b")
HALF = Acceptance(0.0, 0.0, 0.0, 8.0, 0.0)  # a coin at each position outside of loops
KEY = np.uint64(12345)


def fates(**loop: float) -> np.ndarray:
    """2,000 answers of 130 tokens by the engine, a coin at each position outside of loops."""
    process = LoopProcess(0.0, 0.0, 0.0, 8.0, 0.0, **{"loop_more_tokens": 0.0, **loop})
    return answers(process, 0.75, 2000, 130, 1)[0]


def test_in_a_whole_loop_every_token_is_accepted() -> None:
    found = fates(loop_enter=1.0, loop_whole=1.0)
    assert (found == 1).all()


@pytest.mark.parametrize("period", [1, 2, 3, 5])
def test_in_the_others_one_token_of_each_period_is_rejected(period: int) -> None:
    found = fates(loop_enter=1.0, loop_whole=0.0, loop_period_tokens=period)
    rejected = found[:, : period * (130 // period)].reshape(len(found), -1, period).sum(axis=2)
    assert (rejected == period - 1).all()
    assert (found[:, period:] == found[:, :-period]).all()
    starts = (found[:, :period] == 0).argmax(axis=1)  # the loop begins anywhere in its period
    assert np.bincount(starts, minlength=period) / len(found) == pytest.approx(np.full(period, 1 / period), abs=0.05)


def test_periods_are_the_shortest_and_a_geometric_rest() -> None:
    periods = np.array([entered(KEY, n, 0.0, 3, 0.6)[0] for n in range(4000)])
    assert periods.min() == 3
    assert periods.mean() == pytest.approx(3 + 0.6 / 0.4, rel=0.05)
    assert np.mean(periods == 3) == pytest.approx(0.4, abs=0.03)


def test_loops_last_as_long_as_they_should() -> None:
    period = place = inside = entries = 0
    for n in range(50_000):
        before = period
        period, place = next_loop(KEY, n, 0.02, 0.1, 1.0, 1, 0.0, period, place)
        inside += period != 0
        entries += before == 0 and period != 0
    assert inside / entries == pytest.approx(10.0, rel=0.1)
    assert loop_fate(-3, 0) == 1
    assert (loop_fate(3, 0), loop_fate(3, 2)) == (0, 1)


def test_the_mean_acceptance_counts_loops() -> None:
    loop = {"loop_enter": 0.02, "loop_leave": 0.03, "loop_whole": 0.4, "loop_period_tokens": 3, "loop_more_tokens": 0.8}
    process = replace(HALF, **loop)
    assert mean_acceptance(process) == pytest.approx(fates(**loop).mean(), abs=0.01)
    assert loop_share(HALF) == 0.0
    assert loop_acceptance(replace(process, loop_more_tokens=0.0)) == pytest.approx(0.4 + 0.6 * 2 / 3)
    assert mean_acceptance(replace(HALF, loop_enter=0.0, loop_whole=0.2)) == mean_acceptance(HALF)


def test_they_are_written_and_read_and_checked() -> None:
    scenario = with_(
        BASE, **{"draft.acceptance.loop_enter": 0.01, "draft.acceptance.after_rejection_logit": -0.5}, server_drafts=[]
    )
    assert loads(dumps(scenario)) == scenario
    assert "loop" not in dumps(BASE)
    with pytest.raises(
        ScenarioError, match=r"draft\.acceptance\.loop_whole: given 1.5, allowed: a finite number >= 0 and <= 1"
    ):
        with_(BASE, **{"draft.acceptance.loop_whole": 1.5}, server_drafts=[])


def test_the_bounds_refuse_what_they_do_not_hold_for() -> None:
    for name, value, said in (("loop_enter", 0.01, "a process without loops"), ("after_rejection_logit", -0.5, ">= 0")):
        with pytest.raises(InputError, match=rf"bounds: draft\.acceptance\.{name} given .*{said}"):
            logits(with_(BASE, **{f"draft.acceptance.{name}": value}, server_drafts=[]))


def test_a_profile_keeps_the_base_presets_process() -> None:
    assert set(asdict(HALF)) == {*asdict(LoopProcess())}
