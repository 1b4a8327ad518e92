"""Scenarios that replay a request trace: lengths are the trace's own, and what is cut, skipped or too long is said."""

from __future__ import annotations

import csv
import json
import warnings as python_warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.small_worlds import log_of
from tests.support.small_worlds import run as run_worlds
from wisp_gym.cli import run
from wisp_gym.engine.feasibility import warnings
from wisp_gym.engine.trace_load import load_trace, trace_use
from wisp_gym.envs.speculation import SpeculationEnv
from wisp_gym.evaluation import comparison, evaluate
from wisp_gym.scenario import Lengths, Scenario, ScenarioError, dumps, load, loads, with_
from wisp_gym.simulation import simulate

PUBLIC = Path(__file__).resolve().parents[3] / "shared" / "data" / "A_workload"
TRACED = """
use = "{preset}"
name = "traced"
n_devices = 6
horizon = {{ warmup_s = 2, measure_s = 15, drain_s = 10 }}
[workload]
arrivals = "trace"
trace = "{trace}"
trace_format = "{format}"
"""
LONG = [(second, 1000 + 40 * second, 100 + 4 * second) for second in range(25)]  # prompts to 1,960, outputs to 196


def traced(
    folder: Path, requests: list[tuple[float, int, int]] = LONG, more: str = "", preset: str = "wisp-a100-qwen3-32b"
) -> Path:
    """A scenario file that replays requests of (s, prompt, output)."""
    lines = "".join(f"{time},{prompt},{output}\n" for time, prompt, output in requests)
    (folder / "trace.csv").write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n" + lines)
    path = folder / "traced.toml"
    path.write_text(TRACED.format(preset=preset, trace="trace.csv", format="vidur") + more)
    return path


def begun(scenario: Scenario) -> list[float]:
    """Prompts that the engine began, in order."""
    (world,) = [run_worlds(scenario, "fixed:4+fcfs", [0], 100_000, load_trace(scenario))]
    return [value for _, kind, _, value in log_of(world) if kind == "request"]


# --- the ranges of lengths -------------------------------------------------------------------------------------------


def test_ranges_come_from_the_trace(tmp_path: Path) -> None:
    scenario = load(traced(tmp_path, [(k, 10_000 + k, 1000 - k) for k in range(25)]))
    prompt, output = scenario.workload.prompt, scenario.workload.output
    assert (prompt.min_tokens, prompt.max_tokens, prompt.median_tokens) == (10_000, 10_024, 10_012)
    assert (output.min_tokens, output.max_tokens, output.median_tokens) == (976, 1000, 988)
    assert prompt.log_std == pytest.approx(np.log(np.arange(10_000, 10_025)).std())
    assert set(begun(scenario)) <= set(range(10_000, 10_025))
    assert loads(dumps(scenario)) == scenario
    use = trace_use(scenario)
    assert use is not None
    assert (use.requests, use.cut, use.skipped, use.lost_share, use.arriving) == (25, 0, 0, 0.0, 25)
    assert use.changes() == use.doubts() == []


