"""The calibration of WISP's study: its file, the search for a capacity, the loss, the report."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from agents.wisp_study import calibrate, calibration, external, reproduce, sensitivity
from agents.wisp_study.published import CAPACITY, CAPACITY_RATIOS, GOODPUT, GOODPUT_RATIOS
from wisp_gym.cli import run
from wisp_gym.errors import InputError
from wisp_gym.scenario import load


@pytest.mark.parametrize("name", calibration.FILES)
def test_at_most_eight_numbers_each_in_its_range_with_a_reason(name):
    parameters = calibration.read(calibration.find(name))
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
        assert CAPACITY["wisp"][3] / CAPACITY[other][3] == pytest.approx(CAPACITY_RATIOS["qwen3-32b"][index], abs=0.05)
        for target, good in GOODPUT.items():
            assert good["wisp"] / good[other] == pytest.approx(GOODPUT_RATIOS[target][index], abs=0.01)


@pytest.mark.parametrize("guess", [1, 40, 41, 55, 400])
def test_a_bracket_holds_the_capacity_wherever_the_search_begins(guess):
    low, high = calibration.bracket(lambda n: 1.0 if n <= 41 else 0.0, 0.9, guess)
    assert low <= 41 < high


def test_a_system_that_serves_nobody_has_capacity_zero():
    low, _ = calibration.bracket(lambda n: 0.0, 0.9, 50)
    assert low == 0


def published() -> dict[str, list[float]]:
    """Qwen3-32B's capacities, and Qwen3-14B's as its goodputs have it at an attainment of 0.9."""
    return {s: [*(float(n) for n in row), GOODPUT["qwen3-14b"][s] / 8 / 0.9] for s, row in CAPACITY.items()}


def test_residuals_are_logarithms_in_units_of_what_is_aimed_at():
    found = published()
    found["sled"][0] *= 1.15
    r = calibrate.residuals(found, attainment=0.9)
    assert len(r) == 12 + 6 + 6
    assert r[8] == pytest.approx(1.0)  # WISP's four, centralized's four, then SLED's first
    assert np.count_nonzero(r[:12]) == 1
    assert r[12] == pytest.approx(math.log(86 * 8 * 0.9 / 631.86) / math.log(1.15))
    assert r[15:20] == pytest.approx([0.0] * 5)  # Qwen3-14B's goodputs, and both ratios of capacities
    assert r[20] == pytest.approx(math.log(86 / 41 / (631.86 / 326.12)) / math.log(1.10))
    assert r[22:] == pytest.approx([0.0, 0.0])
    assert calibrate.loss(2.0 * r) == pytest.approx(256.0 * calibrate.loss(r))


def test_the_search_finds_numbers_that_made_the_figures(monkeypatch):
    """A smooth stand-in for the engine: capacities are products of powers of the numbers, published at known values."""
    start = calibration.read(calibration.FILES["study"])
    truth = {name: math.sqrt(p.low * p.high) for name, p in start.items()}
    truth |= {"sled_batch": 5.0, "centralized_batch": 17.0}

    def cells(given, seeds, systems=tuple(CAPACITY)):
        ratio = {name: math.log(given[name] / truth[name]) for name in given}
        shift = {
            "wisp": ratio["prompt_median_tokens"] + ratio["think_s"],
            "centralized": ratio["centralized_batch"],
            "sled": ratio["sled_batch"],
        }
        slope = 0.2 * ratio["verification_scale"] - 0.1 * ratio["prefill_chunk_tokens"] - 0.3 * ratio["think_s"]
        both = {s: (*CAPACITY[s], 2 * CAPACITY[s][3]) for s in systems}
        return {s: [n * math.exp(shift[s] + k * slope) for k, n in enumerate(both[s])] for s in systems}

    good = {s: CAPACITY[s][3] * 8 * truth["attainment"] for s in CAPACITY}
    twice = {s: 2 * x for s, x in good.items()}
    monkeypatch.setattr(calibrate, "cells", cells)
    monkeypatch.setattr(calibrate, "GOODPUT", {"qwen3-32b": good, "qwen3-14b": twice})
    found, summary = calibrate.search(start, 25, range(1))
    assert summary.startswith("18 of 18")
    assert found["sled_batch"].value == 5.0
    assert found["centralized_batch"].value == 17.0
    assert all(p.low <= p.value <= p.high for p in found.values())


def test_a_capacity_is_interpolated_where_attainment_crosses_the_target(monkeypatch):
    """Attainment falls by .005 a device from 1: it crosses .9 at 20 devices."""
    monkeypatch.setattr(calibration, "simulate", lambda s, c, seeds, n, threads: [Attained(1.0 - 0.005 * n)])
    assert calibration.capacity(None, None, [0], 0.9, 33) == pytest.approx(20.0)


class Attained:
    def __init__(self, share: float):
        self.slo_attainment = share


def test_one_calibration_changes_workload_server_and_every_batch_time():
    numbers = calibration.values(calibration.read())
    before, after = load("wisp-a100-qwen3-32b"), calibration.study_scenario("qwen3-32b", numbers)
    assert after.workload.prompt.median_tokens == numbers["prompt_median_tokens"]
    assert after.workload.think_s == before.workload.think_s  # what a calibration does not name stays
    assert after.server.host_request_s == after.estimator.request_s == numbers["message_s"]
    assert after.kv_tokens > before.kv_tokens * numbers["memory_utilisation"] / 0.97
    scale = numbers["verification_scale"]
    assert after.verification.weights_s == pytest.approx(before.verification.weights_s * scale)
    assert after.verification.sharpness == before.verification.sharpness
    assert after.estimator.new_token_s == pytest.approx(before.estimator.new_token_s * scale)


def test_the_shipped_study_preset_is_the_calibrated_scenario():
    assert load("wisp-study") == calibration.study_preset(calibration.read(calibration.FILES["study"]))


def test_sequences_of_centralized_serving_come_without_messages():
    numbers = calibration.values(calibration.read())
    messages = {s: calibration.system_scenario("qwen3-14b", numbers, s).server.host_request_s for s in CAPACITY}
    assert messages == {"wisp": numbers["message_s"], "centralized": 0.0, "sled": numbers["message_s"]}


def test_weights_in_nf4_fit_one_gpu_and_take_less_time_to_read_than_a_copy_of_them():
    numbers = calibration.values(calibration.read())
    once, copied = (calibration.study_scenario(t, numbers) for t in ("llama-3.1-70b", "llama-3.1-70b-copied"))
    assert once.server.gpus == 1
    assert once.target.weights_bytes == pytest.approx(42.7e9, rel=0.01)
    assert once.kv_tokens == copied.kv_tokens > 50 * once.longest_tokens / 3
    assert copied.verification.launch_s > 2 * once.verification.launch_s
    assert copied.verification.token_s == once.verification.token_s


def test_external_cases_by_hand():
    # K·t = 0.1 s, R = 0.05 s: 0.15 s without; 0.1 s + 0.75 * 0.1 s with a guess that is right once in four.
    assert external.naive_ratio(0.02, 0.05, 5, 0.25) == pytest.approx(0.15 / 0.175)
    assert external.naive_ratio(0.02, 0.3, 5, 1.0) == pytest.approx(0.4 / 0.3)
    # Accepted: 1 1 0 | 1 1 1 1: rounds of 2 at 0 (both, and the next is wrong), then at 3 (both, and the next is right), end.
    assert external.rounds(np.array([[1, 1, 0, 1, 1, 1, 1]]), 2) == (3.0, 0.5)
    assert external.experts_read(8, 2, 1) == pytest.approx(1.0)
    assert external.experts_read(8, 2, 2) == pytest.approx(2 - 0.25)


def test_adaptive_verification_gains_where_arithmetic_binds_and_nothing_where_weights_do():
    scenario, survival = load("wisp-a100-qwen3-32b"), 0.7 ** np.arange(1, 8)
    few, many = (external.adaptive_ratios(scenario, survival, n) for n in (1, 128))
    assert few == pytest.approx((1.0, 1.0), abs=0.03)
    assert 1.1 < many[0] < many[1]
    assert external.Case("", -25.0, 1.0, 5.0, "", "").verdict == "no"
    assert external.Case("", 5.0, 6.0, 7.0, "", "").verdict == "sign only"
    assert external.Case("", -20.0, 0.0, 1.0, "", "").verdict == "cannot say"


def test_neighbours_stay_within_the_range_and_batches_move_by_one_at_least():
    start = calibration.read()
    for name, p in start.items():
        low, high = sensitivity.neighbours(start, name)
        assert p.low <= low < p.value < high <= p.high
    assert sensitivity.neighbours(start | {"sled_batch": replace(start["sled_batch"], value=3.0)}, "sled_batch") == (
        2,
        4,
    )


def test_sensitivity_of_ratios_that_are_known(monkeypatch, tmp_path, capsys):
    """WISP's capacity grows as the square root of the message's time, nothing else matters: ratios 2 · 1.25^±½."""

    def cell(target, given, system, speed, seeds, guess):
        return (
            100.0 * math.sqrt(given["message_s"] / calibration.read()["message_s"].value) if system == "wisp" else 50.0
        )

    monkeypatch.setattr(sensitivity, "cell", cell)
    files = ["--json", str(tmp_path / "rows.json"), "--plot", str(tmp_path / "picture.png")]
    assert run(sensitivity.main, sensitivity.PROGRAM, ["--seeds", "2", *files]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
    message = [r["measured"] for r in rows if r["parameter"] == "message_s" and r["ratio"] == "wisp / sled"]
    assert message == pytest.approx([2.0 / math.sqrt(1.25), 2.0 * math.sqrt(1.25)])
    assert [r["measured"] for r in rows if r["parameter"] == "attainment"] == pytest.approx([2.0] * 4)
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert "message_s" in capsys.readouterr().out


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
