"""The timeline: spans add up to what the engine counted, and pictures show what the spans say."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex

from wisp_gym.controllers.resolve import resolve
from wisp_gym.engine import state
from wisp_gym.engine.worlds import Worlds
from wisp_gym.errors import InputError
from wisp_gym.scenario import load, with_
from wisp_gym.view.plot import LOOKS, drawn, frame
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
    Stretch,
    chrome_trace,
    predicted_ends_s,
    rows_of,
    spans,
    window,
)
from wisp_gym.view.text import ansi

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
    events = json.loads(json.dumps(chrome_trace(dict.fromkeys("ab", Stretch(found, predicted_s, 0.0, 20.0)))))[
        "traceEvents"
    ]
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
    figure = drawn({"": window(log_of(ONE_ROUND), 0.0, 2.0)}, [0], (8.0, 3.0))
    _, *of_devices = [found for found in figure.axes[0].collections if isinstance(found, PolyCollection)]
    by_kind = dict(zip(LOOKS, of_devices, strict=True))
    for _, kind, start_s, end_s, _ in EXPECTED[2:]:
        colour, thickness = LOOKS[kind]
        assert to_hex(by_kind[kind].get_facecolor()[0]) == to_hex(colour)
        boxes = np.array([path.get_extents().extents for path in by_kind[kind].get_paths()])  # left, bottom, right, top
        expected = [start_s, -thickness / 2, end_s, thickness / 2]
        assert np.isclose(boxes, expected).all(axis=1).any(), KINDS[kind]
    assert by_kind[WASTED].get_hatch()


def test_a_frame_shows_as_many_devices_as_asked_for(running: np.ndarray) -> None:
    shown = window(running, 10.0, 12.0)
    picture = frame(shown, rows_of(24, 13), 13, 12)
    assert (picture.dtype, picture.ndim, picture.shape[2]) == (np.uint8, 3, 3)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 6
    assert (picture != frame(shown, rows_of(24, 13), -1, 12)).any(), "the tagged device is marked"
    empty = frame(window(running[:0], 0.0, 0.001), rows_of(3), -1, 0)
    assert empty.shape == picture.shape


def test_the_tagged_device_comes_first_whatever_its_number(running: np.ndarray) -> None:
    assert rows_of(24, 13, 4) == [13, 0, 1, 2]
    assert rows_of(3, None) == rows_of(3, -1) == [0, 1, 2]
    shown = window(running, 10.0, 12.0)
    assert ansi(shown, rows_of(24, 13, 4), 13).splitlines()[2].startswith(" >device 13")
    assert ansi(shown, rows_of(24, 13, 4), 13).count("device") == 4


def test_text_has_a_letter_for_what_fills_a_column() -> None:
    lines = ansi(window(log_of(ONE_ROUND), 0.0, 2.0), [0], columns=20).splitlines()
    assert lines[1] == "     server  vv       vv"
    assert lines[2] == "   device 0 uvvrddxxuqvvr......."
    assert "d drafting" in lines[-1]


@pytest.mark.parametrize(("start_s", "end_s"), [(2.0, 2.0), (3.0, 1.0), (0.0, float("nan"))])
def test_windows_that_show_nothing_are_refused(start_s: float, end_s: float) -> None:
    with pytest.raises(InputError, match="allowed"):
        window(log_of(ONE_ROUND), start_s, end_s)


def test_looking_at_spans_and_text_needs_no_plotting_library() -> None:
    code = """
import sys
sys.modules["matplotlib"] = None  # not installed
import wisp_gym.view.plot as plot, wisp_gym.view.text
from wisp_gym.envs.rendering import FrameLog
for draws in (lambda: plot.drawn({}, [], (1, 1)), lambda: FrameLog("rgb_array", ["ansi", "rgb_array"])):
    try:
        draws()
    except ValueError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == 2 * "needs matplotlib, which is not installed: pip install 'wisp-gym[plot]'\n"
