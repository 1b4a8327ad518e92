"""A call of compiled code on several threads, with all that must live as long as it runs."""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np

from wisp_gym.engine.arguments import ROOM_BYTES, Arguments, address_of
from wisp_gym.engine.run import run
from wisp_gym.engine.state import World


@cache
def thread_pool(threads: int) -> ThreadPoolExecutor:
    """Threads that run worlds; the compiled loop holds no lock."""
    return ThreadPoolExecutor(threads, thread_name_prefix="wisp-gym")


if hasattr(os, "register_at_fork"):  # a forked child has the pool but none of its threads: it makes its own
    os.register_at_fork(after_in_child=thread_pool.cache_clear)


class Call:
    """What `engine.run` is called with, again and again.

    Args:
        worlds, given: checked arrays, see `Arguments`. threads: to run on, this one among them.
    """

    def __init__(self, worlds: World, given: dict[str, np.ndarray], threads: int):
        self.worlds, self.given, self.threads = worlds, given, threads
        self.place, self.memory = np.zeros(1, np.int64), np.zeros(ROOM_BYTES, np.uint8)
        self.address = address_of(Arguments(worlds, **given, place=self.place), self.memory)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        """Copies have arrays of their own, at other addresses."""
        return Call, (self.worlds, self.given, self.threads)

    def run(self, task: int) -> None:
        """Do a task of `engine.run` in all worlds."""
        self.place[0] = 0
        helpers = [thread_pool(self.threads - 1).submit(self.work, task) for _ in range(self.threads - 1)]
        self.work(task)
        for helper in helpers:
            if not helper.cancel():  # it may not even have begun
                helper.result()

    def work(self, task: int) -> None:
        """Take part in a task until no world is left."""
        run(self.address, task)
