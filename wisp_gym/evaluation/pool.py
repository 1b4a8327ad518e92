"""Where independent jobs run: a pool, and the one of this machine's threads.

A job is a call of a function that depends on its arguments alone, so results are the same wherever and however often it runs.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
Job = tuple[Any, ...]  # the arguments of a call


class Pool(Protocol):
    """What runs jobs."""

    def map(self, function: Callable[..., T], jobs: Iterable[Job]) -> Iterator[T]:
        """Results in the order of the jobs, each as soon as it and those before it are there.

        Args:
            function: of a module of this project, so that other processes find it by name. jobs: its arguments.
        """


class Threads:
    """Jobs on all cores of this machine; the compiled loop holds no lock."""

    def map(self, function: Callable[..., T], jobs: Iterable[Job]) -> Iterator[T]:
        """As `Pool`; closing the iterator drops what has not begun, and does not wait for what has."""
        pool = ThreadPoolExecutor(os.cpu_count() or 1)
        try:
            yield from pool.map(lambda job: function(*job), jobs)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # a world cannot be stopped, a command can
