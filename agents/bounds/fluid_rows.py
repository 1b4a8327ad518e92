"""The linear programme of `agents.bounds.fluid`: the rates of a controller's long run, and the rows that they satisfy.

Take any controller in its long run, and for each group of equal devices these rates per second: tokens X that rounds
commit, rounds R, drafted tokens D, √(new tokens) of rounds V, rounds that draft Y, rounds S that skip a batch, drafted
tokens E of those that do not, prompts Q, drafting time B, time O and W that rounds and prompts spend in running batches;
and the server's batches f and the share of time u that one runs. They satisfy the rows below, so the largest ΣX + ΣQ under
the rows bounds the throughput. (Z is what a group lacks of the fairness floor; it costs more than any token is worth.)

1. *Acceptance.* R, D, V, Y, S, E are X times those of a mixture of plans (`agents.bounds.frontier`): for every cost of a round by
   its length, the rounds cost at least what the cheapest plan costs per token.
2. *Requests.* `X ≤ Q·(mean output − 1)`; with open arrivals Q is at most their rate.
3. *Devices.* Drafting, links, think time and running batches fill at most each device's time (queueing is left out).
4. *Drafting* slows down with heat: `D/v ≤ B·(1 + error) − heating·B²/n` (`fluid_parts.heat`).
5. *Server.* A batch of T new tokens takes at least `a + s·T` for every tangent of the soft roofline, so
   `f·a + s·(R + D + Q·prompt) + context + attention ≤ u ≤ 1`. An evicted prefix is computed again at s a token instead of
   being read at cached_token_s, so a token of context costs at least the smaller of the two.
6. *Batches.* `max_batch_requests`, `kv_tokens` and `prefill_chunk_tokens` a batch; at most one request of each device, and
   one that skips a batch uses up two: `R + S + Q ≤ n·f`. One that skips none has drafted and travelled while the server
   was idle: `n·u + (R − S)·links + E/v ≤ n` (with jitter: `fluid_parts.turns_of`).
7. *Occupancy.* Members wait for the whole batch. Members j weighing λ_j in a batch of Σn_j new tokens spend
   `Σλ_j·(a + s·Σn_j) ≥ a·Σλ_j + s·(Σ√(λ_j·n_j))²` (Cauchy and Schwarz); over the batches of a second the squares sum to
   at least `U²/f` with `U = Σ√λ_j·(V_j + Q_j·mean √prompt)` (Jensen), and `U²/f ≥ 2θU − θ²f` for every θ.

Rows 4, 5 and 7 are infinite convex families: Kelley's method (1960) adds those that the last solution breaks most. The
plans of row 1 are generated at the prices that the duals put on rounds (Dantzig and Wolfe, 1960); dividing the optimum by
how far the cheapest plan still undercuts its price (`Programme.price`) makes it a bound wherever the search stops.
"""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import block_diag
from scipy.optimize import linprog

from agents.bounds.fluid_parts import Group, Requests, cached_per_token, groups_of, requests_of, tangent
from agents.bounds.frontier import Plan, cheapest_plan
from wisp_gym.scenario import Scenario

Array = NDArray[np.float64]

TOLERANCE = 1e-4  # rows and plans are added until neither moves the optimum by this share
MISSING_TOKEN = 1e4  # what a token short of the fairness floor takes off the objective: a floor out of reach shows as 0
FIRST_PRICES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # of a drafted token, in rounds


