"""The study's digest of its own code: all that its numbers depend on, and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from agents.study.sources import ROOT, digest_of, sources
from tests.support.tiny import SUITE

LOADED = """
import runpy, sys
from pathlib import Path
sys.argv = ["study", "--suite", "tiny.toml", "--out", "study"]
try:
    runpy.run_module("agents.study", run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
files = {name: getattr(module, "__file__", None) for name, module in sys.modules.items()}
print(*sorted(name for name, file in files.items() if file and Path(file).is_relative_to(sys.path[0])), sep="\\n")
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of our sources, to be changed."""
    root = tmp_path_factory.mktemp("copy")
    for name in ("wisp_gym", "agents"):
        shutil.copytree(ROOT / name, root / name, ignore=lambda _, names: [n for n in names if n == "__pycache__"])
    return root


def test_any_change_of_what_is_imported_changes_it(copy: Path) -> None:
    files = sources(copy)
    assert files.keys() == sources().keys()
    before = digest_of(files)
    assert before == digest_of(sources())
    for path in files.values():
        whole = path.read_bytes()
        path.write_bytes(whole + b"# a change\n")
        assert digest_of(files) != before, path
        path.write_bytes(whole)


def test_a_change_elsewhere_does_not(copy: Path) -> None:
    before = digest_of(sources(copy))
    for path in [*(copy / "wisp_gym" / "testbed").rglob("*.py"), *(copy / "agents" / "sim2real").rglob("*.py")]:
        path.write_bytes(path.read_bytes() + b"# a change\n")
    assert digest_of(sources(copy)) == before


def test_it_holds_every_module_that_a_study_loads(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(SUITE)
    code = LOADED.replace("sys.path[0]", repr(str(ROOT)))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.partition("\nin study\n")[2].split())
    assert {"agents.study.play", "agents.bounds.frontier", "wisp_gym.evaluation.outcomes"} <= loaded
    assert loaded <= sources().keys()
