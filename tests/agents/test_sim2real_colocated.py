"""Co-located cells: names, what is measured of steps, the scenario built from it, and devices that receive; without vLLM."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("grpc")
pytest.importorskip("transformers")

from agents.sim2real import run as sim2real
from agents.sim2real.colocated import is_colocated, rule_of
from agents.sim2real.compare import measures
from agents.sim2real.devices import Deployed, Fleet, RoundRow, Shape, answer_of, read_deployed, start_of, write_deployed
from agents.sim2real.profile import at_level, machine_level, measure
from agents.sim2real.receivers import receive_all
from agents.sim2real.report import step_measurements
from agents.sim2real.sides import level
from agents.sim2real.steps import MeasuredSteps, build_scenario, clean_s, step_level
from agents.sim2real.steps import measure as measure_steps
from agents.sim2real.stream_server import Sent, StepRow
from tests.agents.test_sim2real import made_up, scenario_of
from wisp_gym.cli import run
from wisp_gym.controllers.resolve import resolve
from wisp_gym.errors import InputError
from wisp_gym.scenario import Scenario, load, save, with_
from wisp_gym.simulation import simulate

LAUNCH_S, TOKEN_S, PASS_S, SEQUENCE_S, PAUSE_S = 0.010, 0.001, 0.004, 0.0005, 0.002
ROUND_TOKENS = [1, 3, 2]  # of each message of the server below


def stepped(seed: int = 0, slower: float = 1.0) -> Deployed:
    """Steps of known numbers: 10 ms + 1 ms a token to verify, 4 ms + 0.5 ms a sequence for each token drafted, 2 ms between two.

    slower: times that steps, and a yardstick of 1 ms in every third, take as long.
    """
    rng, deployed, end_s, length = np.random.default_rng(seed), Deployed(0.0, 100.0), 0.0, 0
    for k in range(600):
        n, before, length = int(rng.integers(1, 9)), length, int(rng.integers(0, 7))
        new, cached = n * (before + 1), int(rng.integers(30, 90)) * n
        clean_s = LAUNCH_S + TOKEN_S * new + length * (PASS_S + SEQUENCE_S * n)
        seconds = slower * clean_s * float(np.exp(0.03 * rng.normal()))
        end_s += PAUSE_S + seconds
        yardstick_s = 0.0 if k % 3 else 0.001 * slower
        step = (new, float(new * (cached // n + before + 1)), cached, n, cached + n, length)
        deployed.steps.append(StepRow(end_s, seconds, yardstick_s, n, *step))
        down_s = float(0.02 * np.exp(0.2 * rng.normal()))
        row = (end_s - 0.05, end_s, end_s + down_s, 0.0, before, min(before, 2), min(before, 2) + 1)
        deployed.rounds.append(RoundRow(0, 0, 1 + k, *row))
    return deployed


def edge_scenario(folder: Path) -> Scenario:
    return scenario_of(folder, measure([made_up()]))


def colocated_scenario(folder: Path, measured: MeasuredSteps) -> Scenario:
    """As a run writes and reads it."""
    save(build_scenario(measured, edge_scenario(folder)), folder / "colocated.toml")
    return load(folder / "colocated.toml")


def test_co_located_controllers_are_known_by_their_names() -> None:
    names = ["colocated:2", "colocated-turbospec", "colocated-survival(h=0.5)", "wisp", "turbospec+fcfs", "centralized"]
    assert [is_colocated(name) for name in names] == [True, True, True, False, False, False]
    assert rule_of("colocated:2", "vllm").values[0] == 2.0


@pytest.mark.parametrize(
    ("name", "engine", "text"),
    [
        ("colocated:2", "torch", "with --engine torch the server cannot draft for itself; allowed: --engine vllm"),
        ("colocated-table", "vllm", "allowed where the server drafts: colocated, colocated-turbospec"),
        ("colocated:2+chunk", "vllm", "without additions"),
        ("colocated:0", "vllm", "lengths from 1 on"),
        ("colocated-ema(draft=1)", "vllm", "the pair's own draft"),
    ],
)
def test_what_vllm_cannot_be_is_refused(name: str, engine: str, text: str) -> None:
    with pytest.raises(InputError) as error:
        rule_of(name, engine)
    assert str(error.value).startswith(f"--controllers '{name}'")
    assert text in str(error.value)


def test_the_torch_engine_refuses_in_one_line_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--out", str(tmp_path / "run"), "--controllers", "wisp+wisp,colocated:3"]
    assert run(sim2real.main, sim2real.PROGRAM, command) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"{sim2real.PROGRAM}: --controllers 'colocated:3': with --engine torch")
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_what_is_measured_of_steps_is_what_they_took() -> None:
    deployed = stepped()
    found = measure_steps([deployed])
    assert found.draft_time["launch_s"] == pytest.approx(PASS_S, rel=0.1)
    assert found.draft_time["sequence_s"] == pytest.approx(SEQUENCE_S, rel=0.1)
    assert found.draft_time["token_s"] == 0.0
    assert found.host_s == pytest.approx(PAUSE_S, rel=1e-6)
    assert found.noise == pytest.approx(0.03, rel=0.15)
    assert found.one_way_s == pytest.approx(0.02, rel=0.03)
    assert found.jitter == pytest.approx(0.2, rel=0.1)
    step = StepRow(0.0, 0.0, 0.0, 4, 12, 12 * 53.0, 200, 4, 204, 2)
    took_s = clean_s([step], found.roofline, found.draft_time)
    assert took_s == pytest.approx(LAUNCH_S + 12 * TOKEN_S + 2 * (PASS_S + 4 * SEQUENCE_S), rel=0.02)
    engine, vllm = (found.fit[f"steps as {who}"]["mape_percent"] for who in ("the engine has them", "vLLM runs them"))
    assert engine < 3.0 < vllm  # these steps pay for their first token
    said = dict(step_measurements(found)[1:])
    assert said["from"] == "600 rounds, 600 steps"
    assert f"MAPE {vllm:.1f} %" in said["fit of the steps as vLLM runs them"]


def test_a_short_profile_of_steps_is_refused() -> None:
    short = stepped()
    short.steps = short.steps[:20]
    with pytest.raises(InputError, match="600 rounds and 20 steps came"):
        measure_steps([short])


def test_a_slower_machine_is_told_from_slower_steps(tmp_path: Path) -> None:
    measured, slower = measure_steps([stepped()]), stepped(1, slower=1.3)
    assert machine_level(measured.yardstick_s, slower.ran) == pytest.approx(1.3)
    assert step_level(measured, [slower.steps]) == pytest.approx(1.0, rel=0.02)
    assert level(measured, [slower]) == step_level(measured, [slower.steps])
    heavier = [row._replace(seconds=1.5 * row.seconds) for row in slower.steps]
    assert step_level(measured, [heavier]) == pytest.approx(1.5, rel=0.02)
    scenario = colocated_scenario(tmp_path, measured)
    changed = at_level(scenario, 1.3)
    assert changed.verification.token_s == pytest.approx(1.3 * scenario.verification.token_s)
    assert changed.server_drafts[0].time.launch_s == pytest.approx(1.3 * scenario.server_drafts[0].time.launch_s)
    assert changed.verification.sharpness == scenario.verification.sharpness
    least = with_(scenario, **{"verification.weights_s": 1e-9})
    assert at_level(least, 0.5).verification.weights_s == 1e-9  # what a scenario takes at least


def test_the_servers_drafts_have_the_fates_of_the_trace(tmp_path: Path) -> None:
    scenario = colocated_scenario(tmp_path, measure_steps([stepped()]))
    controller = resolve("colocated:3", scenario)
    assert controller.centralized
    assert controller.drafting.hosted is not None
    assert controller.drafting.hosted.shares_fates
    assert scenario.kv_tokens == edge_scenario(tmp_path).kv_tokens == controller.drafting.hosted.kv_tokens
    found = simulate(scenario, "colocated:3", [1, 2], 4)
    edge = simulate(edge_scenario(tmp_path), "fixed:3+fcfs", [1, 2], 4)
    for own, other in zip(
        found, edge, strict=True
    ):  # the same prompts: what is accepted of three tokens is the trace's
        assert own.acceptance == pytest.approx(other.acceptance, abs=0.06)
        assert own.server_drafted_share > 0.9
        assert own.goodput_tokens_per_s > 0.0
    assert simulate(scenario, "colocated-turbospec", [1], 4)[0].goodput_tokens_per_s > 0.0


def test_steps_come_back_from_their_file_and_are_counted(tmp_path: Path) -> None:
    deployed = stepped()
    write_deployed(tmp_path / "rounds.json", deployed)
    assert read_deployed(tmp_path / "rounds.json") == deployed
    deployed.rounds.insert(0, RoundRow(0, 0, 0, 0.0, 0.0, 0.1, 0.0, 0, 0, 1))  # the prompt
    found = measures(deployed, edge_scenario(tmp_path), 1)  # from 1 s to 9 s
    inside = [row for row in deployed.steps if 1.0 <= row.end_s < 9.0]
    assert found["batch_requests"] == pytest.approx(np.mean([row.requests for row in inside]))
    assert found["server_use"] == pytest.approx(sum(row.seconds for row in inside) / 8.0)
    assert found["round_latency_p50_s"] == pytest.approx(0.07, rel=0.02)


class Server:
    """Answers each prompt by three messages, 30 ms apart, and keeps what it is asked."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.asked: list[list[int]] = []
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection, connection.makefile("r") as lines:  # its device may leave
            for line in lines:
                arrived_s, (prompt, tokens) = time.monotonic(), json.loads(line)
                self.asked.append(prompt)
                assert tokens == sum(ROUND_TOKENS)
                for place, committed in enumerate(ROUND_TOKENS):
                    time.sleep(0.03)
                    sent = Sent(arrived_s, time.monotonic(), committed, 3 if place else 0, committed - 1, place == 2)
                    connection.sendall((json.dumps(sent) + "\n").encode())


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    yield found
    found.listener.close()


