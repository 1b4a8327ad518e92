"""The folder of compiled code: named after all that the code was made of, below the best place that can be written."""

import contextlib
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba.core import caching

PACKAGE = Path(__file__).resolve().parent
CONFIG: Any = numba.config
COMPILED_FOLDERS = ("contract", "rules", "engine")  # what compiled code is made of, besides jit*.py that say how
LOCK = "compiling.lock"


@cache
def sources_digest() -> str:
    """Digest of all that compiled code depends on: sources, versions, and numba's switches that change code."""
    digest = hashlib.sha256(f"{numba.__version__} {CONFIG.BOUNDSCHECK} {CONFIG.OPT}".encode())
    compiled = [path for folder in COMPILED_FOLDERS for path in sorted((PACKAGE / folder).rglob("*.py"))]
    for path in [*sorted(PACKAGE.glob("jit*.py")), *compiled]:
        digest.update(path.relative_to(PACKAGE).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


@cache
def cache_folder() -> Path:
    """Where compiled code is kept: below NUMBA_CACHE_DIR, or in the package, or for the user, or for the time being.

    The digest is part of the folder's name. numba checks the file of the function it loads, not the files of the functions
    that one calls; so a changed callee would go unnoticed, wherever the cache lies. A read-only installation that was
    warmed up gives its code to the folder that is used instead.
    """
    own, name = PACKAGE / "__pycache__", f"wisp-gym-{sources_digest()[:16]}"
    folder = next((parent / name for parent in parents(own) if writable(parent / name)), None)
    if folder is None:
        return Path(tempfile.mkdtemp(prefix=f"{name}-"))
    if folder.parent == own:
        drop_others(own, name)
    elif not any(folder.iterdir()):
        copy_cache(own / name, folder)
    return folder


def parents(own: Path) -> Iterator[Path]:
    """Where the folder may lie, best first."""
    if CONFIG.CACHE_DIR:
        yield Path(CONFIG.CACHE_DIR)
    yield own
    with contextlib.suppress(RuntimeError, KeyError):  # a user that the system does not know
        yield Path(caching.AppDirs(appname="numba", appauthor=False).user_cache_dir)
    if private := temporary_parent():
        yield private


def temporary_parent() -> Path | None:
    """A folder of this user alone among the temporary ones; None where another one has taken its name.

    Compiled code is run, so it is read from no folder in which somebody else could have put it.
    """
    if not hasattr(os, "getuid"):
        return None
    parent = Path(tempfile.gettempdir()) / f"wisp-gym-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        parent.mkdir(mode=0o700)
    found = parent.lstat()
    ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
    return parent if ours else None


def writable(folder: Path) -> bool:
    """Whether files can be written in a folder, which is made where it is missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:  # a read-only installation, a user without a home
        return False
    return True


def drop_others(parent: Path, name: str) -> None:
    """Remove what was compiled from other sources of this very package."""
    for stale in parent.glob("wisp-gym-*"):
        if stale.name != name:
            shutil.rmtree(stale, ignore_errors=True)


def copy_cache(source: Path, folder: Path) -> None:
    """Copy compiled code, as far as it can be read; half a file is found out when it is read."""
    with contextlib.suppress(OSError, shutil.Error):
        shutil.copytree(source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(LOCK))
