"""Upper bounds on throughput that hold for every controller: a linear programme over long-run rates.

Goodput is never more than throughput, so the bounds hold for it too. The rates, the rows that every controller satisfies
and why: `agents.bounds.fluid_rows`. What acceptance and information allow: `agents.bounds.frontier`.

Centralized serving is a case of its own: no drafts, no network between rounds.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from agents.bounds.fluid_rows import TOLERANCE, Array, Programme
from wisp_gym.scenario import Scenario
from wisp_gym.scenario.fields import ScenarioError
from wisp_gym.values import MAX_DEVICES

BOUNDS = ("information", "perfect", "oracle", "centralized")  # what a controller may know
KINDS = ("predictor", "confidence", "perfect", "oracle", "centralized")
ITERATIONS = 60  # at most; about ten are needed


@dataclass(frozen=True)
class Bound:
    """An upper bound with the rates that reach it and what time is worth there.

    Attributes:
        tokens_per_s: the bound on throughput, hence on goodput; 0 where the fairness floor
            cannot be met (the other fields then describe the attempt).
        group_tokens_per_s, group_draft: tokens/s, and drafted tokens per round, by device class.
        batch_requests: requests in a mean batch. server_use: share of time that the server verifies.
        device_price: worth of one device second by class, in tokens (over its own tokens/s: A of a price rule).
        server_price: worth of one second of the server, in tokens. token_price: worth of verifying a token (M).
    """

    kind: str
    tokens_per_s: float
    group_tokens_per_s: dict[str, float]
    group_draft: dict[str, float]
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
            confidence, for nothing), `perfect`, `oracle` (all fates); or `centralized` serving.
        fairness_tokens_per_s: every device class gets at least this a device (starvation is below 1 token/s).

    Raises:
        ValueError: unknown kind. ScenarioError: a batch time that is concave in new tokens. ArithmeticError: the solver failed.
    """
    if kind not in KINDS:
        raise ValueError(f"kind: given '{kind}', allowed: {', '.join(KINDS)}")
    sharpness = scenario.verification.sharpness
    if sharpness < 1.0:
        raise ScenarioError(f"given {sharpness:g}, bounds need >= 1, a convex batch time", "verification.sharpness")
    programme = Programme(scenario, kind, fairness_tokens_per_s)
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
    rounds, prompts, drafts = (x[programme.of(field)] for field in "RQD")
    server = [(dual, s) for (label, s), dual in zip(programme.labels, duals, strict=True) if label == "server"]
    return Bound(
        programme.kind,
        bound,
        dict(zip(names, map(float, x[programme.of("X")] + prompts), strict=True)),
        dict(zip(names, map(float, drafts / np.maximum(rounds, 1e-12)), strict=True)),
        float((rounds + prompts).sum() / max(x[-2], 1e-12)),
        float(x[-1]),
        dict(zip(names, map(float, programme.device_price(duals)), strict=True)),
        float(sum(dual for dual, _ in server)),
        float(sum(dual * s for dual, s in server)),
    )


def information_bound(scenario: Scenario, fairness_tokens_per_s: float = 0.0) -> Bound:
    """The larger of the two bounds without clairvoyance: with the predictor and its time, or with confidence for nothing."""
    bounds = [fluid_bound(scenario, kind, fairness_tokens_per_s) for kind in ("predictor", "confidence")]
    return max(bounds, key=lambda bound: bound.tokens_per_s)


def bounds_of(scenario: Scenario, fairness_tokens_per_s: float = 0.0) -> dict[str, Bound]:
    """The bounds by what controllers know, one for each of `BOUNDS`; arguments and errors as of `fluid_bound`."""
    others = {kind: fluid_bound(scenario, kind, fairness_tokens_per_s) for kind in BOUNDS[1:]}
    return {"information": information_bound(scenario, fairness_tokens_per_s), **others}


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
