"""The least that a committed token costs, in rounds and drafted tokens: the limit set by acceptance and by information.

Let a round of k drafted tokens cost `c(k)`. For every controller, in the long run,

    E[Σ c(k) over rounds]  ≥  (Σ_k c(k)·plan_k) · E[tokens committed in rounds],

where `plan_k` counts the rounds of k drafted tokens per committed token under the rule that is cheapest for c.

Fates belong to positions of the output (docs/model/model.md, section 4), so no controller chooses which positions it meets: a
share P(z) of them has the logit z = mean + request effect + drift, whatever it does. The plan is the mean over z of
that of a process of constant logit z, for a controller that is *told* z and the fate of the position before.

**Oracle.** All fates are known, so nothing is drafted beyond a rejected position: a run of accepted positions and the
rejected one behind it are cut into rounds of 1 … K + 1 tokens, at the least cost (dynamic programming over the run).

**Predictor.** The device sees evidence of each drafted token, `N((fate − ½)·d, 1)`. With S the probability that all
tokens so far are accepted, given their evidence, one more token adds S·p expected tokens, and S becomes the posterior
of the prior S·p: S is all that matters. Stopping is solved backwards over (k, S), the ratio of cost to tokens and the
worth of a round's start after an accepted position by policy iteration (Howard, 1960). The value is convex in S; the
grid replaces each posterior by its two neighbours with the same mean, a more informative experiment (Blackwell, 1953),
so the computed cost lies below the true one: the bound stays valid on any grid.

**What is not proved.** Within a round z may move from one block of eight positions to the next, and it is held constant
here. A controller that knew every z of the request beforehand would save .02 to .29 % of the cost
(`tests/agents/test_bounds.py::test_drift_within_a_round_is_worth_less_than_its_margin`), so with drift every plan is taken half a
per cent cheaper (`DRIFT_MARGIN`).
"""

import math
from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit, ndtr

from wisp_gym.engine.acceptance import VIEW_SHARES
from wisp_gym.engine.build import separation
from wisp_gym.errors import InputError
from wisp_gym.scenario import Acceptance, Scenario

Array = NDArray[np.float64]
Plan = Callable[[Array], Array]  # (K + 1,) cost of a round by its drafted tokens → (K + 1,) rounds per committed token

LOGIT_NODES = 15  # Gauss–Hermite nodes of the logit
SURVIVAL_POINTS = 81
LONGEST_RUN = 1024  # accepted positions in a row; longer runs count as free, which keeps the bound valid
DRIFT_MARGIN = 0.005
CERTAIN = 40.0  # evidence so far apart tells every fate


