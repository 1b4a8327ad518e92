"""Batching rules and learned policies with the `predict` of stable-baselines3, for `wisp_gym/Batching-v1` and `Joint-v1`."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wisp_gym.contract import ladders, request, server
from wisp_gym.controllers import seen
from wisp_gym.controllers.names import ControllerError, parse
from wisp_gym.controllers.resolve import NAME, AnyController, find_batching, resolve
from wisp_gym.engine.state import PARAMETERS
from wisp_gym.rules import batching as rules
from wisp_gym.rules.catalogue import BATCHING
from wisp_gym.rules.controller import Controller
from wisp_gym.rules.observed import decide_batching, score_batching
from wisp_gym.rules.scorer import shape_of
from wisp_gym.scenario import AnyScenario, Scenario, load

# What some rules need that the environment's observation does not hold.
HIDDEN = {rules.PACED: "the context of every sequence", rules.PIPELINED: "the group of every device"}


class BatchingPredictor:
    """A batching rule, or a saved batching policy, as a policy of `wisp_gym/Batching-v1` or `wisp_gym/Joint-v1`.

    It uses the same `ready`, `priority`, `admits` and scorer as the engine. A rule sets no price and chooses no chunk.

    It picks, one by one, the admissible request of the smallest priority, and launches when none is left. Outside the engine
    a rule that waits (`static`) is asked again at the next arrival or after a quarter of a mean batch time.

    Args:
        controller: a controller, or the name of a batching rule (`wisp`, `static:4,0.1`), of a pair (`fixed:4+edf`) or of a
            batching policy (a file, a run folder, a shipped one).
        scenario: the scenario of the environment.
        prices: whether the environment sets prices (`wisp_gym/Joint-v1`).

    Raises:
        ControllerError, PolicyError, ScenarioError: one line.
    """

    def __init__(self, controller: AnyController, scenario: AnyScenario, prices: bool = False) -> None:
        scenario = load(scenario)
        self.kind, parameters, self.scorer = rule_of(controller, scenario)
        self.launches = len(ladders.PRICES) if prices else 1
        if len(self.scorer) and shape_of(self.scorer).launches not in (1, self.launches):
            raise ControllerError(f"controller '{controller}': it sets prices; allowed in wisp_gym/Joint-v1 alone")
        self.parameters = np.zeros(PARAMETERS)
        self.parameters[: len(parameters)] = parameters
        self.max_draft_tokens = scenario.max_draft_tokens

    def predict(
        self,
        observation: ArrayLike,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[np.int64], tuple[np.ndarray, ...] | None]:
        """Actions for observations; every rule is deterministic and keeps no state.

        Args:
            observation: (G + R·Q,) or (n, G + R·Q) numbers, see `BatchingEnv`: `contract.server.SIZE` and Q times `contract.request.SIZE`.
            state, episode_start, deterministic: of stable-baselines3's signature; the state is returned as it came.

        Returns:
            int64 actions, () for one observation and (n,) for n of them, and `state`.

        Raises:
            InputError: observations of another shape.
        """
        size, each = server.SIZE, request.SIZE
        fits = f"({size} + {each}·Q,) and (n, {size} + {each}·Q)"
        rows = seen.checked(observation, lambda width: width > size and (width - size) % each == 0, fits)
        actions = np.empty(int(np.prod(rows.shape[:-1], dtype=np.int64)), dtype=np.int64)
        table = np.atleast_2d(rows)
        if self.kind == rules.LEARNED:
            score_batching(self.scorer, self.max_draft_tokens, self.launches, table, actions)
        else:
            decide_batching(self.kind, self.parameters, self.max_draft_tokens, self.launches, table, actions)
        return actions.reshape(rows.shape[:-1]), state


def rule_of(controller: AnyController, scenario: Scenario) -> tuple[int, tuple[float, ...], np.ndarray]:
    """Kind, parameters and scorer of the batching half of a controller."""
    name = controller.name if isinstance(controller, Controller) else NAME.checked("controller", controller)
    if not isinstance(controller, Controller) and is_batching(name):
        kind, parameters, scorer = find_batching(name, scenario)
    else:
        whole = resolve(controller, scenario)
        kind, parameters, scorer = whole.batching, whole.batching_parameters, whole.scorer
    if kind in HIDDEN:
        allowed = ", ".join(text for text, rule in BATCHING.items() if rule.kind not in HIDDEN)
        reason = f"it needs {HIDDEN[kind]}, which Batching-v1 does not show"
        raise ControllerError(f"controller '{name}': {reason}; allowed: {allowed}, centralized")
    return kind, parameters, scorer


def is_batching(name: str) -> bool:
    """Whether a name is that of a batching rule or of a saved policy alone."""
    first, *more = parse(name)
    return not more and (first.is_policy or first.name in BATCHING)
