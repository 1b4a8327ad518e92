"""The calibration of WISP's study: its file, the search for a capacity, the loss, the report."""

from __future__ import annotations

import json
import math

import pytest

from agents import calibration, reproduce
from agents.command_line import run
from agents.published import CAPACITY, CAPACITY_RATIOS, GOODPUT, GOODPUT_RATIOS
from estimators.cli import InputError
from wisp_gym.scenario import load


def test_at_most_eight_numbers_each_in_its_range_with_a_reason():
    parameters = calibration.read()
    assert 1 <= len(parameters) <= 8
    assert all(p.low <= p.value <= p.high and len(p.reason) > 20 for p in parameters.values())


def test_the_file_survives_writing_and_reading(tmp_path):
    path = tmp_path / "calibration.toml"
    path.write_text(calibration.text(calibration.read(), "a header"), encoding="utf-8")
    again = calibration.read(path)
    assert calibration.values(again) == pytest.approx(calibration.values(calibration.read()), rel=1e-3)


@pytest.mark.parametrize(
    "content", ["nonsense", "[a]\nvalue = 1.0\n", '[a]\nvalue = 9.0\nlow = 1.0\nhigh = 2.0\nreason = "r"\n']
)
def test_a_wrong_file_is_refused(tmp_path, content):
    path = tmp_path / "calibration.toml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=r"calibration\.toml"):
        calibration.read(path)


def test_the_published_ratios_follow_from_the_published_figures():
    for index, other in enumerate(("centralized", "sled")):
        assert CAPACITY["wisp"][3] / CAPACITY[other][3] == pytest.approx(CAPACITY_RATIOS[index], abs=0.05)
        assert GOODPUT["wisp"] / GOODPUT[other] == pytest.approx(GOODPUT_RATIOS[index], abs=0.01)


@pytest.mark.parametrize("guess", [1, 40, 41, 55, 400])
def test_a_bracket_holds_the_capacity_wherever_the_search_begins(guess):
    low, high = calibration.bracket(lambda n: 1.0 if n <= 41 else 0.0, 0.9, guess)
    assert low <= 41 < high


def test_a_system_that_serves_nobody_has_capacity_zero():
    low, _ = calibration.bracket(lambda n: 0.0, 0.9, 50)
    assert low == 0


def test_the_loss_is_zero_at_the_published_figures_and_grows_with_the_ratio():
    capacities = {system: list(row) for system, row in CAPACITY.items()}
    assert calibration.loss(capacities, GOODPUT) == 0.0
    doubled = {system: [2 * n for n in row] for system, row in CAPACITY.items()}
    assert calibration.loss(doubled, GOODPUT) == pytest.approx(12 / 15 * math.log(2) ** 2)


def test_one_calibration_changes_every_device_and_both_lengths():
    numbers = calibration.values(calibration.read())
    before, after = load("wisp-a100-qwen3-32b"), calibration.study_scenario("qwen3-32b", numbers)
    assert after.workload.prompt.median_tokens == numbers["prompt_median_tokens"]
    for a, b in zip(before.devices, after.devices, strict=True):
        assert b.draft_tokens_per_s / a.draft_tokens_per_s == pytest.approx(numbers["draft_speed_scale"])
        assert b.link.one_way_s / a.link.one_way_s == pytest.approx(numbers["delay_scale"])


def test_the_report_holds_every_published_cell_and_the_systems_without_limits(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reproduce, "ABLATION_DEVICES", 4)
    monkeypatch.setattr(
        reproduce.Curve, "capacity", lambda self, target, guess: min(guess, 6)
    )  # the search is tested above
    arguments = ["--seeds", "2", "-f", str(tmp_path), "--json", str(tmp_path / "rows.json")]
    assert run(reproduce.main, reproduce.PROGRAM, arguments) == 0
    rows = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
    assert {"table", "target", "slo_tokens_per_s", "system", "published", "measured", "low", "high"} == set(rows[0])
    published = [r for r in rows if r["table"] == "capacity" and r["published"] is not None]
    assert sorted(r["published"] for r in published) == sorted(n for row in CAPACITY.values() for n in row)
    assert sum(r["system"] == "centralized, no cap" and r["table"] == "capacity" for r in rows) == 4
    assert sorted(p.name for p in (tmp_path / "reproduce-qwen3-32b_1").glob("*.*")) == [
        "capacity.png", "command.txt", "config.json", "report.md", "rows.json", "scenario.toml", "versions.json",
    ]  # fmt: skip
    assert "within 15 %" in capsys.readouterr().out


def test_an_unknown_target_is_one_line(tmp_path, capsys):
    assert run(reproduce.main, reproduce.PROGRAM, ["--target", "qwen3-32", "-f", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "did you mean 'qwen3-32b'" in error
    assert not list(tmp_path.iterdir())
