"""Tables of draft lengths: the argmax by closed form, ranges that a batch may wander in, files as the engines document them."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from estimators.batch_time import steps as fitting
from wisp_gym import cli
from wisp_gym.controllers.who_drafts import mean_context_tokens, round_tokens, step_s, survivals
from wisp_gym.engine.verification import batch_time_s
from wisp_gym.errors import InputError
from wisp_gym.scenario import dumps, load, presets, with_
from wisp_gym.serving.tables import command, engines
from wisp_gym.serving.tables.lengths import (
    Range,
    choices,
    is_wide,
    most_lost,
    neighbourhood,
    ranges,
    steady,
)
from wisp_gym.serving.tables.steps import Measured, StepTime, modelled, read

PAGE = Path(__file__).parents[2] / "docs" / "serving" / "tables.md"
STRAIGHT = StepTime(0.02013, 0.0, 1e-4, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)  # launch + token·B·(k + 1)
MEASURED = Measured(STRAIGHT, (1.0, 64.0), (0.0, 5.0), (100.0, 500.0), 36, 2.5, "steps.csv", "0" * 64)
SCENARIO = load("wisp-a100-qwen3-32b")


def rates_of(time: StepTime, alpha: float, batches: int, longest: int) -> np.ndarray:
    """Rates where every draft is accepted with the same probability, given those before it."""
    batch, k = np.arange(1.0, batches + 1)[:, None], np.arange(longest + 1.0)
    return round_tokens(alpha ** np.arange(1.0, longest + 1)) / time.seconds(batch, k, 100.0)


# --- the best length -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.5, 0.7, 0.9])
def test_the_argmax_has_its_closed_form(alpha: float) -> None:
    """k drafts beat k - 1 while α^k / AL(k - 1) > v·B / (L + v·B·k), so up to B = L·α^k / (v·(AL(k - 1) - k·α^k))."""
    launch, token, longest = STRAIGHT.launch_s, STRAIGHT.token_s, 6
    lengths = choices(rates_of(STRAIGHT, alpha, 600, longest), 0.0, 0.0)
    for k in range(1, longest + 1):
        before = (1 - alpha**k) / (1 - alpha)
        threshold = launch * alpha**k / (token * (before - k * alpha**k))
        assert (lengths >= k).sum() == min(int(threshold), 600)


def test_ties_go_to_the_shorter_length() -> None:
    assert choices(np.ones((5, 4)), 0.0, 0.0).tolist() == [0] * 5
    assert choices(np.array([[1.0, 1.5, 1.5]] * 3), 0.0, 0.0).tolist() == [1] * 3


def test_a_longer_length_must_gain_the_margin_throughout_the_neighbourhood() -> None:
    rates = rates_of(replace(STRAIGHT, draft_overhead_s=0.004), 0.7, 300, 6)
    margin, around = 0.03, 0.2
    for batch, length in enumerate(choices(rates, margin, around), 1):
        low, high = neighbourhood(batch, around, 300)
        near = rates[low - 1 : high]
        wins = [[(near[:, longer] > (1 + margin) * near[:, k]).all() for longer in range(k + 1, 7)] for k in range(7)]
        assert not any(wins[length])
        assert all(any(wins[k]) for k in range(length))


def test_neighbourhoods_reach_both_ways_and_stay_inside() -> None:
    assert [neighbourhood(batch, 0.125, 100) for batch in (1, 2, 8, 9, 100)] == [
        (1, 2),
        (1, 3),
        (7, 9),
        (7, 11),
        (87, 100),
    ]
    assert neighbourhood(7, 0.0, 100) == (7, 7)


def test_every_range_that_is_written_holds_a_neighbourhood() -> None:
    rng = np.random.default_rng(3)
    for _ in range(50):
        rates = rates_of(STRAIGHT, 0.8, 64, 5) * np.exp(0.05 * rng.standard_normal((64, 6)))
        lengths = choices(rates, 0.0, 0.0)  # of noise: it flips all the time
        found = steady(rates, lengths, 0.2)
        assert all(is_wide(one, 0.2, 64) for one in found)
        assert [(found[0].low, found[-1].high)] == [(1, 64)]
        assert all(a.high + 1 == b.low and a.length != b.length for a, b in pairwise(found))
        assert len(found) < len(ranges(lengths))


def test_a_narrow_range_goes_where_less_is_lost() -> None:
    rates = np.array([[1.0, 0.9, 2.0]] * 4 + [[1.0, 2.0, 1.8]] + [[2.0, 1.0, 0.9]] * 4)
    lengths = choices(rates, 0.0, 0.0)
    assert ranges(lengths) == [Range(1, 4, 2), Range(5, 5, 1), Range(6, 9, 0)]
    found = steady(rates, lengths, 0.1)
    assert found == [Range(1, 5, 2), Range(6, 9, 0)]
    assert most_lost(rates, found) == pytest.approx(0.1)


# --- what it rests on ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", presets())
def test_modelled_steps_are_the_simulated_servers(name: str) -> None:
    scenario = load(name)
    v, e, context = scenario.verification, scenario.estimator, mean_context_tokens(scenario)
    batch, k = np.array([[1.0], [17.0], [200.0]]), np.arange(9.0)
    new = batch * (k + 1)
    sums = new, new * (context + k + 1), batch * context
    true_s = batch_time_s.py_func(
        scenario.server.host_s, v.launch_s, v.weights_s, v.token_s, v.sharpness, v.cached_token_s, v.pair_s, *sums
    )
    line_s = e.launch_s + e.new_token_s * sums[0] + e.pair_s * sums[1] + e.cached_token_s * sums[2]
    for draft in scenario.server_drafts:
        drafting_s = step_s(scenario, draft, batch, k) - line_s
        found = modelled(scenario, draft).seconds(batch, k, context)
        np.testing.assert_allclose(found, true_s + drafting_s, rtol=1e-12)


def write(path: Path, found: Measured) -> None:
    """A fit as its command writes it."""
    path.write_text(json.dumps(found.document()))


def test_a_fit_is_read_as_it_was_written(tmp_path: Path) -> None:
    write(tmp_path / "steps.json", MEASURED)
    assert read(tmp_path / "steps.json") == MEASURED


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": "x"}, "allowed is JSON of python -m estimators.batch_time steps, version 1"),
        ({"time": None}, "time.launch_s given 'None', allowed is a number from 0 to 3600"),
        ({"time": asdict(STRAIGHT) | {"token_s": float("nan")}}, "time.token_s given 'nan'"),
        ({"time": asdict(STRAIGHT) | {"sharpness": 0.0}}, "a sharpness of at least 0.1"),
        ({"batch": [5, 2]}, "batch given [5, 2], allowed are two numbers from 1 to 4096"),
        ({"k": "ab"}, "k given 'None', allowed is a number from 0 to 64"),
        ({"context": [True, 2]}, "context given 'True'"),
        ({"configurations": -1}, "configurations given '-1'"),
    ],
)
def test_a_wrong_fit_is_one_line(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    (tmp_path / "steps.json").write_text(json.dumps(MEASURED.document() | change))
    with pytest.raises(InputError, match=re.escape(said)):
        read(tmp_path / "steps.json")


@pytest.mark.parametrize("name", presets())
def test_what_a_straight_line_would_give_up_is_what_the_page_says(name: str) -> None:
    scenario = load(name)
    batch, k = np.arange(1.0, 257.0)[:, None], np.arange(9.0)
    for draft in scenario.server_drafts:
        tokens = round_tokens(survivals(draft.acceptance, 8))
        own = tokens / modelled(scenario, draft).seconds(batch, k, mean_context_tokens(scenario))
        line = tokens / step_s(scenario, draft, batch, k)
        lost = [most_lost(own, steady(rates, choices(rates, 0.02, 0.125), 0.125)) for rates in (line, own)]
        least, most = ((0.12, 0.04), (0.175, 0.095)) if draft.name == "ngram" else ((0.03, 0.03), (0.06, 0.06))
        assert all(low < share < high for low, share, high in zip(least, lost, most, strict=True))


# --- files as the engines document them ------------------------------------------------------------------------------


def vllm_lookup(text: str) -> Callable[[int], int]:
    """vLLM's: positive inclusive ranges, the first from 1, none over another; gaps and the end carry the last length on."""
    given = json.loads(text)
    assert set(given) == {"num_speculative_tokens", "num_speculative_tokens_per_batch_size"}
    rows, most = given["num_speculative_tokens_per_batch_size"], given["num_speculative_tokens"]
    assert all(len(row) == 3 and all(type(value) is int for value in row) for row in rows)
    assert most > 0
    assert rows[0][0] == 1
    assert all(low <= high and 0 <= k <= most for low, high, k in rows)
    assert all(before[1] < after[0] for before, after in pairwise(rows))
    return lambda batch: max(row for row in rows if row[0] <= batch)[2]


