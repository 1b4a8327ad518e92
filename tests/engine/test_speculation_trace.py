"""Speculation traces: there and back to the byte, every fault by its place, nothing large unpacked, replay by hand."""

from __future__ import annotations

import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from traces.describe_speculation import acceptance_by_position, area_under_curve, autocorrelation, describe, main
from wisp_gym.traces import npz as npz_files
from wisp_gym.traces import speculation as speculation_trace
from wisp_gym.traces.requests import TraceError
from wisp_gym.traces.speculation import (
    SpeculationTrace,
    concatenate,
    read_speculation_trace,
    replay,
    sample_path,
    write_speculation_trace,
)

SHIPPED = "python-10m-1m.npz"
PRETRAINED, PRETRAINED_SAMPLED = "qwen2.5-coder-0.5b-1.5b.npz", "qwen2.5-coder-0.5b-1.5b-sampled.npz"
PAGE = Path(__file__).parents[2] / "traces" / "README.md"
# Kinds of text in the order of the prompts, as far as their lengths tell them apart: first prompt and the one after the last.
KINDS = {"code": (0, 28), "explanations": (28, 48), "summaries": (48, 58), "stories": (58, 68), "translations": (68, 72),
         "arithmetic": (72, 80), "lists and letters": (80, 104)}  # fmt: skip


def runs_of(fates: list[bool], k: int) -> list[int]:
    """Accepted runs of an answer whose first proposals have these fates."""
    return [
        min(k, next((i for i, fate in enumerate(fates[n:]) if not fate), len(fates) - n)) for n in range(len(fates))
    ]


def greedy(answers: list[list[bool]], k: int = 3, seed: int = 0) -> SpeculationTrace:
    """A trace at temperature 0 with these fates and statistics drawn evenly."""
    rng = np.random.default_rng(seed)
    runs = [run for fates in answers for run in runs_of(fates, k)]
    offsets = np.cumsum([0, *map(len, answers)])
    prompts = np.arange(len(answers))
    return SpeculationTrace(prompts, prompts + 5, offsets, runs, rng.random((len(runs), k, 4)), None, {"draft": "d"})


TRACE = greedy([[True, True, False, True], [False, True], [True] * 7])


def sampled() -> SpeculationTrace:
    """A trace at temperature 1."""
    arrays = {**TRACE.arrays(), "acceptance": np.full((len(TRACE.accepted_run), 3), 0.5)}
    return SpeculationTrace(**arrays, header={"temperature": 1.0})


