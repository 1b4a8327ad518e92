"""A call of compiled code on several threads, with all that must live as long as it runs."""

from functools import partial
from typing import Any

import numpy as np

from wisp_gym.engine.arguments import Arguments, laid_out
from wisp_gym.engine.helpers import Share, helpers
from wisp_gym.engine.run import run
from wisp_gym.engine.state import World
from wisp_gym.jit import COMPILES
from wisp_gym.jit_demand import NotCompiledError

LOOKS = 10_000  # for the last worlds of others, some 20 µs: sooner than to be woken up


class Call:
    """What `engine.run` is called with, again and again.

    Args:
        worlds, given: checked arrays, see `Arguments`. threads: to run on, this one among them.
    """

    def __init__(self, worlds: World, given: dict[str, np.ndarray], threads: int):
        self.worlds, self.given, self.threads = worlds, given, threads
        self.counts = np.zeros(2, np.int64)
        self.address: Any = Arguments(worlds, **given, counts=self.counts)
        if COMPILES:
            self.address, self.memory = laid_out(self.address)
        self.end, self.n_worlds = 0, len(given["kinds"])

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        """Copies have arrays of their own, at other addresses."""
        return Call, (self.worlds, self.given, self.threads)

    def run(self, task: int, n_worlds: int | None = None) -> None:
        """Do a task of `engine.run` in all worlds, of which it means work in so many."""
        self.counts[:] = self.end  # where an error has left others
        self.end += self.n_worlds
        n_shares = min(self.threads, self.n_worlds if n_worlds is None else n_worlds) - 1
        shares = [Share(partial(self.work, task, self.end, 0)) for _ in range(n_shares)]
        for share in shares:
            helpers(self.threads - 1).put(share)
        done = False
        try:
            done = self.work(task, self.end, LOOKS)
        finally:
            if not done:
                for share in shares:
                    share.end()

    def work(self, task: int, end: int, looks: int) -> bool:
        """Take part in a task until no world is left; returns whether all are done.

        A rule that could not be compiled on the way raises what stopped it.
        """
        try:
            return bool(run(self.address, task, end, looks))
        except NotCompiledError as error:
            raise NotCompiledError.reason or error from None
