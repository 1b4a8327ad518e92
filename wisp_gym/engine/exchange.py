"""Where worlds and those who decide outside of the engine meet: the arrays that both read and write, checked once.

The arrays are made here and handed to compiled code from here alone. What comes from outside are masks and actions: compiled
code trusts them, so their shape, type and range are checked before it is entered, whatever it costs elsewhere to be wrong.
"""

from typing import Any

import numpy as np

from wisp_gym.engine import gather
from wisp_gym.engine.loop import DONE
from wisp_gym.engine.run import BEGIN, STEP
from wisp_gym.engine.worlds import Worlds
from wisp_gym.errors import InputError
from wisp_gym.values import shown


class Exchange:
    """What passes between worlds and those who decide in them.

    Args:
        worlds: of an external decision maker each. size: entries of an observation. actions: number of actions.

    Attributes:
        kinds: (W,) int64 what each world waits for, DONE at the horizon and before it is begun.
        observations: (W, size) float32. outcomes: (W, gather.SIZE) float64 of the last step.
    """

    def __init__(self, worlds: Worlds, size: int, actions: int):
        self.worlds, self.n_actions = worlds, actions
        self.kinds = np.full(len(worlds), DONE, np.int64)
        self.observations = np.zeros((len(worlds), size), np.float32)
        self.outcomes = np.zeros((len(worlds), gather.SIZE))

    def begin(self, which: np.ndarray) -> None:
        """Open the worlds that a (W,) bool mask marks and run them to their first decision."""
        if which.shape != self.kinds.shape or which.dtype != np.bool_:
            given = f"given {which.dtype} of shape {which.shape}"
            raise InputError(f"worlds to begin: {given}, allowed is bool of shape {self.kinds.shape}")
        self.worlds.spread(BEGIN, which=np.array(which), **self.written())

    def act(self, actions: np.ndarray) -> None:
        """Carry out (W,) int64 actions of `checked_actions` and run each world to its next decision."""
        self.worlds.spread(STEP, actions=actions, **self.written())

    def written(self) -> dict[str, np.ndarray]:
        """The arrays that worlds write."""
        return {"kinds": self.kinds, "observations": self.observations, "outcomes": self.outcomes}

    def checked_actions(self, given: Any) -> np.ndarray:
        """Actions as compiled code takes them: a copy, (W,) int64.

        Whatever memory the given ones lie in: of a strided or a read-only array numba would compile everything anew.

        Raises:
            InputError: not so many whole numbers, or one that is no action.
        """
        try:
            array = np.asarray(given)
        except (TypeError, ValueError):  # rows of different lengths
            array = np.zeros(0, object)
        if array.dtype.kind in "iu" and array.shape == self.kinds.shape:
            actions = np.array(array, np.int64)
            # as unsigned numbers negative ones are larger than all actions: one comparison instead of two
            if int(actions.view(np.uint64).max()) < self.n_actions:
                return actions
        allowed = f"{self.kinds.shape} whole numbers from 0 to {self.n_actions - 1}"
        raise InputError(f"actions: given {shown(given)}, allowed are {allowed}")
