"""The one place that says how the engine is compiled, and where compiled code is kept.

The engine and its rules are written in the subset of Python that numba compiles; `jit` is numba's `njit` with a cache
on disk and without the global interpreter lock, so that worlds can run on several threads.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba.core import caching

PACKAGE = Path(__file__).resolve().parent
CONFIG: Any = numba.config
njit: Any = numba.njit
COMPILED_FOLDERS = ("contract", "rules", "engine")  # what compiled code is made of, with this file


@cache
def sources_digest() -> str:
    """Digest of all sources that compiled code is made of, and of numba's version."""
    digest = hashlib.sha256(numba.__version__.encode())
    compiled = [path for folder in COMPILED_FOLDERS for path in sorted((PACKAGE / folder).rglob("*.py"))]
    for path in [PACKAGE / "jit.py", *compiled]:
        digest.update(path.relative_to(PACKAGE).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


@cache
def cache_folder() -> Path:
    """Where compiled code is kept: below NUMBA_CACHE_DIR, or in the package, or for the user, or for the time being.

    The digest is part of the folder's name. numba checks the file of the function it loads, not the files of the functions
    that one calls; so a changed callee would go unnoticed, wherever the cache lies.
    """
    own, name = PACKAGE / "__pycache__", f"wisp-gym-{sources_digest()[:16]}"
    parents = [Path(CONFIG.CACHE_DIR)] if CONFIG.CACHE_DIR else []
    for parent in [*parents, own, Path(caching.AppDirs(appname="numba", appauthor=False).user_cache_dir)]:
        try:
            (parent / name).mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=parent / name).close()
        except OSError:  # a read-only installation, a user without a home
            continue
        if parent == own:
            drop_others(own, name)
        return parent / name
    return Path(tempfile.mkdtemp(prefix=f"{name}-"))


def drop_others(parent: Path, name: str) -> None:
    """Remove what was compiled from other sources of this very package."""
    for stale in parent.glob("wisp-gym-*"):
        if stale.name != name:
            shutil.rmtree(stale, ignore_errors=True)


class Locator(caching._CacheLocator):
    """Tells numba the folder of a function's compiled code."""

    def __init__(self, source: Path) -> None:
        place = source.parent.relative_to(PACKAGE) if source.is_relative_to(PACKAGE) else Path(_outside(source))
        self.source, self.path = source, cache_folder() / place

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> Locator:
        """The locator of a function in a file."""
        found = cls(Path(py_file).resolve())
        found.ensure_cache_path()
        return found

    def get_cache_path(self) -> str:
        """The folder."""
        return str(self.path)

    def get_source_stamp(self) -> str:
        """What must be the same for compiled code to be used, besides the digest: the content of the function's own file."""
        return hashlib.sha256(self.source.read_bytes()).hexdigest()

    def get_disambiguator(self) -> None:
        """Nothing: names and lines tell functions apart."""
        return


def _outside(source: Path) -> str:
    """A folder of its own for functions that are compiled outside the package (`agents`, `estimators`)."""
    return f"{source.parent.name}-{hashlib.sha256(os.fsencode(source.parent)).hexdigest()[:8]}"


class _Files(caching.CompileResultCacheImpl):
    _locator_classes = [Locator]  # type: ignore[assignment, list-item]  # noqa: RUF012 - as numba has it


class _Cache(caching.FunctionCache):
    _impl_class = _Files


def compiler(**options: Any) -> Any:
    """`numba.njit` with these options, and compiled code in `cache_folder`."""

    def decorate(function: Any) -> Any:
        dispatcher = njit(nogil=True, error_model="numpy", no_cfunc_wrapper=True, **options)(function)
        if not CONFIG.DISABLE_JIT:
            dispatcher._cache = _Cache(function)
        return dispatcher

    return decorate


# Compiled code borrows the caller's arrays and allocates none, so it needs no reference counting: without it a round
# costs about 40 % less. `_nrt` and `no_cfunc_wrapper` are numba's own options; its version is pinned in constraints.txt.
jit = compiler(_nrt=False)
jit_inline = compiler(_nrt=False, forceinline=True)  # for small functions with many arguments in the hot loop
jit_allocating = compiler(_nrt=True)  # for the few functions that need working memory
