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
from wisp_gym.engine.branch import Branches
from wisp_gym.engine.exchange import Exchange
from wisp_gym.engine.loop import DONE
from wisp_gym.engine.masks import actions_of
from wisp_gym.engine.rewards import MOST_TERMS
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
from wisp_gym.errors import InputError
from wisp_gym.values import WORLDS, shown


class Task:
    """A decision problem in `n` worlds at once.

    Attributes:
        low, high: bounds of an observation. actions: number of actions. weights: of the reward's named terms.
        earned: information that a step alone brings: its seconds and the reward's terms, zero where an episode begins.
        observations: (n, size) float32; masks: (n, actions) int8 of valid actions; kinds: (n,) what each waits for;
        outcomes: (n, gather.SIZE) float64 since the last decision; device: (n,) the deciding one, −1 for the server.
    """

    def __init__(
        self, episodes: Episodes, low: Sequence[float], high: Sequence[float], weights: dict[str, float], rate: float
    ):
        self.n, self.episodes, self.weights = len(episodes.worlds), episodes, weights
        self.earned = ("dt", *(f"reward_{term}" for term in weights))
        self.low, self.high = np.array(low, np.float32), np.array(high, np.float32)
        self.actions = actions_of(episodes.template.arrays.config[0, 0])
        pay = [rate, *weights.values(), *[0.0] * (MOST_TERMS - len(weights))]
        self.exchange = e = Exchange(episodes.worlds, len(low), self.actions, pay)
        self.kinds, self.observations, self.masks, self.outcomes = e.kinds, e.observations, e.masks, e.outcomes
        self.device = np.full(self.n, -1, np.int64)

    settings_type: ClassVar[type[EpisodeSettings]]

    # Information that is a column of the outcomes: name → (column, type).
    columns: Mapping[str, tuple[int, type[np.number]]] = {
        "time_s": (gather.CLOCK_S, np.float64),
        "drafted_tokens": (gather.DRAFTED, np.int64),
        "invalid_actions": (gather.INVALID, np.int64),
    }

    def place(self, index: int, drawn: Mapping[str, float]) -> None:
        """Set up the decision maker of a world that begins again."""

    def restart(
        self, which: np.ndarray, rngs: Sequence[np.random.Generator], fixed: Mapping[str, float] | None = None
    ) -> None:
        """Begin new episodes in the worlds marked in `which`, redrawing those that end before a decision.

        Args:
            which: (n,) bool. rngs: of each world. fixed: what `Episodes.fixed` made of the options.
        """
        pending = which.copy()
        for _ in range(100):
            for index in np.flatnonzero(pending).tolist():
                self.place(index, self.episodes.restart(index, rngs[index], fixed or {}))
            self.exchange.begin(pending)
            pending = pending & (self.kinds == DONE)
            if not pending.any():
                return
        raise InputError("no decision falls before the horizon; give a longer horizon_s or another device")

    def step(self, actions: np.ndarray | int) -> None:
        """Carry out (n,) int64 actions and run to the next decisions; worlds that were over before stay as they are."""
        self.exchange.act(actions)

    def told(self) -> dict[str, np.ndarray]:
        """Information on the step, of all worlds: (n, …) arrays of the caller's own, by flat names, as TorchRL reads them."""
        o = self.outcomes.T.copy()
        told = dict(zip(self.earned, (o[gather.ELAPSED_S], *o[gather.TERMS :]), strict=False))
        told |= {"action_mask": self.masks.copy(), "deciding_device": self.device.copy()}
        return told | {name: o[k].astype(kind, copy=False) for name, (k, kind) in self.columns.items()}

    def told_of_first(self) -> dict[str, Any]:
        """The same of the first world: numbers of NumPy's, which have a `dtype`, and its mask."""
        o = self.outcomes[0]
        told = dict(zip(self.earned, (o[gather.ELAPSED_S], *o[gather.TERMS :]), strict=False))
        told |= {"action_mask": self.masks[0].copy(), "deciding_device": self.device[0]}
        return told | {name: kind(o[k]) for name, (k, kind) in self.columns.items()}


TaskType = Any  # a subclass of Task, made of (number of worlds, its settings, room for events, threads)


