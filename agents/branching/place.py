"""Where worlds are branched at: a decision of a device, in the middle of a run."""

from collections.abc import Iterator

import numpy as np

from wisp_gym.engine.branch import Branches
from wisp_gym.engine.in_turn import InTurn
from wisp_gym.engine.loop import DONE
from wisp_gym.engine.pausing import Pausing
from wisp_gym.engine.run import AS_RULED
from wisp_gym.engine.worlds import Worlds, world_of
from wisp_gym.errors import InputError
from wisp_gym.rules.controller import Controller
from wisp_gym.scenario import Scenario, with_

SEND, DRAFT = 0, 1
WARMUP_S = 5.0  # of worlds in which many decisions are branched at


def times_of(scenario: Scenario, seed: int, n: int) -> np.ndarray:
    """(n,) times, in s, drawn from the first half of a world, warm-up left out, in order."""
    h = scenario.horizon
    return h.warmup_s + np.sort(np.random.default_rng(seed).uniform(0.0, 0.5, n)) * h.measure_s


def at_decision(scenario: Scenario, controller: Controller, seed: int) -> InTurn:
    """A world at a decision that is drawn from those of its first half, warm-up left out.

    Raises:
        InputError: none falls into it.
    """
    return next(at_decisions(scenario, controller, seed, 1))


def at_decisions(scenario: Scenario, controller: Controller, seed: int, n: int) -> Iterator[InTurn]:
    """A world, run on, at the first decision after each of so many times in its first half. Raises as `at_decision`."""
    world = InTurn(world_of(scenario, controller, seed))
    server = world.worlds.arrays.server
    for time_s in times_of(scenario, seed, n):
        while world.kind != DONE and server["now_s"][0, 0] < time_s:
            world.act()
        if world.kind == DONE:
            words = "no device decides in the first half, allowed is one that drafts"
            raise InputError(f"scenario '{scenario.name}': {words}")
        yield world
        world.act()


def at_times(scenario: Scenario, controller: Controller, seed: int, n: int) -> Iterator[Worlds]:
    """A world at so many times of its first half; the same one, run on."""
    worlds = world_of(scenario, controller, seed)
    pausing = Pausing(worlds)
    for time_s in times_of(scenario, seed, n):
        pausing.run_until(float(time_s))
        yield worlds


def decisions_of(
    scenario: Scenario, controller: Controller, seed: int, seconds: float, share: float, explore: float = 0.0
) -> Iterator[tuple[InTurn, int]]:
    """A world at a share of its decisions in so many seconds after its warm-up, with the decision's number.

    `explore`: share of all decisions that are drawn instead of being the controller's.
    """
    horizon = {"horizon.warmup_s": WARMUP_S, "horizon.measure_s": seconds, "horizon.drain_s": 1.0}
    world, rng = InTurn(world_of(with_(scenario, **horizon), controller, seed)), np.random.default_rng(seed)
    server, number = world.worlds.arrays.server, 0
    while world.kind != DONE and server["now_s"][0, 0] < WARMUP_S + seconds:
        if server["now_s"][0, 0] > WARMUP_S and rng.random() < share:
            yield world, number
        world.act(int(rng.integers(2)) if rng.random() < explore else AS_RULED)
        number += 1


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
