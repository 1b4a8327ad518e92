"""Deployment against engine: what is measured, the scenario built from it, what is compared, and a whole run of a tiny pair."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("grpc")
pytest.importorskip("transformers")

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from agents.sim2real import run as sim2real
from agents.sim2real.compare import BESIDE, COMPARED, TOLERANCE, Result, cells, classes, measures, orders
from agents.sim2real.deploy import Bench, pieces
from agents.sim2real.devices import (
    Delays,
    Deployed,
    RoundRow,
    Watched,
    answer_of,
    read_deployed,
    start_of,
    write_deployed,
)
from agents.sim2real.profile import (
    PHASE_S,
    Measured,
    RandomLength,
    at_level,
    batch_level,
    build_scenario,
    machine_level,
    measure,
)
from agents.sim2real.report import number, side_by_side, verdict
from agents.sim2real.server import BatchRow, MemberRow, deepened
from agents.sim2real.settings import KV_TOKENS
from agents.sim2real.yardstick import SHARE, Yardstick, first_matrices, pace_s
from tests.support.testbed_world import VOCABULARY, draft_model, llama, prompt, target_model
from wisp_gym.cli import run
from wisp_gym.controllers.resolve import resolve
from wisp_gym.engine.trace_load import load_trace
from wisp_gym.engine.worlds import Worlds
from wisp_gym.errors import InputError
from wisp_gym.scenario import Scenario, Target, load, save
from wisp_gym.testbed.torch_engine.models import load_model
from wisp_gym.testbed.torch_engine.target import Target as LoadedTarget
from wisp_gym.traces.speculation import read_speculation_trace, sample_path

TRACE = "python-10m-1m.npz"


def made_up(seed: int = 0, slower: float = 1.0) -> Deployed:
    """A deployment of known numbers: 40 ms a token and 3 ms a round, 20 ms a message, 10 ms + 1 ms a token a batch, 2 ms between two.

    slower: times that batches, and a yardstick of 1 ms in every third, take as long.
    """
    rng, deployed, now_s = np.random.default_rng(seed), Deployed(0.0, 100.0), 0.0
    for k in range(1500):
        drafted, held_s = int(rng.integers(0, 9)), float(rng.uniform(0.01, 0.1))
        sent_s = now_s + (0.003 + 0.04 * drafted if drafted else 0.0)
        trip_s = float(0.02 * np.exp(0.2 * rng.normal(size=2)).sum())
        received_s = sent_s + trip_s + held_s
        deployed.rounds.append(
            RoundRow(0, 0, 1 + k, now_s, sent_s, received_s, held_s, drafted, min(drafted, 2), min(drafted, 2) + 1)
        )
        now_s = received_s
    end_s = 0.0
    for k in range(400):
        members = [MemberRow(end_s - 0.001, int(rng.integers(1, 10)), int(rng.integers(40, 90)), 0, False)
                   for _ in range(rng.integers(1, 9))]  # fmt: skip
        seconds = slower * (0.010 + 0.001 * sum(m.new_tokens for m in members)) * float(np.exp(0.03 * rng.normal()))
        end_s += 0.002 + seconds
        deployed.batches.append(BatchRow(end_s, seconds, 0.9 * seconds, 0.0 if k % 3 else 0.001 * slower, members))
    return deployed


def scenario_of(folder: Path, measured: Measured | None = None) -> Scenario:
    """The scenario of what was measured: four devices for 8 s after 1 s, promised 2 and 8 tokens/s in turn."""
    words = ["--loads", "4", "--seconds", "8", "--warmup-seconds", "1", "--slo", "2,8", "--max-draft-tokens", "8"]
    settings = sim2real.parse(["--out", str(folder), *words])[1]
    target, trace = Target("t", 1000, 2, 2, 1, 8, dtype_bytes=4), str(sample_path(TRACE))
    built = build_scenario(measured or measure([made_up()]), settings, target, [10, 20, 40], trace)
    save(built, folder / "scenario.toml")
    return load(folder / "scenario.toml")


def test_measurements_are_those_of_the_deployment() -> None:
    found = measure([made_up()])
    assert found.draft_token_s == pytest.approx(0.04, rel=1e-6)
    assert found.round_overhead_s == pytest.approx(0.003, rel=1e-6)
    assert found.one_way_s == pytest.approx(0.02, rel=0.03)
    assert found.jitter == pytest.approx(0.2, rel=0.1)
    assert found.host_s == pytest.approx(0.002, rel=1e-6)
    assert found.noise == pytest.approx(0.03, rel=0.15)
    assert found.model_share == pytest.approx(0.9)
    assert found.yardstick_s == pytest.approx(0.001)
    assert found.fit["roofline"]["mape_percent"] < 4.0


def test_a_short_profile_is_refused() -> None:
    short = made_up()
    short.batches = short.batches[:20]
    with pytest.raises(InputError, match="20 batches came"):
        measure([short])


def test_the_scenario_says_what_was_measured(tmp_path: Path) -> None:
    measured = measure([made_up()])
    scenario = scenario_of(tmp_path, measured)
    assert scenario.devices[0].draft_tokens_per_s == pytest.approx(25.0)
    assert scenario.devices[0].link.one_way_s == measured.one_way_s
    assert (scenario.server.host_s, scenario.server.noise) == (measured.host_s, measured.noise)
    assert scenario.kv_tokens == KV_TOKENS
    assert vars(scenario.verification) == measured.roofline
    assert [slo.speed_tokens_per_s for slo in scenario.slo] == [2.0, 8.0]
    assert (scenario.workload.think_s, scenario.horizon.measure_s) == (0.0, 8.0)


def test_a_machine_that_has_become_slower_is_told_from_slower_batches(tmp_path: Path) -> None:
    deployed, slower = made_up(), made_up(slower=1.2)
    measured = measure([deployed])
    assert machine_level(measured.yardstick_s, slower.batches) == pytest.approx(1.2)
    assert batch_level(measured, [deployed.batches, slower.batches]) == pytest.approx(1.0)
    heavier = [row._replace(seconds=1.3 * row.seconds) for row in slower.batches]
    assert machine_level(measured.yardstick_s, heavier) == pytest.approx(1.2)
    assert batch_level(measured, [heavier]) == pytest.approx(1.3)
    changed = at_level(scenario_of(tmp_path, measured), 1.2)
    assert changed.verification.launch_s == pytest.approx(1.2 * measured.roofline["launch_s"])
    assert changed.verification.sharpness == measured.roofline["sharpness"]


def test_a_profile_on_a_drifting_machine_is_that_of_its_mean_speed() -> None:
    steady, drifting = measure([made_up(slower=1.2)]), measure([made_up(), made_up(slower=1.4)])
    assert drifting.noise == pytest.approx(steady.noise, rel=0.1)  # the drift is not taken for noise
    for name, value in steady.roofline.items():
        assert name == "sharpness" or drifting.roofline[name] == pytest.approx(value, rel=0.03)


def test_the_yardstick_is_the_same_work_whenever_it_is_due() -> None:
    model = target_model()
    matrices = first_matrices(model, SHARE)
    weights = sum(weight.numel() for weight in model.parameters() if weight.ndim == 2)
    assert sum(matrix.numel() for matrix in matrices[:-1]) < SHARE * weights <= sum(m.numel() for m in matrices)
    often, seldom = Yardstick(model, every_s=0.0), Yardstick(model, every_s=60.0)
    assert all(often.seconds() > 0.0 for _ in range(5))
    assert [seldom.seconds() > 0.0 for _ in range(3)] == [True, False, False]
    assert pace_s([0.0, 0.002, 0.0, 0.004]) == pytest.approx(0.003)
    with pytest.raises(ValueError, match="no batch ran"):
        pace_s([0.0])


class Told:
    """A controller that keeps what it is told of delays."""

    delay_mean_s = 0.0

    def sent(self, now_s: float) -> None: ...

    def receive(self, reply: Any, now_s: float, uplink_s: float | None = None, downlink_s: float | None = None) -> None:
        self.delays_s = (uplink_s, downlink_s)


def test_devices_are_told_the_delay_of_each_way() -> None:
    inner, reply = Told(), SimpleNamespace(held_s=0.1, accepted_tokens=1, committed_tokens=2)
    watched = Watched(inner, 0, [], 10.0, Delays(0.03, 0.02))  # type: ignore[arg-type]
    watched.sent(1.0)
    watched.receive(reply, 1.154)  # 54 ms on the way, of which 4 are gRPC's and the threads'
    assert inner.delays_s == pytest.approx((0.032, 0.022))


def test_profiled_drafts_are_short_and_of_any_length_in_turn() -> None:
    lengths: dict[bool, set[int]] = {True: set(), False: set()}
    drafter = RandomLength(8, 0)
    for k in range(600):
        drafter.begin_round(0.01 * k * PHASE_S)
        lengths[int(0.01 * k) % 2 == 0].add(drafter.k)
    assert lengths == {True: {0, 1}, False: set(range(9))}


def test_every_second_cycle_runs_the_other_way_round() -> None:
    cases = [(2, "a"), (2, "b"), (6, "a")]
    assert [list(sim2real.in_turn(cases, cycle)) for cycle in range(3)] == [cases, cases[::-1], cases]


def test_the_deployment_is_given_the_engines_prompts(tmp_path: Path) -> None:
    scenario, seed, n = scenario_of(tmp_path), 5, 4
    worlds = Worlds(1, n, trace=load_trace(scenario), log_rows=5000)
    worlds.fill(0, scenario, seed, resolve("fixed:2+fcfs", scenario), n)
    worlds.run(early=False)
    offsets, devices = read_speculation_trace(sample_path(TRACE)).offsets, worlds.arrays.device[0]
    for i in range(n):
        assert devices[i]["request"] > 0
        assert devices[i]["answer"] == offsets[answer_of(seed, i, int(devices[i]["request"]), len(offsets) - 1)]
    log = worlds.arrays.log[0]
    first = [next(row["time_s"] for row in log if row["device"] == i) for i in range(n)]
    assert first == pytest.approx([start_of(seed, i, 2.0) for i in range(n)])


def test_measures_are_counted_as_in_the_engine(tmp_path: Path) -> None:
    scenario = scenario_of(tmp_path)  # measured from 1 s to 9 s; device 0 is promised 8 tokens/s, grace 0.5 s
    speeds = [slo.speed_tokens_per_s for slo in sim2real_classes(scenario)]
    rows = [
        RoundRow(0, 0, 0, 0.0, 0.0, 1.0, 0.1, 0, 0, 1),
        RoundRow(0, 0, 1, 1.0, 1.2, 1.4, 0.1, 4, 2, 3),
        RoundRow(0, 0, 4, 1.4, 1.9, 5.0, 0.1, 4, 0, 1),  # late for either speed
        RoundRow(0, 0, 5, 5.0, 6.0, 9.5, 0.1, 4, 4, 5),  # after the window
    ]
    batches = [BatchRow(1.3, 0.1, 0.1, 0.0, [MemberRow(1.2, 5, 10, 4, False)]), BatchRow(0.9, 0.5, 0.5, 0.0, [])]
    found = measures(Deployed(0.0, 9.0, rows, batches), scenario, 1)
    assert speeds[0] in (2.0, 8.0)
    on_time = 4 if 1.0 + 4 / speeds[0] + 0.5 < 5.0 else 5
    assert found["goodput_tokens_per_s"] == pytest.approx(on_time / 8.0)
    assert found["throughput_tokens_per_s"] == pytest.approx(5 / 8.0)
    assert found["acceptance"] == pytest.approx(2 / 8)
    assert found["round_latency_p50_s"] == pytest.approx(np.quantile([0.4, 3.6], 0.5))
    assert (found["drafted_per_round"], found["committed_per_round"]) == (4.0, 2.0)
    assert (found["server_use"], found["batch_requests"]) == pytest.approx((0.1 / 8.0, 1.0))


def sim2real_classes(scenario: Scenario) -> list[Any]:

    return classes(scenario, 1)


def result(load_: int, name: str, deployed: float, engine: list[float]) -> Result:
    rows = [dict.fromkeys((*COMPARED, *BESIDE), value) for value in engine]
    return Result(load_, name, [dict.fromkeys((*COMPARED, *BESIDE), deployed)], rows[:1], rows, rows[:1], [1.0], 1.0)


def test_cells_and_orders_say_who_is_near_and_who_is_better() -> None:
    results = [
        result(4, "a", 10.0, [10.9, 11.0, 10.8]),
        result(4, "b", 9.0, [7.0, 7.2, 7.1]),
        result(8, "a", 5.0, [5.0, 5.2, 4.9]),
        result(8, "b", 5.5, [4.9, 5.3, 4.8]),  # the engine does not separate these two
        result(8, "c", 6.0, [2.0, 2.1, 2.2]),  # and has this one the other way round
    ]
    found, ranked = cells(results), orders(results)
    assert [cell.within for cell in found[::4]] == [True, False, True, False, False]
    assert found[0].difference == pytest.approx(0.09)
    assert found[0].difference < TOLERANCE
    assert [(o.load, o.better, o.worse, o.same) for o in ranked] == [
        (4, "a", "b", True),
        (8, "a", "c", False),
        (8, "b", "c", False),
    ]
    said = verdict(found, ranked)
    assert said.startswith("8 of 20 cells are within 10 %")
    assert (
        "same in 1 of 3 pairs that the engine separates, and the other way round, beyond the deployment's own spread, in 0"
        in said
    )
    table = side_by_side(results)
    assert table[1][:5] == ["4", "a", "goodput, tokens/s", "10.0", "10.9"]
    assert table[1][6:] == ["+9.0 %", "yes", "+9.0 %"]
    assert {len(row) for row in table} == {9}


def test_an_order_is_told_from_the_deployments_own_spread() -> None:
    def runs(name: str, deployed: list[float], engine: float) -> Result:
        rows = [dict.fromkeys((*COMPARED, *BESIDE), value) for value in deployed]
        worlds = [dict.fromkeys((*COMPARED, *BESIDE), engine)] * 3
        return Result(4, name, rows, worlds, worlds, worlds, [1.0] * 3, 1.0)

    close, clear = runs("a", [9.0, 10.5, 10.0], 12.0), runs("b", [10.0, 10.0, 10.0], 11.0)
    (order,) = orders([close, clear])
    assert order.half == pytest.approx(4.3027 * np.std([-1.0, 0.5, 0.0], ddof=1) / 3**0.5, rel=1e-4)
    assert not order.same
    assert not order.separated
    (order,) = orders([runs("a", [8.0, 8.1, 8.0], 12.0), clear])
    assert order.separated
    assert not order.same


def test_numbers_have_three_digits() -> None:
    assert [number(value) for value in (0.0, 1234.5, 12.34, 0.01234)] == ["0", "1,234", "12.3", "0.0123"]


def test_rows_come_back_from_their_file(tmp_path: Path) -> None:
    deployed = made_up()
    write_deployed(tmp_path / "rounds.json", deployed)
    assert read_deployed(tmp_path / "rounds.json") == deployed


@torch.inference_mode()
def test_a_deepened_target_gives_the_same_tokens() -> None:
    ids = torch.tensor([prompt(3)])
    small, large = llama(), deepened(llama(), 5, 96)
    assert len(large.model.layers) == 5
    assert large.model.layers[4].mlp.up_proj.weight.shape == (96, 32)
    torch.testing.assert_close(large(ids).logits, small(ids).logits, rtol=0, atol=0)
    assert LoadedTarget(deepened(llama(), 5, 96)).packs  # what it verifies in batches is compared with single rows
    with pytest.raises(InputError, match="the target has 2"):
        deepened(llama(), 1, 0)


def test_names_are_told_apart() -> None:
    assert pieces("wisp") == ("wisp", "wisp")
    assert pieces("fixed:4+fcfs") == ("fixed:4", "fcfs")
    assert pieces("speculation-v1+fcfs") == ("speculation-v1", "fcfs")
    with pytest.raises(InputError, match="without additions"):
        pieces("wisp+aged+chunk:256")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pair with random weights, its tokenizer and prompts."""
    folder = tmp_path_factory.mktemp("pair")
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    words.pre_tokenizer = Whitespace()
    for name, model in (("target", target_model()), ("draft", draft_model())):
        model.save_pretrained(folder / name)
        PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder / name)
    lines = (json.dumps({"prompt": " ".join(f"w{token}" for token in prompt(k))}) + "\n" for k in range(8))
    (folder / "prompts.jsonl").write_text("".join(lines))
    return folder


