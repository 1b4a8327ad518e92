"""The benchmark: what it counts is what it says, and what it prints can be read by people and programs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from wisp_gym.controllers.resolve import resolve
from wisp_gym.engine import state
from wisp_gym.engine.worlds import Worlds
from wisp_gym.evaluation import speed as benchmark
from wisp_gym.evaluation.speed import CONTROLLER, SCENARIO, TARGETS, Figure, engine_run, figure, report, table
from wisp_gym.scenario import load, with_

PROMISED = {
    "rounds_per_s_core_64",
    "rounds_per_s_core_1024",
    "decisions_per_s_core_64",
    "env_steps_per_s",
    "vector_steps_per_s",
    "import_make_reset_s",
    "peak_bytes_10000_devices",
}


def made_up(quick: bool) -> dict[str, Figure]:
    names = [name for name in TARGETS if not (quick and name == "first_import_make_reset_s")]
    return {name: figure([2.0 * TARGETS[name].value, TARGETS[name].value, 4.0 * TARGETS[name].value]) for name in names}


def test_rounds_and_decisions_are_those_of_the_event_log() -> None:
    n_devices, simulated_s = 24, 20.0
    horizon = {"horizon.warmup_s": 0.0, "horizon.measure_s": simulated_s, "horizon.drain_s": 0.0}
    scenario = with_(load(SCENARIO), **horizon)
    worlds = Worlds(1, n_devices, log_rows=100_000, threads=1)
    worlds.fill(0, scenario, 5, resolve(CONTROLLER, scenario), n_devices)
    worlds.run()
    log = worlds.arrays.log[0, : worlds.arrays.server[0, 0]["log_length"]]
    delivered = log[(log["kind"] == state.LOG_DELIVER) & (log["time_s"] < simulated_s)]
    prompts = sum(answered_prompts(log[log["device"] == device], simulated_s) for device in range(n_devices))
    rounds, decisions, seconds = engine_run(n_devices, simulated_s, 5)
    assert rounds > 500
    assert rounds == len(delivered) - prompts
    assert rounds < decisions == worlds.arrays.totals[0, 0]["decisions"]
    assert seconds > 0.0


def answered_prompts(own: np.ndarray, end_s: float) -> int:
    """Deliveries of one device that come first after a request."""
    events = own[np.isin(own["kind"], (state.LOG_REQUEST, state.LOG_DELIVER))]
    first = (events["kind"][1:] == state.LOG_DELIVER) & (events["kind"][:-1] == state.LOG_REQUEST)
    return int((first & (events["time_s"][1:] < end_s)).sum())


def test_the_median_and_the_range_are_those_of_the_repeats() -> None:
    assert figure([3.0, 1.0, 2.0, 10.0]) == Figure(2.5, 1.0, 10.0, 4)


def test_the_table_says_how_many_times_better_than_the_target() -> None:
    lines = table({"rounds_per_s_core_64": figure([600_000.0]), "import_make_reset_s": figure([3.0])}).splitlines()
    assert lines[2].split() == ["rounds_per_s_core_64", "600,000", "600,000", "600,000", "≥", "300,000", "2.00"]
    assert lines[3].split()[-1] == "0.50"  # a time: twice the target is half as good
    assert len({len(line) for line in lines}) == 1


def test_the_report_has_every_promised_key_as_a_plain_number() -> None:
    written = json.loads(json.dumps(report(made_up(quick=True))))
    assert set(written) >= PROMISED
    assert all(isinstance(written[name], float) for name in PROMISED)
    assert set(written["machine"]) >= {"cpu", "cores", "python", "numba", "numpy"}
    assert written["range"]["env_steps_per_s"] == [30_000.0, 120_000.0]


@pytest.mark.parametrize("quick", [True, False])
def test_the_command_prints_the_machine_and_the_figures(
    quick: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark, "measure_all", made_up)
    benchmark.main([*(["--quick"] if quick else []), "--json", str(tmp_path / "figures.json")])
    printed = capsys.readouterr().out
    assert all(name in printed for name in PROMISED | {"cpu", "numba"})
    assert ("first_import_make_reset_s" in printed) is not quick
    assert json.loads((tmp_path / "figures.json").read_text()).keys() >= PROMISED


@pytest.mark.parametrize("flags", [["--json", "{folder}/none/a.json"], ["--json", "{folder}"], ["--fast"]])
def test_bad_flags_end_in_one_line_before_anything_is_measured(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark, "measure_all", lambda quick: pytest.fail("measured"))
    with pytest.raises(SystemExit) as stop:
        benchmark.main([flag.replace("{folder}", str(tmp_path)) for flag in flags])
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_each_measurement_runs() -> None:
    rounds, decisions = benchmark.engine_rates(8, 2, 5.0)
    assert 0.0 < rounds.low <= rounds.median <= rounds.high < decisions.high
    assert benchmark.env_steps_per_s(1, 300).median > 0.0
    assert benchmark.vector_steps_per_s(1, 10).median > 0.0
    assert benchmark.import_make_reset_s(1).median > 0.0


def test_ten_thousand_devices_fit_into_a_gigabyte() -> None:
    assert 5e7 < benchmark.peak_bytes_10000_devices().median < 1e9


def test_a_process_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match="no such thing"):
        benchmark.fresh_process("raise SystemExit('no such thing')")
