"""A slow, plain simulator of docs/model/model.md and who-drafts.md: a heap, objects, every drafted token an event of its own.

It shares with the engine only the draws, the formula of a batch's time and the controllers' pure functions. Sessions,
links, queueing, composition of batches, memory, deadlines and measures are written again, from the description. Nothing
is carried out ahead of its time: what the engine does in one go when a reply leaves happens here token by token.

Besides this file: `reference_parts` what it moves about, `reference_source` fates and drafted tokens, `reference_host` the
server where it drafts, `reference_sight` what a device sees.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict

import numpy as np

from tests.support.reference_host import Host, eight
from tests.support.reference_parts import Ahead, Device, Head, Member, Reply, Request, Token
from tests.support.reference_sight import ServerState, Sight
from tests.support.reference_source import Source
from tests.support.reference_ways import Ways
from wisp_gym.contract.actions import DRAFTS_ON, HANDS_OVER
from wisp_gym.engine import draws
from wisp_gym.engine.build import accepted_share
from wisp_gym.engine.verification import batch_time_s
from wisp_gym.rules import batching as rules
from wisp_gym.rules import speculation, suggestions, trimming
from wisp_gym.rules.bandits import MEMORY
from wisp_gym.rules.controller import Controller
from wisp_gym.scenario import Scenario

# Order of events of the same time (docs/model/model.md); what happens on a device comes first.
AT_DEVICE, ARRIVE, END, LOOK, INFORM, DELIVER = range(6)
GRAPHS = (1, 2, 4, *range(8, 256, 8), *range(256, 100_000, 16))  # sizes that vLLM captures, as far as it goes
OUTAGE_SLOT_S, MESSAGE_BYTES, TOKEN_BYTES, DRAFT_TOKEN_BYTES = 10.0, 256.0, 4.0, 24.0


def share_of(place: float, shares: list[float]) -> int:
    """Class whose part of [0, 1) holds `place`."""
    edges = np.cumsum(shares) / sum(shares)
    return min(int((edges <= place).sum()), len(shares) - 1)


class Reference:
    """One world, run to its end by `run`; then `log` holds (time_s, kind, device, value) and `totals` the measures."""

    def __init__(self, scenario: Scenario, seed: int, controller: Controller, trace: np.ndarray | None = None):
        self.scenario, self.seed, self.controller, self.trace = scenario, seed, controller, trace
        h, v = scenario.horizon, scenario.verification
        self.window_end_s = h.warmup_s + h.measure_s
        self.end_s = self.window_end_s + h.drain_s
        self.mean_batch_s = scenario.server.host_s + v.launch_s + v.weights_s
        self.source = Source(scenario, seed, controller.drafting.hosted)
        self.host = Host(scenario, controller, self.source)
        self.ways = Ways(controller, self.host, scenario.max_draft_tokens)
        self.share_there = 0.0  # of the sessions of the last batch
        self.now_s, self.heap, self.serial = 0.0, [], 0
        self.chunk_tokens = (
            scenario.server.prefill_chunk_tokens if controller.chunk_tokens is None else controller.chunk_tokens
        )
        self.queue: list[Device] = []
        self.batch: list[Member] = []
        self.cached: dict[int, int] = {}  # tokens in memory of each session, least recently used first
        self.batches = self.turn = 0
        self.utilisation = self.last_end_s = self.predicted_end_s = self.queue_s = 0.0
        self.knowledge = np.zeros(suggestions.KNOWLEDGE)
        self.share = accepted_share(scenario)
        self.batch_start_s = self.batch_clean_s = self.batch_noisy_s = 0.0
        self.log: list[tuple[float, str, int, float]] = []
        self.totals: Counter[str] = Counter()
        self.slo_totals = [Counter() for _ in scenario.slo]
        self.devices = [self.new_device(i) for i in range(scenario.n_devices)]
        self.speculation_parameters = eight(controller.speculation_parameters)
        self.batching_parameters = eight(controller.batching_parameters)

    def new_device(self, i: int) -> Device:
        """Device i with its classes from the two low-discrepancy sequences."""
        s = self.scenario
        kind = s.devices[share_of((0.5 + (math.sqrt(5.0) - 1.0) / 2.0 * (i + 1)) % 1.0, [d.share for d in s.devices])]
        slo = s.slo[share_of((0.5 + (math.sqrt(2.0) - 1.0) * (i + 1)) % 1.0, [c.share for c in s.slo])]
        sight = Sight(self.share, kind.link.one_way_s, slo.speed_tokens_per_s)
        plan = self.controller.plan
        sight.suggested = plan.lengths[i] if plan else 0
        return Device(i, kind, slo, sight, np.zeros(MEMORY), group=plan.groups[i] if plan else 0)

    # --- clock -------------------------------------------------------------------------------------------------------

    def at(self, time_s: float, order: int, device: int, action: Callable[[], None]) -> None:
        """Have something done at a time."""
        self.serial += 1
        heapq.heappush(self.heap, (time_s, order, device, self.serial, action))

    def run(self) -> Reference:
        """Run to the end of the world; replies that left the server before it still reach their devices."""
        for device in self.devices:
            self.next_request(device)
        while self.heap:
            time_s, order, _, _, action = heapq.heappop(self.heap)
            if time_s >= self.end_s and order != DELIVER:
                continue
            assert time_s >= self.now_s
            self.now_s = time_s
            action()
        self.count_unstarted()
        return self

    def write(self, kind: str, device: int, value: float) -> None:
        """Append to the log."""
        self.log.append((self.now_s, kind, device, float(value)))

    def in_window(self, time_s: float) -> bool:
        """Whether a time lies in the window of measurement."""
        return self.scenario.horizon.warmup_s <= time_s < self.window_end_s

    def key(self, cause: int, device: int, request: int) -> np.uint64:
        """Stream of a cause for a device's request."""
        return np.uint64(draws.stream_key(np.uint64(self.seed), cause, device, request))

    # --- requests ----------------------------------------------------------------------------------------------------

    def arrival_s(self, device: Device, number: int, before_s: float) -> float:
        """Arrival of a request; `before_s`: end (closed) or arrival (open) of the one before."""
        w = self.scenario.workload
        if w.arrivals == "trace":
            row = device.index + number * len(self.devices)
            return float(self.trace["arrival_s"][row]) if row < len(self.trace) else math.inf
        key = self.key(draws.ARRIVAL, device.index, number)
        if w.arrivals == "open":
            return before_s + draws.exponential(key, 0) / w.requests_per_s
        return before_s + w.think_s * draws.exponential(key, 0) if number else w.start_window_s * draws.uniform(key, 0)

    def lengths(self, device: Device, number: int) -> tuple[int, int]:
        """Prompt and output tokens of a request."""
        w, found = self.scenario.workload, []
        for name, cause in (("prompt", draws.PROMPT), ("output", draws.OUTPUT)):
            length = getattr(w, name)
            if w.arrivals == "trace":
                value = self.trace[f"{name}_tokens"][device.index + number * len(self.devices)]
            else:
                normal = draws.normal(self.key(cause, device.index, number), 0)
                value = round(math.exp(math.log(length.median_tokens) + length.log_std * normal))
            found.append(int(min(max(value, length.min_tokens), length.max_tokens)))
        return found[0], found[1]

    def next_request(self, device: Device) -> None:
        """Plan the device's next request."""
        number, opened = device.next_number, self.scenario.workload.arrivals == "open"
        before_s = self.now_s if device.request is None or not opened else device.request.arrival_s
        arrival_s = self.arrival_s(device, number, before_s)
        device.next_number += 1
        if math.isfinite(arrival_s):
            self.at(max(arrival_s, self.now_s), AT_DEVICE, device.index, lambda: self.begin(device, number, arrival_s))

    def begin(self, device: Device, number: int, arrival_s: float) -> None:
        """The device takes a request: its prompt goes to the server."""
        r = Request(number, arrival_s, *self.lengths(device, number), self.in_window(arrival_s))
        self.source.begin(device.index, r)
        device.sight.last_rejected = False
        device.request, device.tokens, device.verified, device.guessed_tokens = r, [], 0, 1.0
        device.round_start_s, device.at_server, device.asks = self.now_s, self.controller.centralized, False
        if self.scenario.workload.arrivals == "closed":  # the others are counted at the end, begun or not
            self.slo_totals[self.scenario.slo.index(device.slo)]["arrived"] += r.counted
        self.write("request", device.index, r.prompt_tokens)
        self.send(device, r.prompt_tokens * TOKEN_BYTES, arrival_s + device.slo.ttft_s - device.sight.delay_mean_s)

    def count_unstarted(self) -> None:
        """Open arrivals in the window count, whether or not their device got to them."""
        w = self.scenario.workload
        for device in self.devices:
            row, number, arrival_s = self.slo_totals[self.scenario.slo.index(device.slo)], 0, 0.0
            while w.arrivals != "closed" and arrival_s < self.window_end_s:
                arrival_s = self.arrival_s(device, number, arrival_s)
                row["arrived"] += self.in_window(arrival_s)
                number += 1

    # --- the link ----------------------------------------------------------------------------------------------------

    def transfer_s(self, device: Device, payload_bytes: float, bytes_per_s: float) -> float:
        """Time that a message sent now takes."""
        link, r = device.kind.link, device.request
        message, who = r.messages, (device.index, r.number)
        r.messages += 1
        delay = link.one_way_s
        if link.jitter > 0:
            fresh = math.sqrt(1.0 - link.autocorrelation**2) * draws.normal(self.key(draws.NETWORK, *who), message)
            device.link_state = link.autocorrelation * device.link_state + fresh
            delay *= math.exp(link.jitter * device.link_state)
        delay += (MESSAGE_BYTES + payload_bytes) / bytes_per_s
        if self.now_s - device.link_used_s > link.idle_after_s:
            delay += link.wake_s
        u = draws.uniform(self.key(draws.LOSS, *who), message)
        losses = 0
        while u < link.loss ** (losses + 1):
            losses += 1
        delay += losses * link.timeout_s + self.outage_left_s(device)
        device.link_used_s = self.now_s + delay
        self.totals["messages"] += 1
        return delay

    def outage_left_s(self, device: Device) -> float:
        """Rest of the outages that cover this moment."""
        link, key = device.kind.link, self.key(draws.OUTAGE, device.index, 0)
        left = 0.0
        for slot in range(int(self.now_s / OUTAGE_SLOT_S) + 1):
            if draws.uniform(key, 3 * slot) < link.outages_per_s * OUTAGE_SLOT_S:
                start = (slot + draws.uniform(key, 3 * slot + 1)) * OUTAGE_SLOT_S
                end = start + min(link.outage_s * draws.exponential(key, 3 * slot + 2), OUTAGE_SLOT_S)
                left = max(left, end - self.now_s) if start <= self.now_s else left
        return left

    def send(self, device: Device, payload_bytes: float, deadline_s: float) -> None:
        """The device's message leaves now."""
        self.write("send", device.index, len(device.tokens))
        device.sent_s, device.deadline_s = self.now_s, deadline_s
        arrive_s = self.now_s + self.transfer_s(device, payload_bytes, device.kind.link.uplink_bytes_per_s)
        device.arrived_s = arrive_s
        self.at(arrive_s, ARRIVE, device.index, lambda: self.arrive(device))

    # --- drafting ----------------------------------------------------------------------------------------------------

    def begin_round(self, device: Device) -> None:
        """The device has a reply: it drafts from there."""
        kind = device.kind
        device.tokens, device.round_start_s, device.length = [], self.now_s, None
        device.way, device.asks = None, False
        if kind.throttle_ratio < 1.0:
            device.heat *= math.exp(-(self.now_s - device.heat_at_s) / kind.throttle_s)
        speed = kind.draft_tokens_per_s * (1.0 - (1.0 - kind.throttle_ratio) * device.heat)
        device.token_s = 1.0 / speed + kind.predictor_s * self.controller.uses_predictor
        device.hosting = self.ways.sight(device, device.sight.server.server_tokens, device.sight.server.share)
        device.row = self.look_around(device)  # seen even where nothing can be drafted
        self.decide(device)

    def decide(self, device: Device) -> None:
        """One more token, or send."""
        r = device.request
        cap = min(self.scenario.max_draft_tokens, r.output_tokens - r.committed - 1)
        if len(device.tokens) < cap and self.wants_more(device):
            self.at(self.done_s(device), AT_DEVICE, device.index, lambda: self.token_done(device))
            return
        if self.ways.asks_at_cap(device, cap) and len(device.tokens) >= cap:
            device.row = self.look_around(device)
            self.ways.decide(device, cap)
        device.asks = device.way == HANDS_OVER
        self.heat_up(device, self.now_s - device.round_start_s)
        device.heat_at_s = self.now_s
        device.round_tokens = len(device.tokens)
        due_s = (
            device.round_start_s + device.expected_tokens / device.slo.speed_tokens_per_s - device.sight.delay_mean_s
        )
        self.send(device, len(device.tokens) * DRAFT_TOKEN_BYTES, due_s)
        device.ahead = self.draft_on(device)

    def heat_up(self, device: Device, busy_s: float) -> None:
        """The device drafts for some time."""
        if device.kind.throttle_ratio < 1.0:
            device.heat = 1.0 - (1.0 - device.heat) * math.exp(-busy_s / device.kind.throttle_s)

    def done_s(self, device: Device) -> float:
        """When the next token of the round is done: those of the head are there, one may be under way."""
        head = device.head
        if head and head.tokens:
            head.tokens -= 1
            self.count_used(head.token_s)
            return self.now_s
        if head and head.under_way_s is not None:
            device.head = None
            return max(head.under_way_s, self.now_s)
        return (self.now_s if device.tokens else self.now_s + device.kind.round_overhead_s) + device.token_s

    def draft_on(self, device: Device) -> Ahead | None:
        """The round that has just been sent, if the device drafts on while it is away."""
        drafting, drafted = self.controller.drafting, len(device.tokens)
        likely = device.survival * device.sight.acceptance >= drafting.overlap_chance
        if device.way is not None:
            likely = device.way == DRAFTS_ON
        if not (drafting.overlap_tokens and drafted and likely):
            return None
        return Ahead(self.now_s, device.token_s, drafted, device.request.committed + drafted)

    def look_around(self, device: Device) -> np.ndarray:
        """The device's observation."""
        tokens, r, cap = device.tokens, device.request, self.scenario.max_draft_tokens
        last = tokens[-1] if tokens else Token(1, 1.0, 1.0, 0.0, 1.0, 0.0)
        v = device.slo.speed_tokens_per_s
        return device.sight.row(
            self.now_s, cap, device.token_s, drafted_tokens=len(tokens), survival=device.survival,
            adapted_survival=device.sight.adapted([t.p_accept for t in tokens]),
            accept_probability=last.p_accept, confidence=last.confidence, entropy=last.entropy, margin=last.margin,
            logit_spread=last.spread, expected_tokens=device.expected_tokens, context=r.prompt_tokens + r.committed,
            tokens_left=r.output_tokens - r.committed, round_time=self.now_s - device.round_start_s,
            slack=(self.due_s(device, r, r.committed) - self.now_s) * v, **device.hosting,
        )  # fmt: skip

    def wants_more(self, device: Device) -> bool:
        """Ask the controller."""
        c, cap, n = self.controller, self.scenario.max_draft_tokens, len(device.tokens)
        given = (c.speculation, self.speculation_parameters, c.policy, device.memory, cap)
        if device.length is None or c.speculation < speculation.POLICY_LENGTH:
            device.row = self.look_around(device)
        if c.chooses_way:
            return self.ways.decide(device, min(cap, device.request.output_tokens - device.request.committed - 1))
        if c.speculation >= speculation.POLICY_LENGTH:
            if device.length is None:
                device.length = speculation.choose_length(*given, device.row)
            return n < device.length
        next_fate = self.source.next_fate(device) if self.source.on_path(device) else 0
        last_fate = device.tokens[-1].fate if n else 1
        return bool(speculation.continue_drafting(*given, device.row, last_fate, next_fate))

    def token_done(self, device: Device) -> None:
        """A token has been drafted."""
        self.source.draft(device)
        self.decide(device)

    # --- the server --------------------------------------------------------------------------------------------------

    def arrive(self, device: Device) -> None:
        """A message reaches the server."""
        self.write("arrive", device.index, len(device.tokens))
        self.queue.append(device)
        device.comes_back = False
        self.look_at(self.now_s)

    def look_at(self, time_s: float) -> None:
        """Have the server look at its queue."""
        self.at(time_s, LOOK, 0, self.look)

    def look(self) -> None:
        """Start a batch if the server is free and the rule wants one now."""
        if self.batch or not self.queue:
            return
        waited_s = self.now_s - self.queue[0].arrived_s
        if self.controller.batching == rules.PIPELINED:
            wait_s = self.find_turn()
        else:
            wait_s = rules.ready(self.controller.batching, self.batching_parameters, len(self.queue), waited_s)
        if wait_s > 0.0:
            self.look_at(self.now_s + wait_s)
            return
        features = [self.features(device) for device in self.queue]
        kind, parameters = self.controller.batching, self.batching_parameters
        keys = [rules.priority(kind, parameters, self.now_s, self.mean_batch_s, f) for f in features]
        if self.controller.pace:
            keys = [self.paced_place(device) for device in self.queue]
        self.memory_kept = False
        for q in sorted(range(len(self.queue)), key=lambda q: (keys[q], q)):
            self.try_to_add(device := self.queue[q], features[q])
            left_out = all(m.device is not device for m in self.batch)
            if left_out and self.is_called(device) and not self.may_begin(device):
                self.memory_kept = True  # for it alone
        if self.batch:
            self.draft()
            self.trim()
            self.launch()

    def find_turn(self) -> float:
        """Give the turn to the next group that has something to do; returns how long it waits for its members."""
        groups = self.controller.plan.n_groups
        for turn in [(self.turn + k) % groups for k in range(groups)]:
            members = [d for d in self.devices if d.group == turn]
            wait_s = rules.turn_wait_s(
                self.batching_parameters, self.now_s, sum(d in self.queue for d in members),
                sum(d.comes_back for d in members), max((d.turn_s for d in members), default=0.0))  # fmt: skip
            if math.isfinite(wait_s):
                self.turn = turn
                return wait_s
        raise AssertionError("something waits, and every device has a group")

    def end_turn(self) -> None:
        """The group whose turn it is has its batch; the next one's turn comes."""
        for m in self.batch:
            if m.device.group == self.turn:
                m.device.turn_s = self.now_s
        self.turn = (self.turn + 1) % self.controller.plan.n_groups

    def uncached(self, device: Device) -> int:
        """Context to compute before the last committed token."""
        r = device.request
        return r.prompt_tokens + r.committed - 1 - self.cached.get(device.index, 0)

    def verified(self, members: list[Member]) -> list[tuple[int, int]]:
        """New and cached tokens of each member."""
        return [(m.take_tokens, self.cached.get(m.device.index, 0)) for m in members]

    def drafting(self, members: list[Member]) -> list[Member]:
        """Members for which the server drafts: their sessions are there, begun, with their context in memory."""
        if not self.host.draft:
            return []
        return [m for m in members if m.device.at_server and m.device.request.committed and not self.uncached(m.device)]

    def places(self, m: Member) -> int:
        """Places in memory that a member needs beyond its context there: at the server for the longest draft, whatever is drafted."""
        if not m.device.at_server:
            return m.take_tokens
        return (self.uncached(m.device) + 1 if m.completes else m.take_tokens) + self.host.lookahead_tokens

    def predict_s(self, members: list[tuple[int, int]]) -> float:
        """Predicted time of a batch of (new, cached) tokens."""
        e = self.scenario.estimator
        new, cached = sum(n for n, _ in members), sum(c for _, c in members)
        pairs = float(sum(n * (n + c) for n, c in members))
        return (
            e.launch_s
            + e.new_token_s * new
            + e.pair_s * pairs
            + e.cached_token_s * cached
            + e.request_s * len(members)
            + self.size_s(new)
        )

    def size_s(self, new: int) -> float:
        """What the estimator's levels add at so many new tokens."""
        sizes = self.scenario.estimator.sizes
        if not sizes:
            return 0.0
        return float(np.interp(new, *zip(*((s.tokens, s.add_s) for s in sizes), strict=True))) * max(
            new / sizes[-1].tokens, 1.0
        )

    def features(self, device: Device) -> np.ndarray:
        """(FEATURES,) what the batching rule sees of a waiting request."""
        chunk = self.chunk_tokens
        uncached, cached = self.uncached(device), self.cached.get(device.index, 0)
        new = chunk if 0 < chunk < uncached else uncached + 1 + len(device.tokens)
        solo = self.predict_s([(new, cached)])
        row = {
            rules.WAITING_S: self.now_s - device.arrived_s, rules.SLACK_S: device.deadline_s - self.now_s,
            rules.NEW_TOKENS: new, rules.UNCACHED_TOKENS: uncached, rules.CACHED_TOKENS: cached,
            rules.EXPECTED_TOKENS: device.expected_tokens, rules.SLO_TOKENS_PER_S: device.slo.speed_tokens_per_s,
            rules.MARGINAL_S: solo - self.scenario.estimator.launch_s - self.size_s(new), rules.SOLO_S: solo,
            rules.DRAFT_TOKENS: len(device.tokens), rules.ARRIVED_S: device.arrived_s,
            rules.DEADLINE_S: device.deadline_s, rules.RUNNING: device.running, rules.TURN: device.group == self.turn,
            rules.AGE_S: self.now_s - device.request.arrival_s, rules.COMMITTED_TOKENS: device.request.committed,
            rules.DUE_S: self.next_due_s(device), rules.OWED_TOKENS: device.owed_tokens,
        }  # fmt: skip
        return np.array([row[k] for k in range(rules.FEATURES)], float)

    def next_due_s(self, device: Device) -> float:
        """When the response's next token must leave the server."""
        r, slo = device.request, device.slo
        due_s = self.due_s(device, r, r.committed)
        if r.committed == 0 and slo.clock != "arrival":
            due_s = r.arrival_s + slo.ttft_s
        return due_s - device.sight.delay_mean_s

    def paced_place(self, device: Device) -> tuple[int, float]:
        """Group of a response under pacing, and its place within it."""
        lead_s = self.controller.pace[4]
        uncached, f = self.uncached(device), self.features(device)
        due_s, v = f[rules.DUE_S], device.slo.speed_tokens_per_s
        if (lacks := self.lacking(device)) > 0.0:
            return 0, -lacks
        if self.now_s + f[rules.SOLO_S] > due_s:
            return 2, uncached + (self.now_s - due_s) * v
        return (3 if not uncached and due_s - self.now_s > lead_s else 1), due_s

    def lacking(self, device: Device) -> float:
        """Tokens of pacing's floor that a device lacks, those of its responses before counted in."""
        _, patience_s, begin_s, floor, *_ = self.controller.pace
        age_s = self.now_s - device.request.arrival_s - (begin_s if self.uncached(device) else patience_s)
        return floor * age_s - device.request.committed + device.owed_tokens

    def is_called(self, device: Device) -> bool:
        """Whether pacing's floor calls for a device's request."""
        return bool(self.controller.pace) and self.lacking(device) > 0.0

    def may_begin(self, device: Device) -> bool:
        """Whether the controller's share of memory leaves room for a session that has nothing in memory."""
        if self.cached.get(device.index, 0) or not self.controller.admit_share:
            return True
        taken = {m.device.index: self.prefilled(m) for m in self.batch}
        begun = [d for d in self.queue if self.cached.get(d.index, 0) or d.index in taken]
        missing = sum(self.uncached(d) - taken.get(d.index, 0) for d in begun)
        spoken_for = sum(self.cached.values()) + sum(map(self.places, self.batch)) + missing
        if spoken_for and self.memory_kept:
            return False
        whole = self.places(Member(device, self.uncached(device) + 1 + len(device.tokens), True))
        return not spoken_for or spoken_for + whole <= self.controller.admit_share * self.host.kv_tokens

    def try_to_add(self, device: Device, features: np.ndarray) -> None:
        """Put a request into the batch if chunk, memory, batch size and the rule allow it."""
        s, c = self.scenario.server, self.controller
        uncached = self.uncached(device)
        waiting = sum(self.uncached(d) for d in self.queue)
        chunk = max(self.chunk_tokens, int(self.controller.chunk_share * waiting))
        chunk_left = chunk - sum(self.prefilled(m) for m in self.batch)
        whole = uncached <= chunk_left or not self.chunk_tokens
        take = uncached + 1 + len(device.tokens) if whole else chunk_left
        members = [*self.batch, Member(device, take, whole)]
        needed = sum(self.places(m) + self.cached.get(m.device.index, 0) for m in members)
        if take <= 0 or needed > self.host.kv_tokens or len(members) > s.max_batch_requests:
            return
        if not self.may_begin(device):
            return
        first_prompt = uncached and not any(self.uncached(m.device) for m in self.batch)
        too_long = c.pace and self.batch and self.guess_s(members) > c.pace[0]
        if too_long and not (first_prompt and self.is_called(device)):
            return
        before_s = self.guess_s(self.batch)
        with_s = self.decode_step_s(device) if c.batching == rules.PACED else self.guess_s(members)
        n_running = sum(d.running for d in self.devices)
        if rules.admits(c.batching, self.batching_parameters, self.now_s, self.mean_batch_s, features, len(self.batch), n_running,
                        before_s, with_s, self.due_of_batch_s(before_s)):  # fmt: skip
            self.batch = members
            device.running = c.centralized

    def guess_s(self, members: list[Member]) -> float:
        """Predicted time of a batch while it is composed, when the length of its drafts is not known."""
        return self.predict_s(self.verified(members)) + self.host.guess_s([m.device for m in self.drafting(members)])

    def decode_step_s(self, device: Device) -> float:
        """Predicted time of one token for each sequence of the batch and one more, prompts computed."""
        requests = [m.device.request for m in self.batch] + [device.request]
        return self.predict_s([(1, r.prompt_tokens + r.committed - 1) for r in requests])

    def due_of_batch_s(self, before_s: float) -> float:
        """What an insertion must not break: deadlines that the batch meets without it (paced: one step at each one's speed)."""
        kind = self.controller.batching
        if kind == rules.PACED:
            return self.now_s + min((1.0 / m.device.slo.speed_tokens_per_s for m in self.batch), default=math.inf)
        margin = self.batching_parameters[0] if kind == rules.WISP else 0.0
        end_s = self.now_s + before_s * (1.0 + margin)
        return min((m.device.deadline_s for m in self.batch if m.device.deadline_s >= end_s), default=math.inf)

    def draft(self) -> None:
        """The server drafts for those members of the batch that it may, before their verification."""
        drafting = self.drafting(self.batch)
        if not drafting:
            return
        base_s = self.predict_s(self.verified(self.batch))
        length = self.host.choose_length(drafting, len(self.batch) - len(drafting), base_s)
        for m in drafting:
            self.host.draft_for(m.device, length)
            m.take_tokens += len(m.device.tokens)

    def trim(self) -> None:
        """How many of its drafted tokens the server verifies for each member."""
        whole_s = self.predict_s(self.verified(self.batch))
        for m in self.batch:
            m.device.verified = len(m.device.tokens)
        if self.controller.trim == trimming.NONE:
            return
        chosen = self.most_likely([m for m in self.batch if m.completes], self.now_s + whole_s)
        for m in self.batch:
            if m.completes:
                m.device.verified = sum(member is m for member in chosen)
                m.take_tokens = self.uncached(m.device) + 1 + m.device.verified

    def most_likely(self, members: list[Member], whole_end_s: float) -> list[Member]:
        """A member for each drafted token to verify."""
        tokens = [(-float(p), k, j) for k, m in enumerate(members) for j, p in enumerate(m.device.survivals)]
        ranked = sorted(tokens)
        if self.controller.trim == trimming.DSPARK:
            rates = [self.tokens_per_s(members, ranked[:n]) for n in range(len(ranked) + 1)]
            n = max(n for n, rate in enumerate(rates) if rate == max(rates))
            return [members[k] for _, k, _ in ranked[:n]]
        if self.controller.trim == trimming.ADASERVE:  # stable: within both halves the most likely stay first
            ranked.sort(key=lambda token: not self.needed(members[token[1]].device, token[2], whole_end_s))
        return [members[k] for _, k, _ in ranked[: self.controller.trim_tokens]]

    def tokens_per_s(self, members: list[Member], tokens: list[tuple[float, int, int]]) -> float:
        """Expected tokens per predicted second of the batch that verifies these drafted tokens."""
        rows = self.verified([m for m in self.batch if not m.completes])
        for k, m in enumerate(members):
            verified = sum(member == k for _, member, _ in tokens)
            rows.append((self.uncached(m.device) + 1 + verified, self.cached.get(m.device.index, 0)))
        return (len(members) - sum(negative for negative, _, _ in tokens)) / self.predict_s(rows)

    def needed(self, device: Device, place: int, end_s: float) -> bool:
        """Whether a device needs its token at a place of the draft to keep its speed, if the batch ends at `end_s`."""
        behind = (end_s - device.deadline_s) * device.slo.speed_tokens_per_s
        return 1.0 + float(sum(device.survivals[:place].astype(float))) < device.expected_tokens + behind

    def prefilled(self, member: Member) -> int:
        """Part of the prefill chunk that a member uses."""
        return self.uncached(member.device) if member.completes else member.take_tokens

    def time_s(self, members: list[Member]) -> float:
        """True time of a batch, without noise."""
        counts, s = self.verified(members), self.scenario.server
        new = sum(n for n, _ in counts)
        padded, around_s = new, s.host_request_s * len(members) + s.host_token_s * new
        if new <= s.graph_tokens:
            padded = min(next(size for size in GRAPHS if size >= new), s.graph_tokens)
        elif s.graph_tokens:
            around_s += s.eager_s
        return self.host.draft_s(members) + around_s + batch_time_s(
            s.host_s, *asdict(self.scenario.verification).values(), padded,
            float(sum(n * (n + c) for n, c in counts)), sum(c for _, c in counts))  # fmt: skip

    def evict(self) -> None:
        """Sessions outside the batch lose their place in memory, least recently used first, until it fits."""
        inside = {m.device.index for m in self.batch}
        growth = sum(map(self.places, self.batch))
        for index in [i for i in self.cached if i not in inside and self.cached[i]]:
            if sum(self.cached.values()) + growth > self.host.kv_tokens:
                self.forget(index)
                self.totals["evictions"] += 1
        self.totals["kv_peak_tokens"] = max(self.totals["kv_peak_tokens"], sum(self.cached.values()) + growth)

    def forget(self, index: int) -> None:
        """A session's keys and values are gone, those of the server's draft too."""
        del self.cached[index]
        self.host.cached.pop(index, None)

    def launch(self) -> None:
        """The composed batch starts."""
        self.batch_clean_s = self.time_s(self.batch)
        self.evict()
        noise = draws.normal(self.key(draws.BATCH_NOISE, 0, 0), self.batches)
        self.batch_noisy_s = self.batch_clean_s * math.exp(self.scenario.server.noise * noise)
        self.batches += 1
        self.batch_start_s = self.now_s
        gone = [m.device for m in self.batch if m.completes]
        self.queue = [device for device in self.queue if device not in gone]
        e = self.scenario.estimator
        self.predicted_end_s = self.now_s + self.host.draft_s(self.batch) + self.predict_s(self.verified(self.batch))
        first = self.queue[:64]  # the rest is taken to be like them
        work_s = sum(e.new_token_s * (self.uncached(d) + 1 + len(d.tokens)) for d in first)
        work_s += sum(e.cached_token_s * self.cached.get(d.index, 0) + e.request_s for d in first)
        self.queue_s = work_s * len(self.queue) / max(len(first), 1)
        if self.controller.batching == rules.PIPELINED:
            self.end_turn()
        self.write("launch", -1, len(self.batch))
        self.write("predict", -1, self.predicted_end_s)
        for member in self.batch:
            self.write("member", member.device.index, member.take_tokens)
        for m in self.batch:
            if m.device.at_server and m.device.tokens:
                self.write("draft", m.device.index, len(m.device.tokens))
        self.at(self.now_s + self.batch_noisy_s, END, 0, self.end)

    def end(self) -> None:
        """The batch ends: chunks are cached, verified rounds are answered."""
        self.write("end", -1, len(self.batch))
        self.mean_batch_s = 0.9 * self.mean_batch_s + 0.1 * self.batch_noisy_s
        idle_s = max(self.batch_start_s - self.last_end_s, 0.0)
        self.utilisation = 0.9 * self.utilisation + 0.1 * self.batch_noisy_s / (self.batch_noisy_s + idle_s)
        self.last_end_s = self.now_s
        self.count_batch()
        answered = [m.device for m in self.batch if m.completes]
        if answered:
            self.share_there = sum(d.at_server for d in answered) / len(answered)
        if self.controller.suggests and answered:
            self.suggest(answered)
        elif self.controller.suggests:
            suggestions.forget(self.knowledge)
        for member in self.batch:
            self.settle(member)
        self.host.note_rate(sum(d.kept + 1 for d in answered), self.batch_noisy_s)
        self.host.learn(answered)
        for device in answered:
            self.answer(device, len(answered))
        self.batch = []
        self.look_at(self.now_s)
        self.at(self.now_s, INFORM, 0, lambda: self.inform(answered))

    def inform(self, devices: list[Device]) -> None:
        """Put the server's state into the replies, after the next launch."""
        busy = bool(self.batch)
        boundary_s = self.predicted_end_s if busy else self.now_s
        for device in devices:
            device.sight.server = ServerState(
                self.now_s, busy, boundary_s, self.mean_batch_s, self.queue_s, self.utilisation, self.host.length, self.share_there)  # fmt: skip

    def suggest(self, devices: list[Device]) -> None:
        """Lengths for the devices whose rounds have been verified, by the rule's own pure functions."""
        c, e, know = self.controller, self.scenario.estimator, self.knowledge
        cap, memory = self.scenario.max_draft_tokens, np.array([d.memory for d in devices])
        rounds = [(d, memory[row]) for row, d in enumerate(devices) if d.request.committed and not d.at_server]
        suggestions.forget(know)
        for d, session in rounds:
            verified, draft_s = d.verified, d.sent_s - d.round_start_s
            away_s = d.arrived_s - d.sight.server.left_s - draft_s
            suggestions.note_round(
                know, verified, d.kept, draft_s, away_s, d.request.prompt_tokens + d.request.committed
            )
            suggestions.note_session(session, verified, d.kept)
        n = len(rounds)
        costs = self.share, e.launch_s + e.request_s * max(n, 1), e.new_token_s, e.pair_s
        if c.speculation == speculation.GOODSPEED:
            everyone = np.arange(len(devices))
            suggestions.share_budget(self.speculation_parameters[0], memory, everyone, len(devices), cap, self.share)
        elif c.speculation == speculation.SGLANG_LOAD:
            length = suggestions.sglang_load_length(know, n, sum(d.kept for d, _ in rounds) / max(n, 1))
        elif c.speculation == speculation.TURBOSPEC:
            length = suggestions.turbospec_length(self.speculation_parameters, know, max(n, 1), cap, *costs)
        else:
            length = suggestions.vllm_length(know, max(n, 1), cap, *costs)
        for d, session in zip(devices, memory, strict=True):
            d.memory[:] = session
            shared = c.speculation == speculation.GOODSPEED
            d.sight.suggested = int(session[suggestions.S_LENGTH]) if shared else min(length, cap)

    def settle(self, m: Member) -> None:
        """Outcome for a member: what of it stays in memory, keys and values of rejected tokens being dropped, and what it commits."""
        device, r = m.device, m.device.request
        self.cached[device.index] = self.cached.pop(device.index, 0) + m.take_tokens
        if not m.completes:
            return
        self.write("verify", device.index, device.kept)
        self.cached[device.index] = r.context_tokens + device.kept
        self.host.settle(device)
        verified, drafted = device.verified, len(device.tokens)
        self.totals.update(
            drafted=drafted, accepted=device.kept, rejected=verified - device.kept, trimmed=drafted - verified
        )
        r.committed += device.kept + 1
        if r.committed >= r.output_tokens:
            self.forget(device.index)
            device.running = False
            self.carry(device)

    def carry(self, device: Device) -> None:
        """What pacing's floor owes to a device whose response is over; what it had beyond it counts for a while."""
        if self.controller.pace:
            *_, floor, _, credit_s = self.controller.pace
            lacks = floor * (self.now_s - device.request.arrival_s) - device.request.committed
            device.owed_tokens = max(device.owed_tokens + lacks, -floor * credit_s)

    def answer(self, device: Device, answered: int) -> None:
        """Who drafts next, and the reply; a session at the server goes on at once."""
        r, by_server, tokens = device.request, device.at_server, device.kept + 1
        goes_on = r.committed < r.output_tokens
        self.choose_drafter(device, answered, goes_on)
        reply = Reply(
            r, r.committed - tokens, len(device.tokens), device.verified, device.kept, by_server, goes_on and not device.at_server,
            device.round_start_s, device.token_s)  # fmt: skip
        downlink_s = self.transfer_s(device, tokens * TOKEN_BYTES, device.kind.link.downlink_bytes_per_s)
        device.delivered_s = max(device.delivered_s, self.now_s + downlink_s)  # a reply never overtakes the one before
        self.at(device.delivered_s, DELIVER, device.index, lambda: self.deliver(device, reply))
        self.teach(device, reply, downlink_s)
        device.comes_back = reply.to_device
        if goes_on and device.at_server:
            self.stay(device)

    def choose_drafter(self, device: Device, answered: int, goes_on: bool) -> None:
        """Who drafts a session's next round; one that is over gives up its place at the server."""
        if not self.controller.drafting.mixes:
            return
        before, others = device.at_server, sum(d.at_server for d in self.devices if d is not device)
        device.takes = self.host.drafts_next(device, others, answered, self.mean_batch_s)
        device.at_server = goes_on and self.ways.moves(device, device.takes)
        if goes_on and device.at_server != before:
            self.write("drafter", device.index, device.at_server)

    def teach(self, device: Device, reply: Reply, downlink_s: float) -> None:
        """Averages that a reply changes; nobody looks at them before it is there, but the server where the session stays."""
        stayed = reply.by_server and reply.first
        for delay in [downlink_s] if stayed else [device.arrived_s - device.sent_s, downlink_s]:
            device.sight.learn_delay(delay)
        of_another = bool(reply.by_server and reply.drafted and self.source.other)
        device.sight.learn_fates(reply.verified, reply.kept, of_another)
        if reply.first:
            device.sight.learn_rate(reply.tokens, device.delivered_s - reply.round_start_s)
        else:
            reply.request.first_token_s = device.delivered_s

    def stay(self, device: Device) -> None:
        """A session at the server joins the queue again; its round starts when the reply before it is delivered."""
        device.tokens, device.verified, device.round_start_s = [], 0, device.delivered_s
        device.guessed_tokens = self.host.guess_tokens(device)
        if not self.controller.centralized:
            device.arrived_s = self.now_s
            device.deadline_s = (
                device.delivered_s + device.guessed_tokens / device.slo.speed_tokens_per_s - device.sight.delay_mean_s
            )
        self.queue.append(device)

    # --- at the device again -----------------------------------------------------------------------------------------

    def deliver(self, device: Device, reply: Reply) -> None:
        """A reply reaches the device."""
        self.write("deliver", device.index, reply.tokens)
        if reply.first and self.controller.learns and not reply.by_server:
            speculation.learn(
                self.controller.speculation, self.speculation_parameters, device.memory, device.row, reply.drafted,
                reply.kept, reply.tokens, self.now_s - reply.round_start_s)  # fmt: skip
        self.count_delivery(device, reply)
        device.head = self.head(device, reply)
        if reply.completes:
            self.write("done", device.index, reply.request.output_tokens)
            self.next_request(device)
        elif reply.to_device:
            self.begin_round(device)

    def head(self, device: Device, reply: Reply) -> Head | None:
        """What the device has of its next round, if it drafted on while this one was away."""
        ahead, most, device.ahead = device.ahead, self.controller.drafting.overlap_tokens, None
        if ahead is None:
            return None
        away_s = self.now_s - ahead.sent_s
        done = min(most, math.floor(away_s / ahead.token_s))
        busy_s = min(most * ahead.token_s, away_s)
        self.heat_up(device, busy_s)
        device.heat_at_s = ahead.sent_s + busy_s
        self.write("overlap", device.index, done)
        self.count_ahead(done, ahead.token_s)
        right = reply.kept == ahead.drafted and self.source.fate(device, ahead.guess_place, 0)
        if not (done and right and reply.to_device):
            return None
        self.count_used(ahead.token_s)
        return Head(done - 1, ahead.sent_s + (done + 1) * ahead.token_s if done < most else None, ahead.token_s)

    def due_s(self, device: Device, r: Request, index: int) -> float:
        """Latest delivery of a token of a response."""
        slo = device.slo
        if slo.clock == "arrival":
            return r.arrival_s + slo.ttft_s + (index + 1) / slo.speed_tokens_per_s + slo.grace_s
        return r.first_token_s + index / slo.speed_tokens_per_s + slo.grace_s

    def count_delivery(self, device: Device, reply: Reply) -> None:
        """Measures of a delivered reply."""
        r, row = reply.request, self.slo_totals[self.scenario.slo.index(device.slo)]
        places = range(reply.first, reply.first + reply.tokens)
        on_time = sum(self.now_s <= self.due_s(device, r, n) + 1e-9 for n in places)
        if r.counted and reply.completes:
            attained = self.now_s <= self.due_s(device, r, r.output_tokens - 1)
            row.update(finished=1, attained=attained, attained_tokens=attained * r.output_tokens)
        if not self.in_window(self.now_s):
            return
        row.update(tokens=reply.tokens, tokens_on_time=on_time)
        self.totals.update(tokens=reply.tokens, tokens_on_time=on_time)
        if reply.first:
            self.count_round(reply)

    def count_round(self, reply: Reply) -> None:
        """Measures of a round delivered in the window."""
        self.totals.update(
            rounds=1, window_drafted=reply.drafted, window_accepted=reply.kept, window_trimmed=reply.drafted - reply.verified,
            round_latency_s=self.now_s - reply.round_start_s)  # fmt: skip
        if not reply.by_server:
            self.totals["wasted_s"] += reply.token_s * reply.wasted_tokens
        elif reply.drafted:
            self.totals.update(server_rounds=1, server_drafted=reply.drafted)

    def count_ahead(self, tokens: int, token_s: float) -> None:
        """Tokens that a device drafted while its round was away: wasted but for those of use."""
        if self.in_window(self.now_s):
            self.totals.update(overlapped=tokens, wasted_s=token_s * tokens)

    def count_used(self, token_s: float) -> None:
        """One of them was of use."""
        if self.in_window(self.now_s):
            self.totals.update(overlap_used=1, wasted_s=-token_s)

    def count_batch(self) -> None:
        """Measures of a batch that ends now."""
        if not self.in_window(self.now_s):
            return
        solo = [self.batch_clean_s - self.time_s([m]) for m in self.batch]
        self.totals.update(batches=1, batched_requests=len(self.batch), interference_s=sum(solo))
        for m in self.batch:
            again = self.prefilled(m) if m.device.request.committed else 0
            self.totals["recomputed_tokens"] += again
