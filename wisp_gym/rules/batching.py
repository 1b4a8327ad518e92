"""Batching controllers: when a batch starts and which requests it takes.

A controller is three pure functions: `ready` (start now, or wait until when), `priority` of each queued request
(smallest first) and `admits` (may this request join the batch so far). The engine checks memory and the prefill chunk
by itself. Requests are taken in order of priority; one that is not admitted is passed over.

Rules that protect deadlines (`protects`) take some requests in any case (`leads`); the others join only while everything
that the batch would finish on time still is.

Legend: `kind` id of the rule; `parameters` (8,) float64 of it; `f` (FEATURES,) float64 of a queued request, in the
units of FEATURE_TABLE; `n_queue`, `n_batch`, `n_running` numbers of requests; `margin` share that is added to
predicted times. Times are on the server's clock.
"""

import math
from typing import NamedTuple

from wisp_gym.contract.ladders import STARVED_TOKENS_PER_S
from wisp_gym.jit import jit, jit_inline

(
    FCFS, STATIC, EDF, WISP, CONTINUOUS, EDF_DEMOTED, LEAST_LAXITY, CONTROL_LIMIT, MARGINAL, PACED, PIPELINED, AGED, LEARNED,
) = range(13)  # fmt: skip
FIRST_S = 1e9  # taken off the keys of those that go before all others

# Features of a queued request, in physical units.
(
    WAITING_S, SLACK_S, NEW_TOKENS, UNCACHED_TOKENS, CACHED_TOKENS, EXPECTED_TOKENS, SLO_TOKENS_PER_S, MARGINAL_S, SOLO_S, DRAFT_TOKENS,
    ARRIVED_S, DEADLINE_S, RUNNING, TURN, AGE_S, COMMITTED_TOKENS, DUE_S, OWED_TOKENS,
) = range(18)  # fmt: skip
FEATURES = 18


class Feature(NamedTuple):
    """One feature of a queued request."""

    name: str
    unit: str
    meaning: str


FEATURE_TABLE = (
    Feature("waiting_s", "s", "time since the request reached the server"),
    Feature("slack_s", "s", "time until its verification must be complete"),
    Feature("new_tokens", "tokens", "tokens it would run through the model: drafts, one before, uncached context"),
    Feature("uncached_tokens", "tokens", "context that must be computed first (cold prompt or evicted prefix)"),
    Feature("cached_tokens", "tokens", "context whose keys and values are in memory"),
    Feature("expected_tokens", "tokens", "expected tokens committed, as the device reported: 1 + sum of survivals"),
    Feature("slo_tokens_per_s", "tokens/s", "speed of its service class"),
    Feature("marginal_s", "s", "predicted time that it adds to a batch"),
    Feature("solo_s", "s", "predicted time of a batch of this request alone"),
    Feature("draft_tokens", "tokens", "drafted tokens to verify"),
    Feature("arrived_s", "s", "clock time of arrival (for ordering)"),
    Feature("deadline_s", "s", "clock time by which its verification must be complete (for ordering)"),
    Feature("running", "flag", "a sequence already admitted (centralized serving)"),
    Feature("turn", "flag", "its device is of the group whose turn it is, or of no group (pipelined plans)"),
    Feature("age_s", "s", "time since the device made the request that the response answers"),
    Feature("committed_tokens", "tokens", "output tokens of the response so far"),
    Feature("due_s", "s", "clock time by which the response's next token must leave to be on time (for ordering)"),
    Feature(
        "owed_tokens", "tokens", "what its device's responses before lacked of pacing's floor; below 0: had beyond it"
    ),
)


@jit
def ready(kind, parameters, n_queue, oldest_wait_s):
    """0 to start a batch now, else seconds to wait unless another request comes."""
    if kind in (STATIC, CONTROL_LIMIT):
        size, timeout_s = parameters[0], parameters[1]
        if n_queue >= size or oldest_wait_s >= timeout_s - 1e-9:  # a wake-up may come a rounding error early
            return 0.0
        return timeout_s - oldest_wait_s
    return 0.0


@jit
def turn_wait_s(parameters, now_s, waiting, coming, launched_s):
    """What becomes of a group's turn (`PIPELINED`): 0 launch its batch now, inf pass on to the next group, else seconds to wait.

    It waits for members that are still coming, until the planned cycle (times a patience) has passed since the group's last
    launch; then it goes on without them.

    Args:
        parameters: patience, cycle_s of the plan.
        waiting, coming: members whose requests wait at the server, and whose next round is being drafted or under way.
        launched_s: when the group's last batch started, 0 before the first.
    """
    left_s = launched_s + parameters[0] * parameters[1] - now_s
    if coming > 0 and left_s > 1e-9:  # a wake-up may come a rounding error early
        return left_s
    return 0.0 if waiting > 0 else math.inf


@jit
def margin_of(kind, parameters):
    """Safety margin on predicted times, as a share of them."""
    return parameters[0] if kind in (WISP, PACED) else 0.0


@jit
def protects(kind):
    """Whether the rule keeps requests out to protect deadlines of others."""
    return kind in (WISP, EDF_DEMOTED)


def takes_pace(kind: int) -> bool:
    """Whether pacing may order in its place: the rule neither learned its order nor keeps requests out by it."""
    return kind != LEARNED and not protects(kind)


