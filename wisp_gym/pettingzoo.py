"""The door to PettingZoo: all devices of a world as agents of one `ParallelEnv`.

Nothing else of this package imports this module, which needs PettingZoo (extra `pettingzoo`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.utils import seeding
from pettingzoo import ParallelEnv

from wisp_gym.contract import device
from wisp_gym.engine.exchange import Exchange
from wisp_gym.engine.loop import DONE
from wisp_gym.engine.masks import actions_of, write_device_masks
from wisp_gym.engine.rewards import MOST_TERMS
from wisp_gym.engine.run import FLEET
from wisp_gym.engine.session import EVERY_DEVICE, EXTERNAL_LENGTH, EXTERNAL_TOKEN
from wisp_gym.envs.episodes import RANDOMISABLE, EpisodeSettings
from wisp_gym.envs.resets import ActionError, checked_options, checked_seed, reset_needed
from wisp_gym.envs.rewards import weights_of
from wisp_gym.envs.speculation import speculating
from wisp_gym.errors import InputError, did_you_mean, shown
from wisp_gym.rules.who_drafts import MOST_TOKENS
from wisp_gym.values import FLAG, whole

WEIGHTS = {"committed_tokens": 1.0, "team_tokens": 0.0}
ByAgent = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class FleetSettings(EpisodeSettings):
    """Arguments of `SpeculationParallelEnv`, which says what they mean."""

    by_length: Annotated[bool, FLAG] = True
    ways: Annotated[bool, FLAG] = True
    overlap_tokens: Annotated[int, whole(0, MOST_TOKENS)] = 8
    reward_weights: Annotated[Mapping[str, float] | None, weights_of(WEIGHTS)] = None


class SpeculationParallelEnv(ParallelEnv):
    """How many tokens does each device draft, when all of them learn?

    ## Description
    Agent `device_i` is device i. Devices do not decide at the same time: a step goes on to the next moment at which some do, those
    whose replies one batch brought. Whoever does not decide then has action 0 alone, which does nothing, so that a policy that
    minds masks learns nothing from it. The server follows the controller.

    ## Action Space
    That of `wisp_gym/SpeculationLength-v1`; with `by_length=False` that of `wisp_gym/Speculation-v1`.

    ## Observation Space
    Of each agent that of `wisp_gym/Speculation-v1`: what the device last saw, zeros before it has seen anything.

    ## Starting State
    An empty server; the first step begins at the first decision.

    ## Rewards
    Named terms in each agent's `info["reward_…"]`, weighted by `reward_weights` (defaults in brackets): `committed_tokens` [1]: tokens
    delivered to this device since the last step; `team_tokens` [0]: tokens delivered on time to all devices, divided by their number.

    ## Episode End
    Never terminates; all agents are truncated at `horizon_s` of simulated time.

    ## Information
    Of each agent: `dt`, seconds since the last step; `time_s`, seconds since the start; `decides`, whether it decides now;
    `action_mask` (actions,) int8, 1 = valid; `invalid_actions` of all agents in this episode; and the terms of its reward.

    ## Arguments
    `scenario`, `devices`, `controller`, `horizon_s`, `randomise`, `slo`, `ways`, `overlap_tokens`: as for `wisp_gym/Speculation-v1`.
    `by_length` (True): one decision a round; False: one after each drafted token. `reset(options=...)` fixes what may be randomised;
    other options are ignored, as PettingZoo's API test asks.
    """

    metadata: ClassVar[dict[str, Any]] = {
        "name": "wisp_gym_speculation_v1",
        "render_modes": [],
        "is_parallelizable": True,
    }

    def __init__(self, **arguments: Any):
        """Arguments: see the class."""
        settings, self.render_mode = FleetSettings.of(arguments), None
        self.episodes = speculating(1, settings, threads=1)
        c = self.episodes.template.arrays.config[0, 0]
        c["external_device"], c["external_ways"] = EVERY_DEVICE, settings.ways
        c["external_speculation"] = EXTERNAL_LENGTH if settings.by_length else EXTERNAL_TOKEN
        self.weights = WEIGHTS | dict(settings.reward_weights or {})
        self.exchange = Exchange(self.episodes.worlds, device.SIZE, actions_of(c), [0.0] * (1 + MOST_TERMS))
        low, high = np.array(device.LOW, np.float32), np.array(device.HIGH, np.float32)
        self.possible_agents = [f"device_{i}" for i in range(self.episodes.room)]
        self.observation_spaces = {agent: gym.spaces.Box(low, high, dtype=np.float32) for agent in self.possible_agents}
        self.action_spaces = {agent: gym.spaces.Discrete(actions_of(c)) for agent in self.possible_agents}
        self.agents: list[str] = []
        self.rng, _ = seeding.np_random()
        self.clock_s, self.tokens, self.on_time = 0.0, np.zeros(0), 0.0

    def observation_space(self, agent: str) -> gym.Space:
        """Of an agent."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> gym.Space:
        """Of an agent."""
        return self.action_spaces[agent]

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[ByAgent, ByAgent]:
        """Begin an episode; see the class.

        Raises:
            InputError: a seed (Gymnasium's `Error` too) or an option's value that cannot be; nothing has been touched then.
        """
        known = {name: value for name, value in checked_options(options).items() if name in RANDOMISABLE}
        fixed, seed = self.episodes.fixed(known), checked_seed(seed)
        if seed is not None:
            self.rng, _ = seeding.np_random(seed)
        for _ in range(100):
            drawn = self.episodes.restart(0, self.rng, fixed)
            if self.run(begins=True) != DONE:
                break
        else:
            raise InputError("no decision falls before the horizon; give a longer horizon_s")
        self.agents = self.possible_agents[: int(drawn["devices"])]
        self.clock_s, self.tokens, self.on_time = 0.0, np.zeros(len(self.agents)), 0.0
        self.earned()  # what came before the first decision is in nobody's reward
        return self.seen(), self.told(0.0, dict.fromkeys(self.weights, np.zeros(len(self.agents))))

    def step(self, actions: Mapping[str, Any]) -> tuple[ByAgent, ByAgent, ByAgent, ByAgent, ByAgent]:
        """Carry out an action of each agent that decides; see the class.

        Raises:
            ResetNeeded: before the first reset, and at the horizon.
            InputError: an agent that decides has no action, or none of the space (Gymnasium's `InvalidAction` too); nothing has been touched then.
        """
        if not self.agents:
            raise reset_needed("step: no episode is under way")
        who = self.deciding()
        self.episodes.arrays.device["action"][0, who] = [self.chosen(actions, self.possible_agents[i]) for i in who]
        over, agents, before_s = self.run(begins=False) == DONE, self.agents, self.clock_s
        terms = self.earned()
        rewards = sum(weight * terms[term] for term, weight in self.weights.items())
        told = self.told(self.clock_s - before_s, terms)
        result = self.seen(), dict(zip(agents, np.asarray(rewards).tolist(), strict=True))
        self.agents = [] if over else agents
        return *result, dict.fromkeys(agents, False), dict.fromkeys(agents, over), told

    def run(self, begins: bool) -> int:
        """Run the world to the next decisions; returns what it waits for, DONE at the horizon."""
        self.exchange.which[:] = begins
        self.exchange.run(FLEET, 1)
        return int(self.exchange.kinds[0])

    def deciding(self) -> np.ndarray:
        """(m,) numbers of the devices that decide now."""
        arrays = self.episodes.arrays
        waiting = int(arrays.server[0, 0]["n_replies"]) if self.exchange.kinds[0] != DONE else 0
        return arrays.replies[0, :waiting].copy()

    def chosen(self, actions: Mapping[str, Any], agent: str) -> int:
        """The action of an agent that decides."""
        if agent not in actions:
            raise InputError(
                f"actions: given none of '{agent}', which decides now; {did_you_mean(agent, list(actions))}"
            )
        action, n = np.asarray(actions[agent]), self.exchange.n_actions
        if action.shape != () or action.dtype.kind not in "iu" or not 0 <= action < n:
            raise ActionError(f"action of '{agent}': given {shown(actions[agent])}, allowed are 0 to {n - 1}")
        return int(action)

    def earned(self) -> dict[str, np.ndarray]:
        """(agents,) of each unweighted term since the last call; the clock goes on to the decision."""
        arrays, n = self.episodes.arrays, len(self.agents)
        tokens, on_time = (
            arrays.device["window_tokens"][0, :n].astype(float),
            float(arrays.totals[0, 0]["tokens_on_time"]),
        )
        terms = {"committed_tokens": tokens - self.tokens, "team_tokens": np.full(n, (on_time - self.on_time) / n)}
        end_s = float(arrays.config[0, 0]["end_s"])
        self.clock_s = end_s if self.exchange.kinds[0] == DONE else min(float(arrays.server[0, 0]["now_s"]), end_s)
        self.tokens, self.on_time = tokens, on_time
        return terms

    def seen(self) -> ByAgent:
        """The observation of each agent."""
        rows = self.episodes.arrays.observation[0, : len(self.agents)].copy()
        return dict(zip(self.agents, rows, strict=True))

    def told(self, dt_s: float, terms: Mapping[str, np.ndarray]) -> ByAgent:
        """The information of each agent."""
        arrays, n = self.episodes.arrays, len(self.agents)
        masks, decides = np.zeros((n, self.exchange.n_actions), np.int8), np.zeros(n, bool)
        write_device_masks(arrays.config[0, 0], arrays.observation[0, :n], masks)
        decides[self.deciding()] = True
        masks[~decides] = 0
        masks[~decides, 0] = 1
        invalid = np.int64(arrays.server[0, 0]["invalid_actions"])
        shared = {"dt": np.float64(dt_s), "time_s": np.float64(self.clock_s), "invalid_actions": invalid}
        return {
            agent: {
                **shared, "decides": decides[i], "action_mask": masks[i],
                **{f"reward_{term}": values[i] for term, values in terms.items()},
            }
            for i, agent in enumerate(self.agents)
        }  # fmt: skip


def parallel_env(**arguments: Any) -> SpeculationParallelEnv:
    """The environment, by the name that PettingZoo's own modules give it; arguments: see the class."""
    return SpeculationParallelEnv(**arguments)
