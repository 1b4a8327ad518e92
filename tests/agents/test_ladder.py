"""The ladder under a training's comparison."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agents.training.ladder import GOODPUT, Rung, best_of, bounds, candidates_of, ladder, looking_ahead, show_ladder
from tests.support.bundles import random_policy
from wisp_gym.cli import progress
from wisp_gym.controllers.policy import save_policy
from wisp_gym.controllers.resolve import resolve
from wisp_gym.errors import InputError
from wisp_gym.evaluation.pool import Threads
from wisp_gym.scenario import Scenario, load, with_
from wisp_gym.scenario.parts import Horizon

ROOT = Path(__file__).resolve().parents[2]


def row(name: str, goodput: float) -> dict[str, Any]:
    return {"controller": name, GOODPUT: goodput, f"{GOODPUT}_low": goodput - 1.0, f"{GOODPUT}_high": goodput + 1.0}


@pytest.fixture
def scenario() -> Scenario:
    return with_(load("wisp-a100-qwen3-32b"), n_devices=6, horizon=Horizon(2.0, 6.0, 2.0))


def test_the_best_of_several_stands_for_all_and_says_which_it_is() -> None:
    rows = [row("a", 3.0), row("b", 5.0), row("c", 4.0)]
    assert best_of("rules", rows) == Rung("rules (b)", 5.0, 4.0, 6.0)
    assert best_of("rules", rows[:1]) == Rung("rules", 3.0, 2.0, 4.0)
    assert best_of("rules", []) is None


def test_rungs_stand_in_order_and_bounds_last(scenario: Scenario) -> None:
    groups = {"low": ["a"], "high": ["b", "c"], "missing": ["d"]}
    found = ladder([row("a", 3.0), row("b", 5.0), row("c", 4.0)], groups, scenario, Rung("lookahead", 4.5, 4.0, 5.0))
    assert [rung.name for rung in found] == [
        "low", "lookahead", "high (b)", "bound, devices draft", "bound, the server drafts",
    ]  # fmt: skip
    assert [line.split("  ")[0] for line in show_ladder(found).splitlines()[3:]] == [rung.name for rung in found]


def test_bounds_need_a_warm_up_and_a_server_that_can_draft(scenario: Scenario) -> None:
    assert bounds(with_(scenario, **{"horizon.warmup_s": 0.0})) == []
    alone = bounds(replace(scenario, server_drafts=()))
    assert [rung.name for rung in alone] == ["bound, devices draft"]


@pytest.fixture
def learned(tmp_path: Path) -> str:
    """A policy as a training leaves it, with its batching rule."""
    save_policy(random_policy("token"), tmp_path / "policy.json")
    return f"{tmp_path / 'policy.json'}+fcfs"


RECORDED = {"draft.trace": str(ROOT / "traces" / "qwen2.5-coder-0.5b-1.5b.npz"), "max_draft_tokens": 8}


@pytest.mark.parametrize(
    "fields", [{"draft.acceptance.loop_enter": 0.01}, {"draft.acceptance.after_rejection_logit": -0.5}, RECORDED]
)
def test_there_is_no_bound_of_drafts_that_none_is_known_for(scenario: Scenario, fields: dict[str, Any]) -> None:
    assert bounds(with_(scenario, **fields)) == []


def test_looking_ahead_follows_the_learned_policy_beside_the_rules_of_a_choice(
    scenario: Scenario, learned: str
) -> None:
    candidates = candidates_of(learned, "controller-v2", ["wisp+fcfs", "centralized:0"], scenario)
    assert [c.name for c in candidates][1:] == [learned, "wisp+fcfs"]
    assert candidates[0].name.startswith(learned.removesuffix("fcfs"))
    with progress(2) as bar:
        found = looking_ahead(scenario, candidates, [1, 2], Threads(), bar)
    assert found is not None
    assert found.low is not None
    assert found.low <= found.goodput <= 100.0
    assert found.name == "lookahead (3 controllers, every 4 s tried 3 s ahead)"


def test_nothing_is_looked_ahead_where_the_future_repeats_the_past(scenario: Scenario, learned: str) -> None:
    recorded = with_(scenario, **RECORDED)
    loops = with_(scenario, **{"draft.acceptance.loop_enter": 0.01})
    with progress(1) as bar:
        assert looking_ahead(loops, [resolve(learned, loops)], [1], Threads(), bar) is None
        assert looking_ahead(recorded, [resolve("wisp+fcfs", recorded)], [1], Threads(), bar) is None
        two = [resolve(name, scenario) for name in (learned, "speculation-v1+fcfs")]
        with pytest.raises(InputError, match="two learned policy networks"):  # what is wrong otherwise is said
            looking_ahead(scenario, two, [1], Threads(), bar)