def sglang_lookup(text: str) -> Callable[[int], int]:
    """SGLang's: whole-number keys are first batch sizes, each a list of candidates from 0 on; others are settings."""
    given = json.loads(text)
    assert given.pop("strategy") == "ema"
    assert all(key.isdigit() and set(entry) == {"candidate_steps"} for key, entry in given.items())
    steps = {int(key): entry["candidate_steps"] for key, entry in given.items()}
    assert all(len(one) == 1 and type(one[0]) is int and one[0] >= 0 for one in steps.values())
    assert min(steps) == 1
    return lambda batch: steps[max(key for key in steps if key <= batch)][0]


def tensorrt_lookup(text: str) -> Callable[[int], int]:
    """TensorRT-LLM's: keys from 1 on are last batch sizes, the smallest has `max_draft_len`, beyond the largest nothing is drafted."""
    given = yaml.safe_load(text)["speculative_config"]
    assert set(given) == {"max_draft_len", "draft_len_schedule"}
    schedule = given["draft_len_schedule"]
    assert all(type(value) is int for pair in schedule.items() for value in pair)
    assert min(schedule) >= 1
    assert min(schedule.values()) >= 0
    assert schedule[min(schedule)] == given["max_draft_len"]
    return lambda batch: schedule[min(key for key in schedule if key >= batch)] if batch <= max(schedule) else 0