def test_ranges_that_the_file_states_cut_and_are_said(tmp_path: Path) -> None:
    cut = "prompt = { max_tokens = 1_200, min_tokens = 1_100 }\noutput.max_tokens = 120\n"
    scenario = load(traced(tmp_path, more=cut))
    assert scenario.workload.prompt.median_tokens == 1_200
    assert scenario.workload.output == Lengths(120.0, scenario.workload.output.log_std, 100, 120)
    assert set(begun(scenario)) <= set(range(1_100, 1_201))
    use = trace_use(scenario)
    assert use is not None
    assert use.cut == 3 + 19  # those of 1,000 to 1,080, and all behind the sixth
    lost = sum(max(prompt - 1_200, 0) + max(output - 120, 0) for _, prompt, output in LONG)
    assert use.lost_share == pytest.approx(lost / sum(prompt + output for _, prompt, output in LONG))
    (said,) = [line for line in warnings(scenario) if "trace" in line]
    assert "trace trace.csv: 22 of 25 requests are cut to the ranges" in said


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ("max_tokens = 500", (500, 500, 500)),  # below all: what is not stated makes room
        ("min_tokens = 5_000", (5_000, 5_000, 5_000)),
        ("min_tokens = 1_200", (1_200, 1_960, 1_480)),
        ("median_tokens = 1_500", (1_000, 1_960, 1_500)),
    ],
)
def test_what_is_not_stated_makes_room(tmp_path: Path, stated: str, expected: tuple[int, int, float]) -> None:
    prompt = load(traced(tmp_path, more=f"prompt.{stated}\n")).workload.prompt
    assert (prompt.min_tokens, prompt.max_tokens, prompt.median_tokens) == expected


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (
            "prompt = { min_tokens = 9, max_tokens = 5 }",
            "workload.prompt.min_tokens: given 9, allowed: <= max_tokens (5)",
        ),
        ("prompt.max_tokens = 'many'", "workload.prompt.max_tokens: given 'many', allowed: a whole number"),
        ("prompt = 3", "workload.prompt: given 3"),
        ("prompt.most = 3", "workload.prompt: unknown key 'most'"),
        ("trace_rows = -1", "workload.trace_rows: given -1"),
        ("trace_start_s = 'x'", "workload.trace_start_s: given 'x'"),
        ("trace_start_s = 99", "workload.trace: "),
        ("trace_row = 3", "unknown key 'trace_row'; did you mean 'trace_rows'?"),
        ("trace_columns = 'ms'", "workload.trace_columns: given 'ms', allowed: a table with time, unit"),
        ("trace_columns.unit = 'sec'", "workload.trace_columns.unit: given 'sec'"),
        ("trace_columns.times = 'sec'", "workload.trace_columns: unknown key 'times'; did you mean 'time'?"),
        ("trace_columns.time = 'arrived'", "column 'arrived' is missing"),
    ],
)
def test_a_wrong_field_is_one_line(tmp_path: Path, more: str, words: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        load(traced(tmp_path, more=more))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "traced.toml" in str(caught.value)


def test_a_change_in_code_keeps_the_ranges_and_is_said(tmp_path: Path) -> None:
    file = traced(tmp_path)
    preset = load("wisp-a100-qwen3-32b")
    names = {
        "workload.arrivals": "trace",
        "workload.trace": str(file.with_name("trace.csv")),
        "workload.trace_format": "vidur",
    }
    short = {"n_devices": 6, "horizon": load(file).horizon}
    scenario = with_(preset, **names, **short, **{"workload.prompt.max_tokens": 1_200})
    with pytest.warns(UserWarning, match=r"19 of 25 requests are cut to the ranges"):
        simulate(scenario, "fixed:4+fcfs")
    with pytest.warns(UserWarning, match=r"19 of 25 requests are cut to the ranges"):
        SpeculationEnv(scenario=scenario).close()
    with python_warnings.catch_warnings():
        python_warnings.simplefilter("error")
        simulate(load(file), "fixed:4+fcfs")


def test_a_saved_scenario_needs_no_more_of_its_trace_than_the_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario = load(traced(tmp_path, more="trace_rows = 20\ntrace_start_s = 2\ntrace_columns.unit = 's'\n"))
    assert loads(dumps(scenario)) == scenario
    Path(scenario.workload.trace).unlink()
    assert loads(dumps(scenario)) == scenario  # a scenario that has gone to another machine
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ScenarioError, match="allowed: a file that exists"):
        loads((tmp_path / "traced.toml").read_text())


def test_a_scenario_without_a_trace_is_written_as_before() -> None:
    text = dumps(load("wisp-a100-qwen3-32b"))
    assert 'trace_format = ""' in text
    for later in ("trace_start_s", "trace_rows", "trace_columns"):
        assert later not in text


# --- windows and memory ----------------------------------------------------------------------------------------------


def test_a_scenario_takes_a_window(tmp_path: Path) -> None:
    scenario = load(traced(tmp_path, more="trace_start_s = 5\ntrace_rows = 10\n"))
    rows = load_trace(scenario)
    assert rows["arrival_s"].tolist() == list(range(10))
    assert rows["prompt_tokens"].tolist() == [prompt for _, prompt, _ in LONG[5:15]]
    assert scenario.workload.prompt.max_tokens == LONG[14][1]
    (short,) = [line for line in warnings(scenario) if "trace" in line]
    assert "its last request comes at 9 s, before the end of what is measured (17 s)" in short


def test_a_window_of_measurement_without_a_request_is_said(tmp_path: Path) -> None:
    scenario = load(traced(tmp_path, [(0, 100, 10), (99, 100, 10)]))
    (said,) = [line for line in warnings(scenario) if "trace" in line]
    assert said == "trace trace.csv: no request comes within what is measured, which ends at 17 s"


