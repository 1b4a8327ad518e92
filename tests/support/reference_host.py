"""The plain reference simulator's server where it drafts: which draft, how many tokens, how long it takes (who-drafts.md §1, §2)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tests.support.reference_parts import Device, Member
from tests.support.reference_source import Source
from wisp_gym.engine.build import accepted_share
from wisp_gym.rules import drafters, server_lengths
from wisp_gym.rules.bandits import MEMORY
from wisp_gym.rules.controller import Controller
from wisp_gym.rules.lengths import ALPHA_HIGH, ALPHA_LOW, expected_tokens
from wisp_gym.scenario import Estimator, Scenario


def eight(numbers: tuple[float, ...]) -> np.ndarray:
    """(8,) float64 numbers of a rule, zeros after the last."""
    return np.array([*numbers, *[0.0] * (8 - len(numbers))])


def expected(alpha: float, k: int) -> float:
    """Tokens that a round of k drafts is expected to commit."""
    return expected_tokens(min(max(alpha, ALPHA_LOW), ALPHA_HIGH), k)


class Drafted(NamedTuple):
    """What the server drafts for a member: tokens, its context and what of it the draft's cache holds."""

    tokens: int
    context: int
    cached: int


class Host:
    """A server's draft with its cache and the rule of its lengths, and who drafts next; without a draft it drafts nothing."""

    def __init__(self, scenario: Scenario, controller: Controller, source: Source):
        d = controller.drafting
        self.draft, self.source, self.estimator = d.hosted, source, scenario.estimator
        self.share = (
            accepted_share(scenario) if d.hosted and d.hosted.shares_fates else d.hosted.share if d.hosted else 0.0
        )
        self.kv_tokens = d.hosted.kv_tokens if d.hosted else scenario.kv_tokens
        self.lookahead_tokens, self.max_draft_tokens = d.lookahead_tokens, scenario.max_draft_tokens
        self.kind, self.parameters = d.length, eight(d.length_parameters)
        self.drafter, self.drafter_parameters = d.drafter, eight(d.drafter_parameters)
        self.memory = np.zeros(MEMORY)
        self.cached: dict[int, int] = {}  # tokens in the draft's cache, of each device's session
        self.length = d.lookahead_tokens  # of the last batch in which it drafted
        self.token_rate = 0.0

    # --- what it expects ---------------------------------------------------------------------------------------------

    def alpha(self, device: Device) -> float:
        """Acceptance that it expects of its own drafts for a session."""
        shares_fates = self.draft is None or self.draft.shares_fates
        return device.sight.acceptance if shares_fates else self.share

    def guess_tokens(self, device: Device) -> float:
        """Expected tokens of a session's next round at the server."""
        return expected(self.alpha(device), self.length)

    def guess_s(self, devices: list[Device]) -> float:
        """Predicted drafting time for some sessions while a batch is composed: as many tokens as in the last batch."""
        if not devices or self.length == 0:
            return 0.0
        t, k = self.draft, self.length
        each_s = [t.sequence_s + t.token_s + t.cached_token_s * d.request.context_tokens for d in devices]
        return t.overhead_s + k * (t.launch_s + sum(each_s))

    # --- drafting ----------------------------------------------------------------------------------------------------

    def choose_length(self, drafting: list[Member], others: int, base_s: float) -> int:
        """The batch's length; `base_s`: its predicted time without drafts."""
        t, e, b = self.draft, self.estimator, len(drafting)
        context = sum(m.device.request.context_tokens for m in drafting)
        self.length = server_lengths.server_length(
            self.kind, self.parameters, self.memory, b, others, min(self.max_draft_tokens, self.lookahead_tokens), self.share, base_s,
            t.launch_s + (t.sequence_s + t.token_s) * b + t.cached_token_s * context, e.new_token_s * b + e.pair_s * context, t.overhead_s,
        )  # fmt: skip
        return self.length

    def draft_for(self, device: Device, length: int) -> None:
        """Draft for one session of the batch."""
        r = device.request
        cap = min(length, self.max_draft_tokens, r.output_tokens - r.committed - 1)
        if cap < 1 or not self.source.offers(device):
            return
        while len(device.tokens) < cap and server_lengths.goes_on(self.kind, self.parameters, device.survival):
            self.source.draft_at_server(device)

    def drafted(self, members: list[Member]) -> list[Drafted]:
        """What it drafted for members of the running batch."""
        found = []
        for d in (m.device for m in members):
            if d.at_server and d.tokens:
                found.append(Drafted(len(d.tokens), d.request.context_tokens, self.cached.get(d.index, 0)))
        return found

    def draft_s(self, members: list[Member]) -> float:
        """True time of drafting for the batch, without noise."""
        rows, t = self.drafted(members), self.draft
        total_s = t.overhead_s if rows else 0.0
        for j in range(1, max((row.tokens for row in rows), default=0) + 1):
            inside = [row for row in rows if row.tokens >= j]
            new = sum(row.context - row.cached for row in inside) if j == 1 else len(inside)
            cached = sum(row.cached if j == 1 else row.context + j - 2 for row in inside)
            total_s += t.launch_s + t.sequence_s * len(inside) + t.token_s * new + t.cached_token_s * cached
        return total_s

    # --- afterwards --------------------------------------------------------------------------------------------------

    def settle(self, device: Device) -> None:
        """A round is verified, and not yet committed: its right tokens stay in the draft's cache."""
        if device.at_server and device.tokens:
            right = min(device.kept, len(device.tokens) - 1)
            self.cached[device.index] = device.request.context_tokens + right

    def learn(self, answered: list[Device]) -> None:
        """A batch has been verified: what the rule of lengths learns from it."""
        if not self.draft:
            return
        rounds = [d for d in answered if d.at_server and d.tokens]
        mean = sum(d.kept for d in rounds) / max(len(rounds), 1)
        server_lengths.server_learns(self.kind, self.parameters, self.memory, len(rounds), mean)
        for d in rounds:
            server_lengths.note_server_round(self.kind, self.memory, d.verified, d.kept)

    def note_rate(self, tokens: int, seconds: float) -> None:
        """A batch has committed so many tokens."""
        self.token_rate = 0.9 * self.token_rate + 0.1 * tokens / seconds

    # --- who drafts next ---------------------------------------------------------------------------------------------

    def drafts_next(self, device: Device, others: int, answered: int, mean_batch_s: float) -> bool:
        """Whether the server drafts for a session in its next round; `others`: sessions that it drafts for besides."""
        kind, gain, price = self.drafter, 0.0, 0.0
        if kind == drafters.BY_PRICE:
            gain, use = self.gain_and_use(device, answered, mean_batch_s)
            price = self.token_rate * use
        return bool(drafters.server_drafts(
            kind, self.drafter_parameters, others, device.slo.speed_tokens_per_s, device.kind.draft_tokens_per_s, gain, price))  # fmt: skip

    def gain_and_use(self, device: Device, answered: int, batch_s: float) -> tuple[float, float]:
        """Tokens/s that a session gains at the server, and the share of the server's time that it costs beyond its device's rounds."""
        e, k, length, x = self.estimator, self.length, device.round_tokens, device.request.context_tokens
        token_s, delay_s = 1.0 / device.kind.draft_tokens_per_s, device.sight.delay_mean_s
        round_s = drafters.device_round_s(length, device.kind.round_overhead_s, token_s, delay_s, batch_s)
        gain = expected(self.alpha(device), k) / batch_s - expected(device.sight.acceptance, length) / round_s
        at_server = (verify_s(e, k, x) + self.member_s(k, x, answered)) / batch_s
        return gain, at_server - verify_s(e, length, x) / round_s

    def member_s(self, k: int, context: int, answered: int) -> float:
        """A member's part of the time of drafting k tokens."""
        if k == 0:
            return 0.0
        t = self.draft
        return k * (t.launch_s / answered + t.sequence_s + t.token_s + t.cached_token_s * context)


def verify_s(e: Estimator, drafts: int, context: int) -> float:
    """A member's part of the time of verifying so many drafts."""
    return e.new_token_s * (drafts + 1) + e.cached_token_s * context + e.request_s
