"""The timeline: spans add up to what the engine counted, and pictures show what the spans say."""

from __future__ import annotations

import itertools
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from wisp_gym.controllers.resolve import resolve
from wisp_gym.engine import state
from wisp_gym.engine.worlds import Worlds
from wisp_gym.scenario import load, with_
from wisp_gym.view.raster import blank, glyph, png, text
from wisp_gym.view.spans import (
    BATCH,
    DOWNLINK,
    DRAFTING,
    KINDS,
    LANES,
    QUEUEING,
    SERVER,
    THINKING,
    UPLINK,
    VERIFYING,
    WASTED,
    chrome_trace,
    predicted_ends_s,
    spans,
)
from wisp_gym.view.timeline import COLOURS, Canvas, ansi, draw, main, tick_s

ROOT = Path(__file__).resolve().parents[2]

# One device: a prompt, a round of four tokens of which one is accepted, the end of the response, the next request.
ONE_ROUND = [
    (0.0, state.LOG_REQUEST, 0, 50),
    (0.0, state.LOG_SEND, 0, 0),
    (0.1, state.LOG_ARRIVE, 0, 0),
    (0.1, state.LOG_LAUNCH, -1, 1),
    (0.1, state.LOG_PREDICT, -1, 0.31),
    (0.1, state.LOG_MEMBER, 0, 50),
    (0.3, state.LOG_END, -1, 1),
    (0.3, state.LOG_VERIFY, 0, 0),
    (0.4, state.LOG_DELIVER, 0, 1),
    (0.8, state.LOG_SEND, 0, 4),
    (0.9, state.LOG_ARRIVE, 0, 4),
    (1.0, state.LOG_LAUNCH, -1, 1),
    (1.0, state.LOG_PREDICT, -1, 1.18),
    (1.0, state.LOG_MEMBER, 0, 5),
    (1.2, state.LOG_END, -1, 1),
    (1.2, state.LOG_VERIFY, 0, 1),
    (1.3, state.LOG_DELIVER, 0, 2),
    (1.3, state.LOG_DONE, 0, 3),
    (2.0, state.LOG_REQUEST, 0, 60),
    (2.0, state.LOG_SEND, 0, 0),
]
EXPECTED = [
    (SERVER, BATCH, 0.1, 0.3, 1),
    (SERVER, BATCH, 1.0, 1.2, 1),
    (0, UPLINK, 0.0, 0.1, 0),
    (0, VERIFYING, 0.1, 0.3, 0),
    (0, DOWNLINK, 0.3, 0.4, 1),
    (0, DRAFTING, 0.4, 0.6, 4),
    (0, WASTED, 0.6, 0.8, 2),
    (0, UPLINK, 0.8, 0.9, 4),
    (0, QUEUEING, 0.9, 1.0, 4),
    (0, VERIFYING, 1.0, 1.2, 1),
    (0, DOWNLINK, 1.2, 1.3, 2),
    (0, THINKING, 1.3, 2.0, 3),
]


def log_of(rows: list[tuple[float, int, int, int]]) -> np.ndarray:
    return np.array(rows, state.LOG_ROW)


def run(controller: str, n_devices: int, measure_s: float, think_s: float = 2.0) -> tuple[np.ndarray, Worlds]:
    """Event log of a world without warm-up and drain, and the world."""
    changes = {"horizon.warmup_s": 0.0, "horizon.measure_s": measure_s, "horizon.drain_s": 0.0}
    scenario = with_(load("wisp-a100-qwen3-32b"), **changes, **{"workload.think_s": think_s})
    worlds = Worlds(1, n_devices, log_rows=200_000)
    worlds.fill(0, scenario, 3, resolve(controller, scenario), n_devices)
    worlds.run()
    length = int(worlds.arrays.server[0, 0]["log_length"])
    assert length <= 200_000
    return worlds.arrays.log[0, :length], worlds


@pytest.fixture(scope="module")
def finished() -> tuple[np.ndarray, Worlds]:
    """A world in which every device serves one request and is done long before the end."""
    log, worlds = run("wisp+wisp", 12, 600.0, think_s=1e6)
    assert worlds.arrays.totals[0, 0]["requests_done"] == 12
    return log, worlds


@pytest.fixture(scope="module")
def running() -> np.ndarray:
    return run("wisp+wisp", 24, 20.0)[0]


