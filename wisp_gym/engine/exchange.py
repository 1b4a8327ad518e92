"""Where worlds and those who decide outside of the engine meet: the arrays that both read and write, checked once.

The arrays are made here and handed to compiled code from here alone. What comes from outside are masks and actions: compiled
code trusts them, so their shape, type and range are checked before it is entered, whatever it costs elsewhere to be wrong.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from wisp_gym.engine import gather
from wisp_gym.engine.call import Call
from wisp_gym.engine.loop import DONE
from wisp_gym.engine.outside import refuse_begun
from wisp_gym.engine.run import BEGIN, STEP
from wisp_gym.engine.worlds import Worlds
from wisp_gym.errors import InputError
from wisp_gym.values import shown


class Exchange:
    """What passes between worlds and those who decide in them.

    Args:
        worlds: of an external decision maker each. size: entries of an observation. actions: number of actions.
        pay: of each, see `engine.rewards`.

    Attributes:
        kinds: (W,) int64 what each world waits for, DONE at the horizon and before it is begun.
        observations: (W, size) float32. masks: (W, actions) int8, 1 = valid. outcomes: (W, gather.SIZE) float64 of the last step.
    """

    def __init__(self, worlds: Worlds, size: int, actions: int, pay: Sequence[float]):
        n = len(worlds)
        self.worlds, self.n_actions = worlds, actions
        self.call: Call | None = None
        self.which, self.actions, self.kinds = np.zeros(n, bool), np.zeros(n, np.int64), np.full(n, DONE, np.int64)
        self.observations, self.masks = np.zeros((n, size), np.float32), np.zeros((n, actions), np.int8)
        self.outcomes, self.pay = np.zeros((n, gather.SIZE)), np.tile(np.array(pay, float), (n, 1))

    def begin(self, which: np.ndarray) -> None:
        """Open the worlds that a (W,) bool mask marks and run them to their first decision."""
        if which.shape != self.which.shape or which.dtype != np.bool_:
            given = f"given {which.dtype} of shape {which.shape}"
            raise InputError(f"worlds to begin: {given}, allowed is bool of shape {self.which.shape}")
        refuse_begun(self.worlds.arrays.server[which])
        self.which[:] = which
        self.run(BEGIN, int(np.count_nonzero(which)))

    def act(self, actions: np.ndarray | int) -> None:
        """Carry out (W,) int64 actions of `checked_actions` and run each world to its next decision."""
        self.actions[:] = actions
        self.run(STEP, len(self.worlds))

    def run(self, task: int, n_worlds: int) -> None:
        """Do a task that means work in so many worlds; their arrays are looked into anew where others, such as a policy's, have taken their place."""
        if self.call is None or self.call.worlds is not self.worlds.arrays:
            self.call = self.worlds.call(STEP, **self.arrays())
        self.call.run(task, n_worlds)

    def arrays(self) -> dict[str, np.ndarray]:
        """What compiled code reads and writes, by name."""
        return {name: getattr(self, name) for name in self.worlds.outside.none}

    def checked_actions(self, given: Any) -> np.ndarray:
        """Actions as compiled code takes them: a copy, (W,) int64.

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
