"""Timelines of several controllers: a strict check of the Chrome trace, the picture, and how the command refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from wisp_gym.cli import run
from wisp_gym.controllers.resolve import resolve
from wisp_gym.evaluation import timeline
from wisp_gym.scenario import load, with_
from wisp_gym.simulation import simulate
from wisp_gym.view.spans import BATCH, KINDS, UPLINK, window

FLAGS = ["--controllers", "wisp,sled", "--devices", "3", "--start", "20", "--seconds", "2"]


def call(*arguments: str) -> int:
    """Exit code of the command."""
    try:
        return run(timeline.main, timeline.PROGRAM, arguments)
    except SystemExit as end:
        return int(end.code or 0)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trace and a picture."""
    folder = tmp_path_factory.mktemp("timeline")
    assert call(*FLAGS, f"--trace={folder / 'a.json'}", f"--png={folder / 'a.png'}") == 0
    return folder


def check_event(event: dict[str, Any]) -> None:
    """An event of the kinds we write, after Google's "Trace Event Format" (the JSON format that Perfetto documents)."""
    common = {"name", "ph", "pid", "tid"}
    keys = {"X": {"cat", "ts", "dur", "args"}, "i": {"cat", "ts", "s"}, "M": {"args"}}[event["ph"]]
    assert set(event) == common | keys
    assert isinstance(event["name"], str)
    assert all(type(event[key]) is int and event[key] >= 0 for key in ("pid", "tid"))
    assert all(np.isfinite(event[key]) and event[key] >= 0 for key in ("ts", "dur") if key in event)
    if event["ph"] == "i":
        assert event["s"] in ("g", "p", "t")
    if event["ph"] == "M":
        key = {"process_name": "name", "thread_name": "name"}.get(event["name"], "sort_index")
        assert event["name"] in ("process_name", "thread_name", "process_sort_index", "thread_sort_index")
        assert list(event["args"]) == [key]


def test_the_trace_follows_the_format(written: Path) -> None:
    trace = json.loads((written / "a.json").read_text(), parse_constant=lambda word: pytest.fail(word))
    assert set(trace) == {"traceEvents", "displayTimeUnit"}
    assert trace["displayTimeUnit"] in ("ms", "ns")
    for event in trace["traceEvents"]:
        check_event(event)
    names = [(e["pid"], e["args"]["name"]) for e in trace["traceEvents"] if e["name"] == "process_name"]
    assert names == [(1, "wisp"), (2, "sled")]
    threads = {pid: [e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "thread_name" and e["pid"] == pid]
               for pid in (1, 2)}  # fmt: skip
    assert threads == {pid: ["server", "device 0", "device 1", "device 2"] for pid in (1, 2)}


def test_the_trace_holds_each_world_s_spans(written: Path) -> None:
    events = json.loads((written / "a.json").read_text())["traceEvents"]
    scenario = with_(load("wisp-a100-qwen3-32b"), n_devices=3)
    for pid, controller in ((1, "wisp"), (2, "sled")):
        log, _ = timeline.run_logged(scenario, resolve(controller, scenario), 0, 22.0)
        shown = window(log, 20.0, 22.0)
        for kind in (BATCH, UPLINK):
            own = [e for e in events if e["pid"] == pid and e["name"] == KINDS[kind]]
            expected = shown.spans[shown.spans["kind"] == kind]
            np.testing.assert_allclose(sorted(e["ts"] for e in own), np.sort(expected["start_s"]) * 1e6, atol=1e-3)
        marks = [e["ts"] for e in events if e["pid"] == pid and e["ph"] == "i"]
        np.testing.assert_allclose(marks, shown.predicted_s * 1e6, atol=1e-3)
        assert len(marks) > 5


def test_the_picture_has_a_panel_for_each_controller(written: Path, tmp_path: Path) -> None:
    both = imread(written / "a.png")
    assert call(*FLAGS, "--controllers", "wisp", f"--png={tmp_path / 'one.png'}") == 0
    one = imread(tmp_path / "one.png")
    assert both.shape[1] == one.shape[1]
    assert both.shape[0] > 1.5 * one.shape[0]
    assert len(np.unique(both.reshape(-1, both.shape[2]), axis=0)) > 6


def test_without_a_file_it_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*FLAGS) == 0
    out = capsys.readouterr().out
    assert [block.partition(":")[0] for block in out.split("\n\n")] == ["wisp", "sled"]
    assert out.count("device 2 ") == 2
    assert out.count("20.00 s") == 2


def test_the_title_tells_what_the_whole_world_gave() -> None:
    scenario = with_(load("wisp-a100-qwen3-32b"), n_devices=3)
    wisp = timeline.strip(scenario, "wisp", resolve("wisp", scenario), 0, 20.0, 22.0)
    (world,) = simulate(scenario, "wisp", (0,), 3)
    assert wisp.metrics["goodput_tokens_per_s"] == world.goodput_tokens_per_s
    assert f"{world.goodput_tokens_per_s:,.1f} tokens/s" in timeline.title(wisp, scenario)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--png", "a.gif"], ".png"),
        (["--trace", "a.png"], ".json"),
        (["--png", "no/a.png"], "No such file"),
        (["--png", "a.png", "--devices", "0"], "'0'"),
        (["--png", "a.png", "--seed", "-1"], "'-1'"),
        (["--png", "a.png", "--start", "nan"], "'nan'"),
        (["--png", "a.png", "--seconds", "0"], "from 0.01 to 3600"),
        (["--png", "a.png", "--start", "3600"], "an end at 3600 s or before"),
        (["--png", "a.png", "--controllers", "wisp,wips"], "did you mean 'wisp'"),
        (["--png", "a.png", "--controllers", "wisp,wisp"], "twice"),
        (["--png", "a.png", "--controllers", "sled,wisp,fixed+fcfs,price,oracle+fcfs"], "at most 4"),
        (["--png", "a.png", "--scenario", "wisp-a100-qwen3-32"], "wisp-a100-qwen3-32b"),
        (["--pgn", "a.png"], "did you mean '--png'"),
    ],
)
def test_wrong_flags_are_one_line(
    flags: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(*flags) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert words in err
    assert not list(tmp_path.iterdir())