def npz(tmp_path: Path, **changes: Any) -> Path:
    """A file of TRACE with some arrays replaced (or left out: None), written without any check."""
    header = json.dumps({"format": speculation_trace.FORMAT, "version": 1}).encode()
    arrays = {"header": np.frombuffer(header, np.uint8), **TRACE.arrays(), **changes}
    path = tmp_path / "trace.npz"
    np.savez_compressed(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def fault(path: Path, **limits: int) -> str:
    """The message that reading the file ends with: one line that starts with the file's name."""
    with pytest.raises(TraceError) as caught:
        read_speculation_trace(path, **limits)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert len(message) < 400
    return message.removeprefix(f"{path}: ")


def changed(name: str, at: tuple[int, ...], value: float) -> np.ndarray:
    """An array of TRACE with one value replaced."""
    array = TRACE.arrays()[name].copy()
    array[at] = value
    return array


@settings(max_examples=40, deadline=None)
@given(
    answers=st.lists(st.lists(st.booleans(), min_size=1, max_size=12), min_size=1, max_size=5),
    k=st.integers(1, 8),
)
def test_a_trace_reads_back_as_written(tmp_path_factory: pytest.TempPathFactory, answers: Any, k: int) -> None:
    trace, folder = greedy(answers, k), tmp_path_factory.mktemp("trace")
    write_speculation_trace(trace, folder / "a.npz")
    back = read_speculation_trace(folder / "a.npz")
    for name, array in trace.arrays().items():
        np.testing.assert_array_equal(array, back.arrays()[name])
        assert array.dtype == back.arrays()[name].dtype
    assert (len(back), back.draft_tokens, back.temperature, back.header["draft"]) == (len(answers), k, 0.0, "d")
    write_speculation_trace(back, folder / "b.npz")
    assert (folder / "a.npz").read_bytes() == (folder / "b.npz").read_bytes()
    assert sorted(path.name for path in folder.iterdir()) == ["a.npz", "b.npz"]


def test_a_trace_with_a_temperature_reads_back(tmp_path: Path) -> None:
    write_speculation_trace(sampled(), tmp_path / "a.npz")
    back = read_speculation_trace(tmp_path / "a.npz")
    assert back.temperature == 1.0
    assert back.acceptance is not None
    assert (back.acceptance == 0.5).all()


@pytest.mark.parametrize(
    ("name", "at", "value", "said"),
    [
        (
            "statistics",
            (5, 1, 0),
            np.nan,
            "statistics: request 1, position 1, drafted token 1: confidence nan; allowed: 0 to 1",
        ),
        (
            "statistics",
            (0, 2, 1),
            21,
            "statistics: request 0, position 0, drafted token 2: entropy 21.0; allowed: 0 to 20",
        ),
        (
            "statistics",
            (6, 0, 2),
            -0.5,
            "statistics: request 2, position 0, drafted token 0: margin -0.5; allowed: 0 to 1",
        ),
        (
            "statistics",
            (6, 0, 3),
            np.inf,
            "statistics: request 2, position 0, drafted token 0: spread inf; allowed: 0 to 65504",
        ),
        ("accepted_run", (5,), 2, "accepted_run: request 1, position 1: 2; allowed: 0 to 1"),
        ("accepted_run", (8,), 4, "accepted_run: request 2, position 2: 4; allowed: 0 to 3"),
        ("accepted_run", (1,), 0, "accepted_run: request 0, position 1: 0 after a run of 2; allowed: 1 to 1"),
        ("prompt_tokens", (1,), 0, "prompt_tokens: request 1: 0; allowed: 1 to 10000000"),
        ("prompt_id", (2,), -1, "prompt_id: request 2: -1; allowed: 0 to 2147483647"),
        ("offsets", (1,), 6, "offsets: request 1: positions of the request 0; allowed: 1 to 13"),
        ("offsets", (0,), 1, "offsets: from 1 to 13; allowed: from 0 to 13"),
    ],
)
def test_a_bad_value_is_named_by_its_place(tmp_path: Path, name: str, at: Any, value: float, said: str) -> None:
    assert fault(npz(tmp_path, **{name: changed(name, at, value)})) == said


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"statistics": None}, "header: draft_tokens (needed, as there are no statistics): None"),
        ({"extra": np.zeros(3)}, "array 'extra.npy': unknown or twice"),
        ({"statistics": TRACE.statistics[:-1]}, "statistics: shape (12, 3, 4); allowed: (13, 3, 4)"),
        ({"statistics": TRACE.statistics[:, :, :3]}, "statistics: shape (13, 3, 3); allowed: (13, 3, 4)"),
        ({"statistics": TRACE.statistics[:, :0]}, "statistics: 0 drafted tokens a position; allowed: 1 to 64"),
        ({"statistics": TRACE.statistics.astype(np.float32)}, "statistics: type float32; allowed: float16"),
        ({"accepted_run": TRACE.accepted_run.astype(object)}, "accepted_run: type object; allowed: uint8"),
        ({"statistics": np.asfortranarray(TRACE.statistics)}, "statistics: Fortran order"),
        ({"offsets": TRACE.offsets[:-1]}, "offsets: shape (3,); allowed: (4,)"),
        ({"prompt_id": TRACE.prompt_id[:, None]}, "prompt_id, accepted_run, statistics: shapes"),
        ({"acceptance": np.zeros((13, 3), np.float16)}, "acceptance: present; only for temperature above 0"),
        ({"header": np.frombuffer(b"{}", np.uint8)}, "header: not of this format"),
        ({"header": np.frombuffer(b"\xff", np.uint8)}, "header: not JSON"),
    ],
)
def test_a_wrong_array_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    assert fault(npz(tmp_path, **changes)).startswith(said)


@pytest.mark.parametrize(
    ("temperature", "said"),
    [
        (1.0, "acceptance: missing"),
        (-1.0, "header: temperature -1"),
        ("x", "header: temperature 'x'"),
    ],
)
def test_the_header_and_the_arrays_agree(tmp_path: Path, temperature: Any, said: str) -> None:
    header = json.dumps({"format": speculation_trace.FORMAT, "version": 1, "temperature": temperature}).encode()
    assert fault(npz(tmp_path, header=np.frombuffer(header, np.uint8))).startswith(said)


