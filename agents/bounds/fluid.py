"""Upper bounds on throughput that hold for every controller: a linear programme over long-run rates.

Goodput is never more than throughput, so the bounds hold for it too. The rates, the rows that every controller satisfies
and why: `agents.bounds.fluid_rows`. What acceptance and information allow: `agents.bounds.frontier`.

Centralized serving is a case of its own: no drafts, no network between rounds. Where the server drafts too, or devices draft
while a round is away, there are more rates: `agents.bounds.fluid_joint`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from agents.bounds.fluid_joint import JointProgramme
from agents.bounds.fluid_rows import TOLERANCE, Array, Programme
from agents.bounds.kinds import BOUNDS, CENTRALIZED, INFORMATION, LIMITED, kind_of
from wisp_gym.scenario import Scenario, ServerDraft
from wisp_gym.scenario.fields import ScenarioError
from wisp_gym.values import MAX_DEVICES

ITERATIONS = 60  # at most; about ten are needed


@dataclass(frozen=True)
class Bound:
    """An upper bound with the rates that reach it and what time is worth there.

    Attributes:
        tokens_per_s: the bound on throughput, hence on goodput; 0 where the fairness floor
            cannot be met (the other fields then describe the attempt).
        group_tokens_per_s, group_draft: tokens/s, and drafted tokens per round, by device class.
        at_server: share of rounds that the server or nobody drafts while the session is there, 0 to 1.
        batch_requests: requests in a mean batch. server_use: share of time that the server verifies.
        device_price: worth of one device second by class, in tokens (over its own tokens/s: A of a price rule).
        server_price: worth of one second of the server, in tokens. token_price: worth of verifying a token (M).
    """

    kind: str
    tokens_per_s: float
    group_tokens_per_s: dict[str, float]
    group_draft: dict[str, float]
    at_server: float
    batch_requests: float
    server_use: float
    device_price: dict[str, float]
    server_price: float
    token_price: float


def fluid_bound(scenario: Scenario, kind: str = "predictor", fairness_tokens_per_s: float = 0.0) -> Bound:
    """Upper bound on the long-run throughput of every controller of a kind.

    Args:
        scenario: with its `n_devices`.
        kind: what controllers may know: `predictor` (all evidence, for its time), `confidence` (the draft model's
            confidence, for nothing), `perfect`, `oracle` (all fates); and who may draft: see `agents.bounds.kinds`.
        fairness_tokens_per_s: every device class gets at least this a device (starvation is below 1 token/s).

    Raises:
        ValueError: unknown kind. ScenarioError: a batch time that is concave in new tokens. ArithmeticError: the solver failed.
    """
    found = kind_of(kind)
    sharpness = scenario.verification.sharpness
    if sharpness < 1.0:
        raise ScenarioError(f"given {sharpness:g}, bounds need >= 1, a convex batch time", "verification.sharpness")
    if kind == CENTRALIZED or not (found.server or found.overlap):
        return bound_of(Programme(scenario, kind, fairness_tokens_per_s))
    drafts = loadable(scenario) if found.server else [None]
    bounds = [bound_of(JointProgramme(scenario, found, draft, fairness_tokens_per_s)) for draft in drafts]
    return max(bounds, key=lambda bound: bound.tokens_per_s)


def loadable(scenario: Scenario) -> list[ServerDraft | None]:
    """What a server can load: nothing, or a draft beside which the longest request fits into memory."""
    drafts = [
        draft for draft in scenario.server_drafts
        if scenario.kv_tokens_beside(draft.weights_bytes, draft.kv_bytes_per_token) >= scenario.longest_tokens
    ]  # fmt: skip
    return [None, *drafts]


def bound_of(programme: Programme) -> Bound:
    """The bound of a programme, rows and plans added until neither matters."""
    best, last = math.inf, math.inf
    for _ in range(ITERATIONS):
        x, duals, value = programme.solve()
        bound = value / programme.price(duals)
        best = min(best, bound)
        if abs(value - last) <= TOLERANCE * abs(value) and bound - value <= TOLERANCE * abs(value):
            break
        last = value
        programme.refine(x, duals)
    return summary(programme, x, duals, max(best, 0.0))


def summary(programme: Programme, x: Array, duals: Array, bound: float) -> Bound:
    """The bound with its rates and prices."""
    names = [group.name for group in programme.groups]
    here, there, drafts = programme.rounds(x)
    rounds, prompts = here + there, x[programme.of("Q")]
    server = [(dual, s) for (label, s), dual in zip(programme.labels, duals, strict=True) if label == "server"]
    return Bound(
        programme.kind,
        bound,
        dict(zip(names, map(float, x[programme.of("X")] + prompts), strict=True)),
        dict(zip(names, map(float, drafts / np.maximum(rounds, 1e-12)), strict=True)),
        float(there.sum() / max(rounds.sum(), 1e-12)),
        float((rounds + prompts).sum() / max(x[-2], 1e-12)),
        float(x[-1]),
        dict(zip(names, map(float, programme.device_price(duals)), strict=True)),
        float(sum(dual for dual, _ in server)),
        float(sum(dual * s for dual, s in server)),
    )


def named_bound(scenario: Scenario, name: str, fairness_tokens_per_s: float = 0.0) -> Bound:
    """The bound of a name of `agents.bounds.kinds.NAMES`.

    Without clairvoyance it is the larger of two: with the predictor and its time, or with confidence for nothing.
    """
    knows, *who = name.split("+")
    kinds = ["+".join([one, *who]) for one in LIMITED] if knows == INFORMATION else [name]
    bounds = [fluid_bound(scenario, kind, fairness_tokens_per_s) for kind in kinds]
    return max(bounds, key=lambda bound: bound.tokens_per_s)


def information_bound(scenario: Scenario, fairness_tokens_per_s: float = 0.0) -> Bound:
    """The bound of devices alone without clairvoyance."""
    return named_bound(scenario, INFORMATION, fairness_tokens_per_s)


def bounds_of(
    scenario: Scenario, fairness_tokens_per_s: float = 0.0, names: Sequence[str] = BOUNDS
) -> dict[str, Bound]:
    """The bounds by name; other arguments and errors as of `fluid_bound`."""
    return {name: named_bound(scenario, name, fairness_tokens_per_s) for name in names}


def capacity(scenario: Scenario, tokens_per_s: float) -> int:
    """Largest population in which information-limited controllers can give every device a rate, thinking included.

    Doubling, then bisection on whether the fluid bound with that fairness floor is above 0.
    """

    def possible(n: int) -> bool:
        return information_bound(replace(scenario, n_devices=n), tokens_per_s).tokens_per_s > 0.0

    low, high = 0, 1
    while high <= MAX_DEVICES and possible(high):
        low, high = high, 2 * high
    while high - low > max(1, low // 100):
        middle = (low + high) // 2
        low, high = (middle, high) if possible(middle) else (low, middle)
    return low
