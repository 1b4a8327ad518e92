"""The speculation controller of a device: told what it drafted, measured and received, it says whether to draft on or to send.

    controller = SpeculationController(load_bundle("policy.onnx"), profile)
    controller.begin_request(now_s, prompt_tokens=900, output_tokens=200)
    ...                                                    # the prompt goes to the server, its reply comes
    controller.receive(reply, now_s)
    controller.begin_round(now_s)
    while controller.wants_more(now_s):
        controller.drafted(token, now_s)
    controller.sent(now_s)                                 # in the way `controller.way` (wisp_gym.contract.actions)

It computes the entries of `wisp_gym.contract.device` by the formulas of `wisp_gym.engine.observe_device` and `session`; a test
replays recorded decisions of the engine and holds both equal. No method raises: where an input is missing, late or out of range, WISP's
heuristic decides and `fallbacks` counts why.
"""

import math
from collections import Counter

import numpy as np

from wisp_gym.contract import device as e
from wisp_gym.contract.actions import DRAFT, SENDS
from wisp_gym.contract.averages import FRESH, KEEP, PRIOR_TOKENS
from wisp_gym.errors import InputError, of_kind, shown
from wisp_gym.serving.bundle.bundle import Bundle
from wisp_gym.serving.bundle.schema import LENGTH, LENGTH_WAY, OF_DEVICES, TOKEN_WAY, BundleError
from wisp_gym.serving.device import facts
from wisp_gym.serving.device.facts import MISSING, MOST_S, OUT_OF_RANGE, DeviceProfile, Reply, Token, is_within
from wisp_gym.serving.wisp import drafts_on

LATE_S = 5.0  # a server state older than this is no state (assumption: no batch takes so long)
LOW, HIGH = np.array(e.LOW, np.float32), np.array(e.HIGH, np.float32)


