"""Co-located speculation of a tiny pair: recorded, profiled, its scenario built, deployed; the engine's worlds are tested elsewhere."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("vllm")
pytest.importorskip("sklearn")
pytest.importorskip("onnx")

from agents.sim2real.compare import measures
from agents.sim2real.devices import answer_of, read_deployed
from agents.sim2real.run import parse
from agents.sim2real.sides import Sides
from tests.support.vllm_world import prompts, save_draft, save_target
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


def test_a_server_that_drafts_for_itself_is_profiled_and_deployed(pair: Path, tmp_path: Path) -> None:
    models = [f"--{side}={pair / side}" for side in ("draft", "target")] + [f"--prompts={pair / 'prompts.jsonl'}"]
    command = [f"--out={tmp_path}", *models, *SHORT.split(), "--server-python", sys.executable]
    given, settings = parse(command)
    sides = Sides(settings, tmp_path, given.controllers)
    sides.profile(0)
    deployed = sides.deploy(given.controllers[0], 2, 0)
    assert not deployed.fallbacks

    trace = read_speculation_trace(tmp_path / "speculation.npz")
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

    profiled = read_deployed(tmp_path / "deployed" / "profile-colocated-2-0" / "rounds.json")
    assert {row.length for row in profiled.steps} == set(range(9))
    found = measures(deployed, sides.colocated, 2)
    assert found["goodput_tokens_per_s"] > 0.0
    assert 0.0 < found["acceptance"] < 1.0
    hosted = resolve("colocated:2", load(tmp_path / "colocated.toml")).drafting.hosted
    assert hosted is not None
    assert hosted.shares_fates
