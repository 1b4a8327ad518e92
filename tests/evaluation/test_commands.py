"""The commands that compare controllers: what they print and write, that they repeat, and how they refuse."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import wisp_gym.evaluation
from wisp_gym.cli import aligned, run, seed_list, seeds
from wisp_gym.controllers.resolve import resolve
from wisp_gym.errors import InputError
from wisp_gym.evaluation import capacities, capacity_search, comparison, evaluate
from wisp_gym.evaluation.arguments import controller_names
from wisp_gym.evaluation.metrics import Metrics
from wisp_gym.evaluation.statistics import bootstrap_interval, mean
from wisp_gym.rules.catalogue import ALIASES, BATCHING, SPECULATION
from wisp_gym.scenario import load, with_slo
from wisp_gym.simulation import simulate

ROOT = Path(__file__).resolve().parents[2]
SHORT = """
use = "wisp-a100-qwen3-32b"
name = "short"
n_devices = 6
[horizon]
warmup_s = 2.0
measure_s = 15.0
drain_s = 10.0
"""
COMMANDS = {"evaluate": comparison, "capacity": capacities}


@pytest.fixture
def short(tmp_path: Path) -> str:
    path = tmp_path / "short.toml"
    path.write_text(SHORT)
    return str(path)


def call(command: str, *arguments: str) -> int:
    """Exit code of a command run in this process."""
    module = COMMANDS[command]
    try:
        return run(module.main, module.PROGRAM, arguments)
    except SystemExit as end:
        return int(end.code or 0)


def refused(command: str, capsys: pytest.CaptureFixture[str], folder: Path, *arguments: str) -> str:
    """The one line with which a command refuses; it must leave with 2, print nothing else and write nothing."""
    before = sorted(folder.rglob("*"))
    assert call(command, *arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith("\n")
    assert err.count("\n") == 1, err
    assert err.startswith(COMMANDS[command].PROGRAM)
    assert sorted(folder.rglob("*")) == before
    return err


# --- what they compute -----------------------------------------------------------------------------------------------


def test_evaluate_writes_one_row_per_controller(short: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {name: tmp_path / f"rows.{name}" for name in ("json", "csv", "png")}
    flags = [f"--json={files['json']}", f"--csv={files['csv']}", f"--plot={files['png']}"]
    assert (
        call(
            "evaluate",
            "--scenario",
            short,
            "--controllers",
            "sled,wisp,centralized",
            "--devices=8",
            "--seeds=3",
            *flags,
        )
        == 0
    )
    rows = json.loads(files["json"].read_text())
    assert [row["controller"] for row in rows] == ["sled", "wisp", "centralized"]
    assert {key for row in rows for key in row} >= {
        *("controller", "scenario", "devices", "seeds", "seed_list", "slo_tokens_per_s", "reference"),
        *("goodput_tokens_per_s_low", "goodput_tokens_per_s_high", "goodput_difference_tokens_per_s"),
        *(field.name for field in fields(Metrics)),
    }
    expected = simulate(load(short), "wisp", range(3), 8)
    wisp = rows[1]
    assert (wisp["scenario"], wisp["devices"], wisp["seeds"], wisp["seed_list"]) == ("short", 8, 3, "0-2")
    for key in ("goodput_tokens_per_s", "slo_attainment", "round_latency_p95_s", "joules_per_1k_tokens"):
        assert wisp[key] == pytest.approx(np.mean([getattr(m, key) for m in expected]), rel=1e-12)
    assert wisp["goodput_tokens_per_s_low"] <= wisp["goodput_tokens_per_s"] <= wisp["goodput_tokens_per_s_high"]
    assert wisp["goodput_difference_tokens_per_s"] == 0.0  # WISP is the reference wherever it is compared
    assert rows[0]["goodput_difference_tokens_per_s"] == pytest.approx(
        rows[0]["goodput_tokens_per_s"] - wisp["goodput_tokens_per_s"]
    )
    assert rows[2]["acceptance"] is None  # nothing is drafted there
    table = list(csv.DictReader(files["csv"].read_text().splitlines()))
    assert float(table[1]["goodput_tokens_per_s"]) == wisp["goodput_tokens_per_s"]
    assert files["png"].read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    for word in ("goodput", "SLO met", "p95", "TTFT", "wasted", "interference", "server use", "starved", "vs wisp"):
        assert word in shown
    assert {"J/1k", "$/1k"} < set(shown.split())


def test_rows_of_worlds_and_classes(short: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.json"
    given = ["--scenario", short, "--controllers", "fixed:2+fcfs", "--json", str(file), "--per-class"]
    assert call("evaluate", *given, "--per-seed", "--seeds", "7,11") == 0
    rows = json.loads(file.read_text())
    assert [row["seed"] for row in rows] == [7, 11]
    for row in rows:
        assert [c["slo_tokens_per_s"] for c in row["classes"]] == [2.0, 4.0, 6.0, 8.0]
        assert sum(c["requests"] for c in row["classes"]) == row["requests"]
        assert sum(c["goodput_tokens_per_s"] for c in row["classes"]) == pytest.approx(row["goodput_tokens_per_s"])
    assert call("evaluate", *given, "--slo", "3", "--seeds", "2") == 0
    (row,) = json.loads(file.read_text())
    assert row["slo_tokens_per_s"] == 3.0
    assert [c["slo_tokens_per_s"] for c in row["classes"]] == [3.0]


def test_the_same_seeds_give_the_same_bytes_in_two_processes(short: str, tmp_path: Path) -> None:
    printed, written = [], []
    for name in ("a.json", "b.json"):
        command = [
            sys.executable,
            "-W",
            "error",
            "-m",
            "wisp_gym",
            "evaluate",
            "--scenario",
            short,
            "--seeds",
            "3",
        ]
        command += ["--controllers", "wisp;survival:0.5,8+edf", "--json", str(tmp_path / name)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        assert "world" not in done.stderr  # no progress bar where there is no terminal
        printed.append(done.stdout)
        written.append((tmp_path / name).read_bytes())
    assert printed[0] == printed[1]
    assert written[0] == written[1]


def test_capacity_is_the_largest_population_within_the_target(short: str, tmp_path: Path) -> None:
    file, scenario = tmp_path / "rows.json", tmp_path / "longer.toml"
    scenario.write_text(SHORT.replace("15.0", "40.0").replace("10.0", "40.0"))  # time for responses to finish
    flags = ["--controllers", "sled,wisp", "--slo", "4", "--seeds", "4", "--max-devices", "60", "--json", str(file)]
    assert call("capacity", "--scenario", str(scenario), *flags) == 0
    rows = {row["controller"]: row for row in json.loads(file.read_text())}
    assert list(rows["sled"]) == [
        *("controller", "scenario", "slo_tokens_per_s", "attainment_target", "starved_limit", "capacity_devices"),
        *("capacity_low", "capacity_high", "at_limit", "max_devices", "slo_attainment", "starved_share"),
        *("goodput_tokens_per_s", "seeds", "seed_list"),
    ]
    sled, wisp = rows["sled"], rows["wisp"]
    assert sled["capacity_low"] <= sled["capacity_devices"] <= sled["capacity_high"]
    assert sled["capacity_devices"] < wisp["capacity_devices"]
    assert not sled["at_limit"]
    assert (sled["seeds"], sled["attainment_target"], sled["slo_tokens_per_s"]) == (4, 0.9, 4.0)
    for name, row in rows.items():
        at, beyond = (attainment(str(scenario), name, row["capacity_devices"] + more) for more in (0, 1))
        assert at == pytest.approx(row["slo_attainment"])
        assert at >= 0.9
        assert beyond < 0.9 or row["at_limit"]


def test_capacity_with_few_starved_is_less_than_without_the_limit(tmp_path: Path) -> None:
    file, scenario, found = tmp_path / "rows.json", tmp_path / "longer.toml", []
    scenario.write_text(SHORT.replace("15.0", "40.0").replace("10.0", "40.0"))
    flags = ["--controllers", "sled", "--slo", "1", "--attainment", "0.3", "--seeds", "3", "--max-devices", "120"]
    for limit in ([], ["--starved", "1"], ["--starved", "0.05"], ["--starved", "0"]):
        assert call("capacity", "--scenario", str(scenario), *flags, "--json", str(file), *limit) == 0
        (row,) = json.loads(file.read_text())
        found.append(row)
    assert found[0] | {"starved_limit": 1.0} == found[1]
    assert found[1]["capacity_devices"] > found[2]["capacity_devices"] > found[3]["capacity_devices"]
    for row in found[2:]:
        n = row["capacity_devices"]
        at, beyond = (simulate(with_slo(load(str(scenario)), 1), "sled", range(3), n + more) for more in (0, 1))
        assert np.mean([m.starved_share for m in at]) == pytest.approx(row["starved_share"])
        assert row["starved_share"] <= row["starved_limit"] < np.mean([m.starved_share for m in beyond])
        assert row["capacity_low"] <= n <= row["capacity_high"]


def attainment(scenario: str, controller: str, devices: int) -> float:
    """Mean attainment over seeds 0-3 of a class of 4 tokens/s."""
    metrics = simulate(with_slo(load(scenario), 4), controller, range(4), devices)
    return float(np.mean([m.slo_attainment for m in metrics]))


def test_capacity_of_a_speed_that_no_device_reaches_is_zero(
    short: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows.json"
    flags = ["--controllers", "wisp", "--slo", "5000", "--seeds", "2", "--max-devices", "2", "--json", str(file)]
    assert call("capacity", "--scenario", short, *flags) == 0
    (row,) = json.loads(file.read_text())
    assert (row["capacity_devices"], row["capacity_low"], row["capacity_high"]) == (0, 0, 0)
    assert row["slo_attainment"] is None
    assert "reaches at most" in capsys.readouterr().err  # allowed, but reported


# --- as functions ----------------------------------------------------------------------------------------------------


def test_evaluate_is_a_function_of_values(short: str) -> None:
    scenario = load(short)
    found = evaluate(["sled", resolve("wisp", scenario)], scenario, devices=5, slo=3.0, seeds=[7, 9])
    assert list(found.outcomes) == ["sled", resolve("wisp", scenario).name]
    assert (found.scenario.n_devices, found.slo, found.seeds) == (5, 3.0, (7, 9))
    sled, wisp = found.rows()
    expected = simulate(with_slo(scenario, 3.0), "sled", [7, 9], 5)
    assert sled["goodput_tokens_per_s"] == np.mean([m.goodput_tokens_per_s for m in expected])
    assert [row["goodput_tokens_per_s"] for row in found.worlds()[:2]] == [m.goodput_tokens_per_s for m in expected]
    assert wisp["reference"] == found.reference == list(found.outcomes)[1]  # WISP, wherever it stands
    assert "classes" not in sled
    assert [one["slo_tokens_per_s"] for one in found.rows(per_class=True)[0]["classes"]] == [3.0]
    assert found.table().startswith("short: 5 devices, SLO 3 tokens/s, 2 paired worlds (seeds 7,9)")
    (alone,) = evaluate("sled", short, seeds=range(1)).rows()
    assert (alone["reference"], alone["slo_tokens_per_s"]) == ("sled", None)


def test_evaluate_counts_worlds_and_takes_a_pool(short: str) -> None:
    class Here:
        def map(self, function: Any, jobs: Any) -> Any:
            return (function(*job) for job in jobs)

    class Count:
        done = 0

        def update(self, n: int = 1) -> None:
            self.done += n

    bar = Count()
    found = evaluate(["sled", "wisp"], short, seeds=range(2), pool=Here(), bar=bar)
    assert bar.done == 4
    assert found.rows() == evaluate(["sled", "wisp"], short, seeds=range(2)).rows()


def test_wrong_values_are_refused_in_one_line(short: str) -> None:
    for given, message in (
        ({"controllers": ["wisp", "wisp"]}, "'wisp' is given twice"),
        ({"controllers": "wsip"}, "did you mean 'wisp'"),
        ({"controllers": ["wisp", "sled"], "reference": "sed"}, "did you mean 'sled'"),
        ({"controllers": "wisp", "devices": 0}, "devices: given 0"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate(**{"scenario": short} | given)  # type: ignore[arg-type]


def test_capacity_is_a_function_of_values(short: str) -> None:
    found = wisp_gym.evaluation.capacity("wisp", short, slo=5000.0, seeds=range(2), max_devices=2)
    (row,) = found.rows
    assert (row["capacity_devices"], row["attainment_target"], row["starved_limit"], row["max_devices"]) == (
        0,
        0.9,
        None,
        2,
    )
    assert found.table().startswith("short: SLO 5000 tokens/s, at least 90 % of requests")


# --- their parts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("true", [0, 1, 2, 3, 17, 64, 99, 100])
def test_the_search_finds_every_crossing_and_respects_the_limit(true: int) -> None:
    asked: list[int] = []

    def measured(n: int) -> float:
        asked.append(n)
        return 1.0 if n <= true else 0.0

    assert capacity_search.search(measured, 0.9, 100) == true
    assert max(asked) <= 100
    assert len(asked) <= 16


def test_the_search_survives_a_few_devices_that_miss() -> None:
    assert capacity_search.search(lambda n: 0.95 if 3 <= n <= 50 else 0.5, 0.9, 1024) == 50


def test_the_search_takes_worlds_without_requests_as_missed() -> None:
    assert capacity_search.search(lambda n: math.nan, 0.9, 8) == 0
    assert np.isnan(capacity_search.mean_attainment(np.array([np.nan, np.nan])))
    assert capacity_search.mean_attainment(np.array([np.nan, 0.5, 1.0])) == 0.75


def test_a_margin_is_the_scarcer_of_attainment_and_starvation() -> None:
    attained, starved = np.array([[1.0, 0.9], [1.0, np.nan]]), np.array([[0.0, 0.1], [0.3, 0.3]])
    np.testing.assert_allclose(capacity_search.margins(attained, 0.9, starved, None), [0.05, 0.1])
    np.testing.assert_allclose(capacity_search.margins(attained, 0.9, starved, 0.08), [0.03, -0.22])
    assert np.isnan(capacity_search.margins(np.array([np.nan]), 0.9, np.array([0.0]), 0.1))


def test_the_capacity_of_a_sample_lies_on_the_curve_through_what_was_run() -> None:
    devices = np.array([1.0, 10.0, 20.0, 21.0])
    curves = np.array(
        [[1, 0.95, 0.85, 0.8], [1, 1, 0.9, 0.8], [0.8, 0.7, 0.6, 0.5], [1, 1, 1, 0.9], [np.nan, 0.8, 0.92, 0.1]]
    )
    # first curve: half-way from 10 to 20, of which only 19 can still reach the share
    assert capacity_search.crossings(devices, curves, 0.9).tolist() == [14.0, 20.0, 0.0, 21.0, 20.0]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("wisp,sled,centralized:0", ["wisp", "sled", "centralized:0"]),
        ("confidence:0.6+static:4,0.1,wisp", ["confidence:0.6+static:4,0.1", "wisp"]),
        ("survival:0.7,8+static:4,0.1,sled", ["survival:0.7,8+static:4,0.1", "sled"]),
        ("survival:.7,inf,2+fcfs , fixed:4+wisp:0.05,1e1", ["survival:.7,inf,2+fcfs", "fixed:4+wisp:0.05,1e1"]),
        ("fixed:4+fcfs;4runs/x+wisp", ["fixed:4+fcfs", "4runs/x+wisp"]),
        ("a/b.json+wisp,a/c", ["a/b.json+wisp", "a/c"]),
        ("aligned(thr=0.2, A=0.6)+fcfs,wisp", ["aligned(thr=0.2, A=0.6)+fcfs", "wisp"]),
        (
            "fixed(4)+static(8, 0.1)+chunk:64,0.2+admit(0.9), sled",
            ["fixed(4)+static(8, 0.1)+chunk:64,0.2+admit(0.9)", "sled"],
        ),
        ("confidence:0.6,8+static(n=4),fixed(k=2)+fcfs", ["confidence:0.6,8+static(n=4)", "fixed(k=2)+fcfs"]),
        ("wisp;aligned(0.2, A=0.6)+fcfs", ["wisp", "aligned(0.2, A=0.6)+fcfs"]),
    ],
)
def test_commas_separate_controllers_and_keep_their_parameters(text: str, names: list[str]) -> None:
    assert controller_names(text) == names


@pytest.mark.parametrize(
    ("text", "chosen"),
    [("3", (0, 1, 2)), ("7,", (7,)), ("7-7", (7,)), ("3,10-12", (3, 10, 11, 12)), (str(2**63 - 1) + ",", (2**63 - 1,))],
)
def test_seeds_are_a_count_or_a_list(text: str, chosen: tuple[int, ...]) -> None:
    assert seeds(text) == chosen
    assert seeds(seed_list(chosen)) == chosen


def test_the_interval_of_a_mean_covers_it_nineteen_times_in_twenty() -> None:
    rng = np.random.default_rng(1)
    found = np.array([bootstrap_interval(list(rng.normal(5.0, 2.0, 30))) for _ in range(300)])
    hits = (found[:, 0] <= 5.0) & (found[:, 1] >= 5.0)
    assert 0.89 <= hits.mean() <= 0.98  # the percentile bootstrap of 30 values is a little narrow
    assert bootstrap_interval([3.0]) == (None, None)
    assert mean([1.0, None, 2.0]) == 1.5
    assert mean([None]) is None


def test_tables_are_aligned() -> None:
    lines = aligned([["name", "x"]], [["a", "1.0"], ["longer", "10.0"]]).splitlines()
    assert lines == ["name       x", "------------", "a        1.0", "longer  10.0"]


# --- how they refuse -------------------------------------------------------------------------------------------------

FLAGS = [
    (["--seeds", "0"], ["--seeds", "'0'", "10000"]),
    (["--seeds", "-3"], ["--seeds", "'-3'"]),
    (["--seeds", "ten"], ["--seeds", "'ten'"]),
    (["--seeds", "5-2"], ["--seeds", "'5-2'"]),
    (["--seeds", "1,1"], ["--seeds", "once"]),
    (["--seeds", "0-99999999"], ["--seeds", "10000"]),
    (["--seeds", "9" * 5000], ["--seeds"]),
    (["--seeds", "²"], ["--seeds", "²"]),
    (["--slo", "nan"], ["--slo", "'nan'", "tokens/s"]),
    (["--slo", "-1"], ["--slo", "'-1'"]),
    (["--slo", "inf"], ["--slo", "'inf'"]),
    (["--scenario", "wisp-a100-qwen3-32"], ["wisp-a100-qwen3-32b", "h100-qwen3-32b"]),
    (["--scenario", "no/such.toml"], ["no/such.toml"]),
    (["--scenario", "x" * 5000], ["x"]),
    (["--controllers", "wsip"], ["'wsip'", "did you mean 'wisp'"]),
    (["--controllers", "wisp+fcsf"], ["'fcsf'", "did you mean 'fcfs'"]),
    (["--controllers", "fixed:99+fcfs"], ["fixed:99", "0 to 32"]),
    (["--controllers", "fixed:x+fcfs"], ["k given 'x'"]),
    (["--controllers", "aligned(thresh=0.2, A=1)+fcfs,wisp"], ["unknown setting 'thresh'; did you mean 'thr'"]),
    (["--controllers", "aligned(thr=0.2,wisp"], ["'(' is not closed"]),
    (["--controllers", "wisp,,sled"], ["--controllers", "empty"]),
    (["--controllers", "wisp,wisp"], ["--controllers", "'wisp' is given twice"]),
    (["--controllers", "missing/policy.json+wisp"], ["missing/policy.json"]),
    (["--controllers", "line\nbreak"], ["line break"]),
    (["--sceanrio", "short"], ["'--sceanrio'", "did you mean '--scenario'"]),
    (["--seed", "3"], ["'--seed'", "did you mean '--seeds'"]),
    (["stray"], ["stray"]),
    (["--json"], ["--json"]),
    (["--json", ""], ["--json"]),
    (["--json", "no/such/folder/rows.json"], ["--json", "no/such/folder/rows.json", "No such file or directory"]),
    (["--json", "."], ["--json", "name of a file"]),
    (["--json", "/dev/null"], ["--json", "/dev/null"]),
    (["--csv", "y" * 300], ["--csv", "too long"]),
]
EVALUATE_FLAGS = [
    (["--devices", "0"], ["--devices", "'0'", "whole number from 1 to"]),
    (["--devices", "1e3"], ["--devices", "'1e3'"]),
    (["--devices", "1000000000"], ["--devices", "100000"]),
    (["--reference", "wsip"], ["--reference", "did you mean 'wisp'"]),
    (["--plot", "picture.gif"], ["--plot", ".png"]),
    (["--json", "same", "--csv", "same"], ["--csv", "same", "--json"]),
]
CAPACITY_FLAGS = [
    (["--attainment", "0"], ["--attainment", "'0'"]),
    (["--attainment", "90"], ["--attainment", "'90'", "up to 1"]),
    (["--max-devices", "0"], ["--max-devices", "'0'"]),
    (["--starved", "1.5"], ["--starved", "'1.5'", "from 0 to 1"]),
    (["--starved", "nan"], ["--starved", "'nan'"]),
    (["--devices", "4"], ["'--devices'", "--max-devices"]),
]
WRONG = [
    *(("evaluate", *case) for case in FLAGS + EVALUATE_FLAGS),
    *(("capacity", *case) for case in FLAGS + CAPACITY_FLAGS),
]


@pytest.mark.parametrize(("command", "flags", "words"), WRONG, ids=lambda value: " ".join(value)[:40])
def test_wrong_flags_end_with_one_line(
    command: str,
    flags: list[str],
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    line = refused(command, capsys, tmp_path, *flags)
    for word in words:
        assert word in line


BAD_SCENARIOS = [
    ("n_devices = -1", "n_devices"),
    ("n_device = 4", "did you mean 'n_devices'"),
    ("[horizon]\nmeasure_s = nan", "horizon.measure_s"),
    ("[[slo]", "not valid TOML"),
    ('[workload]\narrivals = "trace"\ntrace = "absent.csv"\ntrace_format = "azure"', "absent.csv"),
]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("text", "word"), BAD_SCENARIOS)
def test_wrong_scenarios_end_with_one_line(
    command: str, text: str, word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(f'use = "wisp-a100-qwen3-32b"\n{text}\n')
    line = refused(command, capsys, tmp_path, "--scenario", str(path), "--json", str(tmp_path / "rows.json"))
    assert word in line


@pytest.mark.parametrize(
    "rows", ["", "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-11 00:00:00,x,3\n", "a,b\n1,2\n"]
)
def test_wrong_traces_end_with_one_line(rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "trace.csv").write_text(rows)
    path = tmp_path / "traced.toml"
    path.write_text(SHORT + '[workload]\narrivals = "trace"\ntrace = "trace.csv"\ntrace_format = "azure"\n')
    assert "trace.csv" in refused(
        "evaluate", capsys, tmp_path, "--scenario", str(path), "--json", str(tmp_path / "rows.json")
    )


def test_a_trace_is_replayed_but_has_no_capacity_in_devices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [f"2023-11-11 00:00:{second:02d}.0000000,100,20" for second in range(20)]
    (tmp_path / "trace.csv").write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *lines]) + "\n")
    path = tmp_path / "traced.toml"
    path.write_text(SHORT + '[workload]\narrivals = "trace"\ntrace = "trace.csv"\ntrace_format = "azure"\n')
    file = tmp_path / "rows.json"
    assert call("evaluate", "--scenario", str(path), "--controllers", "wisp", "--seeds", "2", "--json", str(file)) == 0
    assert json.loads(file.read_text())[0]["requests"] == 15.0  # those that arrive from 2 s up to 17 s
    capsys.readouterr()
    assert "workload.arrivals" in refused("capacity", capsys, tmp_path, "--scenario", str(path))


def test_the_scenario_is_never_overwritten(short: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in COMMANDS:
        assert "--scenario" in refused(command, capsys, tmp_path, "--scenario", short, "--json", short)
    assert Path(short).read_text() == SHORT


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "other"}', '{"format": "wisp-gym policy", "version": 99}'])
def test_wrong_policies_end_with_one_line(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "policy.json").write_text(text)
    for name in (str(tmp_path), f"{tmp_path}/policy.json+fcfs"):
        assert "policy.json" in refused("evaluate", capsys, tmp_path, "--controllers", name)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_lists_every_controller(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(command, "--help") == 0
    shown = capsys.readouterr().out
    for name in [*SPECULATION, *BATCHING, *ALIASES, "centralized"]:
        assert f"  {name}" in shown


def test_ctrl_c_writes_nothing(
    short: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(comparison, "run_all", interrupted)
    assert call("evaluate", "--scenario", short, "--json", str(tmp_path / "rows.json")) == 130
    assert capsys.readouterr().err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["short.toml"]