LOOKUPS = {"vllm": vllm_lookup, "sglang": sglang_lookup, "tensorrt-llm": tensorrt_lookup}
TABLES = (
    [Range(1, 6, 4), Range(7, 40, 2), Range(41, 64, 0)],
    [Range(1, 64, 3)],
    [Range(1, 10, 5), Range(11, 64, 1)],
    [Range(1, 8, 3), Range(9, 20, 0), Range(21, 64, 1)],
)


@pytest.mark.parametrize("engine", engines.ENGINES)
@pytest.mark.parametrize("found", TABLES, ids=str)
def test_each_engine_reads_the_lengths_that_were_solved(engine: str, found: list[Range]) -> None:
    length = LOOKUPS[engine](engines.ENGINES[engine].text(found))
    for one in found:
        assert {length(batch) for batch in range(one.low, one.high + 1)} == {one.length}


def test_lengths_that_rise_from_batch_size_1_are_no_schedule_of_tensorrt_llm() -> None:
    rising = [Range(1, 8, 1), Range(9, 64, 3)]
    with pytest.raises(InputError, match="solved 1 tokens at batch size 1 and 3 at 9"):
        engines.tensorrt_llm(rising)
    assert vllm_lookup(engines.vllm(rising))(30) == 3
    assert sglang_lookup(engines.sglang(rising))(30) == 3


# --- the command -----------------------------------------------------------------------------------------------------


def run(words: str) -> int:
    """Exit code of the command."""
    return cli.run(command.main, "wisp-gym table", shlex.split(words))


