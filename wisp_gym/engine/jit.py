"""The one place that says how the engine is compiled.

Everything in the engine is written in the subset of Python that numba compiles; `jit` is numba's `njit` with a cache
on disk and without the global interpreter lock, so that worlds can run on several threads.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numba

PACKAGE = Path(__file__).resolve().parents[1]
COMPILED_FOLDERS = ("engine", "controllers")


def sources_digest() -> str:
    """Digest of the engine's own sources."""
    digest = hashlib.sha256(numba.__version__.encode())
    for folder in COMPILED_FOLDERS:
        for path in sorted((PACKAGE / folder).glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def drop_stale_cache() -> None:
    """Remove compiled code that was built from other sources.

    numba checks the file of the function it loads, not the files of the functions that one calls; a changed callee
    would go unnoticed.
    """
    stamp = PACKAGE / "engine" / "__pycache__" / "sources.sha256"
    try:
        digest = sources_digest()
        if stamp.is_file() and stamp.read_text() == digest:
            return
        for folder in COMPILED_FOLDERS:
            for stale in (PACKAGE / folder / "__pycache__").glob("*.nb[ic]"):
                stale.unlink(missing_ok=True)
        stamp.parent.mkdir(exist_ok=True)
        stamp.write_text(digest)
    except OSError:  # a read-only installation: numba then caches in the user's folder, keyed by file time
        return


drop_stale_cache()

# Compiled code borrows the caller's arrays and allocates none, so it needs no reference counting: without it a round
# costs about 40 % less. `_nrt` and `no_cfunc_wrapper` are numba's own options; its version is pinned in constraints.txt.
OPTIONS: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}
njit: Any = numba.njit
jit = njit(_nrt=False, **OPTIONS)
jit_inline = njit(_nrt=False, forceinline=True, **OPTIONS)  # for small functions with many arguments in the hot loop
jit_allocating = njit(_nrt=True, **OPTIONS)  # for the few functions that need working memory
