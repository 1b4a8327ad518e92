"""DiP-SD's static plan (arXiv 2604.20919): groups of devices that take turns at the server, and a length for each device.

m groups launch one batch each in a cycle of T seconds: while the batch of one group is verified, the others draft. The plan
maximises `Σ E[N(k_i)] / T` over m, the assignment of devices to groups and whole lengths k_i, with

    T = max( Σ_j b_j,  max_i b_g(i) + away_i(k_i) ),    b_j = launch + Σ_{i in j} work_i(k_i),

b_j the predicted time of group j's batch and away_i the time that device i drafts and its messages travel. As in the paper,
every m is tried, and acceptances are independent with the scenario's mean share. Instead of the paper's alternation between
assignment and lengths, single changes of both at once are made while one raises the rate.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from wisp_gym.engine.build import CLASS_STEP, accepted_share, classes_of
from wisp_gym.rules.controller import Plan
from wisp_gym.scenario import Scenario

MOST_GROUPS = 8  # groups that are tried (a group more costs a launch a cycle)
STARTS = 3  # plans of each number of groups that are improved step by step
STEPS = 200  # changes of one plan, at most
GAIN = 1.0 + 1e-12  # what counts as better than rounding

Numbers = NDArray[np.float64]
Places = NDArray[np.int64]


class Costs(NamedTuple):
    """What lengths 0 to K cost and bring."""

    tokens: Numbers  # (K + 1,) expected tokens of a round, E[N(k)]
    work_s: Numbers  # (K + 1,) what a round adds to its batch
    away_s: Numbers  # (n, K + 1) drafting and both ways
    launch_s: float


class Loads(NamedTuple):
    """What a plan comes to, seen by each group."""

    batch_s: Numbers  # (m,)
    away_s: Numbers  # (m,) of the slowest member
    tokens: float

    @property
    def cycle_s(self) -> float:
        """Time of a cycle: as long as all batches, or as the slowest device's round."""
        return float(max(self.batch_s.sum(), (self.batch_s + self.away_s).max()))


@lru_cache(maxsize=64)
def make_plan(scenario: Scenario) -> Plan:
    """The best plan found for a scenario's population, all of it drafting without pause.

    Left out of the predicted times: prompts, jitter, throttling, and the bytes of messages.
    """
    costs = costs_of(scenario)
    n = len(costs.away_s)
    found = [
        improve(costs, groups, lengths, m)
        for m in range(1, min(MOST_GROUPS, n) + 1)
        for groups, lengths in starts(costs, m)
    ]
    rate, groups, lengths, m = max(found, key=lambda plan: plan[0])
    cycle_s = loads(costs, groups, lengths, m).cycle_s
    return Plan(tuple(groups.tolist()), tuple(lengths.tolist()), m, cycle_s, rate)


def costs_of(scenario: Scenario) -> Costs:
    """Costs of each length, by the server's own estimator, at the mean context of a response."""
    alpha, e = accepted_share(scenario), scenario.estimator
    k = np.arange(scenario.max_draft_tokens + 1)
    context = scenario.workload.prompt.median_tokens + scenario.workload.output.median_tokens / 2
    work_s = (k + 1) * (e.new_token_s + e.pair_s * (context + k + 1)) + e.cached_token_s * context
    away_s = np.array([
        2.0 * d.link.one_way_s + (k > 0) * d.round_overhead_s + k / d.draft_tokens_per_s for d in scenario.devices
    ])  # fmt: skip
    kinds = classes_of(scenario.n_devices, [d.share for d in scenario.devices], CLASS_STEP)
    return Costs(np.cumsum(alpha**k), work_s, away_s[kinds], e.launch_s)


def loads(costs: Costs, groups: Places, lengths: Places, m: int) -> Loads:
    """Batch time and slowest member of each group."""
    members = np.bincount(groups, minlength=m)
    batch_s = np.bincount(groups, costs.work_s[lengths], m) + costs.launch_s * (members > 0)
    away_s = np.zeros(m)
    np.maximum.at(away_s, groups, costs.away_s[np.arange(len(groups)), lengths])
    return Loads(batch_s, away_s, float(costs.tokens[lengths].sum()))


def rate_of(costs: Costs, groups: Places, lengths: Places, m: int) -> float:
    """Expected tokens per second of a plan."""
    load = loads(costs, groups, lengths, m)
    return load.tokens / load.cycle_s


# --- where the search begins -----------------------------------------------------------------------------------------


def starts(costs: Costs, m: int) -> list[tuple[Places, Places]]:
    """The best plans of m equal groups in which all draft until a deadline, or up to a longest length."""
    groups = dealt(costs, m)
    lengths = np.unique(np.concatenate([within(costs, away_s) for away_s in np.unique(costs.away_s)]), axis=0)
    away_s = costs.away_s[np.arange(len(groups)), lengths]
    batch_s = costs.launch_s + costs.work_s[lengths] @ (groups[:, None] == np.arange(m))
    slowest_s = np.stack([away_s[:, groups == g].max(axis=1) for g in range(m)], axis=1)
    cycle_s = np.maximum(batch_s.sum(axis=1), (batch_s + slowest_s).max(axis=1))
    best = np.argsort(-costs.tokens[lengths].sum(axis=1) / cycle_s, kind="stable")[:STARTS]
    return [(groups, lengths[row]) for row in best]