def test_devices_receive_the_engines_prompts_one_after_another(server: Server) -> None:
    prompts = [[k, k + 1] for k in range(5)]
    nobody: Any = None
    shape, seed = Shape(0.0, 0.005, 0.2), 4
    fleet = Fleet(2, 1.2, seed, 0.2, 8, sum(ROUND_TOKENS), shape, prompts, nobody, [(0.0, 0.0)] * 2)
    host, port = server.listener.getsockname()
    out = receive_all(fleet, f"{host}:{port}", "test")
    assert not out.faults
    for place in range(2):
        rows = [row for row in out.rounds if row.device == place]
        requests = {row.request for row in rows}
        assert len(requests) > 5
        assert [row.position for row in rows[:6]] == [0, 1, 4, 0, 1, 4]
        assert rows[0].begun_s >= out.start_s + start_of(seed, place, 0.2) - 1e-3
        for before, row in itertools.pairwise(rows):
            assert row.received_s >= before.received_s
            if row.position:  # a round begins where the one before it was received; its tokens take a delay
                assert row.begun_s == before.received_s
                assert 0.002 < row.received_s - row.sent_s < 0.1
                assert (row.drafted, row.accepted) == (3, row.committed - 1)
            else:  # the next prompt begins once the last token is there
                assert 0.0 <= row.begun_s - before.received_s < 0.05
    first = [prompts[answer_of(seed, place, 0, len(prompts))] for place in range(2)]
    assert sorted(server.asked[:2]) == sorted(first)


def test_a_device_whose_server_is_gone_is_a_fault() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        host, port = gone.getsockname()
    nobody: Any = None
    fleet = Fleet(1, 0.3, 0, 0.0, 8, 6, Shape(0.0, 0.001, 0.1), [[1, 2]], nobody, [(0.0, 0.0)])
    assert receive_all(fleet, f"{host}:{port}", "test").faults[0].startswith("device 0: ConnectionRefusedError")
