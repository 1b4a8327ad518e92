"""Worlds whose devices, or whose server, are decided for by Python objects.

All worlds of a comparison run side by side, and in each all devices that were answered together: one `predict` decides for all of
them, so that a network is not asked once a token. The worlds are those of every other controller, draw for draw.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wisp_gym.contract import device, request, server
from wisp_gym.engine.loop import BATCHING, DONE, SPECULATION
from wisp_gym.engine.masks import actions_of, device_actions_of, write_device_masks
from wisp_gym.engine.run import FLEET
from wisp_gym.engine.session import EVERY_DEVICE, EXTERNAL_LENGTH, EXTERNAL_TOKEN
from wisp_gym.engine.worlds import Worlds
from wisp_gym.evaluation.own.asked import Asked
from wisp_gym.jit_pointer import Compiled
from wisp_gym.rules.controller import Controller
from wisp_gym.scenario import Scenario


@dataclass(frozen=True)
class Drivers:
    """Who decides outside of the engine.

    Attributes:
        devices, server: with `predict`; None leaves that half to the controller's rules.
        rule: a compiled function in place of `devices`, which runs in the engine's loop.
        decides: what those of the devices decide: "token", "length", "token-way" or "length-way".
        prices, hosting: whether the server's sets prices, and says for whom the server drafts. visible: requests that it sees.
    """

    devices: Any = None
    server: Any = None
    rule: Compiled | None = None
    decides: str = "token"
    prices: bool = False
    hosting: bool = False
    visible: int = 64

    def take_over(self, worlds: Worlds) -> None:
        """Write into worlds what is decided outside."""
        c = worlds.arrays.config
        if self.devices is not None:
            by_length = self.decides.startswith("length")
            c["external_device"], c["external_ways"] = EVERY_DEVICE, self.decides.endswith("way")
            c["external_speculation"] = EXTERNAL_LENGTH if by_length else EXTERNAL_TOKEN
        if self.rule is not None:
            c["own_rule"], c["own_by_length"] = self.rule.address, self.decides == "length"
        if self.server is not None:
            c["external_batching"], c["visible_requests"], c["responses_join"] = 1, self.visible, 1
            c["sets_prices"], c["external_hosting"] = self.prices, self.hosting


def filled(scenario: Scenario, controller: Controller, seeds: Sequence[int], trace: np.ndarray) -> Worlds:
    """One world for each seed, every device with an observation."""
    worlds = Worlds(len(seeds), scenario.n_devices, trace=trace)
    worlds.arrays = worlds.arrays.with_rows(observation=scenario.n_devices)
    for index, seed in enumerate(seeds):
        worlds.fill(index, scenario, seed, controller)
    worlds.arrays.config["ends_early"] = True
    return worlds


class Driven:
    """Worlds that run from one decision of Python objects to the next.

    Args:
        worlds: filled, not begun. drivers: who decides. place: what messages call them.
    """

    def __init__(self, worlds: Worlds, drivers: Drivers, place: str):
        drivers.take_over(worlds)
        self.worlds, n = worlds, len(worlds)
        self.n_devices = worlds.arrays.device.shape[1]
        c = worlds.arrays.config[0, 0]
        seen = server.SIZE + int(c["visible_requests"]) * request.SIZE if drivers.server is not None else device.SIZE
        self.which, self.kinds, self.actions = np.ones(n, bool), np.zeros(n, np.int64), np.zeros(n, np.int64)
        self.observations, self.masks = np.zeros((n, seen), np.float32), np.zeros((n, actions_of(c)), np.int8)
        self.devices = self.server = None
        if drivers.devices is not None:
            n_actions = int(device_actions_of(c))
            self.devices = Asked(drivers.devices, f"{place}: devices", n * self.n_devices, n_actions)
        if drivers.server is not None:
            self.server = Asked(drivers.server, f"{place}: server", n, self.masks.shape[1])

    def run(self) -> Iterator[int]:
        """Run all to their end; gives each world's number when it is over."""
        call = self.worlds.call(
            FLEET, which=self.which, kinds=self.kinds, actions=self.actions, observations=self.observations,
            masks=self.masks,
        )  # fmt: skip
        over = np.zeros(len(self.worlds), bool)
        while not over.all():
            call.run(FLEET)
            self.which[:] = False
            ended = (self.kinds == DONE) & ~over
            over |= ended
            yield from np.flatnonzero(ended).tolist()
            self.decide()

    def decide(self) -> None:
        """Ask for all that wait."""
        if self.server is not None and len(which := np.flatnonzero(self.kinds == BATCHING)):
            self.actions[which] = self.server.decide(self.observations[which], self.masks[which], which)
        if self.devices is not None and len(which := np.flatnonzero(self.kinds == SPECULATION)):
            arrays = self.worlds.arrays
            waiting = [arrays.replies[index, : arrays.server[index, 0]["n_replies"]] for index in which]
            worlds, rows = np.repeat(which, [len(each) for each in waiting]), np.concatenate(waiting)
            seen = arrays.observation[worlds, rows]
            chosen = self.devices.decide(seen, self.allowed(seen), worlds * self.n_devices + rows)
            arrays.device["action"][worlds, rows] = chosen

    def allowed(self, seen: np.ndarray) -> np.ndarray:
        """(m, actions) int8 masks of devices; empty where nobody asks for them."""
        assert self.devices is not None
        if "action_masks" not in self.devices.keywords:
            return np.zeros((len(seen), 0), np.int8)
        masks = np.empty((len(seen), self.devices.actions), np.int8)
        write_device_masks(self.worlds.arrays.config[0, 0], seen, masks)
        return masks
