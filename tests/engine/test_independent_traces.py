"""Traces of other kinds: independent runs, no statistics; what they are converted from; the engine's replay of them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from tests.support.small_worlds import horizon, plain, run
from traces import convert
from traces.describe_speculation import describe
from wisp_gym.engine import draws
from wisp_gym.engine.state import LOG_KINDS
from wisp_gym.engine.trace_files import place_statistics, tokens_of
from wisp_gym.errors import InputError
from wisp_gym.rules.rejection_predictor import make_predictor, save_predictor
from wisp_gym.scenario import Scenario, ScenarioError
from wisp_gym.traces.requests import TraceError
from wisp_gym.traces.speculation import (
    SpeculationTrace,
    concatenate,
    read_speculation_trace,
    replay,
    write_speculation_trace,
)

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "C_accept"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the public tables are not beside this checkout")
HEADER = {"runs": "independent", "draft_tokens": 4}
SEED = 1


def independent(runs: list[int], k: int = 4) -> SpeculationTrace:
    """One answer with these runs."""
    return convert.made([np.array(runs)], [5], k, {})


# --- the format ------------------------------------------------------------------------------------------------------


def test_runs_need_not_agree_where_they_are_independent(tmp_path: Path) -> None:
    trace = independent([3, 0, 1, 4, 1, 0])
    assert trace.independent
    write_speculation_trace(trace, tmp_path / "t.npz")
    again = read_speculation_trace(tmp_path / "t.npz")
    assert again.statistics is None
    assert again.draft_tokens == 4
    assert again.accepted_run.tolist() == [3, 0, 1, 3, 1, 0]  # cut where the answer ends
    assert (again.header["version"], again.header["statistics"]) == (2, [])
    with pytest.raises(TraceError, match="0 after a run of 3"):
        SpeculationTrace(*(getattr(trace, n) for n in ("prompt_id", "prompt_tokens", "offsets", "accepted_run")),
                         header={"draft_tokens": 4})  # fmt: skip


def test_a_header_that_cannot_be_is_refused() -> None:
    parts = [0], [5], [0, 2], [0, 0]
    with pytest.raises(TraceError, match=r"runs .*both"):
        SpeculationTrace(*parts, header={"runs": "both", "draft_tokens": 4})
    for k in (None, 0, 65, True, "4"):
        with pytest.raises(TraceError, match="draft_tokens"):
            SpeculationTrace(*parts, header={"draft_tokens": k})


def test_kinds_are_not_mixed() -> None:
    with pytest.raises(TraceError, match="runs, statistics"):
        concatenate([independent([1, 0]), SpeculationTrace([0], [5], [0, 2], [1, 0], np.zeros((2, 4, 4)))])
    assert len(concatenate([independent([1, 0]), independent([0, 1])])) == 2


def test_a_description_does_without_statistics() -> None:
    said = describe(independent([3, 0, 1, 1, 0, 2, 1, 0]))
    assert "independent runs" in said
    assert said.endswith("no statistics")


# --- what the engine makes of it --------------------------------------------------------------------------------------


def test_what_is_not_recorded_says_how_often_a_place_is_accepted() -> None:
    trace = independent([4, 2, 0, 1, 0, 0, 0, 0], 4)
    chance = place_statistics(tokens_of(trace)["acceptance"])[:, 0]
    assert chance == pytest.approx([3 / 8, 2 / 3, 1 / 2, 0.999])
    assert (tokens_of(trace)["confidence"] == chance.astype(np.float32)).all()


def test_a_predictor_has_nothing_to_read(tmp_path: Path) -> None:
    write_speculation_trace(independent([1, 0, 0]), tmp_path / "t.npz")
    save_predictor(make_predictor([(np.ones((1, 4), np.float32), np.zeros(1, np.float32))], 0.5), tmp_path / "p.json")
    files = {"draft.trace": str(tmp_path / "t.npz"), "draft.predictor": str(tmp_path / "p.json"), "max_draft_tokens": 4}
    with pytest.raises(ScenarioError, match=r"draft\.predictor: .*t\.npz, which has no statistics"):
        run(plain(n_devices=1, horizon=horizon(0.0, 1.0), **files), "fixed:2+fcfs", [SEED])


def one_request_each(path: Path, devices: int) -> Scenario:
    """A scenario whose devices begin at once, and have one request of this trace each."""
    trace = read_speculation_trace(path)
    own = {
        "draft.trace": str(path), "max_draft_tokens": trace.draft_tokens, "workload.start_window_s": 0.0,
        "workload.think_s": 1e9, "server.memory_bytes": 10**13, "devices.0.draft_tokens_per_s": 1e4,
        "workload.prompt": {"median_tokens": 16, "log_std": 0.0, "min_tokens": 16, "max_tokens": 16},
    }  # fmt: skip
    return plain(n_devices=devices, horizon=horizon(0.0, 1.0, 1e5), **own)


def engines_rounds(path: Path, k: int, devices: int) -> dict[int, list[int]]:
    """Accepted tokens of each round of some of a trace's answers, by answer, as the engine replays them."""
    w = run(one_request_each(path, devices), f"fixed:{k}+fcfs", [SEED], 4_000_000)
    log = w.log[0, : int(w.server["log_length"][0, 0])]
    verified = log[log["kind"] == LOG_KINDS.index("verify")]
    answers, found = len(read_speculation_trace(path)), {}
    for i in range(devices):
        key = np.uint64(draws.stream_key(np.uint64(SEED), draws.ANSWER, i, 0))
        rounds = verified["value"][verified["device"] == i].astype(int).tolist()
        found[int(draws.uniform(key, 0) * answers)] = rounds[1:]  # the first is the prompt's
    return found


