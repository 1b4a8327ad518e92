"""Where compiled code is kept: apart for other sources, wherever the cache lies, and never in the way."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import wisp_gym.jit

ROOT = Path(wisp_gym.jit.__file__).parents[1]
CALL = "from tiny.engine import caller; print(caller.twice(1), sum(caller.twice.stats.cache_hits.values()))"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package of its own `jit`, whose one compiled function calls another of another file."""
    tiny = tmp_path / "tiny"
    for folder in wisp_gym.jit.COMPILED_FOLDERS:
        (tiny / folder).mkdir(parents=True)
    shutil.copy(wisp_gym.jit.__file__, tiny / "jit.py")
    write_callee(tiny, "x + 10")
    (tiny / "engine" / "caller.py").write_text(
        "from tiny.jit import jit\nfrom tiny.rules.callee import f\n\n\n@jit\ndef twice(x):\n    return 2 * f(x)\n"
    )
    return tiny


def write_callee(tiny: Path, value: str) -> None:
    (tiny / "rules" / "callee.py").write_text(f"from tiny.jit import jit\n\n\n@jit\ndef f(x):\n    return {value}\n")


def printed(code: str, folder: Path, **environment: str) -> str:
    """What `code` prints in a fresh interpreter that runs in `folder`."""
    usual = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    given = {**usual, "PYTHONDONTWRITEBYTECODE": "1", **environment}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=given, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def loaded(tiny: Path) -> ModuleType:
    """The package's `jit` as a module of this process."""
    spec = importlib.util.spec_from_file_location("tiny_jit", tiny / "jit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("folder", ["", "shared"], ids=["in the package", "NUMBA_CACHE_DIR"])
def test_a_changed_callee_is_compiled_again(package: Path, folder: str) -> None:
    where = {"NUMBA_CACHE_DIR": str(package.parent / folder)} if folder else {}
    assert printed(CALL, package.parent, **where) == "22 0"
    assert printed(CALL, package.parent, **where) == "22 1"
    write_callee(package, "x + 20")
    assert printed(CALL, package.parent, **where) == "42 0"


def test_the_digest_knows_names_places_and_contents(package: Path) -> None:
    digests = {loaded(package).sources_digest()}
    write_callee(package, "x + 11")
    digests.add(loaded(package).sources_digest())
    (package / "rules" / "callee.py").rename(package / "rules" / "other.py")
    digests.add(loaded(package).sources_digest())
    (package / "rules" / "other.py").rename(package / "contract" / "other.py")
    digests.add(loaded(package).sources_digest())
    assert len(digests) == 4


def test_what_was_compiled_from_other_sources_is_dropped(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = package / "__pycache__"
    for name in ("wisp-gym-0123456789abcdef", "something-else"):
        (own / name).mkdir(parents=True)
    jit = loaded(package)
    monkeypatch.setattr(jit.CONFIG, "CACHE_DIR", "")
    assert jit.cache_folder() == own / f"wisp-gym-{jit.sources_digest()[:16]}"
    assert {path.name for path in own.iterdir()} == {jit.cache_folder().name, "something-else"}


def test_a_package_that_cannot_be_written_keeps_its_code_elsewhere(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (package / "__pycache__").write_text("a file in the place of the folder")
    users = tmp_path / "user"
    monkeypatch.setattr(wisp_gym.jit.CONFIG, "CACHE_DIR", "")
    monkeypatch.setattr(wisp_gym.jit.caching.AppDirs, "user_cache_dir", str(users))
    assert loaded(package).cache_folder().parent == users
    shutil.rmtree(users)
    users.write_text("no folder either")
    last = loaded(package).cache_folder()
    assert last.is_dir()
    assert package not in last.parents
    last.rmdir()


def test_the_engine_is_imported_without_compiling() -> None:
    code = "from wisp_gym.engine import draws, loop; print(callable(loop.run_worlds), 0.0 < draws.uniform(1, 2) < 1.0)"
    assert printed(code, ROOT, NUMBA_DISABLE_JIT="1") == "True True"
