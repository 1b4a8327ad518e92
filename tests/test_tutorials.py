"""The tutorials run from the first block to the last: Python in one namespace, commands in one folder."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from wisp_gym.__main__ import main

ROOT = Path(__file__).resolve().parents[1]
FENCE = re.compile(r"^```(python|bash)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SHORTER = {"STEPS = 300_000": "STEPS = 4_096"}  # minutes of training
ELSEWHERE = ("pip install", "wisp-gym leaderboard run", "wisp-gym leaderboard verify", "wisp-gym leaderboard show")
PAGES = sorted((ROOT / "docs" / "tutorials").glob("*.md"))


def run(page: Path, folder: Path) -> dict[str, Any]:
    """Run a page's blocks in a folder; what its Python left behind."""
    left: dict[str, Any] = {"__name__": "tutorial"}
    for language, body in FENCE.findall(page.read_text(encoding="utf-8")):
        if language == "python":
            for long, short in SHORTER.items():
                body = body.replace(long, short)
            if named := re.match(r"# (\w+\.py)\n", body):
                (folder / named[1]).write_text(body)
            exec(compile(body, page.name, "exec"), left)
        else:
            for line in body.splitlines():
                if not line.startswith(ELSEWHERE):
                    assert main(shlex.split(line)[1:]) in (0, None), line
    return left


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "myrules", raising=False)
    return tmp_path


def test_every_tutorial_has_a_test() -> None:
    assert [page.stem for page in PAGES] == ["first-policy", "own-controller", "policy-to-server"]


def test_first_policy(folder: Path) -> None:
    left = run(ROOT / "docs" / "tutorials" / "first-policy.md", folder)
    assert [row["controller"] for row in left["found"].rows()] == [
        "mine+fcfs",
        "wisp+fcfs",
        "fixed+fcfs",
        "aligned+fcfs",
    ]
    assert (folder / "first-policy.png").read_bytes().startswith(b"\x89PNG")


def test_own_controller(folder: Path) -> None:
    left = run(ROOT / "docs" / "tutorials" / "own-controller.md", folder)
    assert left["first"] == left["second"] > 0.0
    assert left["judged"].rows()[0]["goodput_tokens_per_s"] > 0.0


def test_policy_to_server(folder: Path) -> None:
    left = run(ROOT / "docs" / "tutorials" / "policy-to-server.md", folder)
    assert left["exported"] == left["original"] > 0.0
    assert left["controller"].tokens > 0
    assert not left["controller"].fallbacks
    assert len(left["batch"].members) == 3