def by_hand(runs: list[int], k: int) -> list[int]:
    """Rounds of k drafts through an answer, from behind its first token, which the prompt's reply brings."""
    position, accepted = 1, []
    while position < len(runs):
        accepted.append(min(k, len(runs) - position - 1, runs[position]))
        position += accepted[-1] + 1
    return accepted


def compare(path: Path, k: int, devices: int) -> float:
    """Engine's accepted tokens a round over the file's own replay, less 1; the rounds themselves are compared exactly."""
    trace, ours, own = read_speculation_trace(path), [], []
    for answer, rounds in engines_rounds(path, k, devices).items():
        runs = trace.accepted_run[trace.positions(answer)].tolist()
        assert rounds == by_hand(runs, k)
        ours += rounds
        own += [accepted for _, accepted in replay(trace, answer, [k])]
    return float(np.mean(ours) / np.mean(own) - 1.0)


@pytest.mark.parametrize("k", [1, 3, 4])
def test_the_engine_replays_independent_runs_exactly(tmp_path: Path, k: int) -> None:
    rng = np.random.default_rng(0)
    trace = convert.made([rng.integers(0, 5, n) for n in (40, 7, 200)], [9, 9, 9], 4, {})
    write_speculation_trace(trace, tmp_path / "t.npz")
    compare(tmp_path / "t.npz", k, 8)


@needs_shared
@pytest.mark.parametrize("name", ["gsm8k", "sharegpt"])
def test_specdecode_bench_is_replayed_as_its_files_say(tmp_path: Path, name: str) -> None:
    """Accepted tokens a round at every fixed length against the file's own replay: within 1 %."""
    trace = convert.specdecode(SHARED / f"specdecode_bench_{name}.jsonl.gz", "eagle", 8)
    write_speculation_trace(trace, tmp_path / "t.npz")
    assert max(abs(compare(tmp_path / "t.npz", k, 200)) for k in range(1, 8)) < 0.01


@needs_shared
@pytest.mark.parametrize("source", ["eagle", "ngram"])
@pytest.mark.parametrize("name", ["gsm8k", "sharegpt"])
def test_all_answers_of_specdecode_bench_are_within_one_percent(name: str, source: str) -> None:
    """By the rounds that the engine was held to above, over every answer of a file, of either kind of drafts."""
    trace = convert.specdecode(SHARED / f"specdecode_bench_{name}.jsonl.gz", source, 8)
    runs = [trace.accepted_run[trace.positions(answer)].tolist() for answer in range(len(trace))]
    for k in range(1, 8):
        ours = np.mean([accepted for each in runs for accepted in by_hand(each, k)])
        own = np.mean([accepted for answer in range(len(trace)) for _, accepted in replay(trace, answer, [k])])
        assert abs(ours / own - 1.0) < 0.01


