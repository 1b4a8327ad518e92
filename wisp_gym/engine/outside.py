"""Arrays that pass between worlds and those outside, checked on their way: compiled code reads and writes without looking."""

import numpy as np

from wisp_gym.contract import device, request, server
from wisp_gym.engine import gather, rewards
from wisp_gym.engine.arguments import outside
from wisp_gym.engine.masks import actions_of
from wisp_gym.engine.run import ACT, AFRESH, BEGIN, FLEET, LOG, STEP, TO_END, WORTH
from wisp_gym.engine.state import EVENTS, World
from wisp_gym.errors import InputError, did_you_mean, shown
from wisp_gym.values import whole

SEEN = ("kinds", "observations", "masks", "outcomes", "pay")  # of those who decide outside
NEEDS = {
    TO_END: (), BEGIN: ("which", *SEEN), STEP: ("actions", *SEEN), LOG: ("which", "kinds"),
    FLEET: ("which", "actions", "kinds", "observations", "masks"), ACT: ("actions", "kinds"), AFRESH: ("actions",), WORTH: ("outcomes",),
}  # fmt: skip
# of each task


class Outside:
    """The arguments of `engine.run` that come from outside of so many worlds.

    Attributes:
        none: by name, an array of the right kind for a task that does not take it, without columns.
    """

    def __init__(self, n_worlds: int):
        self.n_worlds, self.none = n_worlds, outside(n_worlds)

    def arguments(self, worlds: World, task: int, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """All arrays by name, `none` for those that the task does not take.

        Args:
            worlds: those that the task is done in. arrays: those that it takes, by name.

        Raises:
            InputError: as `Worlds.spread`.
        """
        self.refuse_missing(whole(TO_END, WORTH).checked("task", task), arrays)
        given = {name: self.fitting(name, arrays.get(name, like), like) for name, like in self.none.items()}
        if "observations" in NEEDS[task]:
            refuse_misfits(worlds.config[0, 0], {name: arrays[name] for name in NEEDS[task]})
        if task == TO_END or "which" in NEEDS[task]:
            refuse_begun(worlds.server[given["which"]] if "which" in NEEDS[task] else worlds.server)
        return given

    def refuse_missing(self, task: int, arrays: dict[str, np.ndarray]) -> None:
        """A task has the arrays that it needs, and no others."""
        if missing := [name for name in NEEDS[task] if not isinstance(arrays.get(name), np.ndarray)]:
            raise InputError(f"{missing[0]}: given {shown(arrays.get(missing[0]))}, allowed is an array of all worlds")
        if unknown := arrays.keys() - self.none.keys():
            raise InputError(f"arrays: {did_you_mean(min(unknown), self.none)}")

    def fitting(self, name: str, array: np.ndarray, like: np.ndarray) -> np.ndarray:
        """An array of the kind of `like`, with a row for each world."""
        if array.dtype == like.dtype and array.ndim == like.ndim and len(array) == self.n_worlds and array.flags.carray:
            return array
        allowed = f"{like.dtype} with {self.n_worlds} rows, one for each world, in C order"
        raise InputError(f"{name}: given {shown(array)}, allowed is {allowed}")


def refuse_misfits(c: np.void, arrays: dict[str, np.ndarray]) -> None:
    """There is room for what is written, and no more is read than there is."""
    seen = server.SIZE + int(c["visible_requests"]) * request.SIZE if c["external_batching"] else device.SIZE
    widths = {"observations": seen, "masks": actions_of(c), "outcomes": gather.SIZE, "pay": 1 + rewards.MOST_TERMS}
    for name, width in widths.items():
        if name in arrays and arrays[name].shape[1:] != (width,):
            allowed = f"({len(arrays[name])}, {width})"
            raise InputError(f"{name}: given shape {arrays[name].shape}, allowed is {allowed}")


def refuse_begun(rows: np.ndarray) -> None:
    """Worlds of these SERVER rows may be opened: a second opening would write beyond their heap."""
    if ((rows["stage"] != EVENTS) | (rows["n_events"] > 0)).any():
        raise InputError("worlds: given some that have begun, allowed are worlds that were filled anew")
