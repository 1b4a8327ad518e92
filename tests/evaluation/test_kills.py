"""Killed work goes on and ends as if it had never been killed; `python -m tests.support.kills` kills it more often."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

for package in ("stable_baselines3", "transformers"):
    pytest.importorskip(package)

from tests.support.kills import WORKS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def done() -> subprocess.CompletedProcess[str]:
    """Every kind of work, killed in turn: one process without threads, which imports once what all of them need."""
    command = [sys.executable, "-m", "tests.support.kills", "--moments", "2"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="works are forked")
@pytest.mark.parametrize("work", WORKS)
def test_killed_work_goes_on_to_the_same_end(work: str, done: subprocess.CompletedProcess[str]) -> None:
    assert f"{work}: 2 kills" in done.stdout, done.stderr
    assert done.returncode == 0, done.stderr