# --- converters ------------------------------------------------------------------------------------------------------


def specdecode_file(folder: Path, rows: list[object]) -> Path:
    """A file of these rows."""
    path = folder / "s.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(json.dumps(row) for row in rows).encode()))
    return path


def test_specdecode_bench_is_converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"prompt_tokens": 7, "eagle": [3, 1, 9, 1, 2, 1], "ngram": [1, 1, 1, 4, 3, 2]}
    path = specdecode_file(tmp_path, [row, {**row, "eagle": []}])
    convert.main(["specdecode", str(path), "--draft-tokens", "3", "--out", str(tmp_path / "t.npz")])
    assert "1 answers, 6 positions, 3 tokens" in capsys.readouterr().out
    trace = read_speculation_trace(tmp_path / "t.npz")
    assert trace.accepted_run.tolist() == [2, 0, 3, 0, 1, 0]
    assert trace.prompt_tokens.tolist() == [7]
    assert convert.specdecode(path, "ngram", 8).accepted_run.tolist()[:4] == [0, 0, 0, 3]


@pytest.mark.parametrize(("row", "message"), [
    ([], "'eagle' is needed"), ({"eagle": [0], "prompt_tokens": 1}, "'eagle' is needed"), ({"eagle": [1]}, "prompt_tokens given None"),
    ({"eagle": [], "prompt_tokens": 1}, "no answer of 'eagle'"),
])  # fmt: skip
def test_other_files_are_refused(tmp_path: Path, row: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        convert.specdecode(specdecode_file(tmp_path, [row]), "eagle", 8)


def log_line(shares: list[float], drafts: int = 100) -> str:
    """A line of vLLM's log."""
    accepted, k = round(drafts * sum(shares)), len(shares)
    return (
        f"(APIServer pid=1) INFO 05-03 18:50:55 [metrics.py:101] SpecDecoding metrics: Mean acceptance length: {1 + sum(shares):.2f}, "
        f"Accepted throughput: 0.05 tokens/s, Drafted throughput: 0.05 tokens/s, Accepted: {accepted} tokens, Drafted: {drafts * k} tokens, "
        f"Per-position acceptance rate: {', '.join(f'{s:.3f}' for s in shares)}, Avg Draft acceptance rate: 50.0%"
    )


def test_vllms_log_is_converted(tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    lines = [[0.743, 0.559, 0.433], [0.5, 0.5, 0.1]]
    path.write_text("\n".join(["INFO started", *map(log_line, lines), log_line([0.0] * 3, drafts=0)]))
    trace = convert.vllm_log(path, 1000, 12, 0)
    assert (len(trace), trace.draft_tokens, trace.independent) == (2, 3, True)
    for answer, shares in enumerate(lines):
        runs = trace.accepted_run[trace.positions(answer)]
        assert [np.mean(runs >= i) for i in (1, 2, 3)] == pytest.approx(shares, abs=0.004)
    convert.main(["vllm-log", str(path), "--out", str(tmp_path / "t.npz")])
    assert len(read_speculation_trace(tmp_path / "t.npz").accepted_run) == 2 * 256


@pytest.mark.parametrize(("lines", "message"), [
    ([], "no line"), ([[0.5], [0.5, 0.2]], r"lines of \[1, 2\] drafted tokens"), ([[0.2, 0.5]], "shares up to 1 that do not rise"),
])  # fmt: skip
def test_other_logs_are_refused(tmp_path: Path, lines: list[list[float]], message: str) -> None:
    path = tmp_path / "server.log"
    path.write_text("\n".join(map(log_line, lines)))
    with pytest.raises(InputError, match=message):
        convert.vllm_log(path, 100, 12, 0)
