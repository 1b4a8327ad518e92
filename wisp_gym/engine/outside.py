"""Arrays that pass between worlds and those outside, checked on their way: compiled code reads and writes without looking."""

from operator import is_

import numpy as np

from wisp_gym.contract import device, request, server
from wisp_gym.engine import gather
from wisp_gym.engine.run import BEGIN, LOG, STEP, TO_END
from wisp_gym.engine.state import EVENTS, World
from wisp_gym.errors import InputError, did_you_mean, shown
from wisp_gym.values import whole

SEEN = ("kinds", "observations", "outcomes")  # what worlds write for those who decide outside
NEEDS = {TO_END: (), BEGIN: ("which", *SEEN), STEP: ("actions", *SEEN), LOG: ("which", "kinds")}  # of each task


class Outside:
    """The arguments of `engine.run` that come from outside of so many worlds.

    Attributes:
        none: by name, an array of the right kind for a task that does not take it, without columns.
        seen: the arrays of `SEEN` that the last step wrote, which have been checked; empty before.
    """

    def __init__(self, n_worlds: int):
        self.n_worlds = n_worlds
        self.none: dict[str, np.ndarray] = {
            "which": np.zeros(n_worlds, bool),
            "actions": np.zeros(n_worlds, np.int64),
            "kinds": np.zeros(n_worlds, np.int64),
            "observations": np.zeros((n_worlds, 0), np.float32),
            "outcomes": np.zeros((n_worlds, 0)),
        }
        self.seen: list[np.ndarray] = []

    def arguments(self, worlds: World, task: int, arrays: dict[str, np.ndarray]) -> list[np.ndarray]:
        """The arrays in order, `none` for those that the task does not take; a step with those of the last one costs little.

        Args:
            worlds: those that the task is done in. arrays: those that it takes, by name.

        Raises:
            InputError: as `Worlds.spread`.
        """
        none, actions, seen = self.none, arrays.get("actions"), self.seen
        again = type(task) is int and task == STEP and seen and all(map(is_, map(arrays.get, SEEN), seen))
        if again and len(arrays) == 4 and isinstance(actions, np.ndarray):
            return [none["which"], self.fitting("actions", actions, none["actions"]), *seen]
        self.refuse_missing(whole(TO_END, LOG).checked("task", task), arrays)
        arguments = [self.fitting(name, arrays.get(name, like), like) for name, like in none.items()]
        self.refuse_misfits(worlds, task, arrays)
        self.seen = arguments[-len(SEEN) :] if task == STEP else seen
        return arguments

    def refuse_missing(self, task: int, arrays: dict[str, np.ndarray]) -> None:
        """A task has the arrays that it needs, and no others."""
        if missing := [name for name in NEEDS[task] if not isinstance(arrays.get(name), np.ndarray)]:
            raise InputError(f"{missing[0]}: given {shown(arrays.get(missing[0]))}, allowed is an array of all worlds")
        if unknown := arrays.keys() - self.none.keys():
            raise InputError(f"arrays: {did_you_mean(min(unknown), self.none)}")

    def refuse_misfits(self, worlds: World, task: int, arrays: dict[str, np.ndarray]) -> None:
        """There is room for what a task writes, and it opens no world twice."""
        if "outcomes" in NEEDS[task]:
            c = worlds.config[0, 0]
            seen = server.SIZE + int(c["visible_requests"]) * request.SIZE if c["external_batching"] else device.SIZE
            for name, width in (("observations", seen), ("outcomes", gather.SIZE)):
                if arrays[name].shape[1:] != (width,):
                    allowed = f"({self.n_worlds}, {width})"
                    raise InputError(f"{name}: given shape {arrays[name].shape}, allowed is {allowed}")
        if task == TO_END or "which" in NEEDS[task]:
            opened = worlds.server[arrays["which"]] if "which" in NEEDS[task] else worlds.server
            if ((opened["stage"] != EVENTS) | (opened["n_events"] > 0)).any():
                raise InputError("worlds: given some that have begun, allowed are worlds that were filled anew")

    def fitting(self, name: str, array: np.ndarray, like: np.ndarray) -> np.ndarray:
        """An array of the kind of `like`, with a row for each world."""
        if array.dtype == like.dtype and array.ndim == like.ndim and len(array) == self.n_worlds and array.flags.carray:
            return array
        allowed = f"{like.dtype} with {self.n_worlds} rows, one for each world, in C order"
        raise InputError(f"{name}: given {shown(array)}, allowed is {allowed}")
