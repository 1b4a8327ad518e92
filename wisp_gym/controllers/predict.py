"""Speculation controllers with the `predict` of stable-baselines3, for use outside the engine."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wisp_gym.contract import device
from wisp_gym.controllers import seen
from wisp_gym.controllers.names import ControllerError, parse
from wisp_gym.controllers.resolve import NAME, AnyController, resolve
from wisp_gym.engine.state import PARAMETERS
from wisp_gym.errors import InputError
from wisp_gym.rules.bandits import MEMORY
from wisp_gym.rules.catalogue import ALIASES, CENTRALIZED, COLOCATED, SPECULATION
from wisp_gym.rules.controller import Controller
from wisp_gym.rules.observed import decide_drafting
from wisp_gym.rules.speculation import ORACLE, PERFECT
from wisp_gym.scenario import AnyScenario, Scenario, load

FATES = {PERFECT: "last_fate", ORACLE: "next_fate"}  # what a bound must be told


class SpeculationPredictor:
    """A speculation controller as a policy of `wisp_gym/Speculation-v1`, by the compiled rule that the engine runs.

    A rule or policy that decides lengths gives actions of `wisp_gym/SpeculationLength-v1` instead; one that follows the
    server needs an environment whose `controller` is that rule.

    Args:
        controller: a controller or its name; the batching rule is not used and may be left out (`fixed:4`).
        scenario: that of the environment: its cap K scales the observation, its predictor sets WISP's threshold.

    Raises:
        ControllerError, PolicyError, ScenarioError: one line; also for `centralized`, which drafts nothing, and for rules
            that learn from replies, which `predict` is never shown.
    """

    def __init__(self, controller: AnyController, scenario: AnyScenario) -> None:
        scenario = load(scenario)
        self.controller = named(controller, scenario)
        if self.controller.centralized:
            reason = f"centralized serving drafts nothing; allowed: {', '.join(SPECULATION)}, FILE"
            raise ControllerError(f"controller '{self.controller.name}': {reason}")
        if self.controller.learns:
            without = ", ".join(name for name, rule in SPECULATION.items() if not rule.learns)
            reason = f"it keeps a memory of its rounds, which runs inside the engine alone; allowed: {without}, FILE"
            raise ControllerError(f"controller '{self.controller.name}': {reason}")
        self.max_draft_tokens = scenario.max_draft_tokens
        self.rng = np.random.default_rng(0)  # for the random rule alone
        self.parameters = np.zeros(PARAMETERS)
        self.parameters[: len(self.controller.speculation_parameters)] = self.controller.speculation_parameters

    def predict(
        self,
        observation: ArrayLike,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        info: Mapping[str, Any] | None = None,
    ) -> tuple[NDArray[np.int64], tuple[np.ndarray, ...] | None]:
        """Actions for observations; every rule but `random` is deterministic, none keeps a state.

        Args:
            observation: (SIZE,) or (n, SIZE) numbers, see `wisp_gym.contract.device`.
            state, episode_start, deterministic: of stable-baselines3's signature; the state is returned as it came.
            info: for the bounds alone, 0 (rejected) or 1 (accepted), one or (n,): `perfect` reads `last_fate` of the
                token just drafted, `oracle` `next_fate` of the token that would come next.

        Returns:
            int64 actions, () for one observation and (n,) for n of them (`wisp_gym.contract.actions`), and `state`.

        Raises:
            InputError: observations of another shape, or fates that are missing or of another shape.
        """
        rows = seen.checked(observation, device.SIZE.__eq__, f"({device.SIZE},) and (n, {device.SIZE})")
        many = np.atleast_2d(rows)
        fates = self.fates(info, len(many))
        actions, chances = np.empty(len(many), dtype=np.int64), self.rng.random(len(many))
        memory = np.zeros(MEMORY)  # no rule that uses it gets here
        c, cap = self.controller, self.max_draft_tokens
        decide_drafting(
            c.speculation, self.parameters, c.policy, memory, int(c.chooses_way), cap, many, fates, chances, actions
        )
        return actions.reshape(rows.shape[:-1]), state

    def fates(self, info: Mapping[str, Any] | None, n: int) -> NDArray[np.int64]:
        """(n,) fates that a bound reads; zeros for all other rules."""
        key = FATES.get(self.controller.speculation)
        if key is None:
            return np.zeros(n, dtype=np.int64)
        if not isinstance(info, Mapping) or key not in info:
            needed = f"predict needs info['{key}'], 0 or 1 each"
            raise InputError(f"controller '{self.controller.name}' is a bound that knows fates: {needed}")
        fates = np.asarray(info[key])
        if fates.dtype.kind not in "biu" or fates.shape not in ((), (n,)) or not np.isin(fates, (0, 1)).all():
            given = f"{np.array2string(fates, threshold=4)} of shape {fates.shape}"
            raise InputError(f"info['{key}']: given {given}, allowed are 0 and 1 of shape () or ({n},)")
        return np.array(np.broadcast_to(fates, (n,)), np.int64)


def named(given: AnyController, scenario: Scenario) -> Controller:
    """The controller of a name whose batching rule may be missing; it is first come, first served then.

    Raises:
        ControllerError, PolicyError: as `resolve`.
    """
    if isinstance(given, Controller):
        return given
    first, *more = parse(name := NAME.checked("controller", given))
    whole = more or first.is_policy or name in ALIASES or first.name in CENTRALIZED | COLOCATED
    return resolve(name if whole else f"{name}+fcfs", scenario)