@pytest.fixture(scope="module")
def centralized() -> np.ndarray:
    return run("centralized", 24, 20.0)[0]


def seconds(found: np.ndarray, *kinds: int) -> float:
    chosen = found[np.isin(found["kind"], kinds)]
    return float((chosen["end_s"] - chosen["start_s"]).sum())


def test_spans_of_a_log_written_by_hand() -> None:
    found = spans(log_of(ONE_ROUND), end_s=2.0)
    assert [row[:2] for row in found.tolist()] == [row[:2] for row in EXPECTED]
    for name in ("start_s", "end_s", "tokens"):
        np.testing.assert_allclose(found[name], np.array(EXPECTED, found.dtype)[name], atol=1e-12)


def test_unused_rows_and_an_empty_log_are_passed_over() -> None:
    padded = np.concatenate((log_of(ONE_ROUND), np.zeros(5, state.LOG_ROW)))
    np.testing.assert_array_equal(spans(padded, 2.0), spans(log_of(ONE_ROUND), 2.0))
    assert len(spans(np.zeros(3, state.LOG_ROW))) == 0


def test_the_overhead_of_a_round_is_not_taken_for_wasted_tokens() -> None:
    found = spans(log_of(ONE_ROUND), 2.0, overhead_s=np.array([0.2]))
    assert seconds(found, WASTED) == pytest.approx(2 * (0.4 - 0.2) / 4)


def test_spans_add_up_to_what_the_engine_counted(finished: tuple[np.ndarray, Worlds]) -> None:
    log, worlds = finished
    totals, overhead_s = worlds.arrays.totals[0, 0], worlds.arrays.device[0]["round_overhead_s"]
    found = spans(log, 600.0, overhead_s)
    drafts = found[(found["kind"] == DRAFTING) & (found["tokens"] > 0)]
    overheads_s = overhead_s[drafts["device"]].sum()
    assert totals["wasted_s"] > 1.0
    assert seconds(found, WASTED) == pytest.approx(totals["wasted_s"], rel=1e-9)
    assert seconds(found, DRAFTING, WASTED) - overheads_s == pytest.approx(totals["draft_s"], rel=1e-9)
    assert seconds(found, BATCH) == pytest.approx(totals["busy_s"], rel=1e-9)
    assert found["tokens"][found["kind"] == VERIFYING].sum() == totals["accepted"]
    ahead = (log["time_s"][log["kind"] == state.LOG_SEND] > 600.0).sum()  # the next request's message, not yet sent
    assert np.isin(found["kind"], (UPLINK, DOWNLINK)).sum() == totals["messages"] - ahead


def test_a_device_does_one_thing_at_a_time_and_always_something(running: np.ndarray) -> None:
    found = spans(running)
    for device in range(24):
        own = found[found["device"] == device]
        np.testing.assert_array_equal(own["start_s"][1:], own["end_s"][:-1], err_msg=f"device {device}")


