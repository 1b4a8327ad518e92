"""The least that a committed token costs where each round may be drafted in one of several ways.

A round is drafted *cold* (by the device, from its start on), *warm* (by the device, without overhead, as a token that
it drafted ahead was right), *ahead* (all its tokens were drafted while the round before was away) or *at the server*.
Each has costs of its own by length. A controller chooses the way at each round's start, and may so give the server
those positions that suit it: plans of each way apart would not bound it. So the plan is one problem
(`agents.bounds.frontier` has the case of one way): rounds of any way, from what came before the round. A round of which
only the first tokens were drafted ahead costs no less than one that was drafted ahead throughout, as no row puts a
price on a token for having been drafted ahead.

**Before a round.** *hit*: a device's round of which everything, and the target's own token after it, was as drafted;
what its device drafted ahead can be used. *plain*: the position before was right, but no device had drafted up to it.
*missed*: it was not.

**One source.** Where the server's draft has the devices' fates, a position is right or wrong for both.

**Two sources.** Each has a logit of its own, both normal and correlated as the process says. Of the source that did
not draft the round before, the controller is told that it was right at the position before, which only makes its next
token likelier; so a further start, *missed at the server*, is enough. (A source with likelier tokens costs no more:
its drafter can take accepted ones for rejected.) An oracle takes every position at which either source is right,
whoever drafts.

Policy iteration (Howard, 1960) at every logit; a round in a million is told that it follows a hit, which makes every
policy one chain.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
from scipy.special import expit

from agents.bounds.frontier import (
    DRIFT_MARGIN,
    LONGEST_RUN,
    Array,
    Rounds,
    bounded,
    evidence,
    first_and_later,
    normal_nodes,
)
from agents.bounds.kinds import LIMITED, Kind
from wisp_gym.engine.acceptance import DRIFT_BLOCK_TOKENS
from wisp_gym.jit import jit
from wisp_gym.scenario import Acceptance, Scenario, ServerDraft

WAYS = COLD, WARM, AHEAD, AT_SERVER = range(4)
STARTS = HIT, PLAIN, MISSED, MISSED_AT_SERVER = range(4)
PAIR_NODES = 7  # Gauss–Hermite nodes of either logit where there are two
TOLD_SHARE = 1e-6  # of rounds, told that they follow a hit
MAX_SWEEPS = 50

JointPlan = Callable[[Array], Array]  # (ways, K + 1) cost of a round → (ways, K + 1) rounds per committed token


class Way(NamedTuple):
    """How a round can be drafted.

    Attributes:
        rounds: stopping of its source; steps 0 where it drafts nothing. fates: starts from which it is open → 0 where its source
            was right at the position before, 1 where it was not.
        right, sent, wrong: the start that follows a round with tokens after which the next one is right, one without tokens,
            and one after which it is wrong. drafts: whether it has a token at least.
    """

    rounds: Rounds
    fates: dict[int, int]
    right: int
    sent: int
    wrong: int
    drafts: bool = False


# --- what both sources do ----------------------------------------------------------------------------------------------


def same_source(scenario: Scenario, draft: ServerDraft | None) -> bool:
    """Whether the server's draft has the fates of the devices'; where it has none, it drafts nothing that could differ."""
    return draft is None or (draft.correlation == 1.0 and draft.acceptance == scenario.draft.acceptance)


def logit_correlation(a: Acceptance, b: Acceptance, correlation: float) -> float:
    """Correlation of the logits of two sources at one position: request effects and drift innovations have `correlation`."""
    keep = [math.exp(-DRIFT_BLOCK_TOKENS / one.drift_tokens) for one in (a, b)]
    drift = math.sqrt((1.0 - keep[0] ** 2) * (1.0 - keep[1] ** 2)) / (1.0 - keep[0] * keep[1])
    covariance = a.request_std * b.request_std + a.drift_std * b.drift_std * drift
    spread = math.hypot(a.request_std, a.drift_std) * math.hypot(b.request_std, b.drift_std)
    return correlation * covariance / spread if spread > 0.0 else 0.0


def pair_of_firsts(scenario: Scenario, draft: ServerDraft) -> tuple[Array, Array, Array]:
    """(2, n) acceptance of a first token by the devices' draft, (2, n) by the server's, and the (n,) shares of positions."""
    a = bounded(scenario.draft.acceptance, "draft.acceptance")
    b = bounded(draft.acceptance, f"server draft '{draft.name}': acceptance")
    nodes, weights = normal_nodes(PAIR_NODES)
    x, own = (axis.ravel() for axis in np.meshgrid(nodes, nodes, indexing="ij"))
    r = logit_correlation(a, b, draft.correlation)
    y = r * x + math.sqrt(max(1.0 - r * r, 0.0)) * own
    logits = [one.logit_mean + math.hypot(one.request_std, one.drift_std) * z for one, z in ((a, x), (b, y))]
    firsts = [expit(np.stack([z, z - one.after_rejection_logit])) for one, z in zip((a, b), logits, strict=True)]
    return firsts[0], firsts[1], np.outer(weights, weights).ravel()


def firsts_of(scenario: Scenario, draft: ServerDraft | None) -> tuple[Array, Array, Array]:
    """The same for one source or two."""
    if draft is not None and not same_source(scenario, draft):
        return pair_of_firsts(scenario, draft)
    first, _, shares = first_and_later(scenario)
    return first, first, shares


# --- limited information -------------------------------------------------------------------------------------------------


def ways_of(scenario: Scenario, kind: Kind, draft: ServerDraft | None) -> tuple[dict[int, Way], Array]:
    """The ways in which a kind of controller may draft, and the (n,) shares of positions by logit."""
    device, server, shares = firsts_of(scenario, draft)
    ways, steps, same = {}, scenario.max_draft_tokens, same_source(scenario, draft)
    if kind.devices:
        rounds = Rounds(device, steps, evidence(scenario, kind.knows))
        hit = HIT if kind.overlap else PLAIN
        fates = {PLAIN: 0, MISSED: 1, MISSED_AT_SERVER: 0} | ({HIT: 0} if kind.overlap else {})
        ways[COLD] = Way(rounds, fates, hit, PLAIN, MISSED)
        if kind.overlap:
            ways[WARM] = Way(rounds, {HIT: 0}, hit, PLAIN, MISSED)
            ways[AHEAD] = Way(rounds, {HIT: 0}, hit, PLAIN, MISSED, drafts=True)
    if kind.server:
        knows = LIMITED[0] if kind.knows in LIMITED else kind.knows  # the server's evidence takes no time
        rounds = Rounds(
            server, steps if draft else 0, evidence(scenario, knows), 1.0 if same or not draft else draft.offer
        )
        fates = {HIT: 0, PLAIN: 0, MISSED: 1 if same else 0, MISSED_AT_SERVER: 1}
        ways[AT_SERVER] = Way(rounds, fates, PLAIN, PLAIN, MISSED if same else MISSED_AT_SERVER)
    return ways, shares


class Played(NamedTuple):
    """A way at a policy's prices: what a round brings and where it goes on.

    Attributes:
        tokens, cost: (2, n). to: (2, n, starts) chances of what the next round starts from. goes_on: as of `Rounds.lengths`.
    """

    tokens: Array
    cost: Array
    to: Array
    goes_on: list[Array]


def play(way: Way, cost: Array, rate: Array, worth: Array) -> Played:
    """The best rounds of a way.

    Args:
        cost: (K + 1,) of a round. rate: (n,) worth of a token. worth: (n, starts) of what the next round starts from.
    """
    rounds, send = way.rounds, way.rounds.outcome(way.rounds.first)
    begins, chosen = np.zeros(rounds.first.shape, bool), send
    goes_on: list[Array] = []
    if rounds.steps > 0:
        right, sent = worth[:, way.right] - worth[:, way.wrong], worth[:, way.sent] - worth[:, way.wrong]
        best, goes_on = rounds.going_on(cost, rate, right)
        draft = rounds.drafted(best, cost)
        gain = rate * draft[..., 0] - draft[..., 1] + draft[..., 2] * right - send[..., 2] * sent
        begins = np.full(gain.shape, True) if way.drafts else gain > 0.0
        chosen = np.where(begins[..., None], draft, send)
    accepted, to = chosen[..., 2], np.zeros((*begins.shape, len(STARTS)))
    to[..., way.wrong] = 1.0 - accepted
    to[..., way.right] += np.where(begins, accepted, 0.0)
    to[..., way.sent] += np.where(begins, 0.0, accepted)
    return Played(chosen[..., 0] + 1.0, chosen[..., 1] + cost[0], to, [begins, *goes_on])


class Joint:
    """The cheapest mixture of ways, at every logit at once."""

    def __init__(self, ways: dict[int, Way], shares: Array) -> None:
        self.ways, self.shares = ways, shares
        self.everyone = np.arange(len(shares))

    def improve(self, costs: Array, rate: Array, worth: Array) -> tuple[dict[int, Played], Array]:
        """Rounds of each way at these prices, and the (starts, n) best way from each start; −1 where a start cannot be."""
        played = {name: play(way, costs[name], rate, worth) for name, way in self.ways.items()}
        best, most = np.full((len(STARTS), len(rate)), -1), np.full((len(STARTS), len(rate)), -np.inf)
        for name, p in played.items():
            value = rate * p.tokens - p.cost + (p.to * worth[:, None, :].swapaxes(0, 1)).sum(axis=-1)
            for start, fate in self.ways[name].fates.items():
                better = value[fate] > most[start]
                best[start][better], most[start] = name, np.maximum(most[start], value[fate])
        return played, best

    def follow(self, played: dict[int, Played], best: Array) -> tuple[Array, Array, Array]:
        """(n, starts) tokens and cost of a round from each start, and (n, starts, starts) chances of the next one."""
        n = len(self.shares)
        tokens, cost, to = np.ones((n, len(STARTS))), np.ones((n, len(STARTS))), np.zeros((n, len(STARTS), len(STARTS)))
        to[:, :, PLAIN] = 1.0  # of starts that cannot be
        for name, p in played.items():
            for start, fate in self.ways[name].fates.items():
                at = best[start] == name
                tokens[at, start], cost[at, start], to[at, start] = p.tokens[fate, at], p.cost[fate, at], p.to[fate, at]
        told = HIT if WARM in self.ways else PLAIN
        to *= 1.0 - TOLD_SHARE
        to[:, :, told] += TOLD_SHARE
        return tokens, cost, to

    def plan(self, costs: Array) -> Array:
        """(ways, K + 1) rounds of the cheapest policy per committed token."""
        rate = np.full(len(self.shares), min(costs[name][int(way.drafts)] for name, way in self.ways.items()))
        worth: Array = np.zeros((len(self.shares), len(STARTS)))
        for _ in range(MAX_SWEEPS):
            played, best = self.improve(costs, rate, worth)
            tokens, cost, to = self.follow(played, best)
            matrix = to - np.eye(len(STARTS))
            matrix[:, :, PLAIN] = tokens
            worth = np.asarray(np.linalg.solve(matrix, cost[..., None])[..., 0])
            last, rate = rate, worth[:, PLAIN].copy()
            worth[:, PLAIN] = 0.0
            if np.abs(rate - last).max() <= 1e-10 * max(np.abs(rate).max(), 1e-300):
                break
        return self.counted(costs.shape, played, best, tokens, to)

    def counted(
        self, shape: tuple[int, ...], played: dict[int, Played], best: Array, tokens: Array, to: Array
    ) -> Array:
        """Rounds by way and length per committed token, over starts and logits."""
        matrix = (to - np.eye(len(STARTS))).swapaxes(1, 2)
        matrix[:, PLAIN, :] = 1.0
        one = np.zeros((len(self.shares), len(STARTS), 1))
        one[:, PLAIN] = 1.0
        often = np.linalg.solve(matrix, one)[..., 0]  # (n, starts) share of rounds
        often *= (self.shares / (often * tokens).sum(axis=-1))[:, None]
        rounds = np.zeros(shape)
        for name, way in self.ways.items():
            lengths = way.rounds.lengths(played[name].goes_on)
            for start, fate in way.fates.items():
                weight = np.where(best[start] == name, often[:, start], 0.0)
                rounds[name, : lengths.shape[-1]] += weight @ lengths[fate]
        return rounds


# --- the oracle ----------------------------------------------------------------------------------------------------------


def runs_of(scenario: Scenario, draft: ServerDraft | None) -> tuple[Array, Array, Array]:
    """(n,) chance that a run of right positions begins after a wrong one, (n,) that it goes on, and the (n,) shares.

    Of two sources either may be right: the devices' draw is the server's with probability ρ, else each has its own.
    """
    device, server, shares = firsts_of(scenario, draft)
    if draft is None or same_source(scenario, draft):
        return device[1], device[0], shares
    p, q = device[0], server[0]
    either = draft.correlation * np.maximum(p, q) + (1.0 - draft.correlation) * (1.0 - (1.0 - p) * (1.0 - q))
    return either, either, shares


def cheapest_joint_cuts(costs: Array, kind: Kind, server_steps: int) -> Array:
    """(LONGEST_RUN + 1, ways, K + 1) rounds in the cheapest cover of 0, 1, … positions, of which the last is wrong.

    The first round follows a wrong position. A device's round with tokens inside the run is a hit.
    """
    after = np.array([HIT if kind.overlap else PLAIN, HIT, HIT, PLAIN])  # by way
    most = np.zeros((2, len(WAYS)), np.int64)  # lengths that are open from a hit and from plain starts, by way
    most[:, AT_SERVER] = min(server_steps + 1, costs.shape[1]) if kind.server else 0
    most[PLAIN, COLD] = costs.shape[1] if kind.devices else 0
    most[HIT, [WARM, AHEAD]] = costs.shape[1] if kind.overlap else 0
    rounds = np.zeros((2, LONGEST_RUN + 1, costs.size))
    cover_runs(np.ascontiguousarray(costs), most, after, np.zeros((2, LONGEST_RUN + 1)), rounds)
    return rounds[PLAIN].reshape(-1, *costs.shape)


@jit
def cover_runs(costs, most, after, least, rounds):  # type: ignore[no-untyped-def]
    """Write what 0, 1, … positions cost at least from either start, (2, longest + 1), and the (2, longest + 1, ways · (K + 1)) rounds.

    Args:
        costs: (ways, K + 1). most: (2, ways) lengths that are open. after: (ways,) start that follows a round with tokens.
    """
    for n in range(1, least.shape[1]):
        for start in (HIT, PLAIN):
            best, way, k = math.inf, 0, 0
            for w in range(len(costs)):
                for tokens in range(1 if w == AHEAD else 0, min(n, most[start, w])):
                    total = costs[w, tokens] + least[after[w], n - tokens - 1]
                    if tokens == 0:  # no device drafted up to the position before
                        total += least[PLAIN, n - 1] - least[after[w], n - 1]
                    if total < best:
                        best, way, k = total, w, tokens
            least[start, n] = best
            before = after[way] if k > 0 else PLAIN
            for place in range(rounds.shape[2]):
                rounds[start, n, place] = rounds[before, n - k - 1, place]
            rounds[start, n, way * costs.shape[1] + k] += 1.0


def oracle_joint_plan(scenario: Scenario, kind: Kind, draft: ServerDraft | None) -> JointPlan:
    """Cheapest plan of a controller that knows every fate."""
    first, p, shares = runs_of(scenario, draft)
    run = np.arange(LONGEST_RUN)[:, None]
    chance = np.where(run == 0, 1.0 - first, first * p ** np.maximum(run - 1, 0) * (1.0 - p))
    share = chance @ (shares / (1.0 + first / (1.0 - p)))  # (runs,) runs of each length per position
    steps = scenario.max_draft_tokens if draft else 0
    return lambda costs: np.tensordot(share, cheapest_joint_cuts(costs, kind, steps)[1:], 1)


@cache
def cheapest_joint_plan(scenario: Scenario, kind: Kind, draft: ServerDraft | None) -> JointPlan:
    """Rounds of each way and length per committed token, as a function of what each costs.

    Args:
        scenario: its devices' draft, its cap K. kind: what is known and who may draft. draft: what the server has loaded, if anything.
    """
    if kind.knows == "oracle":
        plan = oracle_joint_plan(scenario, kind, draft)
    else:
        plan = Joint(*ways_of(scenario, kind, draft)).plan
    drifts = [scenario.draft.acceptance.drift_std, draft.acceptance.drift_std if draft else 0.0]
    share = 1.0 - DRIFT_MARGIN if max(drifts) > 0.0 else 1.0
    return lambda costs: share * plan(costs)