class DecisionEnv(gym.Env[np.ndarray, np.int64]):
    """One world as a Gymnasium environment; subclasses make the task.

    Each names Gymnasium's class among its bases again, and each vector environment `VectorEnv`: skrl knows an environment by these.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["ansi", "rgb_array"], "render_fps": 4}  # type: ignore[misc]

    task_type: ClassVar[TaskType]

    def __init__(self, render_mode: str | None = None, **arguments: Any):
        """Arguments: see the class."""
        self.render_mode, self.frames = render_mode, FrameLog(render_mode, self.metadata["render_modes"])
        settings = self.task_type.settings_type.of(arguments)
        self.task = task = self.task_type(1, settings, self.frames.log_rows, 1)
        self.observation_space = gym.spaces.Box(task.low, task.high, dtype=np.float32)
        self.action_space = gym.spaces.Discrete(task.actions)
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
        nothing = dict.fromkeys(self.task.earned, np.float64(0.0))
        return self.task.observations[0].copy(), self.task.told_of_first() | nothing

    def step(self, action: np.int64 | int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Carry out one decision; see the class.

        Raises:
            ResetNeeded: before the first reset, and at the horizon.
            InputError: an action that is none of the space (Gymnasium's `InvalidAction` too); nothing has been touched then.
        """
        if self.over:
            raise reset_needed("step: no episode is under way")
        task = self.task
        task.step(self.chosen(action))
        self.over = task.kinds.item(0) == DONE
        self.frames.keep(task.episodes.arrays)
        reward = task.outcomes.item(gather.REWARD)
        return task.observations[0].copy(), reward, False, self.over, task.told_of_first()

    def chosen(self, action: Any) -> int:
        """The action as a number."""
        try:
            number = operator.index(action)
        except TypeError:
            number = -1
        if not 0 <= number < self.task.actions:
            raise ActionError(f"action: given {shown(action)}, allowed are 0 to {self.task.actions - 1}")
        return number

    def action_masks(self) -> np.ndarray:
        """(actions,) bool of valid actions (the convention of sb3-contrib's MaskablePPO). Raises ResetNeeded before the first reset."""
        self.refuse_before_reset("action_masks")
        return self.task.masks[0].astype(bool)

    def set_policy(self, policy: Policy) -> None:
        """Let a learned speculation policy drive the devices that the agent does not, from now on."""
        self.task.episodes.set_policy(policy)

    def branches(self, n: int) -> Branches:
        """`n` copies of the world as it stands, waiting for the same decision; the episode goes on as if there were none.

        Raises:
            ResetNeeded: before the first reset.
            InputError: another number of copies.
        """
        self.refuse_before_reset("branches")
        copies = Branches(self.task.episodes.worlds, n)
        copies.take(0, int(self.task.kinds[0]))
        return copies

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
        self.autoreset_mode = AUTORESET_MODE.checked("autoreset_mode", autoreset_mode)
        self.num_envs, self.render_mode = WORLDS.checked("num_envs", num_envs), None
        settings = self.task_type.settings_type.of(arguments)
        self.task = task = self.task_type(self.num_envs, settings, threads=threads)
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
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
        infos = self.infos(which)
        for name in self.task.earned:
            infos[name][:] = 0.0
        return self.task.observations.copy(), infos

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Carry out (num_envs,) actions.

        Raises:
            ResetNeeded: before the first reset; with DISABLED, while a world is over.
            InputError: other than one action of the space for each world (Gymnasium's `InvalidAction` too); nothing has been touched.
        """
        ended, chosen = self.ended(), self.chosen(actions)
        task = self.task
        task.step(chosen)
        over = task.kinds == DONE
        if self.autoreset_mode is AutoresetMode.NEXT_STEP and ended is not None:
            task.restart(ended, self.rngs)
            task.outcomes[ended, gather.EARNED :] = 0.0
            over &= ~ended
        rewards, infos = task.outcomes[:, gather.REWARD].copy(), self.infos()
        if self.autoreset_mode is AutoresetMode.SAME_STEP and np.count_nonzero(over):
            self.begin_again(over, infos)
        return task.observations.copy(), rewards, np.zeros(self.num_envs, bool), over, infos

    def ended(self) -> np.ndarray | None:
        """(num_envs,) worlds that are over before a step; None where there are none."""
        if not self.begun:
            raise reset_needed("step: no episode has begun")
        ended = self.task.kinds == DONE
        if not np.count_nonzero(ended):
            return None
        if self.autoreset_mode is AutoresetMode.DISABLED:
            raise reset_needed(f"step: the episodes of worlds {shown(np.flatnonzero(ended).tolist())} are over")
        return ended

    def chosen(self, actions: Any) -> np.ndarray:
        """The actions as compiled code takes them."""
        try:
            return self.task.exchange.checked_actions(actions)
        except InputError as error:
            raise ActionError(str(error)) from None

    def begin_again(self, over: np.ndarray, infos: dict[str, Any]) -> None:
        """Keep the last observation and information of ended episodes and restart their worlds."""
        final_obs = np.full(self.num_envs, None, dtype=object)
        for index in np.flatnonzero(over).tolist():
            final_obs[index] = self.task.observations[index].copy()
        names = [name for name in infos if not name.startswith("_")]
        final_info = of_marked({name: infos[name] for name in names}, over)
        self.task.restart(over, self.rngs)
        infos["dt"][over] = 0.0
        begun = self.task.told()
        infos.update({name: begun[name] for name in names if name not in self.task.earned})
        infos["final_obs"], infos["_final_obs"] = final_obs, over.copy()
        infos["final_info"], infos["_final_info"] = final_info, over.copy()

    def infos(self, which: np.ndarray | None = None) -> dict[str, Any]:
        """Information on all worlds, in Gymnasium's form: arrays, each with a mask of the worlds that have just stepped or begun."""
        told = self.task.told()
        marks = np.ones((len(told), self.num_envs), bool)
        if which is not None:
            marks &= which
        return told | dict(zip(["_" + name for name in told], marks, strict=True))

    def action_masks(self) -> np.ndarray:
        """(num_envs, actions) bool of valid actions. Raises ResetNeeded before the first reset."""
        if not self.begun:
            raise reset_needed("action_masks: no episode has begun")
        return self.task.masks.astype(bool)

    def set_policy(self, policy: Policy) -> None:
        """Let a learned speculation policy drive the devices that the agents do not, from now on."""
        self.task.episodes.set_policy(policy)


def of_marked(told: dict[str, np.ndarray], which: np.ndarray) -> dict[str, np.ndarray]:
    """Information of the worlds marked in `which` alone, in Gymnasium's form: zeros elsewhere, and each with its mask."""
    found: dict[str, np.ndarray] = {}
    for name, value in told.items():
        found[name] = np.zeros_like(value)
        found[name][which] = value[which]
        found["_" + name] = which.copy()
    return found
