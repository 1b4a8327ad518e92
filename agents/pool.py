"""Where independent jobs run: on this machine's threads, or as tasks of a Ray cluster (agents/distributed.py).

A job is a call of a function that depends on its arguments alone, so results are the same wherever and however often it runs.
"""

from __future__ import annotations

import contextlib
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
        """As `Pool`; closing the iterator drops what has not begun."""
        pool = ThreadPoolExecutor(os.cpu_count() or 1)
        try:
            yield from pool.map(lambda job: function(*job), jobs)
        finally:
            pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def pool_at(address: str | None) -> Iterator[Pool]:
    """The threads of this machine, or with the address of `--distributed` a Ray cluster.

    Raises:
        InputError: as `agents.distributed.cluster`.
    """
    if address is None:
        yield Threads()
        return
    from agents.distributed import cluster  # Ray is an extra

    with cluster(address) as pool:
        yield pool
