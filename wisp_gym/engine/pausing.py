"""Worlds that are run piece by piece: to a time, and on from there as if they had never stopped."""

import numpy as np

from wisp_gym.engine.run import LOG
from wisp_gym.engine.state import EVENTS, OVER
from wisp_gym.engine.worlds import Worlds


class Pausing:
    """Worlds, and the times to which they have been run.

    Args:
        worlds: filled. begun: whether they have been opened before.

    Attributes:
        kinds: (W,) int64 what each world waits for, `loop.DONE` where its clock has come to the time.
    """

    def __init__(self, worlds: Worlds, begun: bool = False):
        self.worlds, self.kinds = worlds, np.zeros(len(worlds), np.int64)
        self.which = np.full(len(worlds), not begun)
        self.arrays, self.call = worlds.arrays, worlds.call(LOG, which=self.which, kinds=self.kinds)

    def run_until(self, end_s: float) -> None:
        """Run each to a time, in s, or to the next decision that is taken outside."""
        if self.arrays is not self.worlds.arrays:
            self.arrays, self.call = self.worlds.arrays, self.worlds.call(LOG, which=self.which, kinds=self.kinds)
        self.wake_up()
        self.arrays.config["end_s"] = end_s
        self.call.run(LOG)
        self.which[:] = False

    def wake_up(self) -> None:
        """Let worlds that came to the end of a piece go on: the batch that outlasted it has been counted up to there."""
        s, c, totals = (getattr(self.arrays, name)[:, 0] for name in ("server", "config", "totals"))
        over = s["stage"] == OVER
        counted_s = np.minimum(c["end_s"], c["window_end_s"]) - np.maximum(s["batch_start_s"], c["warmup_s"])
        totals["busy_s"] -= np.where(over & (s["busy"] == 1), np.maximum(counted_s, 0.0), 0.0)
        s["stage"][over] = EVENTS
