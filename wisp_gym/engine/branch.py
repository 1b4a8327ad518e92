"""Branches: copies of a running world, which go apart from one decision on.

A branch answers what no log can: what would have become of this very world had the decision been another one. Draws are a
function of who draws and of nothing else, so copies that decide alike stay equal to the byte, and copies that decide otherwise
meet the same requests, fates and delays wherever they meet them at all (coupled branches). `afresh` gives copies other draws from
the moment on (`engine.afresh`): then they are what somebody may expect who knows the model and not the future.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from wisp_gym.engine.call import Call
from wisp_gym.engine.loop import DONE, SPECULATION
from wisp_gym.engine.masks import actions_of
from wisp_gym.engine.pausing import Pausing
from wisp_gym.engine.run import ACT, AFRESH, AS_RULED, WORTH
from wisp_gym.engine.session import EVERY_DEVICE
from wisp_gym.engine.state import PICK, TRACE, World, table
from wisp_gym.engine.worlds import Worlds
from wisp_gym.errors import InputError, of_kind, shown
from wisp_gym.rules.controller import Controller
from wisp_gym.values import MAX_SEED, WORLDS, whole

UNCOPIED = ("log", "decisions", "seen", "outcomes")  # what is written down on the way
NOBODY = -1  # in place of the device that is decided for outside
MEASURED = ("totals", "slo_totals", "histogram")


def refuse_recorded(c: np.void) -> None:
    """Raise InputError where the future is a file's, or repeats the past, and cannot be drawn again."""
    if c["from_trace"] or c["arrivals"] == TRACE:
        raise InputError(
            "afresh: given a world of a recorded trace, allowed is one whose drafts and requests are drawn"
        )
    if c["loop_enter"] > 0.0:
        raise InputError("afresh: given a draft with loops, allowed is one without (draft.acceptance.loop_enter = 0)")


