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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="works are forked")
@pytest.mark.parametrize("work", WORKS)
def test_killed_work_goes_on_to_the_same_end(work: str) -> None:
    command = [
        sys.executable,
        "-m",
        "tests.support.kills",
        "--work",
        work,
        "--moments",
        "2",
    ]  # a process without threads
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{work}: 2 kills" in done.stdout
