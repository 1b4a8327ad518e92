"""The single and the vector environment around a task: the same decisions, once for one world and once for many."""

import operator
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from wisp_gym.controllers.policy import Policy
from wisp_gym.engine import gather
from wisp_gym.engine.exchange import Exchange
from wisp_gym.engine.loop import DONE
from wisp_gym.envs.episodes import Episodes, EpisodeSettings
from wisp_gym.envs.rendering import FrameLog
from wisp_gym.envs.resets import (
    AUTORESET_MODE,
    ActionError,
    checked_generators,
    checked_mask,
    checked_options,
    checked_seed,
    checked_seeds,
    reset_needed,
)
from wisp_gym.envs.rewards import weighted
from wisp_gym.errors import InputError
from wisp_gym.values import WORLDS, shown


class Task:
    """A decision problem in `n` worlds at once.

    Attributes:
        low, high: bounds of an observation. actions: number of actions. weights: of the reward's named terms.
        observations: (n, size) float32; outcomes: (n, gather.SIZE) float64 since the last decision; kinds: (n,) what each waits for.
    """

    def __init__(
        self, episodes: Episodes, low: Sequence[float], high: Sequence[float], actions: int, weights: dict[str, float]
    ):  # fmt: skip
        self.n, self.episodes, self.actions, self.weights = len(episodes.worlds), episodes, actions, weights
        self.low, self.high = np.array(low, np.float32), np.array(high, np.float32)
        self.exchange = e = Exchange(episodes.worlds, len(low), actions)
        self.kinds, self.observations, self.outcomes = e.kinds, e.observations, e.outcomes
        self.clock_s = np.zeros(self.n)
        self.device = np.full(self.n, -1, np.int64)

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
        self, which: np.ndarray, rngs: Sequence[np.random.Generator], fixed: Mapping[str, float] | None = None
    ) -> None:
        """Begin new episodes in the worlds marked in `which`, redrawing those that end before a decision.

        Args:
            which: (n,) bool. rngs: of each world. fixed: what `Episodes.fixed` made of the options.
        """
        pending = which.copy()
        for _ in range(100):
            for index in np.flatnonzero(pending):
                self.place(int(index), self.episodes.restart(int(index), rngs[int(index)], fixed or {}))
            self.exchange.begin(pending)
            pending = pending & (self.kinds == DONE)
            if not pending.any():
                self.clock_s[which] = self.outcomes[which, gather.CLOCK_S]
                return
        raise InputError("no decision falls before the horizon; give a longer horizon_s or another device")

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
        """Carry out (n,) int64 actions; returns (n,) rewards, the named terms and (n,) whether the horizon is reached.

        Worlds that were over before stay as they are.
        """
        clamped = self.clamp(actions)
        wrong = clamped != actions
        if wrong.any():
            self.episodes.arrays.server[:, 0]["invalid_actions"] += wrong
        self.exchange.act(clamped)
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
        self.begun, self.over = False, True  # over: before the first reset, and from the horizon on to the next one

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode; see the class.

        Raises:
            InputError: a seed (Gymnasium's `Error` too) or an option that cannot be; nothing has been touched then.
        """
        fixed = self.task.episodes.fixed(checked_options(options))
        super().reset(seed=checked_seed(seed))
        self.over = True
        self.task.restart(np.ones(1, bool), [self.np_random], fixed)
        self.begun, self.over = True, False
        return self.task.observations[0].copy(), self.info(0.0, dict.fromkeys(self.task.weights, 0.0))

    def step(self, action: np.int64 | int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Carry out one decision; see the class.

        Raises:
            ResetNeeded: before the first reset, and at the horizon.
            InputError: an action that is none of the space (Gymnasium's `InvalidAction` too); nothing has been touched then.
        """
        if self.over:
            raise reset_needed("step: no episode is under way")
        self.action[0] = self.chosen(action)
        rewards, terms, over = self.task.step(self.action)
        self.over = bool(over[0])
        named = {name: float(term[0]) for name, term in terms.items()}
        info = self.info(float(self.task.elapsed_s()[0]), named)
        self.frames.keep(self.task.episodes.arrays)
        return self.task.observations[0].copy(), float(rewards[0]), False, self.over, info

    def chosen(self, action: Any) -> int:
        """The action as a number."""
        try:
            number = operator.index(action)
        except TypeError:
            number = -1
        if not 0 <= number < self.task.actions:
            raise ActionError(f"action: given {shown(action)}, allowed are 0 to {self.task.actions - 1}")
        return number

    def info(self, dt: float, terms: dict[str, float]) -> dict[str, Any]:
        """Information on a step."""
        mask = self.task.masks()[0]
        return {"dt": dt, "reward_terms": terms, "action_mask": mask, **self.task.extras_of_first()}

    def action_masks(self) -> np.ndarray:
        """(actions,) bool of valid actions (the convention of sb3-contrib's MaskablePPO). Raises ResetNeeded before the first reset."""
        self.refuse_before_reset("action_masks")
        return self.task.masks()[0].astype(bool)

    def set_policy(self, policy: Policy) -> None:
        """Let a learned speculation policy drive the devices that the agent does not, from now on."""
        self.task.episodes.set_policy(policy)

    def render(self) -> str | np.ndarray | None:  # type: ignore[override]
        """The last seconds as a timeline: text ("ansi") or a picture ("rgb_array"). Raises ResetNeeded before the first reset."""
        if self.render_mode is None:
            return None
        self.refuse_before_reset("render")
        task = self.task
        return self.frames.render(task.episodes.arrays, float(task.outcomes[0, gather.CLOCK_S]), int(task.device[0]))

    def refuse_before_reset(self, what: str) -> None:
        """Raise ResetNeeded where no episode has ever begun."""
        if not self.begun:
            raise reset_needed(f"{what}: no episode has begun")


class DecisionVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """Many worlds in one compiled call on all cores, with the same numbers as the single environment.

    What becomes of a world that reaches its horizon says `autoreset_mode`, as in `gymnasium.vector.SyncVectorEnv`:

    - SAME_STEP (default): it begins again in the same step; `infos["final_obs"]` and `infos["final_info"]` hold what it ended with.
    - NEXT_STEP: it begins again in the next step, which ignores its action and pays nothing.
    - DISABLED: it waits for `reset(options={"reset_mask": ...})`; a step before that raises ResetNeeded.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}  # noqa: RUF012 - as Gymnasium has it

    task_type: ClassVar[TaskType]

    def __init__(
        self, num_envs: int = 1, threads: int | None = None, render_mode: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP, **arguments: Any,
    ):  # fmt: skip
        """Arguments: see the class."""
        if render_mode is not None:
            allowed = "allowed is None; render a single environment instead"
            raise InputError(f"render_mode: given {shown(render_mode)}, {allowed}")
        self.mode = AUTORESET_MODE.checked("autoreset_mode", autoreset_mode)
        self.num_envs, self.render_mode = WORLDS.checked("num_envs", num_envs), None
        settings = self.task_type.settings_type.of(arguments)
        self.task = task = self.task_type(self.num_envs, settings, threads=threads)
        self.metadata = {**self.metadata, "autoreset_mode": self.mode}
        self.single_observation_space = gym.spaces.Box(task.low, task.high, dtype=np.float32)
        self.single_action_space = gym.spaces.Discrete(task.actions)
        self.observation_space = batch_space(self.single_observation_space, task.n)
        self.action_space = batch_space(self.single_action_space, task.n)
        self.rngs, self.seeds = map(list, zip(*(seeding.np_random() for _ in range(task.n)), strict=True))
        self.begun = False

    @property  # type: ignore[override]
    def np_random(self) -> tuple[np.random.Generator, ...]:
        """The generator of each world."""
        return tuple(self.rngs)

    @np_random.setter  # type: ignore[override]
    def np_random(self, value: Sequence[np.random.Generator]) -> None:
        self.rngs = checked_generators(value, self.num_envs)
        self.seeds = [-1] * self.num_envs  # unknown, as Gymnasium has it

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # type: ignore[override]
        """What each of them was seeded with."""
        return tuple(self.seeds)

    def reset(
        self, *, seed: int | Sequence[int | None] | np.ndarray | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode in every world (world i with seed + i, or the i-th seed), or in those that `options["reset_mask"]` marks.

        Raises:
            InputError: a seed (Gymnasium's `Error` too), mask or option that cannot be; nothing has been touched then.
            ResetNeeded: a mask that leaves out worlds that have never begun.
        """
        rest = dict(checked_options(options))
        which = checked_mask(rest.pop("reset_mask", np.ones(self.num_envs, bool)), self.num_envs)
        if not (self.begun or which.all()):
            raise reset_needed("reset_mask: it leaves out worlds that have never begun")
        fixed, seeds = self.task.episodes.fixed(rest), checked_seeds(seed, self.num_envs)
        for index in np.flatnonzero(which):
            if seeds[index] is not None:
                self.rngs[index], self.seeds[index] = seeding.np_random(seeds[index])
        self.task.restart(which, self.rngs, fixed)
        self.begun = True
        return self.task.observations.copy(), self.infos(np.zeros(self.num_envs), None, which)

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Carry out (num_envs,) actions.

        Raises:
            ResetNeeded: before the first reset; with DISABLED, while a world is over.
            InputError: other than one action of the space for each world (Gymnasium's `InvalidAction` too); nothing has been touched.
        """
        ended, chosen = self.ended(), self.chosen(actions)
        rewards, terms, over = self.task.step(chosen)
        dt = self.task.elapsed_s()
        if self.mode is AutoresetMode.NEXT_STEP and ended.any():
            self.task.restart(ended, self.rngs)
            over = over & ~ended
            for numbers in (rewards, dt, *terms.values()):
                numbers[ended] = 0.0
        infos = self.infos(dt, terms)
        observations = self.task.observations.copy()
        if self.mode is AutoresetMode.SAME_STEP and over.any():
            self.begin_again(over, infos, observations)
            observations = self.task.observations.copy()
        return observations, rewards, np.zeros(self.num_envs, bool), over, infos

    def ended(self) -> np.ndarray:
        """(num_envs,) worlds that are over before a step; with SAME_STEP there are none."""
        if not self.begun:
            raise reset_needed("step: no episode has begun")
        ended = self.task.kinds == DONE
        if ended.any() and self.mode is AutoresetMode.DISABLED:
            raise reset_needed(f"step: the episodes of worlds {shown(np.flatnonzero(ended).tolist())} are over")
        return ended

    def chosen(self, actions: Any) -> np.ndarray:
        """The actions as compiled code takes them."""
        try:
            return self.task.exchange.checked_actions(actions)
        except InputError as error:
            raise ActionError(str(error)) from None

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

    def infos(
        self, dt: np.ndarray, terms: dict[str, np.ndarray] | None, which: np.ndarray | None = None
    ) -> dict[str, Any]:
        """Information on all worlds, in Gymnasium's form: arrays, each with a mask of the worlds that have just stepped or begun."""
        marked = np.ones(self.num_envs, bool) if which is None else which
        terms = terms or {name: np.zeros(self.num_envs) for name in self.task.weights}
        named = {**terms, **{"_" + name: marked.copy() for name in terms}}
        values = {"dt": dt, "reward_terms": named, "action_mask": self.task.masks(), **self.task.extras()}
        return {**values, **{"_" + name: marked.copy() for name in values}}

    def action_masks(self) -> np.ndarray:
        """(num_envs, actions) bool of valid actions. Raises ResetNeeded before the first reset."""
        if not self.begun:
            raise reset_needed("action_masks: no episode has begun")
        return self.task.masks().astype(bool)

    def set_policy(self, policy: Policy) -> None:
        """Let a learned speculation policy drive the devices that the agents do not, from now on."""
        self.task.episodes.set_policy(policy)


def pick(value: Any, index: int) -> Any:
    """One world's part of an information array."""
    if isinstance(value, dict):
        return {name: pick(part, index) for name, part in value.items() if not name.startswith("_")}
    return value[index]
