"""Where compiled code is kept: apart for other sources, wherever the cache lies, and never in the way."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from filelock import FileLock

import wisp_gym.jit
import wisp_gym.jit_cache
import wisp_gym.jit_demand
import wisp_gym.jit_folder
import wisp_gym.jit_link
import wisp_gym.jit_passes
import wisp_gym.jit_quick

ROOT = Path(wisp_gym.jit.__file__).parents[1]
MODULES = [
    getattr(wisp_gym, name)
    for name in ("jit", "jit_cache", "jit_demand", "jit_folder", "jit_link", "jit_passes", "jit_quick")
]
CALL = "from tiny.engine import caller; print(caller.twice(1), sum(caller.twice.stats.cache_hits.values()))"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package of its own `jit`, whose one compiled function calls another of another file."""
    tiny = tmp_path / "tiny"
    for folder in wisp_gym.jit_folder.COMPILED_FOLDERS:
        (tiny / folder).mkdir(parents=True)
    for module in MODULES:
        source = Path(str(module.__file__))
        (tiny / source.name).write_text(
            source.read_text().replace("wisp_gym.jit", "tiny.jit").replace("from wisp_gym", "from tiny")
        )
    write_callee(tiny, "x + 10")
    (tiny / "engine" / "caller.py").write_text(
        "from tiny.jit import jit\nfrom tiny.rules.callee import f\n\n\n@jit\ndef twice(x):\n    return 2 * f(x)\n"
    )
    return tiny


def write_callee(tiny: Path, value: str) -> None:
    (tiny / "rules" / "callee.py").write_text(f"from tiny.jit import jit\n\n\n@jit\ndef f(x):\n    return {value}\n")


def environment(folder: Path, **more: str) -> dict[str, str]:
    """Variables of a fresh interpreter; code of the small package is kept where it lies."""
    usual = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR" or folder == ROOT}
    return {**usual, "PYTHONDONTWRITEBYTECODE": "1", **more}


