"""How compiled code is kept (`wisp_gym.jit_folder` says where), and how processes share it.

What is read is checked and, where damaged, compiled again. While one process compiles, the others that miss the same code
wait for it, and both say so on standard error when it takes more than a moment.
"""

import contextlib
import gc
import hashlib
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from numba.core import caching
from numba.core.compiler_lock import global_compiler_lock

from wisp_gym import jit_link
from wisp_gym.jit_folder import LOCK, PACKAGE, cache_folder
from wisp_gym.jit_quick import quick, with_room

MOMENT_S = 2.0  # shorter compilations are not worth a line


# --- one compiles, the others wait -----------------------------------------------------------------------------------


class Compilation:
    """The outermost compilation of this process, as a context; entered again, it is the same one.

    numba's own lock, held meanwhile, keeps other threads out; the lock's file, taken when something is really missing,
    keeps other processes waiting.
    """

    def __init__(self) -> None:
        self.depth = 0
        self.lock: FileLock | None = None
        self.timer: threading.Timer | None = None
        self.began_s = 0.0
        self.told = self.collects = False
        self.quick = contextlib.ExitStack()

    def __enter__(self) -> None:
        global_compiler_lock.acquire()
        self.depth += 1

    def __exit__(self, *_: object) -> None:
        self.depth -= 1
        if not self.depth and self.lock:
            self.end()
        global_compiler_lock.release()

    def begin(self) -> bool:
        """Something is missing: have the right to compile it. Returns whether another process may have done it meanwhile."""
        if self.lock or not self.depth:
            return False
        self.lock = FileLock(cache_folder() / LOCK, thread_local=False)
        with contextlib.suppress(OSError, NotImplementedError):  # a file system without locks: each process for itself
            wait_for(self.lock)
        self.began_s, self.told = time.monotonic(), False
        self.collects = gc.isenabled()
        gc.disable()  # a compilation makes millions of objects that stay: looking through them takes an eighth of its time
        if jit_link.SUITS:
            self.quick.enter_context(quick())
        self.timer = threading.Timer(MOMENT_S, self.tell)
        self.timer.daemon = True
        self.timer.start()
        return True

    def tell(self) -> None:
        """Say what takes so long."""
        self.told = True
        say(f"compiling for this machine: once, the engine takes half a minute or so (kept in {cache_folder()})")

    def end(self) -> None:
        """What was missing is there."""
        if self.timer:
            self.timer.cancel()
        self.quick.close()
        if self.collects:
            gc.enable()
        if self.lock:
            self.lock.release()
        if self.told:
            say(f"compiled in {time.monotonic() - self.began_s:.0f} s")
        self.lock = self.timer = None


def wait_for(lock: FileLock) -> None:
    """Take a lock; say so where another process has it for more than a moment."""
    try:
        lock.acquire(timeout=MOMENT_S, poll_interval=0.1)
    except Timeout:
        say("waiting for another process that compiles the engine")
        lock.acquire(poll_interval=0.1)


def say(line: str) -> None:
    """A line on standard error, if there is one."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        print(f"wisp-gym: {line}", file=sys.stderr, flush=True)


compilation = Compilation()
if hasattr(os, "register_at_fork"):  # no child begins with a lock that a thread of its parent holds
    os.register_at_fork(
        before=global_compiler_lock.acquire,
        after_in_parent=global_compiler_lock.release,
        after_in_child=global_compiler_lock.release,
    )


# --- numba's cache of a function -------------------------------------------------------------------------------------


class Locator(caching._CacheLocator):
    """Tells numba the folder of a function's compiled code."""

    def __init__(self, source: Path) -> None:
        place = source.parent.relative_to(PACKAGE) if source.is_relative_to(PACKAGE) else Path(_outside(source))
        self.source, self.path = source, cache_folder() / place

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> "Locator":
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


class CheckedFile(caching.IndexDataCacheFile):
    """Compiled code with its digest: what is damaged is not there, and what cannot be kept is not."""

    def save(self, key: Any, data: Any) -> None:
        """Keep a function's code where that is possible; a full disk costs the next process its time, not this one."""
        try:
            super().save(key, data)
        except OSError as error:
            say(f"compiled code is not kept: {self._cache_path}: {error.strerror}")

    def _dump(self, obj: Any) -> bytes:  # of the index and of the code
        content = super()._dump(obj)
        return hashlib.sha256(content).digest() + content

    def _load_index(self) -> Any:
        found = undamaged(self._index_path, skip=len(caching.pickle.dumps(self._version, protocol=-1)))
        stamp, overloads = found or (None, {})
        return overloads if stamp == self._source_stamp else {}

    def _load_data(self, name: str) -> Any:
        return undamaged(self._data_path(name))


def undamaged(path: str, skip: int = 0) -> Any:
    """What was pickled into a file behind its digest and `skip` bytes; None where it is missing or damaged."""
    try:
        data = Path(path).read_bytes()[skip:]
    except OSError:
        return None
    digest, content = data[:32], data[32:]
    return caching.pickle.loads(content) if hashlib.sha256(content).digest() == digest else None


class FunctionCache(caching.FunctionCache):
    """numba's cache of a function in our folder, checked, and filled by one process at a time."""

    _impl_class = _Files

    def __init__(self, function: Any) -> None:
        super().__init__(function)
        stamp = self._impl.locator.get_source_stamp()
        self._cache_file = CheckedFile(self._cache_path, self._impl.filename_base, stamp)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The compiled code for these types, None where it must be compiled, by this process."""
        found = super().load_overload(sig, target_context)
        if found is None and compilation.begin():
            found = super().load_overload(sig, target_context)
        return found


def kept(dispatcher: Any, function: Any) -> Any:
    """A compiled function whose code is kept in `cache_folder`."""
    compile_: Callable[[Any], Any] = dispatcher.compile

    def compile_alone(signature: Any) -> Any:
        with compilation:
            if isinstance(dispatcher._cache, caching.NullCache):  # not at import: Python calls few of the functions
                dispatcher._cache = FunctionCache(function)
            return with_room(compile_, signature)

    dispatcher.compile = compile_alone
    return dispatcher
