"""The linear programme of `agents.bounds.fluid` where the server drafts too, or devices draft while a round is away.

Rates of each group beside those of `fluid_rows` (there X counts the tokens of all rounds, R to E the rounds drafted
by devices): rounds N all of whose tokens were drafted ahead, those tokens G; rounds r at the server, tokens d that it
drafts for them, √(new tokens) v, those with drafts y; time P that devices draft ahead; time o that rounds at the
server spend in running batches (O: those of devices). Of the server: draft steps h and batches that draft g. The rows
of `fluid_rows` hold with these changes:

1. *Acceptance.* One mixture of plans for all ways of drafting (`agents.bounds.joint`), as a controller may choose who
   drafts where.
3. *Devices.* A round at the server takes no link: its next step joins the queue at once. A device's round has one
   uplink, and one downlink before it, whoever drafted the round that it answers; a request waits for two messages of
   its own. Where a session may be at the server while its link is slow, the delays that are waited for are less than
   the mean (`fluid_parts.waits_of`). What is drafted ahead takes no time of a round, nor an overhead in the next one.
   *Ahead.* Drafting of every kind still fits each device's time beside prompts, thinking, rounds at the server, and
   the time away of those rounds after which nothing drafted ahead is used: `R − N` rounds of at least both links and
   a batch, whichever those are (`fluid_parts.turns_of`, and the same of the noise). What was drafted ahead and is of
   no use takes time as well: left out.
4. *Drafting.* `(D − G)/v ≤ B`; with N guesses, one for each round that begins with tokens ahead, `(D + N)/v` is what
   the heat of `B + P` allows; those tokens take P at most at the lowest speed. A speed is kept for a round and all
   that is drafted while it is away.
5. *Server.* Drafting adds `overhead·g + launch·h + (sequence + token + context)·d`. A step has at most one member for
   each device of a group, `max_batch_requests` and what fits into memory in all: `d ≤ n·h`, `y ≤ n·g`. A draft of a
   session runs at least one token through the draft model and reads at least the shortest prompt; longer contexts and
   catching up are left out.
6. *Batches.* A round at the server is a request of its batch: `R + S + r + Q ≤ n·f`, and so in memory, which is what
   is left beside a draft model. The places that the server keeps for its drafts are at least those drafts. A session
   at the server is in batch after batch without the server being idle, so *turns* hold for devices' rounds alone; of
   their tokens those drafted ahead take no time between batches.
7. *Occupancy.* A member at the server waits besides for the overhead and for as many steps as it has drafts.
"""

import math

import numpy as np

from agents.bounds.fluid_parts import Group, batch_s, cached_per_token, put, tangent
from agents.bounds.fluid_rows import FIRST_PRICES, Array, Programme
from agents.bounds.joint import AHEAD, AT_SERVER, COLD, WARM, WAYS, JointPlan, cheapest_joint_plan, runs_of
from agents.bounds.kinds import Kind
from wisp_gym.rules.catalogue import OVERLAP
from wisp_gym.scenario import Scenario, ServerDraft

MOST_AHEAD = OVERLAP["overlap"].settings[0].high  # tokens that any device drafts while a round is away


