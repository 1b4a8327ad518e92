"""Co-located speculation deployed, profiled and simulated: a whole run of a tiny pair, from the prompts to the report."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("vllm")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("stable_baselines3")

from agents.sim2real import run as sim2real
from agents.sim2real.compare import COMPARED
from agents.sim2real.devices import answer_of, read_deployed
from tests.support.vllm_world import prompts, save_draft, save_target
from wisp_gym.cli import run
from wisp_gym.controllers.resolve import resolve
from wisp_gym.scenario import load
from wisp_gym.traces.speculation import read_speculation_trace

TOKENS, LONGEST, SEED = 24, 2, 3
SHORT = (
    f"--engine vllm --loads 2 --repeats 1 --seeds {SEED}, --seconds 3 --warmup-seconds 1 --profile-seconds 4 "
    f"--draft-token-ms 4 --one-way-ms 3 --max-new-tokens {TOKENS} --target-layers 0 --controllers colocated:{LONGEST}"
)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pair, its tokenizer and prompts."""
    folder = tmp_path_factory.mktemp("pair")
    for name, save in (("target", save_target), ("draft", save_draft)):
        (folder / name).mkdir()
        save(folder / name)
    lines = (json.dumps({"prompt": " ".join(f"w{token}" for token in ids)}) + "\n" for ids in prompts(8, 5, 10, 40))
    (folder / "prompts.jsonl").write_text("".join(lines))
    return folder


def test_a_server_that_drafts_for_itself_is_profiled_simulated_and_compared(pair: Path, tmp_path: Path) -> None:
    out, cells = tmp_path / "run", tmp_path / "cells.json"
    models = [
        "--draft",
        str(pair / "draft"),
        "--target",
        str(pair / "target"),
        "--prompts",
        str(pair / "prompts.jsonl"),
    ]
    command = ["--out", str(out), *models, *SHORT.split(), "--server-python", sys.executable, "--json", str(cells)]
    assert run(sim2real.main, sim2real.PROGRAM, command) == 0
    found = json.loads(cells.read_text())
    assert [cell["measure"] for cell in found] == list(COMPARED)
    assert all(cell["deployed"] > 0 and cell["engine"] > 0 for cell in found)

    trace = read_speculation_trace(out / "speculation.npz")
    (path,) = (out / "deployed").glob("2-colocated-2-0/rounds.json")
    deployed = read_deployed(path)
    later = [row for row in deployed.rounds if row.position]
    assert len(later) > 50
    assert {row.device for row in later} == {0, 1}
    for row in later:  # what the engine replays is what vLLM did, round by round
        runs = trace.accepted_run[trace.positions(answer_of(SEED, row.device, row.request, len(trace)))]
        assert row.accepted == min(row.drafted, runs[row.position])
        assert row.committed == row.accepted + 1
        assert row.drafted == min(LONGEST, TOKENS - row.position - 1)  # shorter at an answer's end alone
    assert {row.length for row in deployed.steps} == {LONGEST}
    assert max(row.requests for row in deployed.steps) == 2

    (profiled,) = (out / "deployed").glob("profile-colocated-2-0/rounds.json")
    assert {row.length for row in read_deployed(profiled).steps} == set(range(9))
    scenario = load(out / "colocated.toml")
    hosted = resolve("colocated:2", scenario).drafting.hosted
    assert hosted is not None
    assert hosted.shares_fates
    report = (out / "report.md").read_text()
    assert "Profile of the server's own drafting" in report
    assert "fit of the steps as vLLM runs them" in report
