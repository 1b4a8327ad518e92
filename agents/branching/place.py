"""Where worlds are branched at: a decision of a device, in the middle of a run."""

import numpy as np

from wisp_gym.engine.branch import Branches
from wisp_gym.engine.in_turn import InTurn
from wisp_gym.engine.loop import DONE
from wisp_gym.engine.worlds import Worlds
from wisp_gym.errors import InputError
from wisp_gym.rules.controller import Controller
from wisp_gym.scenario import Scenario

SEND, DRAFT = 0, 1


def world_of(scenario: Scenario, controller: Controller, seed: int) -> Worlds:
    """One world at its beginning."""
    worlds = Worlds(1, scenario.n_devices, threads=1)
    worlds.fill(0, scenario, seed, controller)
    return worlds


def at_decision(scenario: Scenario, controller: Controller, seed: int) -> InTurn:
    """A world at a decision that is drawn from those of its first half, warm-up left out.

    Raises:
        InputError: none falls into it.
    """
    rng, h = np.random.default_rng(seed), scenario.horizon
    world = InTurn(world_of(scenario, controller, seed))
    time_s = h.warmup_s + rng.uniform(0.0, 0.5) * h.measure_s
    server = world.worlds.arrays.server
    while world.kind != DONE and server["now_s"][0, 0] < time_s:
        world.act()
    if world.kind == DONE:
        raise InputError(f"scenario '{scenario.name}': no device decides in the first half, allowed is one that drafts")
    return world


def both_ways(
    world: InTurn, copies: Branches, seeds: np.ndarray, horizons_s: list[float], under_way: bool = True
) -> np.ndarray:
    """Tokens after sending and after one more drafted token: (2, draws, horizons), under the draws of (draws,) seeds.

    `under_way`: count what rounds under way are worth, besides the fleet's tokens on time.
    """
    copies.take(0, world.kind)
    copies.afresh(np.repeat(seeds, 2))
    copies.act(np.tile([SEND, DRAFT], len(seeds)))
    tokens = copies.worth_tokens(horizons_s) if under_way else copies.on_time_tokens(horizons_s)
    return tokens.reshape(len(seeds), 2, -1).swapaxes(0, 1)