@jit_inline
def leads(kind, parameters, now_s, mean_batch_s, f):
    """Whether a request joins in any case: urgent (WISP), not yet late (EDF with late requests demoted)."""
    if kind == EDF_DEMOTED:
        return now_s + f[SOLO_S] <= f[DEADLINE_S] + parameters[0]
    latest_start_s = f[DEADLINE_S] - f[SOLO_S] * (1.0 + parameters[0])
    return latest_start_s <= now_s + parameters[1] * mean_batch_s


@jit
def starving(f, patience_s):
    """Whether a response has got less than one token for each second beyond the first `patience_s` since its request."""
    return f[COMMITTED_TOKENS] < STARVED_TOKENS_PER_S * (f[AGE_S] - patience_s)


@jit
def aged_priority(parameters, now_s, f):
    """Sort key, in s: responses in memory first, then those that starve, prompts that can still be on time, and late ones."""
    if f[CACHED_TOKENS] > 0.0:
        return f[ARRIVED_S] - 3.0 * FIRST_S
    if starving(f, parameters[0]):
        return now_s - f[AGE_S] - 2.0 * FIRST_S
    if now_s + f[SOLO_S] <= f[DUE_S]:
        return f[DUE_S] - FIRST_S
    return f[ARRIVED_S]


@jit_inline
def priority(kind, parameters, now_s, mean_batch_s, f):
    """Sort key of a request, smallest first; of any unit, the same for all requests."""
    if kind == EDF:
        return f[DEADLINE_S]
    if kind == LEAST_LAXITY:
        return f[DEADLINE_S] - f[SOLO_S]
    if kind == AGED:
        return aged_priority(parameters, now_s, f)
    if kind == CONTINUOUS and parameters[0] > 0.0:
        return 0.0  # in turn: the queue is in the order in which sequences became ready
    if kind in (CONTINUOUS, PACED):
        return f[ARRIVED_S] if f[RUNNING] == 0.0 else f[ARRIVED_S] - FIRST_S
    if kind == PIPELINED:
        return f[ARRIVED_S] if f[TURN] == 0.0 else f[ARRIVED_S] - FIRST_S
    if kind in (WISP, EDF_DEMOTED):
        if leads(kind, parameters, now_s, mean_batch_s, f):
            return f[DEADLINE_S] - FIRST_S
        return -f[EXPECTED_TOKENS] / f[SOLO_S] if kind == WISP else f[DEADLINE_S]
    return f[ARRIVED_S]


@jit
def keeps_order(kind, parameters):
    """Whether requests without context in memory keep one order while they wait, until they are urgent, and few are passed over.

    Of servers alone those without limits: a limit on sequences passes over all that it keeps out.
    """
    if kind == CONTINUOUS:
        return parameters[0] <= 0.0 and parameters[1] <= 0.0
    return kind in (FCFS, STATIC, CONTROL_LIMIT, EDF, LEAST_LAXITY, WISP)


@jit
def lowest_priority(kind, parameters, f):
    """Lowest sort key that a request can have at any time while nothing about it changes, under a rule that `keeps_order`."""
    if kind == WISP:
        return min(f[DEADLINE_S] - FIRST_S, -f[EXPECTED_TOKENS] / f[SOLO_S])
    return priority(kind, parameters, 0.0, 0.0, f)


@jit
def is_full(kind, parameters, n_batch):
    """Whether the rule lets no further request join a batch of `n_batch`, whatever it is."""
    return kind == STATIC and n_batch >= parameters[0]


@jit
def admits(kind, parameters, now_s, mean_batch_s, f, n_batch, n_running, batch_s, predicted_s, due_s):
    """Whether a request may join a batch of `n_batch`.

    Args:
        batch_s, predicted_s: predicted time of the batch so far and with the request; for `PACED` the predicted decode step.
        due_s: earliest deadline that the batch so far still meets.
    """
    if kind == STATIC:
        return n_batch < parameters[0]
    if kind == CONTINUOUS:
        if 0.0 < parameters[0] <= n_batch:
            return False
        return f[RUNNING] != 0.0 or parameters[1] <= 0.0 or n_running < parameters[1]
    if kind == PIPELINED:  # context to compute has no place in the plan: it joins any batch
        return f[TURN] != 0.0 or f[UNCACHED_TOKENS] > 0.0
    if n_batch == 0:
        return True
    if kind == MARGINAL:
        return (predicted_s - batch_s) * n_batch < parameters[0] * batch_s
    if kind == PACED:
        end_s = now_s + predicted_s * (1.0 + parameters[0])
        return f[RUNNING] != 0.0 or end_s <= min(due_s, now_s + 1.0 / f[SLO_TOKENS_PER_S])
    if protects(kind) and not leads(kind, parameters, now_s, mean_batch_s, f):
        margin = margin_of(kind, parameters)
        return now_s + predicted_s * (1.0 + margin) <= min(due_s, binding_deadline_s(kind, now_s, f, margin))
    return True


@jit
def binding_deadline_s(kind, now_s, f, margin):
    """Deadline, on the clock in s, that a request puts on its batch, inf for none: one that is late even alone puts none.

    For `PACED`, a sequence's next token is due one step of its class's speed from now.
    """
    if kind == PACED:
        return now_s + 1.0 / f[SLO_TOKENS_PER_S]
    late = now_s + f[SOLO_S] * (1.0 + margin) > f[DEADLINE_S]
    return math.inf if late else f[DEADLINE_S]