class JointProgramme(Programme):
    """Rates of all ways of drafting; of the server draft steps h, batches that draft g, batches f, share of time u."""

    fields = ("X", "R", "D", "V", "Y", "S", "E", "N", "G", "r", "d", "v", "y", "Q", "B", "P", "O", "o", "W", "Z")
    priced = "RDVYSENGrdvy"
    of_server = 4

    def __init__(self, scenario: Scenario, kind: Kind, draft: ServerDraft | None, fairness_tokens_per_s: float) -> None:
        self.who, self.draft = kind, draft
        self.chooses = kind.server and kind.devices  # which messages are waited for
        super().__init__(scenario, kind.knows if kind.devices else kind.name, fairness_tokens_per_s)
        self.kind = kind.name

    # --- rows --------------------------------------------------------------------------------------------------------

    def draft_s(self) -> tuple[float, float, float]:
        """(per step, per drafted token, per batch that drafts): mean drafting time at the server, in s, with the noise."""
        if self.draft is None:
            return 0.0, 0.0, 0.0
        t, noise = self.draft.time, math.exp(self.scenario.server.noise**2 / 2.0)
        token_s = t.sequence_s + t.token_s + min(t.cached_token_s, t.token_s) * self.requests.prompt_min
        return noise * t.launch_s, noise * token_s, noise * t.overhead_s

    def room_tokens(self) -> float:
        """Tokens whose keys and values fit into memory beside what is loaded."""
        weights, kv = (self.draft.weights_bytes, self.draft.kv_bytes_per_token) if self.draft else (0, 0)
        return float(self.scenario.kv_tokens_beside(weights, kv))

    def state_fixed_rows(self) -> None:
        """Rows that need no tangents."""
        server, requests, room = self.scenario.server, self.requests, self.room_tokens()
        for i, (group, one) in enumerate(zip(self.groups, np.eye(self.n), strict=True)):
            self.state_group(i, group, one)
            self.state_steps(float(group.devices), one)
            self.add("members", 0.0, batches=-group.devices, R=one, r=one, Q=one, S=one)
        self.state_steps(min(server.max_batch_requests, room / (requests.prompt_min + 2.0)), np.ones(self.n))
        self.add("members", 0.0, batches=-server.max_batch_requests, R=1.0, r=1.0, Q=1.0)
        self.add("clock", 1.0, busy=1.0)
        least, context = requests.prompt_min + 1.0, self.context()
        self.add("memory", 0.0, batches=-room, R=least, r=least, D=1.0, d=1.0, X=context, Q=requests.prompt)
        if server.prefill_chunk_tokens > 0:
            self.add("chunk", 0.0, batches=-server.prefill_chunk_tokens, Q=requests.prompt - 1.0)

    def state_steps(self, members: float, whose: Array) -> None:
        """Steps, and batches that draft, for at most so many members of the groups."""
        self.add("steps", 0.0, d=whose)
        self.rows[-1][-4] = -members
        self.add("steps", 0.0, y=whose)
        self.rows[-1][-3] = -members

    def state_group(self, i: int, g: Group, one: Array) -> None:
        """Rows of one group."""
        n, request_s = float(g.devices), g.request_s + g.token_payload_s
        self.add("requests", 0.0, X=one, Q=-self.requests.rounds_output * one)
        if math.isfinite(self.requests.per_device_s):
            self.add("arrivals", n * self.requests.per_device_s, Q=one)
        for less_s, early_s in g.waits if self.chooses else ((0.0, 0.0),):
            both_s = 2.0 * (less_s + early_s)  # of the two messages of a round or request
            self.add(
                "device", n, tag=float(i), Y=g.overhead_s * one, D=(g.predictor_s + g.draft_payload_s) * one, G=-g.predictor_s * one,
                B=one, O=one, o=one, W=one, R=(g.round_s + g.token_payload_s - both_s) * one, r=-early_s * one,
                Q=(request_s - both_s) * one,
            )  # fmt: skip
        self.add("drafting", 0.0, D=g.token_s * one, G=-g.token_s * one, B=-one)
        self.add("drafting", 0.0, D=g.token_s * one, N=g.token_s * one, B=-self.held(g) * one, P=-self.held(g) * one)
        self.add("drafting", 0.0, G=-g.slowest_s * one, N=-g.slowest_s * one, P=one)
        for turn_s, early_s in g.turns:
            chosen_s = early_s if self.chooses else 0.0  # which messages are a device's rounds is chosen
            self.add(
                "turns", n, busy=n, R=(turn_s - early_s) * one, S=-turn_s * one, E=g.token_s * one, r=-chosen_s / 2.0 * one, Q=-chosen_s * one,
            )  # fmt: skip
            self.state_ahead(g, one, turn_s, early_s)
        if self.fairness > 0.0:
            self.add("fairness", -self.fairness * n, X=-one, Q=-one, Z=-one)

    def state_ahead(self, g: Group, one: Array, turn_s: float, early_s: float) -> None:
        """Row 3 for what is drafted ahead: rounds that are followed by none of it are told apart by links and noise."""
        noise = self.scenario.server.noise
        batch = batch_s(self.scenario, 1.0) / math.exp(noise**2 / 2.0)
        away_s, early_batch_s = turn_s + batch, batch * put(1.0, 1.0, noise)
        self.add(
            "ahead", float(g.devices), Y=g.overhead_s * one, D=g.predictor_s * one, B=one, P=one, o=one, W=one,
            R=(away_s - early_s - early_batch_s) * one, N=(g.predictor_s - away_s) * one, r=-early_s / 2.0 * one,
            Q=(g.request_s - g.round_s + turn_s - early_s) * one,
        )  # fmt: skip

    def heat_error(self, g: Group) -> float:
        """As `Group.heat_error`, for a speed that is kept while a round is away too."""
        longest = self.scenario.max_draft_tokens
        return g.heat_error * (1.0 + MOST_AHEAD / longest if self.who.overlap else 1.0)

    def held(self, g: Group) -> float:
        """Drafting time is worth at most so much of it at full speed."""
        return 1.0 + self.heat_error(g)

    def cut_server(self, new_tokens: float) -> None:
        """Row 5 with the tangent at a batch of `new_tokens`."""
        super().cut_server(new_tokens)
        row, (launch_s, token_s, overhead_s) = self.rows[-1], self.draft_s()
        row[self.of("r")] = row[self.of("R")]
        row[self.of("d")] = row[self.of("D")] + token_s
        row[-4:-2] = launch_s, overhead_s

    def cut_alone(self, new_tokens: float) -> None:
        """Row 7 for each group's members as if they were verified alone."""
        super().cut_alone(new_tokens)
        (a, s), (launch_s, token_s, overhead_s) = tangent(self.scenario, new_tokens), self.draft_s()
        for one in np.eye(self.n):
            self.add("alone", 0.0, r=(a + s) * one, d=(s + launch_s + token_s) * one, y=overhead_s * one, o=-one)

    def cut_occupancy(self, weights: Array, new_tokens: float, theta: float) -> None:
        """Row 7 with weights λ, the tangent at `new_tokens`, and θ."""
        super().cut_occupancy(weights, new_tokens, theta)
        row, (launch_s, token_s, overhead_s) = self.rows[-1], self.draft_s()
        for server, device in zip("rvo", "RVO", strict=True):
            row[self.of(server)] = row[self.of(device)]
        row[self.of("d")], row[self.of("y")] = (launch_s + token_s) * weights, overhead_s * weights

    def cut_heat(self, i: int, busy: float) -> None:
        """Row 4 with the tangent of (B + P)² at `busy` device-seconds per second."""
        g, one = self.groups[i], np.eye(self.n)[i]
        slope = self.held(g) - 2.0 * g.heating * busy / g.devices
        limit = g.heating * busy**2 / g.devices
        self.add("heat", limit, D=g.token_s * one, N=g.token_s * one, B=-slope * one, P=-slope * one)

    # --- plans -------------------------------------------------------------------------------------------------------

    def parts(self, price: Array) -> Array:
        """(priced, ways, K + 1) what a round of each way and length is made of; it skips a batch or hurries, by the price."""
        k = np.arange(self.scenario.max_draft_tokens + 1)
        made = {field: np.zeros((len(WAYS), len(k))) for field in self.priced}
        device = [COLD, WARM, AHEAD]
        for field, value in (("R", 1), ("D", k), ("V", np.sqrt(1.0 + k))):
            made[field][device] = made[field.lower()][AT_SERVER] = value
        made["Y"][COLD] = made["y"][AT_SERVER] = k > 0
        made["N"][AHEAD], made["G"][AHEAD] = 1, k
        made["E"][[COLD, WARM]] = k
        skips = price[self.priced.index("S")] < price[self.priced.index("E")] * made["E"][device]
        made["S"][device] = skips
        made["E"][device] *= ~skips
        return np.stack([made[field] for field in self.priced])

    def begin_plans(self) -> None:
        """First plans: a token a round, and drafts here or there at several prices."""
        self.joint_plan: JointPlan = cheapest_joint_plan(self.scenario, self.who, self.draft)
        self.plans: list[Array] = []
        dear = dict.fromkeys(self.priced, 10.0)
        for price in (*FIRST_PRICES, 10.0):
            device, server = {"R": 1.0, "D": price, "E": 0.0, "V": 0.0}, {"r": 1.0, "d": price, "v": 0.0}
            ahead = {"R": 1.0, "D": price, "G": 0.0, "N": 0.0, "V": 0.0}
            for cheap in (device, server, ahead):
                self.find_plan(np.array(list((dear | cheap).values())))

    def find_plan(self, price: Array) -> float:
        """The cheapest plan at a price of each of `priced` joins the known ones; returns its cost per token."""
        parts = self.parts(price)
        rounds = self.joint_plan(np.tensordot(price, parts, 1))
        made = np.concatenate([[1.0], (parts * rounds).sum(axis=(1, 2))])
        self.plans.append(made)
        return float(made[1:] @ price)

    def context(self) -> float:
        """As of devices alone: a position at which no source is right ends a round."""
        _, right, shares = runs_of(self.scenario, self.draft)
        return cached_per_token(self.scenario, self.requests, float(shares @ (1.0 - right)))

    # --- what a solution does ----------------------------------------------------------------------------------------

    def rounds(self, x: Array) -> tuple[Array, Array, Array]:
        """(n,) rounds of sessions at their devices, rounds of those at the server, and drafted tokens of both."""
        return x[self.of("R")], x[self.of("r")], x[self.of("D")] + x[self.of("d")]

    def members(self, x: Array) -> Array:
        """(n,) requests verified."""
        return np.asarray(super().members(x) + x[self.of("r")])

    def new_tokens(self, x: Array) -> float:
        """New tokens verified."""
        return float(super().new_tokens(x) + x[self.of("d")].sum())

    def roots(self, x: Array) -> Array:
        """(n,) √(new tokens) of the members of batches."""
        return np.asarray(super().roots(x) + x[self.of("v")])

    def spent(self, x: Array) -> Array:
        """(n,) time in running batches beyond the draft steps that a member takes part in."""
        launch_s, token_s, overhead_s = self.draft_s()
        own_s = (launch_s + token_s) * x[self.of("d")] + overhead_s * x[self.of("y")]
        return np.asarray(super().spent(x) + x[self.of("o")] - own_s)

    def drafting(self, x: Array) -> Array:
        """(n,) drafting time."""
        return np.asarray(x[self.of("B")] + x[self.of("P")])
