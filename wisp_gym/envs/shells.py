"""The single and the vector environment around a task: the same decisions, once for one world and once for many."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from wisp_gym.controllers.policy import Policy
from wisp_gym.engine import gather
from wisp_gym.engine.loop import DONE
from wisp_gym.envs.episodes import Episodes, EpisodeSettings
from wisp_gym.envs.rendering import FrameLog
from wisp_gym.envs.rewards import weighted


class Task:
    """A decision problem in `n` worlds at once.

    Attributes:
        low, high: bounds of an observation. actions: number of actions. weights: of the reward's named terms.
        observations: (n, size) float32; outcomes: (n, gather.SIZE) float64 since the last decision; kinds: (n,) what each waits for.
    """

    def __init__(
        self, n: int, episodes: Episodes, low: Sequence[float], high: Sequence[float], actions: int, weights: dict[str, float]
    ):  # fmt: skip
        self.n, self.episodes, self.actions, self.weights = n, episodes, actions, weights
        self.low, self.high = np.array(low, np.float32), np.array(high, np.float32)
        self.kinds = np.zeros(n, np.int64)
        self.observations = np.zeros((n, len(low)), np.float32)
        self.outcomes = np.zeros((n, gather.SIZE))
        self.clock_s = np.zeros(n)
        self.device = np.full(n, -1, np.int64)

    settings_type: ClassVar[type[EpisodeSettings]]

    # Information that is a column of the outcomes: name → (column, type).
    columns: Mapping[str, tuple[int, type]] = {
        "time_s": (gather.CLOCK_S, float),
        "drafted_tokens": (gather.DRAFTED, int),
        "invalid_actions": (gather.INVALID, int),
    }

    def place(self, index: int, drawn: Mapping[str, float]) -> None:
        """Set up the decision maker of a world that begins again."""

    def terms(self) -> dict[str, np.ndarray]:
        """Unweighted reward terms since the last decision, each (n,) float64."""
        raise TypeError("a task defines its terms")

    def masks(self) -> np.ndarray:
        """(n, actions) int8 of valid actions."""
        raise TypeError("a task defines its masks")

    def clamp(self, actions: np.ndarray) -> np.ndarray:
        """The nearest valid (n,) actions."""
        return actions

    def restart(
        self, which: np.ndarray, rngs: list[np.random.Generator], options: Mapping[str, Any] | None = None
    ) -> None:
        """Begin new episodes in the worlds marked in `which`, redrawing those that end before a decision."""
        pending = which.copy()
        for _ in range(100):
            for index in np.flatnonzero(pending):
                self.place(int(index), self.episodes.restart(int(index), rngs[index], options))
            self.episodes.worlds.spread(gather.begin_worlds, pending, self.kinds, self.observations, self.outcomes)
            pending = pending & (self.kinds == DONE)
            if not pending.any():
                self.clock_s[which] = self.outcomes[which, gather.CLOCK_S]
                return
        raise ValueError("no decision falls before the horizon; give a longer horizon_s or another device")

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
        """Carry out (n,) int64 actions; returns (n,) rewards, the named terms and (n,) whether the horizon is reached."""
        clamped = self.clamp(actions)
        wrong = clamped != actions
        if wrong.any():
            self.episodes.arrays.server[:, 0]["invalid_actions"] += wrong
        self.episodes.worlds.spread(gather.step_and_gather, clamped, self.kinds, self.observations, self.outcomes)
        terms = self.terms()
        return weighted(terms, self.weights), terms, self.kinds == DONE

    def elapsed_s(self) -> np.ndarray:
        """(n,) seconds since the last decision; moves the clock on."""
        now = self.outcomes[:, gather.CLOCK_S].copy()
        elapsed = now - self.clock_s
        self.clock_s = now
        return elapsed

    def extras(self) -> dict[str, np.ndarray]:
        """Other (n,) information."""
        o, columns = self.outcomes, self.columns.items()
        found: dict[str, np.ndarray] = {name: o[:, k].astype(kind) for name, (k, kind) in columns}
        return {"device": self.device.copy(), **found}

    def extras_of_first(self) -> dict[str, int | float]:
        """The same for the first world, as plain numbers."""
        row = self.outcomes[0].tolist()
        return {"device": self.device[0].item(), **{name: kind(row[k]) for name, (k, kind) in self.columns.items()}}


TaskType = Any  # a subclass of Task, made of (number of worlds, its settings, room for events, threads)


class DecisionEnv(gym.Env[np.ndarray, np.int64]):
    """One world as a Gymnasium environment; subclasses make the task."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["ansi", "rgb_array"], "render_fps": 4}  # type: ignore[misc]

    task_type: ClassVar[TaskType]

    def __init__(self, render_mode: str | None = None, **arguments: Any):
        """Arguments: see the class."""
        self.render_mode, self.frames = render_mode, FrameLog(render_mode, self.metadata["render_modes"])
        settings = self.task_type.settings_type.of(arguments)
        self.task = task = self.task_type(1, settings, self.frames.log_rows, 1)
        self.observation_space = gym.spaces.Box(task.low, task.high, dtype=np.float32)
        self.action_space = gym.spaces.Discrete(task.actions)
        self.action = np.zeros(1, np.int64)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode; see the class."""
        super().reset(seed=seed)
        self.task.restart(np.ones(1, bool), [self.np_random], options)
        return self.task.observations[0].copy(), self.info(0.0, dict.fromkeys(self.task.weights, 0.0))

    def step(self, action: np.int64 | int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Carry out one decision; see the class."""
        if not 0 <= action < self.task.actions:
            raise ValueError(f"action: given {action}, allowed are 0 to {self.task.actions - 1}")
        self.action[0] = action
        rewards, terms, over = self.task.step(self.action)
        named = {name: float(term[0]) for name, term in terms.items()}
        info = self.info(float(self.task.elapsed_s()[0]), named)
        self.frames.keep(self.task.episodes.arrays)
        return self.task.observations[0].copy(), float(rewards[0]), False, bool(over[0]), info

    def info(self, dt: float, terms: dict[str, float]) -> dict[str, Any]:
        """Information on a step."""
        mask = self.task.masks()[0]
        return {"dt": dt, "reward_terms": terms, "action_mask": mask, **self.task.extras_of_first()}

    def action_masks(self) -> np.ndarray:
        """(actions,) bool of valid actions (the convention of sb3-contrib's MaskablePPO)."""
        return self.task.masks()[0].astype(bool)

    def set_policy(self, policy: Policy) -> None:
        """Let a learned speculation policy drive the devices that the agent does not, from now on."""
        self.task.episodes.set_policy(policy)

    def render(self) -> str | np.ndarray | None:  # type: ignore[override]
        """The last seconds as a timeline: text ("ansi") or a picture ("rgb_array")."""
        task = self.task
        return self.frames.render(task.episodes.arrays, float(task.outcomes[0, gather.CLOCK_S]), int(task.device[0]))


class DecisionVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """Many worlds in one compiled call on all cores, with the same numbers as the single environment.

    A world that reaches its horizon begins again in the same step (`AutoresetMode.SAME_STEP`): see `infos["final_obs"]` and
    `infos["final_info"]`.
    """

    metadata: ClassVar[dict[str, Any]] = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}  # type: ignore[misc]

    task_type: ClassVar[TaskType]

    def __init__(self, num_envs: int = 1, threads: int | None = None, render_mode: str | None = None, **arguments: Any):
        """Arguments: see the class."""
        if render_mode is not None:
            allowed = "allowed is None; render a single environment instead"
            raise ValueError(f"render_mode: given {render_mode!r}, {allowed}")
        settings = self.task_type.settings_type.of(arguments)
        self.task = task = self.task_type(num_envs, settings, threads=threads)
        self.num_envs, self.render_mode = num_envs, None
        self.single_observation_space = gym.spaces.Box(task.low, task.high, dtype=np.float32)
        self.single_action_space = gym.spaces.Discrete(task.actions)
        self.observation_space = batch_space(self.single_observation_space, task.n)
        self.action_space = batch_space(self.single_action_space, task.n)
        self.rngs = [np.random.default_rng() for _ in range(task.n)]

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode in every world (world i with seed + i), or in those that `options["reset_mask"]` marks."""
        options = dict(options or {})
        which = options.pop("reset_mask", np.ones(self.num_envs, bool))
        self.seed_worlds(seed, which)
        self.task.restart(which, self.rngs, options)
        return self.task.observations.copy(), self.infos(np.zeros(self.num_envs), None)

    def seed_worlds(self, seed: int | list[int | None] | None, which: np.ndarray) -> None:
        """Seed the worlds' generators as Gymnasium seeds those of separate environments."""
        seeds = seed if isinstance(seed, list) else [None if seed is None else seed + i for i in range(self.num_envs)]
        for index in np.flatnonzero(which):
            if seeds[index] is not None:
                self.rngs[index], _ = gym.utils.seeding.np_random(seeds[index])

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Carry out (num_envs,) actions."""
        actions = np.asarray(actions, dtype=np.int64)
        if actions.shape != (self.num_envs,) or (actions < 0).any() or (actions >= self.task.actions).any():
            allowed = f"({self.num_envs},) from 0 to {self.task.actions - 1}"
            raise ValueError(f"actions: given {actions!r}, allowed are {allowed}")
        rewards, terms, over = self.task.step(actions)
        infos = self.infos(self.task.elapsed_s(), terms)
        observations = self.task.observations.copy()
        if over.any():
            self.begin_again(over, infos, observations)
            observations = self.task.observations.copy()
        return observations, rewards, np.zeros(self.num_envs, bool), over, infos

    def begin_again(self, over: np.ndarray, infos: dict[str, Any], last: np.ndarray) -> None:
        """Keep the last observation and information of ended episodes and restart their worlds."""
        final_obs = np.full(self.num_envs, None, dtype=object)
        final_info: dict[str, Any] = {}
        names = [name for name in infos if not name.startswith("_")]
        for index in np.flatnonzero(over):
            final_obs[index] = last[index]
            final_info = self._add_info(final_info, {name: pick(infos[name], int(index)) for name in names}, int(index))
        self.task.restart(over, self.rngs)
        begun = self.infos(infos["dt"] * ~over, None)
        infos.update({name: value for name, value in begun.items() if "reward_terms" not in name})
        infos["final_obs"], infos["_final_obs"] = final_obs, over.copy()
        infos["final_info"], infos["_final_info"] = final_info, over.copy()

    def infos(self, dt: np.ndarray, terms: dict[str, np.ndarray] | None) -> dict[str, Any]:
        """Information on all worlds, in Gymnasium's form: arrays with a mask each."""
        everyone = np.ones(self.num_envs, bool)
        terms = terms or {name: np.zeros(self.num_envs) for name in self.task.weights}
        named = {**terms, **{"_" + name: everyone.copy() for name in terms}}
        values = {"dt": dt, "reward_terms": named, "action_mask": self.task.masks(), **self.task.extras()}
        return {**values, **{"_" + name: everyone.copy() for name in values}}

    def action_masks(self) -> np.ndarray:
        """(num_envs, actions) bool of valid actions."""
        return self.task.masks().astype(bool)

    def set_policy(self, policy: Policy) -> None:
        """Let a learned speculation policy drive the devices that the agents do not, from now on."""
        self.task.episodes.set_policy(policy)


def pick(value: Any, index: int) -> Any:
    """One world's part of an information array."""
    if isinstance(value, dict):
        return {name: pick(part, index) for name, part in value.items() if not name.startswith("_")}
    return value[index]