def test_another_version_is_refused(tmp_path: Path) -> None:
    header = json.dumps({"format": speculation_trace.FORMAT, "version": 3}).encode()
    assert fault(npz(tmp_path, header=np.frombuffer(header, np.uint8))) == "header: version 3; allowed: 1, 2"


def test_a_file_cut_off_or_damaged_anywhere_is_refused_in_one_line(tmp_path: Path) -> None:
    whole, path = npz(tmp_path).read_bytes(), tmp_path / "bad.npz"
    for length in range(0, len(whole), 37):
        path.write_bytes(whole[:length])
        fault(path)
    unread = 0  # bytes of the ZIP's own bookkeeping that no reader looks at
    for place in np.random.default_rng(0).integers(len(whole), size=300):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            read_speculation_trace(path)
            unread += 1
        except TraceError:  # and nothing else
            continue
    assert unread < 100


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = npz(tmp_path, statistics=np.zeros((2_000_000, 3, 4), np.float16))
    assert path.stat().st_size < 100_000
    monkeypatch.setattr(npz_files, "_array", lambda *_: pytest.fail("unpacked"))
    assert fault(path, max_bytes=1 << 20).startswith("arrays of 48")


def test_a_shape_larger_than_the_file_takes_no_memory(tmp_path: Path) -> None:
    entry = io.BytesIO()
    about = {"descr": "<f2", "fortran_order": False, "shape": (1 << 40, 8, 4)}
    np.lib.format.write_array_header_1_0(entry, about)
    path = npz(tmp_path, statistics=None)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("statistics.npy", entry.getvalue())
    assert fault(path).startswith("statistics: shape (1099511627776, 8, 4) needs")


def test_a_pickle_inside_is_never_loaded(tmp_path: Path) -> None:
    path = npz(tmp_path, prompt_id=np.array([{"a": 1}] * 3, object))
    assert fault(path) == "prompt_id: type object; allowed: int32"


def test_places_that_hold_no_file(tmp_path: Path) -> None:
    assert fault(tmp_path / "none.npz") == "no such file"
    assert fault(tmp_path) == "not a regular file"
    with pytest.raises(TraceError, match="cannot be written"):
        write_speculation_trace(TRACE, tmp_path / "no" / "a.npz")
    with pytest.raises(TraceError, match=r"no speculation trace 'x\.npz'; allowed:"):
        sample_path("x.npz")


def test_replay_of_an_answer_is_the_one_done_by_hand() -> None:
    trace = greedy([[True, True, False, True, False, True, True]])
    # n = 0: two right, the third wrong: 2 accepted, 3 committed. n = 3: 1 accepted. n = 5: two left, both right.
    assert list(replay(trace, 0, [3])) == [(3, 2), (3, 1), (2, 2)]
    assert list(replay(trace, 0, [1, 0])) == [(1, 1), (0, 0), (1, 1), (0, 0), (1, 1)]
    with pytest.raises(TraceError, match=r"lengths \[4\]; allowed: at least one, each 0 to 3"):
        list(replay(trace, 0, [4]))


@settings(max_examples=40, deadline=None)
@given(
    fates=st.lists(st.booleans(), min_size=1, max_size=30), lengths=st.lists(st.integers(0, 3), min_size=1, max_size=4)
)
def test_replay_covers_the_answer_whatever_the_lengths(fates: list[bool], lengths: list[int]) -> None:
    rounds = list(replay(greedy([fates]), 0, lengths))
    committed = sum(accepted + 1 for _, accepted in rounds)
    assert len(fates) <= committed <= len(fates) + 1  # the last round's own token may lie beyond the end
    assert all(0 <= accepted <= drafted for drafted, accepted in rounds)


def test_traces_of_one_kind_join() -> None:
    joined = concatenate([TRACE, TRACE])
    assert len(joined) == 6
    np.testing.assert_array_equal(joined.accepted_run[joined.positions(5)], TRACE.accepted_run[TRACE.positions(2)])
    with pytest.raises(TraceError, match="allowed: one kind"):
        concatenate([TRACE, greedy([[True]], k=2)])