def flags(pair: Path, out: Path, *more: str) -> list[str]:
    short = "--loads 2 --repeats 1 "
    short += "--seconds 2 --warmup-seconds 1 --profile-seconds 3 --draft-token-ms 4 --one-way-ms 3 --max-new-tokens 12 --target-layers 0"
    models = [
        "--draft",
        str(pair / "draft"),
        "--target",
        str(pair / "target"),
        "--prompts",
        str(pair / "prompts.jsonl"),
    ]
    return ["--out", str(out), *models, *short.split(), *more]


def test_a_tiny_pair_is_profiled_simulated_and_compared(
    pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    command = flags(pair, out, "--controllers", "fixed:3+fcfs", "--seeds", "3,", "--json", str(tmp_path / "cells.json"))
    assert run(sim2real.main, sim2real.PROGRAM, command) == 0
    found = json.loads((tmp_path / "cells.json").read_text())
    assert [cell["measure"] for cell in found] == list(sim2real_compared())
    assert all(cell["deployed"] > 0 and cell["engine"] > 0 for cell in found)
    assert (
        50.0 < load(out / "scenario.toml").devices[0].draft_tokens_per_s < 300.0
    )  # paced to 250, on a machine that may be busy
    trace = read_speculation_trace(out / "speculation.npz")
    (rounds,) = (out / "deployed").glob("2-fixed*/rounds.json")
    replayed = read_deployed(rounds).rounds
    assert len(replayed) > 20
    for row in replayed:  # what the engine replays is what the deployment did, round by round
        runs = trace.accepted_run[trace.positions(answer_of(3, row.device, row.request, len(trace)))]
        assert row.position == 0 or row.accepted == min(row.drafted, runs[row.position])
    assert "cells are within 10 %" in (out / "report.md").read_text()
    assert (out / "cells.png").stat().st_size > 10_000
    assert (out / "report.html").read_text().startswith("<!doctype html>")
    capsys.readouterr()
    assert run(sim2real.main, sim2real.PROGRAM, [*command, "--loads", "3"]) == 2  # the folder is another run's
    assert "a run with other settings" in capsys.readouterr().err
    assert run(sim2real.main, sim2real.PROGRAM, command) == 0  # all is there already
    assert json.loads((tmp_path / "cells.json").read_text()) == found


@pytest.mark.parametrize("batching", ["batching-v1", "joint-v1", "fcfs"])
def test_the_server_is_given_a_learned_policy_by_its_name(batching: str) -> None:
    bench: Any = SimpleNamespace(
        settings=SimpleNamespace(first_seeds=(0,)), controllers=lambda *_: None, fleet=lambda *_: None,
        run=lambda label, fleet, scheduler, coefficients: scheduler,
    )  # fmt: skip
    assert Bench.deploy(bench, load("wisp-a100-qwen3-32b"), f"fixed:2+{batching}", 4, 0) == batching


def test_vllm_is_given_a_folder_of_the_deep_target(pair: Path, tmp_path: Path) -> None:
    given = SimpleNamespace(engine="vllm", target_layers=5, target_intermediate=0, dtype="float32")
    bench: Any = SimpleNamespace(settings=given, names={"target": str(pair / "target")}, folder=tmp_path)
    assert Bench.served_target(bench) == (str(tmp_path / "target"), 0, 0)
    deep, plain = (load_model(str(folder), "--target") for folder in (tmp_path / "target", pair / "target"))
    assert deep.config.num_hidden_layers == 5 > plain.config.num_hidden_layers
    ids = torch.tensor([prompt(0)])
    with torch.inference_mode():
        torch.testing.assert_close(deep(ids).logits, plain(ids).logits)
    assert Bench.served_target(bench)[0] == str(tmp_path / "target")  # there already
    given.engine = "torch"
    assert Bench.served_target(bench) == (str(pair / "target"), 5, 0)


def sim2real_compared() -> tuple[str, ...]:

    return tuple(COMPARED)


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--target", "x"], "--draft and --target belong together"),
        (["--loads", "0"], "whole number from 1"),
        (["--slo", "2,-1"], "above 0"),
        (["--seconds", "x"], "whole number"),
        (["--repeats", "3", "--seeds", "2"], "allowed are 2 at most"),
        (["--secnds", "3"], "unknown flag '--secnds'"),
    ],
)
def test_wrong_flags_are_one_line(
    more: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        sim2real.parse(["--out", str(tmp_path / "new"), *more])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("side", ["draft", "target"])
def test_a_model_that_cannot_be_loaded_is_one_line_and_nothing_is_written(
    pair: Path, tmp_path: Path, side: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = flags(pair, tmp_path / "run", f"--{side}", str(tmp_path / "nowhere"))
    assert run(sim2real.main, sim2real.PROGRAM, command) == 2
    assert capsys.readouterr() == ("", f"{sim2real.PROGRAM}: --{side} {tmp_path / 'nowhere'}: no such folder\n")
    assert not (tmp_path / "run").exists()


def test_a_server_that_does_not_start_says_why_in_one_line(
    pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = flags(pair, tmp_path / "run", "--seeds", "3,", "--target-layers", "1")
    assert run(sim2real.main, sim2real.PROGRAM, command) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(
        f"{sim2real.PROGRAM}: the server did not start: --target-layers 1: the target has 2; allowed"
    )