@pytest.mark.parametrize(("engine", "file"), [("vllm", "t.json"), ("sglang", "t.json"), ("tensorrt-llm", "t.yaml")])
def test_the_command_writes_the_table_and_what_it_rests_on(
    engine: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(f"eagle3-qwen3-32b --as {engine} -o {file}") == 0
    text = (tmp_path / file).read_text()
    comments = "\n".join(line.removeprefix("# ") for line in text.splitlines() if line.startswith("#"))
    about = json.loads((tmp_path / "t.about.json").read_text() if engine != "tensorrt-llm" else comments)
    assert (about["engine"], about["draft"], about["scenario"]) == (engine, "eagle3-qwen3-32b", SCENARIO.name)
    assert about["documented"] == engines.ENGINES[engine].documented
    assert about["accepted"] == pytest.approx(survivals(SCENARIO.server_drafts[1].acceptance, 8), abs=1e-4)
    assert (about["time_error_percent"], about["largest_batch"]) == (None, 256)
    length = LOOKUPS[engine](text)
    for row in about["ranges"]:
        assert {length(batch) for batch in range(row["from_batch"], row["to_batch"] + 1)} == {row["draft_tokens"]}
    assert [row["draft_tokens"] for row in about["ranges"]] == [5, 4, 3, 2, 1, 0]
    assert 0 < about["most_lost_percent"] < 6
    assert "wrote t." in capsys.readouterr().out


def test_with_steps_and_acceptance_measured_nothing_of_a_scenario_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "steps.json", MEASURED)
    plain = "my-head --as vllm --profile steps.json --accepted 0.7,0.49,0.343 --margin 0 --around 0"
    assert run(f"{plain} -o t.json") == 0
    about = json.loads((tmp_path / "t.about.json").read_text())
    assert (about["scenario"], about["profile"], about["time_error_percent"]) == (None, "steps.csv", 2.5)
    assert (about["largest_batch"], about["longest_tokens"], about["context_tokens"]) == (64, 3, 300.0)
    length = vllm_lookup((tmp_path / "t.json").read_text())
    wanted = choices(rates_of(STRAIGHT, 0.7, 64, 3), 0.0, 0.0)
    assert [length(batch) for batch in range(1, 65)] == wanted.tolist()
    capsys.readouterr()
    assert run(plain) == 0
    said = capsys.readouterr()
    assert said.out == (tmp_path / "t.json").read_text()
    assert "batch sizes" in said.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("eagle3 --as vllm", "given 'eagle3'; allowed: qwen3-0.6b, eagle3-qwen3-32b, ngram"),
        ("ngram --as vllm --scenario none.toml", "none.toml: server draft: scenario 'bare' names none"),
        ("ngram --as vllm --profile none.json", "none.json: No such file or directory"),
        ("ngram --as vllm --profile steps.csv", "steps.csv: allowed is JSON of python -m estimators.batch_time steps"),
        (
            "ngram --as vllm --profile steps.json --largest 65",
            "argument --largest: given 65, allowed is 1 to 64, what is known",
        ),
        (
            "ngram --as vllm --profile steps.json --longest 6",
            "argument --longest: given 6, allowed is 1 to 5, what is known",
        ),
        (
            "ngram --as vllm --profile steps.json --context 50",
            "argument --context: given 50, allowed is 100 to 500, what is known",
        ),
        (
            "x --as vllm --profile steps.json --accepted 0.5 --scenario wisp-study",
            "argument --scenario: allowed is none",
        ),
        ("x --as vllm --profile steps.json --accepted 0.001", "no length of up to 1 tokens gains 2 % over no drafts"),
        ("ngram --as vllm -o t.yaml", "given 't.yaml', allowed for vllm is a file that ends in .json"),
        ("ngram --as tensorrt-llm -o t.json", "allowed for tensorrt-llm is a file that ends in .yaml or .yml"),
        ("ngram --as vllm --profile steps.json -o steps.json", "steps.json is the file of --profile"),
    ],
)
def test_what_cannot_be_is_one_line(
    words: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "steps.json", MEASURED)
    (tmp_path / "steps.csv").write_text("batch,k,context,seconds\n")
    (tmp_path / "none.toml").write_text(dumps(replace(SCENARIO, name="bare", server_drafts=())))
    assert run(words) == cli.BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert said.removeprefix("none.toml: ") in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["none.toml", "steps.csv", "steps.json"]


@pytest.mark.parametrize("shares", ["0.3,0.5", "1.1", "x", "", "nan", "-0.1"])
def test_acceptance_falls_from_1_to_0(shares: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(f"x --as vllm --accepted={shares}")
    assert "allowed are falling shares from 1 to 0" in capsys.readouterr().err


# --- the page --------------------------------------------------------------------------------------------------------


def test_the_pages_commands_run_and_print_what_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [[b, k, c] for b in (1, 2, 4, 8, 16, 32) for k in (0, 1, 3, 5) for c in (256, 1024)]
    time = modelled(SCENARIO, SCENARIO.server_drafts[1])
    lines = [f"{b},{k},{c},{time.seconds(np.float64(b), np.float64(k), float(c)):.6f}" for b, k, c in rows]
    (tmp_path / "steps.csv").write_text("\n".join(["batch,k,context,seconds", *lines]))
    page = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```(?:\n\n```text\n(.*?)```)?", page, re.DOTALL)
    ran = 0
    for commands, shown in blocks:
        for words in map(shlex.split, commands.splitlines()):
            main, given = (command.main, words[2:]) if words[0] == "wisp-gym" else (fitting.main, words[4:])
            assert words[:2] == ["wisp-gym", "table"] or words[:4] == ["python", "-m", "estimators.batch_time", "steps"]
            capsys.readouterr()
            assert cli.run(main, "page", given) == 0
            ran += 1
        if shown:
            assert capsys.readouterr().out == shown
    assert ran >= 5
    for name, engine in engines.ENGINES.items():
        assert f"`--as {name}`" in page
        assert engine.option.rpartition(".")[2] in page


def test_modelled_steps_have_no_costs_of_an_engine() -> None:
    slower = with_(SCENARIO, **{"server.host_request_s": 0.001})
    with pytest.raises(
        InputError, match=r"server\.host_request_s given 0\.001, allowed for a table of modelled steps: 0, or steps"
    ):
        modelled(slower, slower.server_drafts[0])