def test_figures_of_a_trace_are_those_of_its_law() -> None:
    rng = np.random.default_rng(0)
    trace = greedy([(rng.random(200) < 0.7).tolist() for _ in range(50)], k=4)
    np.testing.assert_allclose(acceptance_by_position(trace), 0.7 ** np.arange(1, 5), atol=0.02)
    assert abs(autocorrelation(trace, 1)) < 0.03
    assert area_under_curve(np.array([1.0, 2.0, 2.0, 3.0]), np.array([False, True, False, True])) == 0.875


def test_the_shipped_trace_is_a_real_one(capsys: pytest.CaptureFixture[str]) -> None:
    path = sample_path(SHIPPED)
    assert path.stat().st_size < 4e6
    trace = read_speculation_trace(path)
    assert len(trace) >= 100
    assert trace.draft_tokens == 8
    assert trace.header["recipe"]["licence"].startswith("PSF-2.0")
    survival = acceptance_by_position(trace)
    assert (np.diff(survival) < 0).all()
    assert 0.2 < survival[0] < 0.95
    fates = trace.accepted_run > 0
    assert area_under_curve(trace.statistics[:, 0, 0], fates) > 0.65  # a draft's confidence tells of acceptance
    main([str(path)])
    assert "P(run >= 1" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "temperature"), [(PRETRAINED, 0.0), (PRETRAINED_SAMPLED, 1.0)])
def test_the_pretrained_pairs_trace_names_its_models_and_nothing_of_a_machine(name: str, temperature: float) -> None:
    path = sample_path(name)
    assert path.stat().st_size < 1e6
    header = read_speculation_trace(path).header
    settings = header["settings"]
    assert {side: settings[side]["name"] for side in ("draft", "target")} == {
        "draft": "Qwen2.5-Coder-0.5B-Instruct-Q4_K_M",
        "target": "Qwen2.5-Coder-1.5B-Instruct-Q4_K_M",
    }
    assert set(header["versions"]) == {"torch", "transformers"}
    assert (settings["dtype"], settings["max_new_tokens"], settings["temperature"]) == ("bfloat16", 96, temperature)
    assert not re.search(r"[/\\]", json.dumps(header)), "no path"


def figures(text: str) -> dict[str, list[str]]:
    """Numbers of the rows of tables, by the rows' names."""
    said = dict(re.findall(r"^\| ([^|]+?) \| ([^|]+?) \|$", text, re.MULTILINE))
    return {name: re.findall(r"−?\d\.\d{3}", row) for name, row in said.items()}


@pytest.mark.parametrize(("name", "positions"), [(PRETRAINED, 8736), (PRETRAINED_SAMPLED, 7526)])
def test_the_pretrained_pairs_figures_are_those_of_the_page(name: str, positions: int) -> None:
    trace = read_speculation_trace(sample_path(name))
    assert (len(trace), len(trace.accepted_run), trace.draft_tokens) == (104, positions, 8)
    parts = (
        PAGE.read_text(encoding="utf-8")
        .split("### The pretrained pair")[1]
        .split("\n### ")[0]
        .split("**At temperature 1.**")
    )
    numbers = figures(parts[int(trace.temperature)])
    printed = [re.findall(r"-?\d\.\d{3}", line) for line in describe(trace).splitlines()[2:]]
    stated = [
        row for name, row in numbers.items() if name.startswith(("P(", "first proposal", "autocorrelation", "AUC"))
    ]
    assert [value for row in stated for value in row] == [value for row in printed for value in row]


def test_acceptance_by_kind_of_text_is_the_page_s() -> None:
    trace, numbers = read_speculation_trace(sample_path(PRETRAINED)), figures(PAGE.read_text(encoding="utf-8"))
    for kind, (first, end) in KINDS.items():
        runs = np.concatenate([trace.accepted_run[trace.positions(request)] for request in range(first, end)])
        assert numbers[f"{kind}: {end - first}"] == [f"{np.mean(runs > 0):.3f}"]


@pytest.mark.parametrize("name", ["python-10m-1m-sampled.npz", PRETRAINED_SAMPLED])
def test_a_shipped_sampled_trace_has_runs_as_likely_as_its_probabilities(name: str) -> None:
    trace = read_speculation_trace(sample_path(name))
    assert trace.temperature == 1.0
    assert trace.acceptance is not None
    accepted, expected = trace.accepted_run > 0, trace.acceptance[:, 0].astype(float)
    error = np.sqrt((expected * (1 - expected)).sum()) / len(expected)  # of a mean of independent draws
    assert abs(accepted.mean() - expected.mean()) < 4 * error
