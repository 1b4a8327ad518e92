"""Learning a choice of the whole controller: cases, outcomes, portfolio, fit."""

import json
from pathlib import Path

import numpy as np
import pytest

from agents.choosing import outcomes
from agents.choosing.__main__ import learn, report
from agents.choosing.candidates import ATTAINMENT, GOODPUT
from agents.choosing.candidates import CANDIDATES as BY_GOAL
from agents.choosing.cases import ELSEWHERE, case, estimator
from agents.choosing.fit import ALLOWED, Hyperparameters, fit, held_out, portfolio, reached, shares
from agents.choosing.outcomes import Outcomes, gather, read, table
from wisp_gym.controllers.choice import load_choice, needs
from wisp_gym.controllers.deployment import NAMES
from wisp_gym.controllers.resolve import resolve
from wisp_gym.errors import InputError
from wisp_gym.evaluation.outcomes import Outcome
from wisp_gym.scenario import load

CANDIDATES = BY_GOAL[GOODPUT]
QUICK = Hyperparameters(controllers=4, members=3, hidden=6, steps=150)


def made_up(cases: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Numbers, and shares of which one hangs on the first number: two candidates are best on either side of 0."""
    rng = np.random.default_rng(seed)
    numbers = rng.normal(size=(cases, len(NAMES)))
    value = np.full((cases, len(CANDIDATES)), 0.7)
    value[:, 5], value[:, 11] = np.where(numbers[:, 0] > 0, [[1.0], [0.8]], [[0.8], [1.0]])
    return numbers, value


@pytest.mark.parametrize("number", [0, 17, 140, ELSEWHERE, ELSEWHERE + 23])
def test_a_case_is_the_same_each_time_and_some_candidates_can_run_in_it(number: int) -> None:
    scenario = case(number)
    assert scenario == case(number) != case(number + 1)
    assert 6 <= scenario.n_devices <= 400
    resolve(CANDIDATES[0], scenario)


def test_cases_reach_along_every_axis() -> None:
    found = [case(number) for number in range(60)]
    assert len({s.name for s in found}) >= 5
    spread = {
        "devices": [s.n_devices for s in found], "prompts": [s.workload.prompt.median_tokens for s in found],
        "delays": [s.devices[0].link.one_way_s for s in found], "speeds": [s.slo[0].speed_tokens_per_s for s in found],
        "arithmetic": [s.verification.token_s / s.verification.weights_s for s in found],
    }  # fmt: skip
    for name, values in spread.items():
        assert max(values) > 4.0 * min(values), name


def test_the_estimator_of_a_preset_is_about_its_own() -> None:
    """The line is fitted to the roofline as the presets' lines are: within a fifth where batches are usual."""
    scenario = load("wisp-a100-qwen3-32b")
    found = estimator(scenario, scenario.verification.token_s, scenario.verification.weights_s)
    own = scenario.estimator
    for tokens in (50.0, 150.0, 300.0):
        ours = found["estimator.launch_s"] + tokens * found["estimator.new_token_s"]
        assert ours == pytest.approx(own.launch_s + tokens * own.new_token_s, rel=0.2)


@pytest.mark.parametrize("goal", BY_GOAL)
def test_candidates_are_names_each_once_and_the_first_needs_no_draft(goal: str) -> None:
    assert len(set(BY_GOAL[goal])) == len(BY_GOAL[goal])
    assert not needs(BY_GOAL[goal][0])
    for name in BY_GOAL[goal]:
        resolve(name.format(own=0, head=1), load("wisp-a100-qwen3-32b"))


def test_starvation_costs_and_what_is_not_allowed_is_worth_nothing() -> None:
    goodput, starved = np.full((1, len(CANDIDATES)), 90.0), np.zeros((1, len(CANDIDATES)))
    goodput[0, 1], starved[0, 1], goodput[0, 2] = 100.0, 0.05, np.nan
    outcome = Outcomes(CANDIDATES, np.array([0]), goodput, starved, goodput[:, ::-1])
    value = shares(outcome)[0]
    assert value[2] == 0.0
    assert value[0] == 1.0
    assert value[1] == pytest.approx(100.0 * (1.0 - 5.0 * (0.05 - ALLOWED)) / 90.0)
    attained = shares(outcome, ATTAINMENT)[0]
    assert attained[-2] == 1.0  # the most within their SLO, where the most tokens are another's
    assert attained[-3] == 0.0


def test_a_portfolio_takes_what_helps_most_and_begins_with_one_that_always_runs() -> None:
    _, value = made_up(40)
    chosen = portfolio(value, CANDIDATES, 3)
    assert chosen[:2] == [5, 11]
    assert not needs(CANDIDATES[chosen[0]])
    assert portfolio(value, CANDIDATES, 2) == chosen[:2]


def test_a_fit_tells_the_cases_apart_that_it_did_not_see() -> None:
    numbers, value = made_up(160)
    choice = fit(numbers, value, CANDIDATES, settings=QUICK, command="test")
    fresh, truth = made_up(200, seed=1)
    assert reached(choice, fresh, truth, CANDIDATES).mean() > 0.97 > truth.mean(0).max()
    ours, single = held_out(numbers, value, CANDIDATES, folds=3, settings=QUICK)
    assert ours.mean() > single.mean() + 0.05
    assert "the choice" in report(value, np.stack([ours, single]), GOODPUT, CANDIDATES[0])


def test_the_same_seed_fits_the_same_choice() -> None:
    numbers, value = made_up(30)
    one, other = (fit(numbers, value, CANDIDATES, seed=4, settings=QUICK) for _ in range(2))
    assert all(
        np.array_equal(a, b) for x, y in zip(one.layers, other.layers, strict=True) for a, b in zip(x, y, strict=True)
    )


def line(number: int) -> outcomes.Line:
    """A made-up line."""
    return {
        "case": number,
        "worlds": outcomes.WORLDS,
        "found": {name: [50.0 + number, 0.0, 0.9] for name in CANDIDATES[:3]},
    }


def test_gathering_goes_on_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(outcomes, "outcome", lambda number, _: asked.append(number) or line(number))
    file = tmp_path / "outcomes.jsonl"
    gather([0, 1, 2], GOODPUT, file)
    whole = file.read_text()
    *before, last = whole.splitlines(keepends=True)
    file.write_text("".join(before) + last[:20])  # cut short
    gather([0, 1, 2], GOODPUT, file)
    assert file.read_text() == whole
    assert asked == [0, 1, 2, 2]
    found = table(read(file, CANDIDATES), CANDIDATES)
    assert found.goodput[:, 0].tolist() == [50.0, 51.0, 52.0]
    assert np.isnan(found.goodput[:, 3]).all()
    assert found.attained[:, 0].tolist() == [0.9] * 3


def test_who_is_asked_for_nothing_misses_nothing() -> None:
    metrics = {"goodput_tokens_per_s": 3.0, "starved_share": 0.25, "slo_attainment": None}
    assert outcomes.measures(Outcome(metrics, [])) == [3.0, 0.25, 1.0]


def test_outcomes_of_something_else_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "outcomes.jsonl"
    file.write_text('{"case": 0, "worlds": 9, "found": {}}\n' + json.dumps(line(1)) + "\n")
    with pytest.raises(InputError, match="line 1"):
        read(file, CANDIDATES)


@pytest.mark.parametrize("goal", BY_GOAL)
def test_what_is_learned_is_a_controller(goal: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng, candidates = np.random.default_rng(0), BY_GOAL[goal]
    reached = rng.uniform(0.8, 1.0, (16, len(candidates)))
    learn(Outcomes(candidates, np.arange(16), reached, np.zeros_like(reached), reached), goal, tmp_path, 0)
    assert f"share of the best candidate's {goal}, 16 cases" in capsys.readouterr().out
    scenario = case(3)
    assert load_choice(tmp_path).choose(scenario) in {name.format(own=0, head=1) for name in candidates}
    assert resolve(str(tmp_path / "choice.json"), scenario).name.endswith("choice.json")
