"""The pool that a command asks for: this machine's threads, or the tasks of a Ray cluster (agents/distributed.py)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from wisp_gym.evaluation.pool import Pool, Threads


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