def test_a_world_that_still_runs_is_cut_at_the_end(running: np.ndarray) -> None:
    cut = running[: len(running) // 2]
    found = spans(cut, end_s=12.0)
    whole = spans(running, end_s=20.0)
    closed = found[found["end_s"] < cut["time_s"][cut["device"] < 0].max()]
    same = np.isin(closed[closed["kind"] == VERIFYING], whole)
    assert len(same) > 50
    assert same.all()


@pytest.mark.parametrize("world", ["running", "centralized"])
def test_a_log_that_begins_in_the_middle_gives_the_same_spans_from_then_on(
    world: str, request: pytest.FixtureRequest
) -> None:
    log = request.getfixturevalue(world)
    whole, late = spans(log), spans(log[len(log) // 2 :])
    # A request is logged when the one before it ends: those of the first half reach a few seconds into the second.
    of_second_half = late[late["start_s"] > 18.0]
    assert len(of_second_half) > 200
    np.testing.assert_array_equal(of_second_half, whole[whole["start_s"] > 18.0])


def test_members_of_the_running_batch_are_known() -> None:
    started = log_of([row for row in ONE_ROUND if row[0] <= 1.0])
    assert spans(started, 1.1)[-1].tolist() == (0, VERIFYING, 1.0, 1.1, 0.0)
    other = [(0.0, state.LOG_REQUEST, 1, 9), (0.0, state.LOG_SEND, 1, 0), (0.5, state.LOG_ARRIVE, 1, 0)]
    assert spans(np.concatenate((started, log_of(other))), 1.1)[-1].tolist() == (1, QUEUEING, 0.5, 1.1, 0.0)


def test_a_prompt_in_chunks_is_verified_in_each_of_its_batches() -> None:
    log = [(0.0, state.LOG_REQUEST, 0, 80), (0.0, state.LOG_SEND, 0, 0), (0.1, state.LOG_ARRIVE, 0, 0)]
    for launch_s, tokens in ((0.2, 50), (0.5, 30)):
        log += [(launch_s, state.LOG_LAUNCH, -1, 1), (launch_s, state.LOG_MEMBER, 0, tokens)]
        log += [(launch_s + 0.25, state.LOG_END, -1, 1)]
    log += [(0.75, state.LOG_VERIFY, 0, 0)]
    at_server = [row for row in spans(log_of(log), 0.9).tolist() if row[0] == 0 and row[1] in (QUEUEING, VERIFYING)]
    expected = [(QUEUEING, 0.1, 0.2), (VERIFYING, 0.2, 0.45), (QUEUEING, 0.45, 0.5), (VERIFYING, 0.5, 0.75)]
    assert [row[1:4] for row in at_server] == expected
    waiting = spans(log_of(log[:6]), 0.5)[-1]
    assert waiting.tolist() == (0, QUEUEING, 0.45, 0.5, 0.0), "one chunk done, the next not begun"


def test_members_add_up_to_their_batch(running: np.ndarray) -> None:
    found = spans(running)
    members = found[found["kind"] == VERIFYING]
    for batch in found[found["kind"] == BATCH][:-1]:
        assert (members["start_s"] == batch["start_s"]).sum() == batch["tokens"]


@pytest.mark.parametrize("world", ["running", "centralized"])
def test_the_chrome_trace_has_named_threads_without_overlaps(world: str, request: pytest.FixtureRequest) -> None:
    log = request.getfixturevalue(world)
    found, predicted_s = spans(log), predicted_ends_s(log)
    events = json.loads(json.dumps(chrome_trace({"a": (found, predicted_s), "b": (found, predicted_s)})))["traceEvents"]
    named = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    slices = [e for e in events if e["ph"] == "X"]
    assert len(slices) == 2 * len(found)
    assert {e["name"] for e in slices} == {KINDS[kind] for kind in np.unique(found["kind"])}
    for thread in named:
        own = sorted((e["ts"], e["ts"] + e["dur"]) for e in slices if (e["pid"], e["tid"]) == thread)
        assert all(end <= start + 1e-6 for (_, end), (start, _) in itertools.pairwise(own)), named[thread]
    assert {(e["pid"], e["tid"]) for e in slices} <= set(named)
    assert [named[pid, 0] for pid in (1, 2)] == ["server", "server"]
    assert named[(2, 4 * LANES)] == "device 3"
    marks = [e["ts"] for e in events if e["ph"] == "i" and e["pid"] == 2]
    np.testing.assert_allclose(marks, predicted_s * 1e6)


def test_centralized_sequences_are_verified_again_and_never_draft(centralized: np.ndarray) -> None:
    found = spans(centralized)
    assert not np.isin(found["kind"], (DRAFTING, WASTED)).any()
    delivered = (centralized["kind"] == state.LOG_DELIVER).sum()
    assert abs(int((found["kind"] == DOWNLINK).sum()) - int(delivered)) <= 24
    assert (found["kind"] == VERIFYING).sum() >= delivered


def test_the_picture_shows_each_span_in_its_colour() -> None:
    log = log_of(ONE_ROUND)
    picture = draw(log, 0.0, 2.0, 800, 200)
    assert picture.shape == (200, 800, 3)
    assert picture.dtype == np.uint8
    canvas = Canvas(800, 200, 0.0, 2.0, 2)
    middle = canvas.y0 + canvas.row + (canvas.row - canvas.row // 8) // 2
    for _, kind, start_s, end_s, _ in EXPECTED[2:]:
        left, right = canvas.x([start_s + 0.02, end_s - 0.02])
        shown = picture[middle - 3 : middle + 3, left:right].reshape(-1, 3)
        share = (shown == COLOURS[kind]).all(axis=1).mean()
        if kind == WASTED:
            assert 0.3 < share < 0.7, "hatched"
        elif kind != THINKING:
            assert share == 1.0, KINDS[kind]


def test_the_tagged_device_comes_first_and_the_rest_is_counted(running: np.ndarray) -> None:
    plain, tagged = (draw(running, 10.0, 12.0, n_devices=24, tagged=device) for device in (None, 13))
    assert (plain != tagged).any()
    assert ansi(running, 10.0, 12.0, n_devices=24, tagged=13).splitlines()[2].startswith(" >device 13")
    assert ansi(running, 10.0, 12.0, n_devices=4, tagged=13).count("device") == 4
    small = draw(running, 10.0, 12.0, 200, 80, n_devices=24)
    assert small.shape == (80, 200, 3)


def test_text_has_a_letter_for_what_fills_a_column() -> None:
    lines = ansi(log_of(ONE_ROUND), 0.0, 2.0, columns=20).splitlines()
    assert lines[1] == "     server  vv       vv"
    assert lines[2] == "   device 0 uvvrddxxuqvvr......."
    assert "d drafting" in lines[-1]


@pytest.mark.parametrize(
    ("start_s", "end_s", "width"), [(2.0, 2.0, 800), (3.0, 1.0, 800), (0.0, float("nan"), 800), (0.0, 2.0, 100)]
)
def test_windows_that_show_nothing_are_refused(start_s: float, end_s: float, width: int) -> None:
    with pytest.raises(ValueError, match="allowed"):
        draw(log_of(ONE_ROUND), start_s, end_s, width, 200)


def test_ticks_are_round() -> None:
    assert [tick_s(length, 5) for length in (0.02, 2.0, 7.0, 300.0)] == pytest.approx([0.005, 0.5, 2.0, 100.0])


def test_every_word_of_the_timeline_can_be_written() -> None:
    words = "".join(KINDS) + "server device in flight and more devices 0123456789.s"
    blanks = {character for character in words if character != " " and not glyph(character).any()}
    assert blanks == set()
    picture = blank(40, 10, (255, 255, 255))
    text(picture, -3, 5, "server", (0, 0, 0))  # cut off at the edges, no error
    assert 0 < (picture == 0).sum() < picture.size


def test_png_round_trip() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    data = png(picture)
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", data[16:24]) == (7, 5)
    at = data.index(b"IDAT")
    (length,) = struct.unpack(">I", data[at - 4 : at])
    body = data[at + 4 : at + 4 + length]
    assert struct.unpack(">I", data[at + 4 + length : at + 8 + length])[0] == zlib.crc32(b"IDAT" + body)
    rows = np.frombuffer(zlib.decompress(body), np.uint8).reshape(5, 22)
    np.testing.assert_array_equal(rows[:, 1:].reshape(5, 7, 3), picture)


def test_the_command_writes_what_the_name_asks_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--devices", "3", "--start", "12", "--seconds", "1"]
    main([*common, "--out", str(tmp_path / "a.png")])
    main([*common, "--out", str(tmp_path / "a.json")])
    capsys.readouterr()
    main(common)
    assert capsys.readouterr().out.count("device ") == 3
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    assert json.loads((tmp_path / "a.json").read_text())["traceEvents"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--controller", "wips+wisp"], "did you mean 'wisp'"),
        (["--scenario", "wisp-a100-qwen3-32"], "wisp-a100-qwen3-32b"),
        (["--devices", "0"], "1 or more"),
        (["--seconds", "-1"], "allowed is a stretch"),
        (["--seconds", "nan"], "allowed is a stretch"),
        (["--out", "{folder}/a.gif"], ".png or .json"),
        (["--out", "{folder}/none/a.png"], "does not exist"),
        (["--width", "10"], "at least 200"),
        (["--nonsense"], "unrecognized"),
    ],
)
def test_bad_flags_end_in_one_line_and_code_2(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [flag.replace("{folder}", str(tmp_path)) for flag in flags]
    out = [] if "--out" in flags else ["--out", str(tmp_path / "a.png")]
    with pytest.raises(SystemExit) as stop:
        main([*given, *out])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_drawing_needs_no_plotting_library() -> None:
    code = "import sys, wisp_gym.view.timeline; print(sorted({'matplotlib', 'PIL', 'pygame'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
