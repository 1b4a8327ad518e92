"""A fleet whose worlds run as tasks of a Ray cluster, a task for each world and rollout.

A task takes a world's state and the policy, runs the world until its room for decisions is used up, and returns the
world's new state and the decisions. Both depend on what it took alone, so a task whose worker dies is run again and
nothing is lost. The state stays in Ray's object store, the decisions come back; in the order of the worlds, hence with
the bytes of a local `Fleet`.
"""

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from agents.pool import RayPool
from agents.training.fleet import Decisions, Fleet, Squad, joined
from wisp_gym.controllers.policy import Policy


class WorldState(NamedTuple):
    """What decides the experience of one world to come."""

    arrays: dict[str, np.ndarray]  # those of `Squad.saved`, of this world alone
    generator: dict[str, Any]


def frame_of(squad: Squad) -> Squad:
    """A squad of one world: what all worlds of the squad have in common, with room for the state of any of them."""
    frame, episodes = copy.copy(squad), copy.copy(squad.episodes)
    episodes.worlds, frame.episodes, frame.rngs = squad.episodes.worlds.first(), episodes, squad.rngs[:1]
    for name in ("fresh", "kinds", "tokens", "seconds"):
        setattr(frame, name, getattr(squad, name)[:1])
    return frame


def state_of(squad: Squad, index: int) -> WorldState:
    """The state of one world."""
    arrays = {name: array[index : index + 1] for name, array in squad.saved().items()}
    return WorldState(arrays, squad.rngs[index].bit_generator.state)  # type: ignore[arg-type]


def put_state(squad: Squad, index: int, state: WorldState) -> None:
    """Put one world back to a state."""
    for name, array in squad.saved().items():
        array[index : index + 1] = state.arrays[name]
    squad.rngs[index].bit_generator.state = state.generator


def rollout(
    frame: Squad, state: WorldState, policy: Policy, weights: Mapping[str, float]
) -> tuple[WorldState, Decisions]:
    """The job: one world goes on under a policy."""
    put_state(frame, 0, state)
    frame.episodes.set_policy(policy)
    (got,) = frame.collect(weights)
    return state_of(frame, 0), got


class TaskFleet(Fleet):
    """A fleet whose worlds run in a cluster.

    Args:
        fleet: its worlds, and where their states are put when they are asked for. pool: where they run.
    """

    def __init__(self, fleet: Fleet, pool: RayPool):
        self.squads, self.weights, self.pool = fleet.squads, fleet.weights, pool
        self.places = [(squad, index) for squad in fleet.squads for index in range(len(squad.rngs))]
        self.frames = {id(squad): pool.ray.put(frame_of(squad)) for squad in fleet.squads}
        self.states: list[Any] = []  # references, one for each world; empty while the states are in the squads

    def collect(self, policy: Policy) -> Decisions:
        """Decisions of complete rounds under a policy, in all worlds together."""
        pool = self.pool
        states = self.states or [pool.ray.put(state_of(squad, index)) for squad, index in self.places]
        results = [
            pool.submit(rollout, (self.frames[id(squad)], state, policy, self.weights), returns=2)
            for (squad, _), state in zip(self.places, states, strict=True)
        ]
        decisions = [pool.result(got) for _, got in results]
        self.states = [state for state, _ in results]
        return joined(decisions)

    def fetch(self) -> None:
        """Put every world's state into the squads; what is written there counts from now on."""
        for (squad, index), state in zip(self.places, self.states, strict=bool(self.states)):
            put_state(squad, index, self.pool.result(state))
        self.states = []

    def saved(self) -> dict[str, np.ndarray]:
        """As `Fleet`."""
        self.fetch()
        return super().saved()

    def generators(self) -> list[np.random.Generator]:
        """As `Fleet`."""
        self.fetch()
        return super().generators()
