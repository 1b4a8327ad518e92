"""Learned choices of the whole controller: what they see, what they take, what they refuse."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wisp_gym.controllers.choice import Choice, ChoiceError, load_choice, make_choice, save_choice
from wisp_gym.controllers.deployment import NAMES, draft_places, numbers_of
from wisp_gym.controllers.describe import spelled
from wisp_gym.controllers.names import ControllerError
from wisp_gym.controllers.resolve import resolve
from wisp_gym.controllers.shipped import CHOICES, is_choice, policy_path, shipped_choices
from wisp_gym.errors import InputError
from wisp_gym.evaluation import choose
from wisp_gym.evaluation.capacities import Curve
from wisp_gym.scenario import Scenario, load, presets, with_
from wisp_gym.serving.export import command as export
from wisp_gym.simulation import simulate

PLAIN, HEADED, OWN = "wisp+fcfs", "colocated(k=2,draft={head})", "colocated(k=3,draft={own})"
SCENARIO = load("wisp-a100-qwen3-32b")


def choice_of(controllers: Sequence[str], bias: Sequence[float], weight: float = 0.0) -> Choice:
    """A choice with one layer: its bias, and `weight` on the first number."""
    w = np.zeros((len(controllers), len(NAMES)), np.float32)
    w[0, 0] = weight
    layers = [(w, np.array(bias, np.float32))]
    return make_choice(controllers, np.full(len(NAMES), 4.0), np.ones(len(NAMES)), layers, command="test")


def edited(path: Path, **changes: Any) -> Path:
    """The same file with other entries."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return path


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_choice(choice_of([PLAIN, HEADED, OWN], [0.0, 0.5, 0.2]), tmp_path / "choice.json")
    return tmp_path / "choice.json"


# --- what it sees ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", presets())
def test_numbers_are_finite_for_every_preset(name: str) -> None:
    numbers = numbers_of(load(name))
    assert numbers.shape == (len(NAMES),)
    assert np.isfinite(numbers).all()
    assert np.abs(numbers).max() < 12.0


def test_twice_as_many_devices_move_loads_alone() -> None:
    moved = numbers_of(with_(SCENARIO, n_devices=128)) - numbers_of(with_(SCENARIO, n_devices=64))
    by_name = dict(zip(NAMES, moved, strict=True))
    assert by_name.pop("log devices") == pytest.approx(np.log(2.0))
    loads = {name: value for name, value in by_name.items() if abs(value) > 1e-12}
    assert {round(abs(value), 9) for value in loads.values()} == {round(float(np.log(2.0)), 9)}
    assert len(loads) == 5


def test_drafts_are_found_by_what_they_are() -> None:
    assert draft_places(SCENARIO) == {"own": 0, "head": 1}  # not the search in the text, which is seldom right
    turned = replace(SCENARIO, server_drafts=SCENARIO.server_drafts[::-1])
    assert draft_places(turned) == {"own": 2, "head": 1}
    assert draft_places(replace(SCENARIO, server_drafts=())) == {}


# --- what it takes ---------------------------------------------------------------------------------------------------


def test_the_highest_score_is_taken_of_those_that_the_scenario_allows() -> None:
    choice = choice_of([PLAIN, HEADED, OWN], [0.0, 0.5, 0.2])
    assert choice.choose(SCENARIO) == "colocated(k=2,draft=1)"
    assert list(choice.scores(SCENARIO).values()) == pytest.approx([0.5, 0.2, 0.0])
    without_head = replace(SCENARIO, server_drafts=SCENARIO.server_drafts[:1])
    assert choice.choose(without_head) == "colocated(k=3,draft=0)"
    assert choice.choose(replace(SCENARIO, server_drafts=())) == PLAIN


def test_a_draft_without_room_beside_it_is_not_taken() -> None:
    """Memory that holds the longest request, and not with a draft's weights, keys and values too; a search in the text takes none."""
    free = SCENARIO.target.weights_bytes + SCENARIO.server.activation_bytes
    needed = (SCENARIO.longest_tokens + 8) * SCENARIO.target.kv_bytes_per_token
    tight = with_(SCENARIO, **{"server.memory_bytes": int((free + needed) / SCENARIO.server.memory_utilisation) + 1})
    choice = choice_of([PLAIN, HEADED, OWN], [0.0, 0.5, 0.2])
    assert choice.choose(tight) == "colocated(k=2,draft=2)"
    assert choice.choose(replace(tight, server_drafts=tight.server_drafts[:2])) == PLAIN


def test_the_deployment_decides() -> None:
    choice = choice_of([PLAIN, HEADED], [4.0 - np.log(40.0), 0.0], weight=1.0)  # above 40 devices the first
    assert choice.choose(with_(SCENARIO, n_devices=8)) == "colocated(k=2,draft=1)"
    assert choice.choose(with_(SCENARIO, n_devices=64)) == PLAIN