class Programme:
    """The linear programme: rows `coefficients · rates ≤ limit`, each with a label."""

    # Of each group, in this order; of the server the batch rate f and the share of time u that a batch runs come last.
    fields: tuple[str, ...] = ("X", "R", "D", "V", "Y", "S", "E", "Q", "B", "O", "W", "Z")
    priced = "RDVYSE"  # what a round is made of
    of_server = 2

    def __init__(self, scenario: Scenario, kind: str, fairness_tokens_per_s: float) -> None:
        self.scenario, self.kind = scenario, kind
        self.requests: Requests = requests_of(scenario)
        self.groups: list[Group] = groups_of(scenario, pays_predictor=kind == "predictor")
        self.n = len(self.groups)
        self.size = len(self.fields) * self.n + self.of_server
        self.rows: list[Array] = []
        self.limits: list[float] = []
        self.labels: list[tuple[str, float]] = []
        self.fairness = fairness_tokens_per_s
        self.state_fixed_rows()
        self.begin_cuts()

    def of(self, field: str) -> slice:
        """Places of a field of all groups."""
        first = self.fields.index(field) * self.n
        return slice(first, first + self.n)

    def add(
        self, label: str, limit: float, batches: float = 0.0, busy: float = 0.0, tag: float = 0.0, **coefficients: Array | float,
    ) -> None:  # fmt: skip
        """Add a row: coefficients by field, one for all groups or (n,)."""
        row = np.zeros(self.size)
        row[-2:] = batches, busy
        for field, value in coefficients.items():
            row[self.of(field)] = value
        self.rows.append(row)
        self.limits.append(limit)
        self.labels.append((label, tag))

    def state_fixed_rows(self) -> None:
        """Rows that need no tangents."""
        server, requests = self.scenario.server, self.requests
        context = self.context()
        for i, (group, one) in enumerate(zip(self.groups, np.eye(self.n), strict=True)):
            self.state_group(i, group, one)
            self.add("members", 0.0, batches=-group.devices, R=one, Q=one, S=one)
        self.add("members", 0.0, batches=-server.max_batch_requests, R=1.0, Q=1.0)
        self.add("clock", 1.0, busy=1.0)
        room, least = -self.scenario.kv_tokens, requests.prompt_min + 1.0
        self.add("memory", 0.0, batches=room, R=least, D=1.0, X=context, Q=requests.prompt)
        if server.prefill_chunk_tokens > 0:
            self.add("chunk", 0.0, batches=-server.prefill_chunk_tokens, Q=requests.prompt - 1.0)

    def state_group(self, i: int, g: Group, one: Array) -> None:
        """Rows of one group."""
        n, central = float(g.devices), self.kind == "centralized"
        self.add("requests", 0.0, X=one, Q=-self.requests.rounds_output * one)
        if math.isfinite(self.requests.per_device_s):
            self.add("arrivals", n * self.requests.per_device_s, Q=one)
        self.add(
            "device", n, tag=float(i), Y=g.overhead_s * one, D=(g.predictor_s + g.draft_payload_s) * one, B=one, O=one, W=one,
            R=(0.0 if central else g.round_s) * one, X=(0.0 if central else g.token_payload_s) * one,
            Q=(g.request_s + g.token_payload_s) * one,
        )  # fmt: skip
        self.add("drafting", 0.0, D=g.token_s * one, B=-(1.0 + g.heat_error) * one)
        for turn_s, early_s in () if central else g.turns:
            self.add("turns", n, busy=n, R=(turn_s - early_s) * one, S=-turn_s * one, E=g.token_s * one)
        if self.fairness > 0.0:
            self.add("fairness", -self.fairness * n, X=-one, Q=-one, Z=-one)

    def context(self) -> float:
        """Least cached tokens that verification reads per committed token, beyond the shortest prompt in every round."""
        return cached_per_token(self.scenario, self.requests)

    def begin_cuts(self) -> None:
        """First tangents and plans."""
        for new_tokens in np.geomspace(1.0, 4096.0, 13):
            self.cut_server(new_tokens)
            self.cut_alone(new_tokens)
        self.begin_plans()

    def begin_plans(self) -> None:
        """First plans."""
        self.plan: Plan | None = None if self.kind == "centralized" else cheapest_plan(self.scenario, self.kind)
        self.plans = [self.made_of(np.eye(self.scenario.max_draft_tokens + 1)[0], None)]  # a token a round
        for price in FIRST_PRICES if self.plan else ():
            self.find_plan(np.array([1.0, price, 0.0, 0.0, 0.0, 0.0]))

    def made_of(self, rounds: Array, price: Array | None) -> Array:
        """(1 + priced,) what a committed token takes of X and each of `priced` under a plan.

        A round skips a batch or hurries, whichever costs less at the price; without one it hurries.
        """
        k = np.arange(len(rounds))
        skips = np.zeros_like(k) if price is None else price[4] < price[5] * k
        parts = (k, np.sqrt(1.0 + k), k > 0, skips, k * (1 - skips))
        return np.array([1.0, rounds.sum(), *(rounds @ part for part in parts)])

    def find_plan(self, price: Array) -> float:
        """The cheapest plan at a price of each of `priced` joins the known ones; returns its cost per token."""
        assert self.plan is not None
        k = np.arange(self.scenario.max_draft_tokens + 1)
        r, d, v, y, skip, hurry = price
        cost = r + d * k + v * np.sqrt(1.0 + k) + y * (k > 0) + np.minimum(skip, hurry * k)
        made = self.made_of(self.plan(cost), price)
        self.plans.append(made)
        return float(made[1:] @ price)

    def cut_server(self, new_tokens: float) -> None:
        """Row 5 with the tangent at a batch of `new_tokens`; the noise multiplies every term."""
        a, s = tangent(self.scenario, new_tokens)
        v, requests, noise = self.scenario.verification, self.requests, math.exp(self.scenario.server.noise**2 / 2.0)
        read, pair = min(v.cached_token_s * noise, s), v.pair_s * noise
        context = self.context() * (read + pair)
        whole = 1.0 if self.scenario.server.prefill_chunk_tokens == 0 else 0.5  # chunks: Σ n·(cached + n) ≥ prompt²/2
        self.add(
            "server", 0.0, batches=a, busy=-1.0, tag=s, R=s + requests.prompt_min * (read + pair) + pair, D=s + requests.prompt_min * pair,
            X=context, Q=s * requests.prompt + whole * pair * requests.prompt_square,
        )  # fmt: skip

    def cut_alone(self, new_tokens: float) -> None:
        """Row 7 for each group's members as if they were verified alone."""
        a, s = tangent(self.scenario, new_tokens)
        for one in np.eye(self.n):
            self.add("alone", 0.0, R=(a + s) * one, D=s * one, O=-one)
            self.add("alone", 0.0, Q=(a + s * self.requests.prompt) * one, W=-one)

    def cut_occupancy(self, weights: Array, new_tokens: float, theta: float) -> None:
        """Row 7 with weights λ, the tangent at `new_tokens`, and θ."""
        a, s = tangent(self.scenario, new_tokens)
        root = 2.0 * theta * s * np.sqrt(weights)
        self.add(
            "occupancy", 0.0, batches=-s * theta**2, R=a * weights, V=root, O=-weights, W=-weights,
            Q=a * weights + root * self.requests.prompt_root,
        )  # fmt: skip

    def cut_heat(self, i: int, busy: float) -> None:
        """Row 4 with the tangent of B² at `busy` device-seconds per second."""
        g, one = self.groups[i], np.eye(self.n)[i]
        slope = 1.0 + g.heat_error - 2.0 * g.heating * busy / g.devices
        self.add("heat", g.heating * busy**2 / g.devices, D=g.token_s * one, B=-slope * one)

    def rates(self) -> Array:
        """(size, variables) matrix from what the solver chooses to the rates: tokens by plan and group, then the rest."""
        made = np.array(self.plans).T  # (1 + priced, plans)
        by_plan = np.vstack([np.kron(row, np.eye(self.n)) for row in made])
        return block_diag(by_plan, np.eye(self.size - self.of("Q").start))

    def solve(self) -> tuple[Array, Array, float]:
        """Rates and the rows' duals at the optimum, and the optimum."""
        rates, objective = self.rates(), np.zeros(self.size)
        objective[self.of("X")] = objective[self.of("Q")] = -1.0
        objective[self.of("Z")] = MISSING_TOKEN
        found = linprog(objective @ rates, A_ub=np.array(self.rows) @ rates, b_ub=np.array(self.limits), method="highs")
        if found.status != 0:
            raise ArithmeticError(f"the linear programme of {self.scenario.name} ({self.kind}): {found.message}")
        return rates @ found.x, -found.ineqlin.marginals, -float(found.fun)

    def price(self, duals: Array) -> float:
        """Find the cheapest plan of each group at the duals' prices; returns by what to divide the optimum for a bound.

        Prices are linear in the duals and least costs are homogeneous in prices. So the duals, divided by the least worth
        over groups of `price of X + least cost`, are feasible for every plan there is, known or not.
        """
        price = duals @ np.array(self.rows)
        if self.kind == "centralized":
            return 1.0
        own = np.stack([price[self.of(field)] for field in self.priced], axis=-1)  # (n, priced)
        worth = [tokens + self.find_plan(one) for tokens, one in zip(price[self.of("X")], own, strict=True)]
        return float(max(min(1.0, *worth), 1e-9))

    def refine(self, x: Array, duals: Array) -> None:
        """Add the rows that the solution breaks."""
        f = max(x[-2], 1e-12)
        members, roots = self.members(x), self.roots(x)
        self.cut_server(self.new_tokens(x) / f)
        self.weigh(members, roots, self.spent(x), f)
        worth = self.device_price(duals)
        if worth.max() > 0.0:
            self.cut_weighted(np.sqrt(worth), members, roots, f)
        for i, group in enumerate(self.groups):
            if group.heating > 0.0:
                self.cut_heat(i, self.drafting(x)[i])

    def rounds(self, x: Array) -> tuple[Array, Array, Array]:
        """(n,) rounds of sessions at their devices, rounds of those at the server, and drafted tokens of both."""
        central, rounds = self.kind == "centralized", x[self.of("R")]
        return rounds * (not central), rounds * central, x[self.of("D")]

    def members(self, x: Array) -> Array:
        """(n,) requests verified."""
        return np.asarray(x[self.of("R")] + x[self.of("Q")])

    def new_tokens(self, x: Array) -> float:
        """New tokens verified."""
        return float((self.members(x) + x[self.of("D")] + x[self.of("Q")] * (self.requests.prompt - 1.0)).sum())

    def roots(self, x: Array) -> Array:
        """(n,) √(new tokens) of the members of batches."""
        return np.asarray(x[self.of("V")] + x[self.of("Q")] * self.requests.prompt_root)

    def spent(self, x: Array) -> Array:
        """(n,) time in running batches."""
        return np.asarray(x[self.of("O")] + x[self.of("W")])

    def drafting(self, x: Array) -> Array:
        """(n,) drafting time."""
        return np.asarray(x[self.of("B")])

    def weigh(self, members: Array, roots: Array, spent: Array, f: float) -> None:
        """Row 7 with equal weights and with those that break it most, for tangents around the solution.

        For μ = √λ the row reads `μᵀHμ ≤ 0`, H a diagonal plus a matrix of rank one, so the worst μ is the eigenvector of
        its largest eigenvalue. Groups are scaled by their size.
        """
        self.cut_weighted(np.ones(self.n), members, roots, f)
        per_device = np.sqrt([group.devices for group in self.groups])
        for new_tokens in roots.sum() ** 2 / max(f * members.sum(), 1e-12) * np.geomspace(0.25, 8.0, 6):
            a, s = tangent(self.scenario, new_tokens)
            h = np.diag(a * members - spent) + s / f * np.outer(roots, roots)
            values, vectors = np.linalg.eigh(h / np.outer(per_device, per_device))
            if values[-1] > TOLERANCE:
                self.cut_weighted(np.abs(vectors[:, -1]) / per_device, members, roots, f)

    def cut_weighted(self, mu: Array, members: Array, roots: Array, f: float) -> None:
        """Row 7 with weights μ² and the tangent and θ that are best for the solution."""
        mu = mu / mu.max()
        used, counted = float(mu @ roots), max(float(mu**2 @ members), 1e-12)
        self.cut_occupancy(mu**2, used**2 / (f * counted), used / f)

    def device_price(self, duals: Array) -> Array:
        """(n,) worth of a device second of each group."""
        price = np.zeros(self.n)
        for (label, tag), dual in zip(self.labels, duals, strict=False):
            if label == "device":
                price[int(tag)] += dual
        return price
