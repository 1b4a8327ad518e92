"""Experience of whole fleets: the engine runs the policy's own weights on every device and hands over all decisions.

Every device of every world follows one policy (parameter sharing) whose actions are drawn at random. A decision's
trajectory is its round: it ends when the round's reply is delivered. Rounds that are still open when enough decisions
are recorded are kept for the next time, so that long rounds are not left out.

Reward of a round, in tokens (docs/guide/train.md):

    (1 + pressure·urgency + deadlines·(worth − 1))·(committed − ρ·(time of the round))
        − (price of a draft token)·drafted − externality

ρ is the device's own rate in tokens/s over its last rounds: time costs what it would have earned. The externality is
the verification time that the round's drafts add to their batch, times the tokens per second that the server commits:
what the others lose. The urgency is near 1 for a device that is behind its deadlines and near 0 for one that is far
ahead: a round, a trajectory of its own, does not see that to be faster now keeps later tokens on time. What time is
worth there, as branches measured it, has another shape: `WORTH`.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from wisp_gym.contract.device import SLACK
from wisp_gym.controllers.policy import Policy
from wisp_gym.engine import state
from wisp_gym.engine.loop import DONE
from wisp_gym.engine.run import LOG
from wisp_gym.envs.episodes import Episodes, EpisodeSettings
from wisp_gym.scenario import Scenario

MEMORY_S = 20.0  # time constant of a device's own rate
SLACK_TOKENS = 4.0  # tokens ahead of its deadlines at which urgency has fallen from 1/2 to about 1/4
WEIGHTS = {"on_time": 0.0, "externality": 1.0, "pressure": 0.0, "deadlines": 0.0}
# What a device's time is worth at a slack, over its own rate: measured by `python -m agents.branching urgency`.
WORTH_SLACK_TOKENS, WORTH = (-20.0, -12.0, 4.0, 8.0, 16.0, 20.0), (0.6, 3.0, 3.0, 1.7, 1.6, 1.0)


class Decisions(NamedTuple):
    """Decisions of complete rounds, the decisions of a round side by side."""

    observations: np.ndarray  # (N, OBSERVATION) float32
    actions: np.ndarray  # (N,) int64
    log_probabilities: np.ndarray  # (N,) float32
    rewards: np.ndarray  # (N,) float64 on the last decision of each round, 0 elsewhere
    ends: np.ndarray  # (N,) bool the last decision of its round


def joined(parts: Sequence[Decisions]) -> Decisions:
    """Decisions one after another."""
    return Decisions(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


class Squad:
    """Some worlds of one scenario.

    Args:
        episodes: the worlds, with a controller whose speculation is a learned policy. room: decisions recorded in each
            world before it stops.
    """

    def __init__(self, episodes: Episodes, room: int, seed: np.random.SeedSequence):
        self.episodes, n = episodes, len(episodes.worlds)
        self.rngs = [np.random.default_rng(child) for child in seed.spawn(n)]
        k = episodes.scenario.max_draft_tokens + 1
        rows = room + 2 * episodes.room * k  # those of rounds kept open, and those of the batch that fills the room
        episodes.worlds.arrays = episodes.arrays._replace(
            decisions=state.table((n, rows), state.DECISION),
            seen=np.zeros((n, rows, episodes.arrays.observation.shape[-1]), np.float32),
            outcomes=state.table((n, rows), state.OUTCOME),
        )
        episodes.template.arrays.config[0, 0]["log_decisions"] = room
        self.fresh, self.kinds = np.ones(n, bool), np.zeros(n, np.int64)
        self.tokens, self.seconds = np.ones((n, episodes.room)), np.ones((n, episodes.room))
        for index in range(n):
            self.restart(index)

    def saved(self) -> dict[str, np.ndarray]:
        """Everything that decides the experience to come but the generators, by name; the arrays themselves."""
        own = {"fresh": self.fresh, "kinds": self.kinds, "tokens": self.tokens, "seconds": self.seconds}
        return own | self.episodes.arrays.own()

    def restart(self, index: int) -> None:
        """A new episode."""
        self.episodes.restart(index, self.rngs[index], {})
        self.fresh[index] = True
        self.tokens[index] = self.episodes.arrays.device[index]["slo_tokens_per_s"]
        self.seconds[index] = 1.0

    def collect(self, weights: Mapping[str, float]) -> list[Decisions]:
        """Run until the room for decisions is used up; decisions of the rounds that are complete by then."""
        self.episodes.worlds.spread(LOG, which=self.fresh, kinds=self.kinds)
        self.fresh[:] = False
        taken = [self.take(index, weights) for index in range(len(self.kinds))]
        for index in np.flatnonzero(self.kinds == DONE):
            self.restart(int(index))
        return taken

    def take(self, index: int, weights: Mapping[str, float]) -> Decisions:
        """Decisions of complete rounds of one world; those of open rounds stay."""
        arrays = self.episodes.arrays
        s, n, m = arrays.server[index, 0], arrays.server[index, 0]["n_decisions"], arrays.server[index, 0]["n_outcomes"]
        decisions, outcomes = arrays.decisions[index, :n], arrays.outcomes[index, :m]
        place = np.full(int(s["rounds"]) + 1, -1)  # of each round's outcome
        place[outcomes["round"]] = np.arange(m)
        closed = place[decisions["round"]] >= 0
        slack = np.zeros(m)  # of each round, in tokens, at its last decision
        slack[place[decisions["round"][closed]]] = arrays.seen[index, :n, SLACK][closed]
        values = self.reward(index, outcomes, slack, weights)
        rounds = decisions["round"][closed]
        ends = np.append(rounds[1:] != rounds[:-1], True)[: len(rounds)]
        rewards = np.where(ends, values[place[rounds]], 0.0) if m else np.zeros(len(rounds))
        result = Decisions(
            arrays.seen[index, :n][closed], decisions["action"][closed].copy(),
            decisions["log_probability"][closed].astype(np.float32), rewards, ends,
        )  # fmt: skip
        kept = int(n - closed.sum())
        arrays.decisions[index, :kept] = decisions[~closed]
        arrays.seen[index, :kept] = arrays.seen[index, :n][~closed]
        s["n_decisions"], s["n_outcomes"] = kept, 0
        return result

    def reward(self, index: int, o: np.ndarray, slack: np.ndarray, weights: Mapping[str, float]) -> np.ndarray:
        """(m,) reward of each outcome of a round that was so many tokens ahead of its deadlines."""
        seconds = o["end_s"] - o["start_s"]
        tokens = (1.0 - weights["on_time"]) * o["committed"] + weights["on_time"] * o["on_time"]
        self.learn_rates(index, o, seconds)
        rate = (self.tokens[index] / self.seconds[index])[o["device"]]
        # The share of their time that the world's devices do not draft.
        waiting = 1.0 - o["draft_s"].sum() / max(seconds.sum(), 1e-9)
        extern = o["work_s"] * o["token_rate"] * o["utilisation"] * waiting
        own = worth(slack, weights) * (tokens - rate * seconds)
        return own - o["price"] * o["drafted"] - weights["externality"] * extern

    def learn_rates(self, index: int, o: np.ndarray, seconds: np.ndarray) -> None:
        """Running tokens and seconds of each device."""
        if not len(o):
            return
        keep = np.exp(-(o["end_s"].max() - o["end_s"].min()) / MEMORY_S)
        self.tokens[index] *= keep
        self.seconds[index] *= keep
        n = self.tokens.shape[1]
        self.tokens[index] += np.bincount(o["device"], o["committed"], n)
        self.seconds[index] += np.bincount(o["device"], seconds, n)


def worth(slack: np.ndarray, weights: Mapping[str, float]) -> np.ndarray:
    """(m,) what a device's time is worth, over its own rate, at (m,) slacks in tokens."""
    measured = np.interp(slack, WORTH_SLACK_TOKENS, WORTH) - 1.0
    urgency = 1.0 / (1.0 + np.exp(slack / SLACK_TOKENS))
    return np.asarray(1.0 + weights["pressure"] * urgency + weights["deadlines"] * measured)


