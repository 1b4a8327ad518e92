"""Experience of whole fleets: the engine runs the policy's own weights on every device and hands over all decisions.

Every device of every world follows one policy (parameter sharing) whose actions are drawn at random. A decision's
trajectory is its round: it ends when the round's reply is delivered. Rounds that are still open when enough decisions are
recorded are kept for the next time, so that long rounds are not left out.

Reward of a round, in tokens (docs/guide/training.md):

    (1 + pressure·urgency)·(committed − ρ·(time of the round)) − (price of a draft token)·drafted − externality

ρ is the device's own rate in tokens/s over its last rounds: time costs what it would have earned. The externality is the verification
time that the round's drafts add to their batch, times the tokens per second that the server commits: what the others lose. The urgency is
near 1 for a device that is behind its deadlines and near 0 for one that is far ahead: a round, a trajectory of its own, does not see
that to be faster now keeps later tokens on time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from wisp_gym.contract.device import SLACK
from wisp_gym.controllers.policy import Policy
from wisp_gym.engine import state
from wisp_gym.engine.loop import DONE, record_worlds
from wisp_gym.engine.state import World
from wisp_gym.envs.episodes import Episodes

MEMORY_S = 20.0  # time constant of a device's own rate
SLACK_TOKENS = 4.0  # tokens ahead of its deadlines at which urgency has fallen from 1/2 to about 1/4


class Decisions(NamedTuple):
    """Decisions of complete rounds, the decisions of a round side by side."""

    observations: np.ndarray  # (N, OBSERVATION) float32
    actions: np.ndarray  # (N,) int64
    log_probabilities: np.ndarray  # (N,) float32
    rewards: np.ndarray  # (N,) float64 on the last decision of each round, 0 elsewhere
    ends: np.ndarray  # (N,) bool the last decision of its round


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
            decisions=np.zeros((n, rows), state.DECISION),
            seen=np.zeros((n, rows, episodes.arrays.observation.shape[-1]), np.float32),
            outcomes=np.zeros((n, rows), state.OUTCOME),
        )
        episodes.template.arrays.config[0, 0]["record_decisions"] = room
        self.fresh, self.kinds = np.ones(n, bool), np.zeros(n, np.int64)
        self.tokens, self.seconds = np.ones((n, episodes.room)), np.ones((n, episodes.room))
        for index in range(n):
            self.restart(index)

    def saved(self) -> dict[str, np.ndarray]:
        """Everything that decides the experience to come but the generators, by name; the arrays themselves."""
        fields = World._fields[: World._fields.index("trace")]
        own = {"fresh": self.fresh, "kinds": self.kinds, "tokens": self.tokens, "seconds": self.seconds}
        return own | {name: getattr(self.episodes.arrays, name) for name in fields}

    def restart(self, index: int) -> None:
        """A new episode."""
        self.episodes.restart(index, self.rngs[index], None)
        self.fresh[index] = True
        self.tokens[index] = self.episodes.arrays.device[index]["slo_tokens_per_s"]
        self.seconds[index] = 1.0

    def collect(self, weights: Mapping[str, float]) -> list[Decisions]:
        """Run until the room for decisions is used up; decisions of the rounds that are complete by then."""
        self.episodes.worlds.spread(record_worlds, self.fresh, self.kinds)
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
        waiting = 1.0 - o["draft_s"].sum() / max(
            seconds.sum(), 1e-9
        )  # share of their time that the world's devices do not draft
        extern = o["work_s"] * o["token_rate"] * o["utilisation"] * waiting
        own = (1.0 + weights["pressure"] / (1.0 + np.exp(slack / SLACK_TOKENS))) * (tokens - rate * seconds)
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


WEIGHTS = {"on_time": 0.0, "externality": 1.0, "pressure": 0.0}


class Fleet:
    """Worlds of several scenarios in which one policy drives every device.

    Args:
        scenarios: presets or TOML files. policy: drives the devices at first. worlds: of each scenario. decisions: recorded by a `collect`, about.
        batching: rule of the server. horizon_s: of an episode. randomise: as of the environments, drawn for each episode.
        varied: more to draw, in as many worlds again: a policy for many systems must also know the usual ones well.
        weights: of the reward, see WEIGHTS. seed: of everything. slo: speed in tokens/s of a single service class, instead of
            the scenario's mix.
    """

    def __init__(
        self, scenarios: Sequence[str], policy: Policy, worlds: int = 4, decisions: int = 65_536, batching: str = "fcfs", horizon_s: float = 60.0,
        randomise: Mapping[str, Any] | None = None, varied: Mapping[str, Any] | None = None, weights: Mapping[str, float] | None = None,
        seed: int = 0, threads: int | None = None, slo: float | None = None,
    ):  # fmt: skip
        self.weights = WEIGHTS | dict(weights or {})
        usual, wide = dict(randomise or {}), dict(randomise or {}) | dict(varied or {})
        kinds = [(scenario, ranges) for ranges in ([usual, wide] if varied else [usual]) for scenario in scenarios]
        seeds = np.random.SeedSequence(seed).spawn(len(kinds))
        room = -(-decisions // (worlds * len(kinds)))
        self.squads = []
        for (scenario, ranges), own in zip(kinds, seeds, strict=True):
            episodes = Episodes(worlds, scenario, None, f"wisp+{batching}", horizon_s, ranges, slo, threads=threads)
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
        return Decisions(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
