"""Batching rules and learned policies with the `predict` of stable-baselines3, for `wisp_gym/Batching-v0` and `Joint-v0`."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wisp_gym.contract import ladders
from wisp_gym.controllers.catalogue import BATCHING
from wisp_gym.controllers.names import ControllerError, parse
from wisp_gym.controllers.resolve import find_batching, resolve
from wisp_gym.engine import gather_batching as seen
from wisp_gym.engine.compose_learned import clear_dynamic
from wisp_gym.engine.state import PARAMETERS
from wisp_gym.jit import jit_allocating
from wisp_gym.rules import batching as rules
from wisp_gym.rules.controller import Controller
from wisp_gym.rules.scorer import best_head, embed, pool, score_context, score_requests, shape_of
from wisp_gym.scenario import Scenario, load

# What some rules need that the environment's observation does not hold.
HIDDEN = {rules.PACED: "the context of every sequence", rules.PIPELINED: "the group of every device"}


class BatchingPredictor:
    """A batching rule, or a saved batching policy, as a policy of `wisp_gym/Batching-v0` or `wisp_gym/Joint-v0`.

    It uses the same `ready`, `priority`, `admits` and scorer as the engine. A rule sets no price and chooses no chunk.

    It picks, one by one, the admissible request of the smallest priority, and launches when none is left. Outside the engine
    a rule that waits (`static`) is asked again at the next arrival or after a quarter of a mean batch time.

    Args:
        controller: a controller, or the name of a batching rule (`wisp`, `static:4,0.1`), of a pair (`fixed:4+edf`) or of a
            batching policy (a file, a run folder, a shipped one).
        scenario: the scenario of the environment.
        prices: whether the environment sets prices (`wisp_gym/Joint-v0`).

    Raises:
        ControllerError, PolicyError, ScenarioError: one line.
    """

    def __init__(self, controller: Controller | str, scenario: Scenario | str, prices: bool = False) -> None:
        scenario = load(scenario) if isinstance(scenario, str) else scenario
        self.kind, parameters, self.scorer = rule_of(controller, scenario)
        self.launches = len(ladders.PRICES) if prices else 1
        if len(self.scorer) and shape_of(self.scorer).launches not in (1, self.launches):
            raise ControllerError(f"controller '{controller}': it sets prices; allowed in wisp_gym/Joint-v0 alone")
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
            observation: (16 + 23·Q,) or (n, 16 + 23·Q) numbers, see `BatchingEnv`.
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
        table = np.ascontiguousarray(np.atleast_2d(rows))
        if self.kind == rules.LEARNED:
            score_and_choose(self.scorer, self.launches, table, actions)
        else:
            choose(self.kind, self.parameters, self.max_draft_tokens, self.launches, table, actions)
        return actions.reshape(rows.shape[:-1]), state


def rule_of(controller: Controller | str, scenario: Scenario) -> tuple[int, tuple[float, ...], np.ndarray]:
    """Kind, parameters and scorer of the batching half of a controller."""
    name = controller if isinstance(controller, str) else controller.name
    if isinstance(controller, str) and is_batching(controller):
        kind, parameters, scorer = find_batching(controller, scenario)
    else:
        whole = resolve(controller, scenario) if isinstance(controller, str) else controller
        kind, parameters, scorer = whole.batching, whole.batching_parameters, whole.scorer
    if kind in HIDDEN:
        allowed = ", ".join(text for text, rule in BATCHING.items() if rule.kind not in HIDDEN)
        raise ControllerError(
            f"controller '{name}': it needs {HIDDEN[kind]}, which Batching-v0 does not show; allowed: {allowed}, centralized"
        )
    return kind, parameters, scorer


def is_batching(name: str) -> bool:
    """Whether a name is that of a batching rule or of a saved policy alone."""
    first, *more = parse(name)
    return not more and (first.is_policy or first.name in BATCHING)


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
    f[rules.AGE_S] = o[seen.R_AGE] * 10.0
    f[rules.COMMITTED_TOKENS] = o[seen.R_COMMITTED] * 64.0
    f[rules.DUE_S] = o[seen.R_DUE] * batch_s


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
def choose_one(kind, parameters, max_draft_tokens, launches, o, f):
    """Action for one observation."""
    visible = (o.shape[0] - seen.GLOBALS) // seen.REQUEST
    mean_s = o[seen.G_MEAN_S] / 10.0
    n_batch = int(o[seen.G_REQUESTS] * seen.COUNT + 0.5)
    waiting = int(o[seen.G_QUEUE] * seen.COUNT + 0.5)
    rest = visible + launches if n_batch == 0 else visible  # wait, or launch
    if n_batch == 0 and rules.ready(kind, parameters, waiting, o[seen.GLOBALS + seen.R_WAITING] * mean_s) > 0.0:
        return rest
    due_s = earliest_met_s(kind, parameters, max_draft_tokens, o, f)
    batch_s = o[seen.G_TIME] * mean_s
    best, best_key = rest, np.inf
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
def choose(kind, parameters, max_draft_tokens, launches, observations, actions):
    """Write the action of each of (n, size) observations into (n,) `actions`."""
    f = np.zeros(rules.FEATURES)
    for row in range(len(observations)):
        actions[row] = choose_one(kind, parameters, max_draft_tokens, launches, observations[row], f)


@jit_allocating
def embed_places(scorer, o, places, embeddings):
    """Write the places that hold a request without all of its context in memory, and their embeddings; returns how many."""
    row, symlogs = np.zeros(seen.REQUEST, np.float32), np.empty(seen.REQUEST, np.float32)
    hidden, embedding = np.empty(shape_of(scorer).hidden, np.float32), np.empty(embeddings.shape[0], np.float32)
    n = 0
    for q in range(len(places)):
        start = seen.GLOBALS + q * seen.REQUEST
        if o[start + seen.R_PRESENT] < 0.5 or o[start + seen.R_UNCACHED] == 0.0:
            continue
        row[:] = o[start : start + seen.REQUEST]
        clear_dynamic(row)
        embed(scorer, row, symlogs, hidden, embedding)
        for k in range(len(embedding)):
            embeddings[k, n] = embedding[k]
        places[n] = q
        n += 1
    return n


@jit_allocating
def score_one(scorer, launches, o):
    """Action of a scorer for one observation."""
    shape = shape_of(scorer)
    visible, own, width = (o.shape[0] - seen.GLOBALS) // seen.REQUEST, shape.launches, shape.embedding
    embeddings, scores = np.empty((width, visible), np.float32), np.empty(visible, np.float32)
    inputs = np.empty(seen.GLOBALS + width, np.float32)
    context = np.empty(shape.context, np.float32)
    query, heads = np.empty(width + 1, np.float32), np.empty(own + 1 + shape.chunks, np.float32)
    places = np.empty(visible, np.int64)
    n = embed_places(scorer, o, places, embeddings)
    pool(embeddings, n, inputs, seen.GLOBALS)
    score_context(scorer, o[: seen.GLOBALS], inputs, context, query, heads)
    other = best_head(heads, own, o[seen.G_REQUESTS] == 0.0, o[seen.G_CHUNK_OPEN] > 0.5)
    best, best_score = -1, np.float32(-np.inf)
    score_requests(query, embeddings, n, scores)
    for k in range(n):
        if o[seen.GLOBALS + places[k] * seen.REQUEST + seen.R_ADMISSIBLE] > 0.5 and scores[k] > best_score:
            best, best_score = places[k], scores[k]
    if best >= 0 and best_score >= heads[other]:
        return best
    return visible + (other if other < own else other - own + launches)


@jit_allocating
def score_and_choose(scorer, launches, observations, actions):
    """Write the action of each of (n, size) observations into (n,) `actions`."""
    for row in range(len(observations)):
        actions[row] = score_one(scorer, launches, observations[row])