class SpeculationController:
    """Decides on one device, for one request at a time.

    Args:
        bundle: a policy that decides after each token or once a round. profile: what the device knows beforehand.
        late_s: age beyond which the server state counts as late.

    Raises:
        BundleError: a bundle of another decision. ValueError: a profile out of its ranges.

    Attributes:
        way: how the round ends once no more is wanted: SENDS, DRAFTS_ON or HANDS_OVER (`wisp_gym.contract.actions`).
        decisions: how many were asked for. fallbacks: how many of them WISP's rule took, by reason.
    """

    def __init__(self, bundle: Bundle, profile: DeviceProfile, late_s: float = LATE_S):
        if (decision := of_kind("bundle", bundle, Bundle, BundleError).schema.decision) not in OF_DEVICES:
            raise BundleError(f"a device needs a policy of {', '.join(OF_DEVICES)}, given one of '{decision}'")
        facts.check_profile(of_kind("profile", profile, DeviceProfile))
        if not is_within(late_s, 0.0, MOST_S):
            raise InputError(f"late_s: given {shown(late_s)}, allowed is a number of seconds from 0 to {MOST_S:g}")
        self.bundle, self.profile, self.late_s = bundle, profile, late_s
        self.by_length, self.by_token_and_way = decision in (LENGTH, LENGTH_WAY), decision == TOKEN_WAY
        self.max_draft_tokens = bundle.schema.max_draft_tokens
        self.threshold = bundle.schema.fallback["threshold"]
        self.decisions, self.fallbacks = 0, Counter[str]()
        self.begin_averages(profile)
        self.row, self.odds_ratio = [0.0] * e.SIZE, 1.0
        self.array = np.zeros((1, e.SIZE), np.float32)
        self.feed = {"observation": self.array}
        self.begin_request(0.0, 1, 1)

    def begin_averages(self, p: DeviceProfile) -> None:
        """Running averages before anything was measured."""
        self.draft_token_s, self.batch_s = p.draft_token_s, p.batch_s
        self.delay_mean_s, self.delay_spread_s = p.one_way_s, 0.0
        self.accepted_sum, self.examined_sum = PRIOR_TOKENS * p.accept_share, PRIOR_TOKENS
        self.token_sum, self.time_sum_s = p.slo_tokens_per_s, 1.0  # at first the rate that the class asks for
        self.info_s, self.info_end_s, self.busy = 0.0, 0.0, False
        self.queue_s = self.utilisation = self.price = 0.0
        self.suggested_tokens = 0
        self.takes_over, self.server_tokens, self.server_rate, self.server_share, self.head_tokens = (
            False,
            0,
            0.0,
            0.0,
            0,
        )

    # --- what happens ---------------------------------------------------------------------------------------------------

    def begin_request(self, arrival_s: float, prompt_tokens: int, output_tokens: int) -> None:
        """A request has come; its prompt goes to the server now, or as soon as the device is free.

        Args:
            output_tokens: tokens wanted at most.
        """
        usable = is_within(prompt_tokens, 0, 1e9) and is_within(output_tokens, 1, 1e9)
        usable = usable and is_within(arrival_s, -1e12, 1e12)
        self.request_fault = "" if usable else OUT_OF_RANGE
        request = (arrival_s, prompt_tokens, output_tokens) if usable else (0.0, 0, 1 << 30)
        self.arrival_s, self.prompt_tokens, self.output_tokens = request
        self.committed, self.first_token_s, self.last_rejected = 0, self.arrival_s, False
        self.reply_fault = MISSING  # nothing has come for this request yet
        self.round_start_s = self.clock_s = self.sent_s = self.arrival_s
        self.clear()

    def clear(self) -> None:
        """No token drafted yet in this round."""
        self.tokens, self.target, self.round_fault, self.way = 0, -1, "", SENDS
        self.survival = self.expected_tokens = self.adapted_survival = 1.0
        self.last_probability: float | None = 1.0
        self.statistics = (1.0, 1.0, 0.0, 1.0, 0.0)

    def sent(self, now_s: float) -> None:
        """The round, or the prompt, leaves for the server."""
        if is_within(now_s, -1e12, 1e12):
            self.sent_s = now_s

    def receive(
        self, reply: Reply, now_s: float, uplink_s: float | None = None, downlink_s: float | None = None
    ) -> None:
        """The reply to the last message has come.

        Args:
            uplink_s, downlink_s: one-way delays where clocks agree; else each is half of the round trip.
        """
        try:
            self.reply_fault = facts.reply_fault(reply)
            if not self.reply_fault:
                half_s = max(now_s - self.sent_s - reply.held_s, 0.0) / 2.0
                up_s, down_s = half_s if uplink_s is None else uplink_s, half_s if downlink_s is None else downlink_s
                if reply.by_server and downlink_s is None:
                    down_s = self.delay_mean_s  # nothing went up from which it could be told
                self.reply_fault = "" if is_within(up_s, 0, MOST_S) and is_within(down_s, 0, MOST_S) else OUT_OF_RANGE
            if not self.reply_fault:
                self.learn(reply, now_s, up_s, down_s)
            if is_within(reply.committed_tokens, 0, 1e6):
                if self.committed == 0 and is_within(now_s, -1e12, 1e12):
                    self.first_token_s = now_s
                self.committed += reply.committed_tokens
                self.round_start_s = now_s  # of one at the server; `begin_round` sets that of the device's own
        except (TypeError, AttributeError, ValueError):
            self.reply_fault = MISSING

    def learn(self, reply: Reply, now_s: float, uplink_s: float, downlink_s: float) -> None:
        """Running averages and the server state that the reply carries (`session.learn_from_reply`)."""
        for delay_s in (downlink_s,) if reply.by_server else (uplink_s, downlink_s):
            self.delay_spread_s = KEEP * self.delay_spread_s + FRESH * abs(delay_s - self.delay_mean_s)
            self.delay_mean_s = KEEP * self.delay_mean_s + FRESH * delay_s
        examined = min(reply.accepted_tokens + 1, reply.verified_tokens)
        self.last_rejected = reply.accepted_tokens < reply.verified_tokens
        prior = FRESH * PRIOR_TOKENS
        self.accepted_sum = KEEP * self.accepted_sum + reply.accepted_tokens + prior * self.profile.accept_share
        self.examined_sum = KEEP * self.examined_sum + examined + prior
        if self.committed > 0:
            self.token_sum = KEEP * self.token_sum + reply.committed_tokens
            self.time_sum_s = KEEP * self.time_sum_s + (now_s - self.round_start_s)
        self.info_s = now_s - downlink_s
        self.busy, self.info_end_s = bool(reply.busy), self.info_s + (reply.running_left_s if reply.busy else 0.0)
        self.batch_s, self.queue_s, self.utilisation = reply.mean_batch_s, reply.queue_s, reply.utilisation
        self.price, self.suggested_tokens = reply.price, reply.suggested_tokens
        self.takes_over, self.server_tokens = bool(reply.takes_over), reply.server_tokens
        self.server_rate, self.server_share = reply.server_rate, reply.server_share

    def begin_round(self, now_s: float, draft_token_s: float | None = None, head_tokens: int = 0) -> None:
        """The device begins to draft.

        Args:
            draft_token_s: measured time to draft a token; default the last one known.
            head_tokens: tokens that are there, drafted while the last round was away.
        """
        self.clear()
        self.head_tokens = head_tokens
        if not is_within(head_tokens, 0, 1e6):
            self.head_tokens, self.round_fault = 0, OUT_OF_RANGE
        if draft_token_s is not None:
            if is_within(draft_token_s, 1e-9, MOST_S):
                self.draft_token_s = draft_token_s
            else:
                self.round_fault = OUT_OF_RANGE
        if is_within(now_s, self.arrival_s, 1e12):
            self.round_start_s = self.clock_s = now_s
        else:
            self.round_fault = OUT_OF_RANGE
        try:
            self.observe_round()
        except Exception:
            self.round_fault = facts.FAILED

    def drafted(self, token: Token, now_s: float) -> None:
        """One more token has been drafted."""
        self.tokens += 1
        try:
            p, confidence, entropy, margin, spread = statistics = facts.statistics(token)
            told = (probability for probability in (p, confidence) if is_within(probability, 0.0, 1.0))
            self.last_probability = next(told, None)
            usable = 0.0 <= p <= 1.0 and 0.0 <= confidence <= 1.0 and 0.0 <= margin <= 1.0 and 0.0 <= entropy < MOST_S
            if usable and 0.0 <= spread < MOST_S and now_s >= self.clock_s:
                self.clock_s = now_s
                self.survival *= p
                self.expected_tokens += self.survival
                self.adapted_survival *= p * self.odds_ratio / (1.0 - p + p * self.odds_ratio)
                self.statistics = statistics
            else:
                self.round_fault = OUT_OF_RANGE
        except (TypeError, AttributeError, ValueError):  # facts that are missing, or arrays of them
            self.round_fault = MISSING

    # --- the decision ---------------------------------------------------------------------------------------------------

    def wants_more(self, now_s: float) -> bool:
        """Draft one more token (True), or send what is drafted (False), in the way `way`."""
        cap = min(self.max_draft_tokens, self.output_tokens - self.committed - 1)
        may_choose = self.by_token_and_way and cap > 0 and (self.takes_over or self.profile.drafts_on)
        if self.tokens >= cap and not may_choose:
            return False  # the engine's cap: no decision
        self.decisions += 1
        try:
            fault = self.fault(now_s)
            if not fault:
                return self.ask()
        except Exception:
            fault = facts.FAILED
        self.fallbacks[fault] += 1
        return self.tokens < cap and drafts_on(self.tokens, self.last_probability, self.threshold)

    def fault(self, now_s: float) -> str:
        """Why the policy cannot be asked, or nothing."""
        if known := self.request_fault or self.reply_fault or self.round_fault:
            return known
        if not is_within(now_s, self.clock_s, 1e12):
            return OUT_OF_RANGE if isinstance(now_s, (int, float)) else MISSING
        self.clock_s = now_s
        return facts.LATE if now_s - self.info_s > self.late_s else ""

    def ask(self) -> bool:
        """The policy's answer."""
        if self.by_length:
            if self.target < 0:
                self.way, self.target = divmod(self.decide(), self.max_draft_tokens + 1)
            return self.tokens < self.target
        if (action := self.decide()) == DRAFT:
            return True
        self.way = max(action - DRAFT, SENDS)
        return False

    def decide(self) -> int:
        """The policy's action for what is seen now."""
        self.observe()
        self.array[0] = self.row
        np.maximum(self.array, LOW, out=self.array)
        np.minimum(self.array, HIGH, out=self.array)
        return int(self.bundle.session.run(None, self.feed)[0][0])

    # --- the observation, in units of the contract and not yet within its ends ------------------------------------------

    def observe_round(self) -> None:
        """Entries that stay the same within a round."""
        o, t = self.row, self.batch_s
        o[e.ACCEPTANCE_AVERAGE] = average = self.accepted_sum / self.examined_sum
        self.odds_ratio = odds(average) / odds(self.profile.accept_share)  # of this request against those expected
        o[e.DRAFT_TIME] = self.draft_token_s / t
        o[e.ONE_WAY_DELAY], o[e.JITTER] = self.delay_mean_s / t, self.delay_spread_s / t
        o[e.SLO_PERIOD] = 1.0 / (self.profile.slo_tokens_per_s * t)
        o[e.TOKENS_LEFT] = (self.output_tokens - self.committed) / e.SCALE[e.TOKENS_LEFT]
        o[e.SERVER_BUSY], o[e.LAST_REJECTED] = float(self.busy), float(self.last_rejected)
        o[e.QUEUE_WORK], o[e.UTILISATION] = self.queue_s / t, self.utilisation
        o[e.OWN_RATE] = self.token_sum / self.time_sum_s * t
        o[e.PRICE] = self.price
        o[e.BATCH_TIME] = t / e.SCALE[e.BATCH_TIME]
        o[e.CONTEXT] = (self.prompt_tokens + self.committed) / e.SCALE[e.CONTEXT]
        o[e.SUGGESTED_TOKENS] = self.suggested_tokens / self.max_draft_tokens
        o[e.DRAFTS_ON], o[e.TAKES_OVER] = float(self.profile.drafts_on), float(self.takes_over)
        o[e.HEAD_TOKENS] = self.head_tokens / self.max_draft_tokens
        o[e.SERVER_TOKENS] = self.server_tokens / self.max_draft_tokens
        o[e.SERVER_RATE], o[e.SERVER_SHARE] = self.server_rate, self.server_share

    def observe(self) -> None:
        """Entries that change with every drafted token."""
        o, cap, t, now_s = self.row, self.max_draft_tokens, self.batch_s, self.clock_s
        o[e.ACCEPT_PROBABILITY], o[e.CONFIDENCE], o[e.ENTROPY], o[e.MARGIN], o[e.LOGIT_SPREAD] = self.statistics
        o[e.DRAFTED_TOKENS], o[e.EXPECTED_TOKENS] = self.tokens / cap, self.expected_tokens / cap
        o[e.SURVIVAL], o[e.ADAPTED_SURVIVAL] = self.survival, self.adapted_survival
        o[e.SLACK] = (self.deadline_s() - now_s) * self.profile.slo_tokens_per_s
        o[e.INFO_AGE], o[e.ROUND_TIME] = (now_s - self.info_s) / t, (now_s - self.round_start_s) / t
        left_s, o[e.BOUNDARIES_MISSED] = self.boundary(now_s + self.delay_mean_s)
        o[e.BOUNDARY_LEFT] = left_s / t
        o[e.DRAFTABLE_TOKENS] = math.floor(left_s / self.draft_token_s) / cap

    def deadline_s(self) -> float:
        """When the next token is due (`slo.token_deadline_s`)."""
        p = self.profile
        start_s = self.arrival_s + p.ttft_s + 1.0 / p.slo_tokens_per_s if p.clock_from_arrival else self.first_token_s
        return start_s + p.grace_s + self.committed / p.slo_tokens_per_s

    def boundary(self, arrive_s: float) -> tuple[float, float]:
        """(seconds from arriving at the server to the next batch boundary, boundaries that pass before)."""
        if not self.busy:
            return 0.0, 0.0
        left_s = self.info_end_s - arrive_s
        if left_s >= 0.0:
            return left_s, 0.0
        missed = float(math.ceil(-left_s / self.batch_s))
        return max(left_s + missed * self.batch_s, 0.0), missed


def odds(p: float) -> float:
    """p/(1 − p), of a probability kept off 0 and 1 (`observe_device.odds`)."""
    p = min(max(p, 1e-3), 1.0 - 1e-3)
    return p / (1.0 - p)
