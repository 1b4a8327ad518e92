"""Every command prints in a terminal that knows ASCII alone, and has written its results before it prints anything."""

from __future__ import annotations

import errno
import importlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

for package in ("stable_baselines3", "grpc", "onnx"):
    pytest.importorskip(package)

from wisp_gym.cli import Commands, later, run
from wisp_gym.streams import Output

ROOT = Path(__file__).resolve().parents[2]
TRACE = str(ROOT / "traces" / "python-10m-1m.npz")
ROOMS = ("wisp_gym", "agents.study", "agents.training", "agents.wisp_study", "agents.sim2real", "estimators.acceptance",
         "estimators.batch_time", "estimators.profiling")  # fmt: skip
SINGLE = ("train", "agents.batching.__main__", "agents.bounds.bounds", "wisp_gym.contract.__main__",
          "estimators.rejection.train", "traces.record", "traces.record_requests", "traces.train_pair",
          "traces.describe_speculation")  # fmt: skip
WORLDS = ["--scenario", "scène.toml", "--seeds", "2", "--controllers", "wisp"]
SUITE = """
name = "étude"
controllers = ["fixed+fcfs"]
train_seeds = "100-101"
test_seeds = "0-1"
[tuning]
world_seconds = 120.0
[[cells]]
name = "charge é"
scenario = "scène.toml"
devices = [2]
"""
SCENARIO = """
use = "wisp-a100-qwen3-32b"
name = "café ρ"
n_devices = 3
max_draft_tokens = 2
[workload]
start_window_s = 1.0
[horizon]
warmup_s = 1.0
measure_s = 15.0
drain_s = 3.0
"""
# Module → its smallest work, and the files that it is to leave.
SMALLEST: dict[str, tuple[list[str], list[str]]] = {
    "wisp_gym.evaluation.comparison": ([*WORLDS, "--json", "é.json", "--csv", "é.csv"], ["é.json", "é.csv"]),
    "wisp_gym.evaluation.capacities": ([*WORLDS, "--max-devices", "2", "--json", "é.json"], ["é.json"]),
    "wisp_gym.evaluation.timeline": (["--scenario", "scène.toml", "--start", "1", "--seconds", "1"], []),
    "wisp_gym.serving.export.command": (["speculation-v1", "-o", "é.onnx"], ["é.onnx"]),
    "wisp_gym.serving.tables.command": (["ngram", "--as", "vllm", "-o", "é.json"], ["é.json", "é.about.json"]),
    "wisp_gym.serving.speed": (["--policy", "speculation-v1", "--decisions", "100", "--json", "é.json"], ["é.json"]),
    "agents.bounds.bounds": ([*WORLDS, "--json", "é.json"], ["é.json"]),
    "agents.wisp_study.calibrate": (["--preset", "é.toml"], ["é.toml"]),
    "agents.study.run": (["--suite", "suite é.toml", "--out", "étude", "--csv", "é.csv"], ["étude/rows.json", "é.csv"]),
    "estimators.batch_time.fit": (["--scenario", "wisp-a100-qwen3-14b", "--json", "é.json"], ["é.json"]),
    "estimators.acceptance.trace_report": ([TRACE, "--json", "é.json"], ["é.json"]),
    "traces.record_requests": (["--format", "azure", "--rows", "30", "--rate", "5", "--out", "é.csv"], ["é.csv"]),
    "traces.describe_speculation": ([TRACE], []),
    "wisp_gym.contract.__main__": ([], []),
}


class Full(io.BytesIO):
    """A disk that is full."""

    def write(self, _: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def modules(commands: Commands) -> Iterator[str]:
    """The modules of all sub-commands."""
    for module, _ in commands.modules.values():
        yield from modules(module) if isinstance(module, Commands) else [module]


COMMANDS = [*SINGLE, *(one for room in ROOMS for one in modules(importlib.import_module(f"{room}.__main__").COMMANDS))]


def ended(module: str, words: list[str], raw: io.BytesIO, monkeypatch: pytest.MonkeyPatch) -> int:
    """Exit code of a command whose output is ASCII and goes to `raw`."""
    stream = Output(io.TextIOWrapper(raw, "ascii", write_through=True))
    with monkeypatch.context() as patch:
        patch.setattr("sys.stdout", stream)
        try:
            return run(later(module), module, words)
        except SystemExit as end:
            return int(end.code or 0)
        finally:
            stream.detach()


@pytest.mark.parametrize("module", COMMANDS)
def test_the_help_of_every_command_is_printed(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    assert ended(module, ["--help"], raw, monkeypatch) == 0
    assert raw.getvalue().isascii()
    assert b"usage" in raw.getvalue()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose name and files have letters that ASCII lacks, to work in."""
    here = tmp_path / "café"
    here.mkdir()
    (here / "scène.toml").write_text(SCENARIO, encoding="utf-8")
    (here / "suite é.toml").write_text(SUITE, encoding="utf-8")
    monkeypatch.chdir(here)
    return here


@pytest.mark.parametrize("module", SMALLEST)
def test_commands_print_in_ascii(module: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words, files = SMALLEST[module]
    raw = io.BytesIO()
    assert ended(module, words, raw, monkeypatch) == 0
    assert len(raw.getvalue()) > 20
    assert raw.getvalue().isascii()
    assert all((folder / name).stat().st_size for name in files)


@pytest.mark.parametrize("module", SMALLEST)
def test_results_are_there_before_anything_is_printed(
    module: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words, files = SMALLEST[module]
    if module == "wisp_gym.serving.speed":
        pytest.skip("says what the machine is before it measures")
    assert ended(module, words, Full(), monkeypatch) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"{module}: standard output: No space left on device"
    assert all((folder / name).stat().st_size for name in files)