def test_a_request_beyond_memory_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = traced(tmp_path, [*LONG, (26, 39_000, 10), (27, 10, 60_000)])
    assert run(comparison.main, "wisp-gym evaluate", ["--scenario", str(file), "--controllers", "wisp"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "workload.trace: 2 of 27 requests are longer than KV memory of a100-80gb holds" in err
    assert "is 60022 tokens), allowed: <= 38523; workload.prompt.max_tokens" in err
    # Longest prompt and longest output together are too long here, but no request has both.
    near = load(traced(tmp_path, [*LONG, (26, 38_000, 10), (27, 10, 38_000)]))
    assert len(load_trace(near)) == 27
    cut = traced(tmp_path, [*LONG, (26, 39_000, 10)], more="prompt.max_tokens = 38_000\n")
    assert load_trace(load(cut))["prompt_tokens"].max() == 39_000  # the engine cuts it
    use = trace_use(load(cut))
    assert use is not None
    assert use.cut == 1


# --- what the command says -------------------------------------------------------------------------------------------


def evaluated(file: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[str, str, list[dict[str, Any]]]:
    """Output, notes and JSON rows of a comparison of one controller in one world."""
    told = file.with_name("rows.json")
    arguments = ["--scenario", str(file), "--controllers", "fixed:4+fcfs", "--seeds", "1", "--json", str(told), *flags]
    assert run(comparison.main, "wisp-gym evaluate", arguments) == 0
    return *capsys.readouterr(), json.loads(told.read_text())


def test_evaluate_says_what_became_of_the_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    requests = [*LONG[:5], (5, 0, 3), (5, 9, 0), *LONG[5:]]
    table = tmp_path / "rows.csv"
    out, err, rows = evaluated(traced(tmp_path, requests, "prompt.max_tokens = 1_200\n"), capsys, "--csv", str(table))
    last = "trace trace.csv: 25 requests in 24 s (1.04 a second), 2 skipped, 19 cut (76.0%), 25 arrive before the horizon ends"
    assert out.splitlines()[-1] == last
    assert "note: trace trace.csv: 19 of 25 requests are cut" in err
    assert "note: trace trace.csv: 2 requests without a prompt or an output are skipped" in err
    told = {key: value for key, value in rows[0].items() if key.startswith("trace_")}
    assert told.keys() == {"trace_requests", "trace_skipped", "trace_cut_share", "trace_lost_token_share"}
    assert (told["trace_requests"], told["trace_skipped"], told["trace_cut_share"]) == (25, 2, 0.76)
    assert next(csv.DictReader(table.read_text().splitlines()))["trace_cut_share"] == "0.76"
    assert evaluated(traced(tmp_path, requests), capsys, "--per-seed")[2][0]["trace_cut_share"] == 0.0


def test_a_comparison_without_a_trace_has_no_word_of_one(tmp_path: Path) -> None:
    compared = evaluate(
        "fixed:4+fcfs", with_(load("wisp-a100-qwen3-32b"), horizon=load(traced(tmp_path)).horizon), 4, seeds=[0]
    )
    assert compared.trace is None
    assert not any(key.startswith("trace") for key in compared.rows()[0])
    assert "trace" not in compared.table()


# --- public traces ---------------------------------------------------------------------------------------------------

SECONDS = 'trace_columns = { time = "t_s", unit = "s", prompt = "input_tokens", output = "output_tokens" }\n'


@pytest.mark.skipif(not PUBLIC.is_dir(), reason="the public traces are not beside this checkout")
@pytest.mark.parametrize(
    ("name", "requests", "longest"), [("azure2023_code", 8_819, 7_437), ("azure2023_conv", 19_366, 14_050)]
)
def test_azures_traces_are_replayed_as_they_are(
    name: str, requests: int, longest: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "azure.toml"
    place = (PUBLIC / f"{name}.csv").as_posix()
    file.write_text(TRACED.format(preset="wisp-a100-qwen3-32b", trace=place, format="csv") + SECONDS)
    out, _, rows = evaluated(file, capsys)
    assert f"trace {name}.csv: {requests:,} requests" in out
    assert ", 0 skipped, 0 cut (0.0%), " in out
    assert (rows[0]["trace_requests"], rows[0]["trace_cut_share"], rows[0]["trace_lost_token_share"]) == (
        requests,
        0.0,
        0.0,
    )
    assert load(file).workload.prompt.max_tokens == longest


def mooncake(n: int) -> str:
    """A trace of the shape that Mooncake published: batches every 3 s, prompts of thousands of tokens, the longest 126,195."""
    rng = np.random.default_rng(0)
    prompts = np.clip(np.exp(rng.normal(8.737, 1.199, n)), 800, 126_195).astype(int)
    prompts[n // 2] = 126_195
    outputs = np.clip(np.exp(rng.normal(5.336, 1.358, n)), 1, 2_000).astype(int)
    lines = [
        {
            "timestamp": 3000 * (k // 10) - (k // 20) % 2,
            "input_length": int(p),
            "output_length": int(o),
            "hash_ids": [0, k],
        }
        for k, (p, o) in enumerate(zip(prompts, outputs, strict=True))
    ]
    return "".join(json.dumps(line) + "\n" for line in lines)


def test_mooncakes_shape_is_replayed_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mooncake.jsonl").write_text(mooncake(400))
    file = tmp_path / "mooncake.toml"
    text = TRACED.format(preset="h200-qwen3-32b", trace="mooncake.jsonl", format="mooncake")
    file.write_text(text)
    out, _, rows = evaluated(file, capsys)
    assert "trace mooncake.jsonl: 400 requests in 117 s (3.42 a second), 0 skipped, 0 cut (0.0%)" in out
    assert (rows[0]["trace_cut_share"], load(file).workload.prompt.max_tokens) == (0.0, 126_195)
    file.write_text(text.replace("h200-qwen3-32b", "wisp-a100-qwen3-32b"))
    with pytest.raises(ScenarioError, match=r"of 400 requests are longer than KV memory of a100-80gb holds"):
        warnings(load(file))
