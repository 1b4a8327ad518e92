"""Threads that help with work: to hand a share over and to have it back costs about half of what an executor's futures cost.

Whoever hands shares over does the same work meanwhile, and takes back what no helper has begun: nobody waits for a helper that
is kept busy by others.
"""

import os
from collections.abc import Callable
from functools import cache
from queue import SimpleQueue
from threading import Lock, Thread


class Share:
    """A share of some work, done once by whoever takes it first, or by nobody.

    Args:
        work: what is done; what it returns is of no use.
    """

    def __init__(self, work: Callable[[], object]):
        self.work, self.taken, self.under_way = work, Lock(), Lock()
        self.error: BaseException | None = None
        self.under_way.acquire()

    def help(self) -> None:
        """Do it, unless it has been taken back."""
        if self.taken.acquire(blocking=False):
            try:
                self.work()
            except BaseException as error:  # for whoever waits
                self.error = error
            finally:
                self.under_way.release()

    def end(self) -> None:
        """Take it back, or wait until it is done; raises what it raised."""
        if not self.taken.acquire(blocking=False):
            self.under_way.acquire()
            if self.error is not None:
                raise self.error


@cache
def helpers(threads: int) -> SimpleQueue[Share]:
    """Where so many threads, started for it, take shares from; they end with the process."""
    shares: SimpleQueue[Share] = SimpleQueue()

    def help_for_ever() -> None:
        while True:
            shares.get().help()

    for _ in range(threads):
        Thread(target=help_for_ever, name="wisp-gym", daemon=True).start()
    return shares


if hasattr(os, "register_at_fork"):  # a forked child has none of the threads: it starts its own
    os.register_at_fork(after_in_child=helpers.cache_clear)
