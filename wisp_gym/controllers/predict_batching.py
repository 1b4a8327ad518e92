"""Batching rules with the `predict` of stable-baselines3, for `wisp_gym/Batching-v0`."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wisp_gym.controllers import batching as rules
from wisp_gym.controllers.catalogue import BATCHING, Controller, ControllerError, find_rule, resolve
from wisp_gym.engine import gather_batching as seen
from wisp_gym.engine.jit import jit_allocating
from wisp_gym.engine.state import PARAMETERS
from wisp_gym.scenario import Scenario, load

# What some rules need that the environment's observation does not hold.
HIDDEN = {rules.PACED: "the context of every sequence", rules.PIPELINED: "the group of every device"}


class BatchingPredictor:
    """A batching rule as a policy of `wisp_gym/Batching-v0`: the same `ready`, `priority` and `admits` as in the engine.

    It picks, one by one, the admissible request of the smallest priority, and launches when none is left. Outside the engine
    a rule that waits (`static`) is asked again at the next arrival or after a quarter of a mean batch time.

    Args:
        controller: a controller, or the name of a batching rule (`wisp`, `static:4,0.1`) or of a pair (`fixed:4+edf`).
        scenario: the scenario of the environment.

    Raises:
        ControllerError, ScenarioError: one line.
    """

    def __init__(self, controller: Controller | str, scenario: Scenario | str) -> None:
        scenario = load(scenario) if isinstance(scenario, str) else scenario
        self.kind, parameters = rule_of(controller, scenario)
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
            observation: (11 + 15·Q,) or (n, 11 + 15·Q) numbers, see `BatchingEnv`.
            state, episode_start, deterministic: of stable-baselines3's signature; the state is returned as it came.

        Returns:
            int64 actions, () for one observation and (n,) for n of them, and `state`.

        Raises:
            ValueError: observations of another shape.
        """
        rows = np.asarray(observation, dtype=np.float32)
        if rows.ndim not in (1, 2) or rows.shape[-1] <= seen.GLOBALS or (rows.shape[-1] - seen.GLOBALS) % seen.REQUEST:
            raise ValueError(
                f"observation: given shape {rows.shape}, allowed are ({seen.GLOBALS} + {seen.REQUEST}·Q,) and (n, …)"
            )
        actions = np.empty(int(np.prod(rows.shape[:-1], dtype=np.int64)), dtype=np.int64)
        choose(self.kind, self.parameters, self.max_draft_tokens, np.ascontiguousarray(np.atleast_2d(rows)), actions)
        return actions.reshape(rows.shape[:-1]), state


def rule_of(controller: Controller | str, scenario: Scenario) -> tuple[int, tuple[float, ...]]:
    """Kind and parameters of the batching half of a controller."""
    name = controller if isinstance(controller, str) else controller.name
    if isinstance(controller, str) and controller.partition(":")[0] in BATCHING:
        rule, parameters = find_rule(controller, BATCHING, "batching")
        kind = rule.kind
    else:
        whole = resolve(controller, scenario) if isinstance(controller, str) else controller
        kind, parameters = whole.batching, whole.batching_parameters
    if kind in HIDDEN:
        allowed = ", ".join(text for text, rule in BATCHING.items() if rule.kind not in HIDDEN)
        raise ControllerError(
            f"controller '{name}': it needs {HIDDEN[kind]}, which Batching-v0 does not show; allowed: {allowed}, centralized"
        )
    return kind, parameters


@jit_allocating
def features_of(o, batch_s, max_draft_tokens, f):
    """A request's features in physical units, from its entries in the observation; the clock reads 0."""
    f[rules.WAITING_S] = o[seen.R_WAITING] * batch_s
    f[rules.SLACK_S] = o[seen.R_SLACK] * batch_s
    f[rules.NEW_TOKENS] = o[seen.R_NEW] * 64.0
    f[rules.UNCACHED_TOKENS] = o[seen.R_UNCACHED] * 512.0
    f[rules.CACHED_TOKENS] = o[seen.R_CACHED] * 1024.0
    f[rules.EXPECTED_TOKENS] = o[seen.R_EXPECTED] * max_draft_tokens
    f[rules.SLO_TOKENS_PER_S] = o[seen.R_SLO] * 10.0
    f[rules.MARGINAL_S] = o[seen.R_MARGINAL] * batch_s
    f[rules.SOLO_S] = o[seen.R_SOLO] * batch_s
    f[rules.DRAFT_TOKENS] = o[seen.R_DRAFT] * max_draft_tokens
    f[rules.ARRIVED_S] = -f[rules.WAITING_S]
    f[rules.DEADLINE_S] = f[rules.SLACK_S]
    f[rules.RUNNING] = o[seen.R_RUNNING]


@jit_allocating
def earliest_met_s(kind, parameters, max_draft_tokens, o, f):
    """Earliest deadline among the requests picked so far that the batch so far still meets; the clock reads 0."""
    batch_s, earliest_s = o[seen.G_MEAN_S] / 10.0, np.inf
    end_s = o[seen.G_TIME] * batch_s * (1.0 + rules.margin_of(kind, parameters))
    for start in range(seen.GLOBALS, o.shape[0], seen.REQUEST):
        request = o[start : start + seen.REQUEST]
        if request[seen.R_PICKED] > 0.5:
            features_of(request, batch_s, max_draft_tokens, f)
            if f[rules.DEADLINE_S] >= end_s:
                earliest_s = min(earliest_s, f[rules.DEADLINE_S])
    return earliest_s


@jit_allocating
def choose_one(kind, parameters, max_draft_tokens, o, f):
    """Action for one observation."""
    visible = (o.shape[0] - seen.GLOBALS) // seen.REQUEST
    mean_s = o[seen.G_MEAN_S] / 10.0
    n_batch = int(o[0] * visible + 0.5)
    waiting = int(o[6] * visible + 0.5)
    if n_batch == 0 and rules.ready(kind, parameters, waiting, o[seen.GLOBALS + seen.R_WAITING] * mean_s) > 0.0:
        return visible
    due_s = earliest_met_s(kind, parameters, max_draft_tokens, o, f)
    batch_s = o[seen.G_TIME] * mean_s
    best, best_key = visible, np.inf
    for q in range(visible):
        request = o[seen.GLOBALS + q * seen.REQUEST : seen.GLOBALS + (q + 1) * seen.REQUEST]
        if request[seen.R_ADMISSIBLE] < 0.5:
            continue
        features_of(request, mean_s, max_draft_tokens, f)
        key = rules.priority(kind, parameters, 0.0, mean_s, f)
        if key < best_key and rules.admits(
            kind, parameters, 0.0, mean_s, f, n_batch, n_batch, batch_s, request[seen.R_WITH] * mean_s, due_s
        ):
            best, best_key = q, key
    return best


@jit_allocating
def choose(kind, parameters, max_draft_tokens, observations, actions):
    """Write the action of each of (n, size) observations into (n,) `actions`."""
    f = np.zeros(rules.FEATURES)
    for row in range(len(observations)):
        actions[row] = choose_one(kind, parameters, max_draft_tokens, observations[row], f)
