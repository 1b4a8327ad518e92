"""One world whose devices' decisions are asked for outside, token by token and one at a time: where to branch."""

import numpy as np

from wisp_gym.engine.loop import DONE
from wisp_gym.engine.run import ACT, AS_RULED, LOG
from wisp_gym.engine.session import EXTERNAL_TOKEN, ONE_BY_ONE
from wisp_gym.engine.worlds import Worlds
from wisp_gym.errors import InputError, of_kind


class InTurn:
    """A world that stops at every decision of every device.

    Args:
        worlds: one world, filled and not begun.

    Attributes:
        kind: what it waits for: `loop.SPECULATION` while a device drafts, `loop.DONE` at the end.

    Raises:
        InputError: other than one world.
    """

    def __init__(self, worlds: Worlds):
        if len(of_kind("worlds", worlds, Worlds)) != 1:
            raise InputError(f"worlds: given {len(worlds)}, allowed is one")
        self.worlds = worlds
        self.kinds, self.actions, self.which = np.zeros(1, np.int64), np.zeros(1, np.int64), np.ones(1, bool)
        self.calls = (
            worlds.call(ACT, actions=self.actions, kinds=self.kinds),
            worlds.call(LOG, which=self.which, kinds=self.kinds),
        )
        c = worlds.arrays.config[0, 0]
        c["external_device"], c["external_speculation"] = ONE_BY_ONE, EXTERNAL_TOKEN
        self.go_on()
        self.which[:] = False

    @property
    def kind(self) -> int:
        """What the world waits for."""
        return int(self.kinds[0])

    @property
    def device(self) -> int:
        """Number of the device that waits; -1 at the end."""
        if self.kind == DONE:
            return -1
        server, replies = self.worlds.arrays.server[0, 0], self.worlds.arrays.replies
        return int(replies[0, server["reply_next"]])

    def act(self, action: int = AS_RULED) -> None:
        """Carry out 0 (send) or 1 (draft one more token), or what the world's own controller decides, and run to the next decision."""
        if action not in (AS_RULED, 0, 1) or self.kind == DONE:
            raise InputError(f"action: given {action}, allowed are 0, 1 and {AS_RULED} while a device waits")
        self.actions[0] = action
        self.calls[0].run(ACT)
        self.go_on()

    def go_on(self) -> None:
        """Run to the next decision."""
        self.calls[1].run(LOG)