def run(code: str, folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """`code` in a fresh interpreter that runs in `folder`."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=folder, env=environment(folder, **more), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


def printed(code: str, folder: Path, **more: str) -> str:
    """What `code` prints there."""
    return run(code, folder, **more).stdout.strip()


def loaded(tiny: Path) -> ModuleType:
    """The package's `jit_folder` as a module of this process."""
    spec = importlib.util.spec_from_file_location("tiny_jit_folder", tiny / "jit_folder.py")
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
    kept = {path.name for path in own.iterdir() if path.suffix != ".pyc"}  # which Python writes for itself
    assert kept == {jit.cache_folder().name, "something-else"}


def test_a_package_that_cannot_be_written_keeps_its_code_elsewhere(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (package / "__pycache__").write_text("a file in the place of the folder")
    users = tmp_path / "user"
    monkeypatch.setattr(wisp_gym.jit_folder.CONFIG, "CACHE_DIR", "")
    monkeypatch.setattr(wisp_gym.jit_folder.caching.AppDirs, "user_cache_dir", str(users))
    monkeypatch.setattr(wisp_gym.jit_folder.tempfile, "tempdir", str(tmp_path))
    assert loaded(package).cache_folder().parent == users
    shutil.rmtree(users)
    users.write_text("no folder either")
    private = loaded(package).cache_folder().parent
    assert private == tmp_path / f"wisp-gym-{os.getuid()}"
    assert private.stat().st_mode & 0o077 == 0
    private.chmod(0o777)  # somebody else could have put code there
    last = loaded(package).cache_folder()
    assert last.parent == tmp_path
    assert last.stat().st_mode & 0o077 == 0


def test_a_read_only_installation_gives_what_it_was_warmed_up_with(package: Path) -> None:
    assert printed(CALL, package.parent) == "22 0"
    for folder in (package, *package.rglob("*")):
        folder.chmod(0o555 if folder.is_dir() else 0o444)
    elsewhere = {"NUMBA_CACHE_DIR": str(package.parent / "other")}
    assert printed(CALL, package.parent, **elsewhere) == "22 1"
    for folder in (package, *package.rglob("*")):
        folder.chmod(0o755)


# --- parts and wholes ------------------------------------------------------------------------------------------------

CALLS = """
from numba import njit
from tiny.engine.caller import twice
from tiny.rules.callee import f

@njit
def outside(x):
    return twice(x) + f(x)

print(twice(1), f(1), outside(1), twice(1.5), outside(1.5), len(f.overloads))
"""


@pytest.mark.parametrize("suits", [True, False], ids=["as parts", "as numba does it"])
def test_functions_are_called_from_python_from_each_other_and_from_others_code(package: Path, suits: bool) -> None:
    chosen = f"import tiny.jit_link\ntiny.jit_link.SUITS = {suits}\n"
    for _ in range(2):  # compiled, then read
        assert printed(chosen + CALLS, package.parent) == f"22 11 33 23.0 34.5 {1 if suits else 2}"


def test_what_compiled_code_calls_is_emitted_as_a_part_alone(package: Path) -> None:
    code = "from tiny.engine.caller import twice; from tiny.rules.callee import f; twice(1); print(list(f.overloads))"
    assert printed(code, package.parent) == "[]"
    assert [path.name.partition("-")[0] for path in package.rglob("*.nbc")] == ["caller.twice"]


def test_numba_is_as_before_once_the_engine_is_compiled() -> None:
    changed = [(owner, name) for owner, name, _ in wisp_gym.jit_quick.changes()]
    before = [getattr(*each) for each in changed]
    with wisp_gym.jit_quick.quick():
        assert all(getattr(*each) is not was for each, was in zip(changed, before, strict=True))
    assert [getattr(*each) for each in changed] == before


# --- damage ----------------------------------------------------------------------------------------------------------

DAMAGE: list[Callable[[bytes], bytes]] = [
    lambda content: b"",
    lambda content: content[: len(content) // 2],
    lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
]


@pytest.mark.parametrize("ending", ["nbi", "nbc"])
def test_damaged_code_is_compiled_again(package: Path, ending: str) -> None:
    assert printed(CALL, package.parent) == "22 0"
    for damage in DAMAGE:
        for path in package.rglob(f"*.{ending}"):
            path.write_bytes(damage(path.read_bytes()))
        assert printed(CALL, package.parent) == "22 0"
    assert printed(CALL, package.parent) == "22 1"


def test_code_that_cannot_be_kept_is_run_all_the_same(package: Path) -> None:
    full = "import os, tiny.jit_cache as c; os.replace = lambda *a: (_ for _ in ()).throw(OSError(28, 'No space left on device'))\n"
    done = run(full + CALL, package.parent)
    assert done.stdout == "22 0\n"
    assert "wisp-gym: compiled code is not kept" in done.stderr
    assert "No space left on device" in done.stderr


# --- several processes -----------------------------------------------------------------------------------------------


def test_one_process_compiles_and_the_other_waits_and_says_so(package: Path) -> None:
    soon = "import tiny.jit_cache; tiny.jit_cache.MOMENT_S = 0.2\n"
    folder = Path(printed("import tiny.jit_folder as c; print(c.cache_folder())", package.parent))
    with FileLock(folder / wisp_gym.jit_folder.LOCK):
        waiting = subprocess.Popen(
            [sys.executable, "-c", soon + CALL],
            cwd=package.parent,
            env=environment(package),
            stdout=-1,
            stderr=-1,
            text=True,
        )
        assert waiting.stderr is not None
        assert "waiting for another process that compiles the engine" in waiting.stderr.readline()
        alone = "import tiny.jit_cache as c; c.wait_for = lambda lock: None\n"  # the process that has the lock
        assert printed(alone + CALL, package.parent) == "22 0"
    out, _ = waiting.communicate(timeout=60)
    assert out == "22 1\n"


def test_a_long_compilation_says_what_it_does_and_how_long_it_took(package: Path) -> None:
    soon = "import tiny.jit_cache; tiny.jit_cache.MOMENT_S = 0.0\n"
    first, second = (run(soon + CALL, package.parent).stderr.splitlines() for _ in range(2))
    assert "compiling for this machine" in first[0]
    assert re.search(r"compiled in \d+ s", first[1])
    assert second == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_child_forked_while_a_thread_compiles_compiles_too(package: Path) -> None:
    code = """
import os, signal, threading
from tiny.engine import caller
thread = threading.Thread(target=caller.twice, args=(1,))
thread.start()
child = os.fork()
if not child:
    signal.alarm(30)
    os._exit(0 if caller.twice(2.0) == 24.0 else 1)
thread.join()
print(os.waitpid(child, 0)[1], caller.twice(3))
"""
    assert printed(code, package.parent) == "0 26"


# --- plain Python ----------------------------------------------------------------------------------------------------

WORLD = """
import hashlib
from wisp_gym.controllers.resolve import resolve
from wisp_gym.engine.worlds import Worlds
from wisp_gym.scenario import load
scenario = load("wisp-a100-qwen3-32b")
for name in ("wisp+wisp", "aligned+static", "contextual+marginal", "speculation-v1+batching-v1", "fixed:4+fcfs+dspark", "centralized"):
    worlds = Worlds(1, 3, log_rows=5000, threads=1)
    worlds.fill(0, scenario, 3, resolve(name, scenario), 3)
    worlds.arrays.config[0, 0]["end_s"] = 6.0
    worlds.run()
    kept = [worlds.arrays.log, worlds.arrays.totals, worlds.arrays.observation]
    print(name, hashlib.sha256(b"".join(array.tobytes() for array in kept)).hexdigest())
"""


def test_plain_python_gives_the_same_bytes() -> None:
    assert printed(WORLD, ROOT, NUMBA_DISABLE_JIT="1") == printed(WORLD, ROOT)


def test_environments_run_as_plain_python() -> None:
    code = """
import gymnasium as gym, numpy as np, wisp_gym
for name in ("Speculation", "SpeculationLength", "Batching", "Joint"):
    envs = gym.make_vec(f"wisp_gym/{name}-v1", num_envs=2, devices=2, horizon_s=2.0)
    envs.reset(seed=0)
    for _ in range(20):
        observations, rewards, *_ = envs.step(envs.action_masks().argmax(1))
    print(observations.sum(), rewards)
"""
    assert printed(code, ROOT, NUMBA_DISABLE_JIT="1") == printed(code, ROOT)


def test_the_engine_is_imported_without_compiling() -> None:
    code = "from wisp_gym.engine import draws, run; print(callable(run.run), 0.0 < draws.uniform(1, 2) < 1.0)"
    assert printed(code, ROOT, NUMBA_DISABLE_JIT="1") == "True True"