@dataclass(frozen=True)
class FleetSettings:
    """The worlds of a fleet, and what a round is paid.

    Attributes:
        scenarios: presets, TOML files or scenarios. worlds: of each. batching: rule of the server.
        horizon_s: length of an episode. weights: of the reward, over those of WEIGHTS.
        randomise: as of the environments, drawn for each episode.
        varied: more to draw, in as many worlds again: a policy for many systems must also know the usual ones well.
    """

    scenarios: Sequence[str | Scenario] = ()
    worlds: int = 4
    batching: str = "fcfs"
    horizon_s: float = 60.0
    weights: Mapping[str, float] = field(default_factory=dict)
    randomise: Mapping[str, Any] = field(default_factory=dict)
    varied: Mapping[str, Any] = field(default_factory=dict)


class Fleet:
    """Worlds of several scenarios in which one policy drives every device.

    Args:
        settings: the worlds. policy: drives the devices at first. decisions: recorded by a `collect`, about.
        seed: of everything. threads: to run on, default one for each core.
        slo: speed in tokens/s of a single service class, instead of the scenario's mix.

    Raises:
        ValueError: a scenario, a range or a speed that cannot be.
    """

    def __init__(
        self, settings: FleetSettings, policy: Policy, decisions: int = 65_536, seed: int = 0,
        threads: int | None = None, slo: float | None = None,
    ):  # fmt: skip
        self.weights = WEIGHTS | dict(settings.weights)
        usual, wide = dict(settings.randomise), {**settings.randomise, **settings.varied}
        kinds = list(itertools.product([usual, wide] if settings.varied else [usual], settings.scenarios))
        seeds = np.random.SeedSequence(seed).spawn(len(kinds))
        room = -(-decisions // (settings.worlds * len(kinds)))
        self.squads = []
        for (ranges, scenario), own in zip(kinds, seeds, strict=True):
            worlds = EpisodeSettings(
                scenario=scenario, controller=f"wisp+{settings.batching}", horizon_s=settings.horizon_s,
                randomise=ranges, slo=slo,
            )  # fmt: skip
            episodes = Episodes(settings.worlds, worlds, threads=threads)
            episodes.set_policy(policy)
            self.squads.append(Squad(episodes, room, own))

    def saved(self) -> dict[str, np.ndarray]:
        """Arrays of all squads by name; writing into them puts the worlds back."""
        return {f"{k}_{name}": array for k, squad in enumerate(self.squads) for name, array in squad.saved().items()}

    def generators(self) -> list[np.random.Generator]:
        """The random generators of all worlds."""
        return [rng for squad in self.squads for rng in squad.rngs]

    def collect(self, policy: Policy) -> Decisions:
        """Decisions of complete rounds under a policy, in all worlds together."""
        parts: list[Decisions] = []
        for squad in self.squads:
            squad.episodes.set_policy(policy)
            parts += squad.collect(self.weights)
        return joined(parts)
