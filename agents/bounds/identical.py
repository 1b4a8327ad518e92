"""Closed forms for identical devices that draft k tokens in every round: the periodic schedule, and capacity at a speed.

In the periodic schedule groups of B devices take turns and the server never waits: a device's cycle is drafting, links and
one batch, `R·(k/v + RTT + t(B)) = n` with `R = B/t(B)`, t the time of a batch of B·(k + 1) new tokens. For
`t = a + w·B` this is `R·(k/v + RTT + a) + w·R²·a/(1 − R·w) = n`. Prompts, think time and context are left out.
"""

import math
from dataclasses import dataclass

from scipy.optimize import brentq

from agents.bounds.fluid_parts import Group, batch_s, groups_of, requests_of
from agents.bounds.frontier import tokens_per_round
from wisp_gym.scenario import Scenario


@dataclass(frozen=True)
class Periodic:
    """The periodic schedule of rounds of `draft_tokens`: throughput, requests a batch, seconds a batch."""

    draft_tokens: int
    tokens_per_s: float
    batch_requests: float
    batch_s: float


def is_identical(scenario: Scenario) -> bool:
    """Whether all devices of the scenario are of one class."""
    return len(groups_of(scenario, pays_predictor=False)) == 1


def outside_s(scenario: Scenario, group: Group, k: int) -> float:
    """Time of a round outside the server: drafting without heat, and both messages."""
    drafting_s = group.overhead_s * (k > 0) + k * (group.token_s + group.draft_payload_s)
    return drafting_s + group.round_s + tokens_per_round(scenario, k) * group.token_payload_s


def periodic(scenario: Scenario, k: int) -> Periodic:
    """The periodic schedule of the scenario's devices with k drafted tokens; a server that idles serves one at a time.

    Raises:
        ValueError: devices of more than one class.
    """
    if not is_identical(scenario):
        raise ValueError(f"scenario '{scenario.name}': devices differ, allowed: one device class")
    (group,) = groups_of(scenario, pays_predictor=False)
    n, away_s = scenario.n_devices, outside_s(scenario, group, k)

    def devices(size: float) -> float:
        return size * (1.0 + away_s / batch_s(scenario, size * (k + 1)))

    # Below one device a batch the server waits between batches of one.
    size = 1.0 if devices(1.0) >= n else brentq(lambda b: devices(b) - n, 1.0, float(n))
    time_s = batch_s(scenario, size * (k + 1))
    rounds_per_s = n / (away_s + time_s)
    return Periodic(k, rounds_per_s * tokens_per_round(scenario, k), size, time_s)


def best_periodic(scenario: Scenario) -> Periodic:
    """The periodic schedule with the length that gives most."""
    return max((periodic(scenario, k) for k in range(scenario.max_draft_tokens + 1)), key=lambda p: p.tokens_per_s)


def capacity_at_speed(scenario: Scenario, tokens_per_s: float) -> tuple[int, int]:
    """(devices, draft tokens): the largest population of identical devices that fixed lengths keep at a speed.

    For each k a device needs `r = speed / E[tokens]` rounds/s. The batch may be as large as `1/r ≥ away + t(B)` and KV
    memory allow (mean prompt and half of a mean output a member); then `n = B / (r·t(B))`, which rises with B.

    Raises:
        ValueError: devices of more than one class.
    """
    if not is_identical(scenario):
        raise ValueError(f"scenario '{scenario.name}': devices differ, allowed: one device class")
    (group,), requests = groups_of(scenario, pays_predictor=False), requests_of(scenario)
    best = (0, 0)
    for k in range(scenario.max_draft_tokens + 1):
        rate = tokens_per_s / tokens_per_round(scenario, k)
        spare_s = 1.0 / rate - outside_s(scenario, group, k)
        memory = scenario.kv_tokens / (requests.prompt + requests.rounds_output / 2.0 + k + 1.0)
        largest = min(memory, float(scenario.server.max_batch_requests))
        if spare_s < batch_s(scenario, k + 1.0) or largest < 1.0:
            continue
        size = largest
        if batch_s(scenario, largest * (k + 1)) > spare_s:
            size = brentq(lambda b, k=k, spare_s=spare_s: batch_s(scenario, b * (k + 1)) - spare_s, 1.0, largest)
        best = max(best, (math.floor(size / (rate * batch_s(scenario, size * (k + 1))) + 1e-9), k))
    return best
