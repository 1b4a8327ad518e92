"""A call of compiled code on several threads, with all that must live as long as it runs."""

from functools import partial
from typing import Any

import numpy as np

from wisp_gym.engine.arguments import ROOM_BYTES, Arguments, address_of
from wisp_gym.engine.helpers import Share, helpers
from wisp_gym.engine.run import run
from wisp_gym.engine.state import World
from wisp_gym.jit_demand import NotCompiledError


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
        shares = [Share(partial(self.work, task)) for _ in range(self.threads - 1)]
        for share in shares:
            helpers(self.threads - 1).put(share)
        try:
            self.work(task)
        finally:
            for share in shares:
                share.end()

    def work(self, task: int) -> None:
        """Take part in a task until no world is left. A rule that could not be compiled on the way raises what stopped it."""
        try:
            run(self.address, task)
        except NotCompiledError as error:
            raise NotCompiledError.reason or error from None