def dealt(costs: Costs, m: int) -> Places:
    """Group of each device: the devices, slowest first, are dealt to the groups forth and back."""
    place = np.empty(len(costs.away_s), np.int64)
    place[np.argsort(-costs.away_s[:, -1], kind="stable")] = np.arange(len(place))
    turn, forth = place % m, place // m % 2 == 0
    return np.where(forth, turn, m - 1 - turn)


def within(costs: Costs, away_s: float) -> Places:
    """(K + 1, n) lengths of every device that end by a deadline, cut off at each longest length."""
    fits = (costs.away_s <= away_s + 1e-12).sum(axis=1) - 1
    return np.clip(fits, 0, np.arange(costs.away_s.shape[1])[:, None])


# --- one change at a time --------------------------------------------------------------------------------------------


def improve(costs: Costs, groups: Places, lengths: Places, m: int) -> tuple[float, Places, Places, int]:
    """Make the best change of one device, or the best exchange of two, while it raises the rate."""
    groups, lengths, rate = groups.copy(), lengths.copy(), rate_of(costs, groups, lengths, m)
    kinds = np.unique(costs.away_s, axis=0, return_inverse=True)[1].ravel()
    for _ in range(STEPS):
        alike = (kinds * m + groups) * len(costs.tokens) + lengths
        ones = np.unique(alike, return_index=True)[1]  # of devices that are alike, one
        gained = move(costs, groups, lengths, m, ones, rate) or swap(costs, groups, lengths, m, ones, rate)
        if not gained:
            break
        rate = gained
    return rate, groups, lengths, m


def without(costs: Costs, groups: Places, lengths: Places, m: int, ones: Places) -> tuple[Numbers, Numbers]:
    """(r, m) batch times and slowest members when each of r devices is taken out."""
    load, rows = loads(costs, groups, lengths, m), np.arange(len(ones))
    g, members = groups[ones], np.bincount(groups, minlength=m)
    away_s = costs.away_s[np.arange(len(groups)), lengths]
    batch_s, slowest_s = np.tile(load.batch_s, (len(ones), 1)), np.tile(load.away_s, (len(ones), 1))
    batch_s[rows, g] -= costs.work_s[lengths[ones]] + costs.launch_s * (members[g] == 1)
    for row, i in enumerate(ones):
        if away_s[i] >= load.away_s[groups[i]]:
            others = groups == groups[i]
            others[i] = False
            slowest_s[row, groups[i]] = away_s[others].max(initial=0.0)
    return batch_s, slowest_s


def move(costs: Costs, groups: Places, lengths: Places, m: int, ones: Places, rate: float) -> float:
    """Give one device the group and length that raise the rate most; returns the new rate, 0 if none does."""
    batch_s, slowest_s = without(costs, groups, lengths, m, ones)
    tokens = costs.tokens[lengths].sum() - costs.tokens[lengths[ones]]
    load_s, places = batch_s + slowest_s, np.arange(m)
    empty = np.isclose(batch_s, 0.0, atol=1e-12)  # a group that the device would open
    # (r, m, K + 1): device, group, length
    own_s = batch_s[:, :, None] + costs.launch_s * empty[:, :, None] + costs.work_s
    others_s = np.stack([load_s[:, places != h].max(axis=1, initial=0.0) for h in range(m)], axis=1)
    sum_s = own_s + (batch_s.sum(axis=1)[:, None] - batch_s)[:, :, None]
    round_s = own_s + np.maximum(slowest_s[:, :, None], costs.away_s[ones][:, None, :])
    rates = (tokens[:, None] + costs.tokens)[:, None, :] / np.maximum(np.maximum(sum_s, round_s), others_s[:, :, None])
    row, group, length = np.unravel_index(np.argmax(rates), rates.shape)
    if rates[row, group, length] <= rate * GAIN:
        return 0.0
    groups[ones[row]], lengths[ones[row]] = group, length
    return rate_of(costs, groups, lengths, m)


def swap(costs: Costs, groups: Places, lengths: Places, m: int, ones: Places, rate: float) -> float:
    """Exchange the groups of two devices where that lets a cycle be shorter; returns the new rate, 0 if nowhere."""
    best, pair = rate * GAIN, None
    for a, i in enumerate(ones):
        for j in ones[:a]:
            if groups[i] != groups[j]:
                groups[[i, j]] = groups[[j, i]]
                found = rate_of(costs, groups, lengths, m)
                groups[[i, j]] = groups[[j, i]]
                if found > best:
                    best, pair = found, (i, j)
    if pair is None:
        return 0.0
    i, j = pair
    groups[[i, j]] = groups[[j, i]]
    return best