@cache
def normal_nodes(n: int) -> tuple[Array, Array]:
    """(n,) Gauss–Hermite nodes of a standard normal variable and their (n,) shares."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(n)
    return nodes, weights / weights.sum()


def logits(scenario: Scenario) -> tuple[Array, Array]:
    """(n,) logits of a position and (n,) shares of positions that have them; one where acceptance does not vary."""
    a = bounded(scenario.draft.acceptance, "draft.acceptance")
    spread = math.hypot(a.request_std, a.drift_std)
    nodes, shares = normal_nodes(LOGIT_NODES if spread > 0.0 else 1)
    return a.logit_mean + spread * nodes, shares


def bounded(acceptance: Acceptance, key: str) -> Acceptance:
    """The same process, if it is one that the bounds hold for.

    Raises:
        InputError: loops, whose fates have no odds; or a token after a rejected one that is easier than others.
    """
    if acceptance.loop_enter > 0.0:
        raise InputError(
            f"bounds: {key}.loop_enter given {acceptance.loop_enter:g}, allowed: 0, a process without loops"
        )
    if acceptance.after_rejection_logit < 0.0:
        given = f"{acceptance.after_rejection_logit:g}"
        raise InputError(f"bounds: {key}.after_rejection_logit given {given}, allowed: >= 0")
    return acceptance


def first_and_later(scenario: Scenario) -> tuple[Array, Array, Array]:
    """(2, n) acceptance of a position after an accepted and after a rejected one, at each logit, and the (n,) shares.

    Row 0 is also that of every token but the first of a round, given that those before it are accepted.
    """
    z, weights = logits(scenario)
    p = expit(np.stack([z, z - scenario.draft.acceptance.after_rejection_logit]))
    return p, p[0], weights


def tokens_per_round(scenario: Scenario, k: int) -> float:
    """Mean committed tokens of a round of k drafted tokens in the long run: `1 / E[1 / E[tokens | logit]]`.

    With constant acceptance `(1 − α^(k+1)) / (1 − α)` (arXiv 2211.17192).
    """
    first, p, weights = first_and_later(scenario)
    run = sum((p**j for j in range(k)), np.zeros_like(p))  # (1 − p^k) / (1 − p)
    tokens = 1.0 + first * run
    accepted = first * p**k  # all of the round, and the bonus position too
    after_rejection = (1.0 - accepted[0]) / (1.0 - accepted[0] + accepted[1])
    rate = (1.0 - after_rejection) * tokens[0] + after_rejection * tokens[1]
    return float(1.0 / (weights / rate).sum())


# --- the oracle ------------------------------------------------------------------------------------------------------


def cheapest_cuts(cost: Array, longest: int) -> Array:
    """(longest + 1, K + 1) rounds of each length in the cheapest cover of 0, 1, … positions by rounds of k + 1 tokens."""
    least, rounds = np.zeros(longest + 1), np.zeros((longest + 1, len(cost)))
    for n in range(1, longest + 1):
        size = min(n, len(cost))
        totals = cost[:size] + least[n - size : n][::-1]
        k = int(totals.argmin())
        least[n], rounds[n] = totals[k], rounds[n - k - 1]
        rounds[n, k] += 1.0
    return rounds


def oracle_plan(scenario: Scenario) -> Plan:
    """Cheapest plan of a controller that knows every fate."""
    first, p, weights = first_and_later(scenario)
    run = np.arange(LONGEST_RUN)[:, None]
    after_rejection = first[1]  # a run follows a rejected position
    chance = np.where(run == 0, 1.0 - after_rejection, after_rejection * p ** np.maximum(run - 1, 0) * (1.0 - p))
    positions = 1.0 + after_rejection / (1.0 - p)  # mean of run + 1
    share = chance @ (weights / positions)  # (runs,) runs of each length per position

    return lambda cost: np.asarray(share @ cheapest_cuts(cost, LONGEST_RUN)[1:])


# --- limited information -----------------------------------------------------------------------------------------------


def survival_grid() -> Array:
    """(SURVIVAL_POINTS,) survival probabilities, denser near 0 and 1."""
    return np.concatenate([[0.0], expit(np.linspace(-8.0, 8.0, SURVIVAL_POINTS - 2)), [1.0]])


def transition(prior: Array, grid: Array, d: float) -> Array:
    """(…, m) distribution over the (m,) grid of the posterior of (…,) priors, each cell split to its ends by its mean."""
    a = np.clip(prior, 1e-12, 1.0 - 1e-12)[..., None]
    with np.errstate(divide="ignore"):
        threshold = (logit(grid) - logit(a)) / d
    accepted, rejected = np.diff(ndtr(threshold - d / 2.0)), np.diff(ndtr(threshold + d / 2.0))
    chance, mean = a * accepted + (1.0 - a) * rejected, a * accepted
    upper = np.clip((mean - grid[:-1] * chance) / np.diff(grid), 0.0, chance)
    weights = np.zeros((*prior.shape, len(grid)))
    weights[..., 1:] += upper
    weights[..., :-1] += chance - upper
    return weights


def run_length(values: Array) -> int:
    """Largest length whose multiples are the lengths of all runs of equal numbers in (n,) values."""
    ends = np.flatnonzero(np.diff(values, prepend=np.nan, append=np.nan))
    return int(np.gcd.reduce(np.diff(ends)))


class Rounds:
    """Rounds of one source whose drafter knows the logit, by dynamic programming over (k, survival), for all logits at once.

    Arrays have the axes: fate before the round (2), logit (n), survival (m), and three outcomes: tokens, cost, and
    whether the next round starts after an accepted position.
    """

    def __init__(self, first: Array, steps: int, d: float, offer: float = 1.0) -> None:
        """Tables of a source.

        Args:
            first: (2, n) acceptance after an accepted and after a rejected position. steps: longest round K, tokens.
            d: distance of the evidence. offer: probability that the source drafts where its first token would be rejected.
        """
        grid = survival_grid()
        self.first, self.steps = first, steps
        self.offered = (
            first + (1.0 - first) * offer if offer < 1.0 else np.ones_like(first)
        )  # (2, n) that it drafts at all
        self.later = grid * first[0][:, None]  # (n, m) chance that one more token is accepted too
        self.move_first = transition(first / self.offered, grid, d)  # (2, n, m)
        alike = run_length(first[0])
        self.move_later = transition(self.later[::alike], grid, d)  # (n/alike, m, m): the logits of a run move alike

    def going_on(self, cost: Array, rate: Array, worth: Array) -> tuple[Array, list[Array]]:
        """Outcomes (n, m, 3) of what follows the first token where that maximises `rate·tokens − cost + worth·start`.

        Args:
            cost: (K + 1,) cost of a round. rate: (n,) worth of a token. worth: (n,) of starting after an accepted one.

        Returns:
            The outcomes, and for k = 1 … K − 1 whether one more token is drafted: (n, m) each.
        """
        value = worth[:, None] * self.later  # of an outcome at these prices: it moves as the three do, (n, 4, m)
        stop = np.concatenate([np.moveaxis(self.outcome(self.later), -1, 1), value[:, None]], axis=1)
        best, goes_on = stop, []
        for k in range(self.steps - 1, 0, -1):
            more, step = self.moved(best, self.move_later.swapaxes(1, 2)), cost[k + 1] - cost[k]
            more[:, 0] += self.later
            more[:, 1] += step
            more[:, 3] += rate[:, None] * self.later - step
            better = more[:, 3] > value
            best = np.where(better[:, None], more, stop)
            goes_on.append(better)
        return np.moveaxis(best[:, :3], 1, -1), goes_on[::-1]

    @staticmethod
    def moved(rows: Array, move: Array) -> Array:
        """(n, r, m) rows of each logit through (n/alike, m, m), read once for all the logits that share it."""
        return np.asarray((rows.reshape(len(move), -1, rows.shape[-1]) @ move).reshape(rows.shape))

    def drafted(self, best: Array, cost: Array) -> Array:
        """Outcomes (2, n, 3) of drafting a first token, beyond a round of none, given those of what follows it."""
        draft = self.offered[..., None] * (self.move_first[..., None, :] @ best)[..., 0, :]
        draft[..., 0] += self.first
        draft[..., 1] += self.offered * (cost[1] - cost[0])
        return np.asarray(draft)

    @staticmethod
    def outcome(next_accepted: Array) -> Array:
        """Outcomes of stopping: no more tokens, no more cost, and the chance that the bonus position is accepted."""
        zero = np.zeros_like(next_accepted)
        return np.stack([zero, zero, next_accepted], axis=-1)

    def lengths(self, goes_on: list[Array]) -> Array:
        """(2, n, K + 1) shares of rounds by drafted tokens under a rule."""
        shares = np.zeros((*self.first.shape, self.steps + 1))
        shares[..., 0] = 1.0 - self.offered * goes_on[0]
        reached = (self.move_first * (self.offered * goes_on[0])[..., None]).swapaxes(0, 1)  # (n, 2, m)
        for k in range(1, self.steps):
            going = reached * goes_on[k][:, None]
            shares[..., k] = (reached - going).sum(axis=-1).T
            reached = self.moved(going, self.move_later)
        shares[..., self.steps] += reached.sum(axis=-1).T
        return shares


class Stopping(Rounds):
    """The best stopping rule of the devices' draft, where devices alone draft."""

    def __init__(self, scenario: Scenario, d: float) -> None:
        first, _, self.weights = first_and_later(scenario)
        super().__init__(first, scenario.max_draft_tokens, d)

    def best_round(self, cost: Array, rate: Array, worth: Array) -> tuple[Array, list[Array]]:
        """Outcomes (2, n, 3) of the best round, arguments as of `going_on`, and for k = 0 … K − 1 where it goes on."""
        price = np.stack([rate, -np.ones_like(rate), worth], axis=-1)
        best, goes_on = self.going_on(cost, rate, worth)
        send, draft = self.outcome(self.first), self.drafted(best, cost)
        better = ((draft - send) * price).sum(axis=-1) > 0.0
        chosen = np.where(better[..., None], draft, send) + np.array([1.0, cost[0], 0.0])
        return chosen, [better, *goes_on]

    def plan(self, cost: Array) -> Array:
        """Cheapest plan, by policy iteration from the rule that never drafts."""
        rate = np.full(len(self.weights), cost[0])
        worth = np.zeros_like(rate)
        for _ in range(50):
            outcomes, goes_on = self.best_round(cost, rate, worth)
            tokens, spent, accepted = np.moveaxis(outcomes, -1, 0)  # (2, n) each
            share = (1.0 - accepted[0]) / (1.0 - accepted[0] + accepted[1])  # of rounds after a rejected position
            committed = (1.0 - share) * tokens[0] + share * tokens[1]
            mixed = ((1.0 - share) * spent[0] + share * spent[1]) / committed
            worth = (mixed * tokens[0] - spent[0]) / (1.0 - accepted[0])
            done = np.abs(mixed - rate).max() <= 1e-10 * max(np.abs(mixed).max(), 1e-300)
            rate = mixed
            if done:
                break
        by_fate = self.lengths(goes_on)
        rounds = (1.0 - share)[:, None] * by_fate[0] + share[:, None] * by_fate[1]
        return np.asarray((self.weights / committed) @ rounds)


@cache
def cheapest_plan(scenario: Scenario, information: str) -> Plan:
    """Rounds of each length per committed token, as a function of what a round of each length costs.

    Args:
        scenario: its draft model, its cap K.
        information: `predictor` (all evidence), `confidence` (the draft model's confidence alone), `perfect` (a token's
            fate, once drafted) or `oracle` (all fates beforehand).
    """
    known = information == "oracle"
    plan = oracle_plan(scenario) if known else Stopping(scenario, evidence(scenario, information)).plan
    share = 1.0 - DRIFT_MARGIN if scenario.draft.acceptance.drift_std > 0.0 else 1.0
    return lambda cost: share * plan(cost)


def evidence(scenario: Scenario, information: str) -> float:
    """Distance d of the evidence of accepted and rejected tokens."""
    d = separation(scenario.draft.statistics.auc)
    scale = {"predictor": d, "confidence": d * math.sqrt(VIEW_SHARES[0]), "perfect": CERTAIN}[information]
    return max(scale, 1e-9)