class Branches:
    """So many copies of one world, taken again and again into the same memory.

        copies = Branches(worlds, 64)
        copies.take(0, kind)                      # as world 0 stands, waiting for a decision of this kind
        copies.afresh(np.arange(64) // 2)         # left out: the draws that the world itself will meet
        copies.act([0, 1] * 32)                   # both actions, under the same draws pair by pair
        tokens = copies.on_time_tokens([1.0, 2.0])

    Args:
        worlds: with the world. n: copies, at least one. threads: to run on; default one for each core.

    Attributes:
        worlds: the copies. begun_s: clock of the server when they were taken, in s.

    Raises:
        InputError: other arguments.
    """

    def __init__(self, worlds: Worlds, n: int, threads: int | None = None):
        self.source = of_kind("worlds", worlds, Worlds)
        self.n = WORLDS.checked("branches", n)
        self.worlds = Worlds(self.n, 1, threads=threads)
        self.actions, self.outcomes, self.begun_s = np.zeros(self.n, np.int64), np.zeros((self.n, 1)), 0.0
        self.like: World | None = None  # the source's arrays when room was made for copies
        self.pairs: list[tuple[np.ndarray, np.ndarray]] = []
        self.calls: dict[int, Call] = {}

    def take(self, index: int, kind: int = DONE) -> None:
        """Copy world `index` of the source as it stands; what is measured is measured from here on.

        Args:
            kind: of the decision that it waits for (`loop.SPECULATION`, `loop.BATCHING`); DONE where it waits for none.

        Raises:
            InputError: no such world, or one in which devices that draft side by side wait together.
        """
        whole(0, len(self.source) - 1).checked("world", index)
        if self.source.arrays.config["external_device"][index, 0] == EVERY_DEVICE:
            raise InputError("world: given one whose devices are all decided for together, allowed is one at a time")
        if self.like is not self.source.arrays:
            self.make_room()
        for of_source, of_copies in self.pairs:
            of_copies[:] = of_source[index]
        arrays, self.pausing.kinds[:] = self.worlds.arrays, kind
        self.begun_s = float(arrays.server["now_s"][0, 0])
        for name in MEASURED:
            getattr(arrays, name)[:] = np.zeros((), getattr(arrays, name).dtype)
        c = arrays.config
        c["ends_early"], c["log_decisions"], c["warmup_s"] = 0, 0, self.begun_s

    def make_room(self) -> None:
        """Make room for copies of one of the source's worlds as they are now."""
        arrays = self.like = self.source.arrays
        own: dict[str, Any] = {
            name: table((self.n, *((0, *array.shape[2:]) if name in UNCOPIED else array.shape[1:])), array.dtype)
            for name, array in arrays.own().items()
        }
        self.worlds.arrays, self.worlds.files = arrays._replace(**own), self.source.files
        copied = [name for name in own if name not in UNCOPIED]
        self.pairs = list(zip(arrays.as_bytes(copied), self.worlds.arrays.as_bytes(copied), strict=True))
        self.calls, self.pausing = {}, Pausing(self.worlds, begun=True)

    def run(self, task: int, **arrays: np.ndarray) -> None:
        """Do a task of `engine.run` in all copies."""
        if task not in self.calls:
            self.calls[task] = self.worlds.call(task, **arrays)
        self.calls[task].run(task)

    def afresh(self, seeds: Sequence[int] | np.ndarray) -> None:
        """Give each copy other draws from now on, by (n,) seeds from 0 on; copies of one seed have the same.

        Raises:
            InputError: a recorded trace, loops, or other seeds.
        """
        refuse_recorded(self.worlds.arrays.config[0, 0])
        self.actions[:] = self.each("seeds", seeds, 0, MAX_SEED)
        self.run(AFRESH, actions=self.actions)

    def act(self, actions: Sequence[int] | np.ndarray) -> None:
        """Let each copy carry out its own of (n,) actions, or the nearest valid one, in the decision that they wait for.

        A batch is composed by several, and a device that has drafted may be decided for again; copies that wait for nothing any more stay
        as they are. AS_RULED, -1: as a device's own controller decides.

        Raises:
            InputError: they wait for none, or other actions.
        """
        kinds, arrays = self.pausing.kinds, self.worlds.arrays
        if (kinds == DONE).all():
            raise InputError("act: given copies that wait for no decision, allowed are those that were taken at one")
        device = (kinds == SPECULATION).any()
        self.actions[:] = self.each("actions", actions, AS_RULED if device else 0, actions_of(arrays.config[0, 0]) - 1)
        self.run(ACT, actions=self.actions, kinds=kinds)
        kinds[~self.still_waiting()] = DONE

    def still_waiting(self) -> np.ndarray:
        """(n,) whether a copy's batch is still being composed, or its device may draft more."""
        arrays, server = self.worlds.arrays, self.worlds.arrays.server[:, 0]
        place = np.minimum(server["reply_next"], arrays.replies.shape[1] - 1)
        d = arrays.device[np.arange(self.n), arrays.replies[np.arange(self.n), place]]
        drafts = (server["mid_draft"] == 1) & (d["drafted"] < d["cap"])
        waiting: np.ndarray = (self.pausing.kinds != DONE) & np.where(server["stage"] == PICK, True, drafts)
        return waiting

    def each(self, name: str, given: Sequence[int] | np.ndarray, low: int, high: int) -> np.ndarray:
        """A whole number from `low` to `high` for each copy."""
        array = np.asarray(given)
        if array.shape == (self.n,) and array.dtype.kind in "iu" and low <= array.min() and array.max() <= high:
            return array.astype(np.int64)
        raise InputError(f"{name}: given {shown(given)}, allowed are {self.n} whole numbers from {low} to {high}")

    def follow(self, controllers: Sequence[Controller]) -> None:
        """Put another controller in charge of each copy from now on. The source must have the rows and weights that they need."""
        kept = self.worlds.arrays
        for index, controller in enumerate(controllers):
            self.worlds.control(index, controller)
        self.worlds.arrays = kept  # all share one learned policy, the source's

    def on_time_tokens(self, horizons_s: Sequence[float]) -> np.ndarray:
        """Tokens on time of each copy's whole fleet until so many seconds after the copies were taken: (n, horizons) int64.

        From here on each copy's own controller decides everything, whoever decided outside before.

        Args:
            horizons_s: increasing, in s. What is committed by then counts, if it is delivered by the last.

        Raises:
            InputError: horizons that do not increase; copies whose batch is half composed.
        """
        totals = self.worlds.arrays.totals
        return np.stack([totals["tokens_on_time"][:, 0].copy() for _ in self.run_on(horizons_s)], axis=1)

    def worth_tokens(self, horizons_s: Sequence[float]) -> np.ndarray:
        """The same with what rounds under way are worth by then (`engine.under_way`): (n, horizons) float64.

        So a short horizon does not prefer who sends early, and less is left to chance. Raises as `on_time_tokens`.
        """
        totals, found = self.worlds.arrays.totals, []
        for _ in self.run_on(horizons_s):
            self.run(WORTH, outcomes=self.outcomes)
            found.append(totals["tokens_on_time"][:, 0] + self.outcomes[:, 0])
        return np.stack(found, axis=1)

    def run_on(self, horizons_s: Sequence[float]) -> Iterator[None]:
        """Run all copies on, by their own controllers, from horizon to horizon."""
        ends_s = self.begun_s + np.asarray(horizons_s, float)
        if ends_s.ndim != 1 or not ends_s.size or not (np.diff(ends_s, prepend=self.begun_s) > 0.0).all():
            raise InputError(
                f"horizons_s: given {shown(horizons_s)}, allowed are seconds that increase from above 0 on"
            )
        if (self.worlds.arrays.server["stage"] == PICK).any():
            raise InputError("copies: given a batch half composed, allowed is one that was launched or waited with")
        c = self.worlds.arrays.config
        c["external_device"], c["external_batching"], c["external_hosting"] = NOBODY, 0, 0
        c["window_end_s"] = ends_s[-1]
        for end_s in ends_s:
            self.pausing.run_until(float(end_s))
            yield