def test_it_is_the_controller_that_it_takes_under_its_own_name(saved: Path) -> None:
    found = resolve(str(saved), SCENARIO)
    assert found == replace(resolve("colocated(k=2,draft=1)", SCENARIO), name=str(saved))
    assert resolve(str(saved.parent), SCENARIO) == replace(found, name=str(saved.parent))
    assert spelled(str(saved), SCENARIO) == spelled("colocated(k=2,draft=1)", SCENARIO)
    short = with_(SCENARIO, n_devices=4, **{"horizon.warmup_s": 1.0, "horizon.measure_s": 4.0, "horizon.drain_s": 2.0})
    assert simulate(short, str(saved), [3]) == simulate(short, "colocated(k=2,draft=1)", [3])


def test_what_is_saved_reads_back_with_the_same_scores(saved: Path) -> None:
    assert is_choice(saved)
    assert policy_path(saved.parent) == saved
    assert load_choice(saved).scores(SCENARIO) == choice_of([PLAIN, HEADED, OWN], [0.0, 0.5, 0.2]).scores(SCENARIO)
    assert load_choice(saved).about == {"command": "test"}


def test_the_command_prints_the_one_that_is_taken_first(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    choose.main(["--choice", str(saved), "--devices", "8"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split() == ["colocated(k=2,draft=1)", "100.0", "%"]
    assert len(lines) == 5


# --- what it refuses -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["{}+fcfs", "wisp+{}", "{}+wisp+chunk"])
def test_it_stands_alone(saved: Path, name: str) -> None:
    with pytest.raises(ControllerError, match="stands alone"):
        resolve(name.format(saved), SCENARIO)


@pytest.mark.parametrize(
    "controllers",
    [["/etc/passwd.json+fcfs"], ["wisp+./runs/mine/policy.json"], ["wisp+{head.__class__}"], ["wisp+{own:>99999999}"], ["wisp+nonsense"],
        ["fixed:-3+fcfs"],
        ["wisp+{other}"], [HEADED], [], [3], ["wisp+("]],
)  # fmt: skip
def test_a_file_may_name_rules_and_shipped_policies_alone(saved: Path, controllers: list[Any]) -> None:
    with pytest.raises(ChoiceError) as error:
        load_choice(edited(saved, controllers=controllers))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2}, {"format": "wisp-gym policy"}, {"numbers": ["log devices"]}, {"mean": [0.0]}, {"std": [0.0] * len(NAMES)},
        {"layers": []}, {"layers": [{"weight": [[1.0]], "bias": [0.0]}]}, {"mean": "no"}, {"controllers": PLAIN},
    ],
)  # fmt: skip
def test_a_damaged_file_is_refused_in_one_line(saved: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ChoiceError) as error:
        load_choice(edited(saved, **changes))
    assert "\n" not in str(error.value)
    assert str(saved) in str(error.value)


def test_no_file_at_all(tmp_path: Path) -> None:
    with pytest.raises(ChoiceError, match="No such file"):
        load_choice(tmp_path / "choice.json")


# --- what is shipped -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", shipped_choices())
def test_shipped_choices_are_small_have_a_card_and_run(name: str) -> None:
    assert policy_path(name).stat().st_size < 100_000
    card = (CHOICES / f"{name}.md").read_text(encoding="utf-8")
    for heading in ("## Trained on", "## Results", "## Where it loses"):
        assert heading in card, heading
    for preset in presets():
        resolve(name, load(preset))


def goodput(scenario: Scenario, name: str) -> float:
    """Mean over four worlds that no training saw."""
    return float(np.mean([m.goodput_tokens_per_s for m in simulate(scenario, name, range(700, 704))]))


@pytest.mark.parametrize("devices", [16, 64, 160])
def test_the_shipped_choice_beats_learned_lengths_and_servers_that_always_draft(devices: int) -> None:
    """By a stated amount in the default preset: nobody has to know where which of them is strong."""
    horizon = {"horizon.warmup_s": 15.0, "horizon.measure_s": 30.0, "horizon.drain_s": 60.0}
    scenario = with_(SCENARIO, n_devices=devices, **horizon)
    ours = goodput(scenario, "controller-v2")
    for other in ("speculation-v1+aged+chunk:96,0.2+admit", "colocated(k=2,draft=1)+chunk+admit", "wisp"):
        assert ours > 1.01 * goodput(scenario, other), other


def test_an_export_says_that_it_is_a_whole_controller(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="chooses a whole controller"):
        export.main(["controller-v2", "-o", str(tmp_path / "mine.onnx")])
    assert not list(tmp_path.iterdir())


def test_its_capacity_is_that_of_what_it_takes_for_each_population(tmp_path: Path) -> None:
    """Above 6 devices it takes another controller than at the scenario's own population."""
    save_choice(choice_of(["centralized:0", HEADED], [4.0 - np.log(6.0), 0.0], weight=1.0), tmp_path / "choice.json")
    small = {"horizon.warmup_s": 2.0, "horizon.measure_s": 8.0, "horizon.drain_s": 4.0}
    curve = Curve(with_(SCENARIO, **small), resolve(str(tmp_path), SCENARIO), [1])
    for devices, name in ((4, "colocated(k=2,draft=1)"), (9, "centralized:0")):
        (taken,) = curve.run(devices)
        (alone,) = Curve(curve.scenario, resolve(name, SCENARIO), [1]).run(devices)
        assert taken == alone
