"""Where the plain reference simulator's drafted tokens come from: two processes, or a recorded trace (model.md §4, who-drafts.md §1).

Every token of a request has its fate from the beginning; drafting a token only looks it up.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tests.support.reference_parts import Device, Request, Token, sigmoid
from wisp_gym.engine import draws
from wisp_gym.engine.acceptance import VIEW_DIRECTION, VIEW_NOISE
from wisp_gym.engine.build import mean_acceptance, separation
from wisp_gym.rules.rejection_predictor import load_predictor
from wisp_gym.rules.who_drafts import Hosted
from wisp_gym.scenario import Acceptance, Scenario, ServerDraft
from wisp_gym.traces.speculation import find, read_speculation_trace

DRIFT_BLOCK_TOKENS = 8


def logit(share: float) -> float:
    """Log odds."""
    return math.log(share / (1.0 - share))


def off_path_place(device: Device) -> int:
    """Index of the draws of a token from a wrong prefix: counted from the position after the rejected one."""
    return 2**32 + (device.request.committed + device.accepted + 1) * 64 + len(device.tokens)


@dataclass(frozen=True)
class Process:
    """Numbers of a process of acceptance; keep: what is left of the drift after a block."""

    logit_mean: float
    request_std: float
    drift_std: float
    keep: float
    after_rejection_logit: float
    loop: Acceptance

    def loops(self, n: int, uniform: Callable[[int], float]) -> list[int | None]:
        """What a loop makes of each of n positions: 1 accepted, 0 rejected, None outside of loops."""
        a, found, ends = self.loop, [], None
        for position in range(n):
            if ends is not None and uniform(position) < a.loop_leave:
                ends = None
            elif ends is None and uniform(position) < a.loop_enter:
                first = 2**32 + 3 * position
                period, more = a.loop_period_tokens, a.loop_more_tokens
                if more:
                    period += int(math.log(1.0 - uniform(first)) / math.log(more / (1.0 + more)))
                place = int(uniform(first + 1) * period)
                ends = 0 if uniform(first + 2) < a.loop_whole else (position - place, period)
            found.append(None if ends is None else 1 if ends == 0 else int((position - ends[0]) % ends[1] > 0))
        return found

    def fates(
        self, n: int, effect: float, innovation: Callable[[int], float], uniform: Callable[[int], float], loop: Callable[[int], float],
    ) -> list[int]:  # fmt: skip
        """Whether the draft is right at each of n positions of the target's output, given the true prefix."""
        fates: list[int] = []
        loops = self.loops(n, loop)
        drift = innovation(0)
        for position in range(n):
            block, place = divmod(position, DRIFT_BLOCK_TOKENS)
            if block and not place:
                drift = self.keep * drift + math.sqrt(1.0 - self.keep * self.keep) * innovation(block)
            harder = self.after_rejection_logit if fates and not fates[-1] else 0.0
            p = sigmoid(self.logit_mean + self.request_std * effect + self.drift_std * drift - harder)
            of_loop = loops[position]
            fates.append(int(uniform(position) < p) if of_loop is None else of_loop)
        return fates


class Source:
    """Fates and predictions of the tokens that the devices and the server draft."""

    def __init__(self, scenario: Scenario, seed: int, hosted: Hosted | None):
        self.scenario, self.seed = scenario, seed
        a, h = scenario.draft.acceptance, hosted
        keep = math.exp(-DRIFT_BLOCK_TOKENS / a.drift_tokens)
        self.process = Process(a.logit_mean, a.request_std, a.drift_std, keep, a.after_rejection_logit, a)
        self.other = h if h and not h.shares_fates else None  # a draft at the server with fates of its own
        self.separation = separation(scenario.draft.statistics.auc)
        self.base_logit = logit(mean_acceptance(a))
        self.recording = read_speculation_trace(find(scenario.draft.trace)) if scenario.draft.trace else None
        self.predictor = load_predictor(scenario.draft.predictor) if scenario.draft.predictor else None

    def key(self, cause: int, device: int, request: Request) -> np.uint64:
        """Stream of a cause for a device's request."""
        return np.uint64(draws.stream_key(np.uint64(self.seed), cause, device, request.number))

    # --- fates -------------------------------------------------------------------------------------------------------

    def begin(self, device: int, r: Request) -> None:
        """A request takes its recorded answer, or the fates of the process; the server's own draft has its process."""
        if self.recording:
            r.answer = int(draws.uniform(self.key(draws.ANSWER, device, r), 0) * len(self.recording))
            r.output_tokens = int(self.recording.output_tokens[r.answer])
        else:
            r.fates = self.fates(device, r)
        if self.other:
            r.server_fates = self.server_fates(device, r)

    def fates(self, device: int, r: Request) -> list[int]:
        """Of the devices' draft, at each position of the output and the one after it."""
        effect, drift, accept = (self.key(c, device, r) for c in (draws.REQUEST_EFFECT, draws.DRIFT, draws.ACCEPTANCE))
        return self.process.fates(
            r.output_tokens + 1, draws.normal(effect, 0), lambda block: draws.normal(drift, block),
            lambda place: draws.uniform(accept, place), self.loop_draw(device, r))  # fmt: skip

    def loop_draw(self, device: int, r: Request) -> Callable[[int], float]:
        """Draws about the loops of a request's text, the same for every draft."""
        key = self.key(draws.LOOPS, device, r)
        return lambda index: draws.uniform(key, index)

    def server_fates(self, device: int, r: Request) -> list[int]:
        """Of the server's own draft, which shares draws with the devices' to a degree ρ."""
        h, rho = self.other, self.other.correlation

        def mixed(of_device: int, own: int) -> Callable[[int], float]:
            theirs, ours = self.key(of_device, device, r), self.key(own, device, r)
            return lambda k: rho * draws.normal(theirs, k) + math.sqrt(1.0 - rho * rho) * draws.normal(ours, k)

        def uniform(place: int) -> float:
            shared = draws.uniform(self.key(draws.SERVER_SHARED, device, r), place) < rho
            cause = draws.ACCEPTANCE if shared else draws.SERVER_ACCEPTANCE
            return draws.uniform(self.key(cause, device, r), place)

        effect = mixed(draws.REQUEST_EFFECT, draws.SERVER_EFFECT)(0)
        process = Process(
            h.logit_mean,
            h.request_std,
            h.drift_std,
            h.drift_keep,
            h.after_rejection_logit,
            self.scenario_draft(h).acceptance,
        )
        return process.fates(
            r.output_tokens + 1, effect, mixed(draws.DRIFT, draws.SERVER_DRIFT), uniform, self.loop_draw(device, r)
        )

    def scenario_draft(self, hosted: Hosted) -> ServerDraft:
        """What the scenario says of a loaded draft."""
        return next(draft for draft in self.scenario.server_drafts if draft.name == hosted.name)

    def fate(self, device: Device, start: int, j: int) -> int:
        """Fate of token j of a round of the devices' draft that starts at a position, all before it being accepted."""
        r, trace = device.request, self.recording
        if trace is None:
            return r.fates[start + j]
        row = trace.positions(r.answer).start + start
        if trace.acceptance is None:
            return int(j < trace.accepted_run[row])
        chance = draws.uniform(self.key(draws.ACCEPTANCE, device.index, r), start + j)
        return int(chance < float(trace.acceptance[row, j]))  # a float16 would round the draw

    def next_fate(self, device: Device) -> int:
        """Fate of the token that the devices' draft would draft next, all before it being accepted."""
        return self.fate(device, device.request.committed, len(device.tokens))

    def offers(self, device: Device) -> bool:
        """Whether the server's draft has anything to offer in a round: always, where its first token would be accepted."""
        r = device.request
        if self.other is None or r.server_fates[r.committed]:
            return True
        return draws.uniform(self.key(draws.SERVER_OFFER, device.index, r), r.committed) < self.other.offer

    # --- tokens ------------------------------------------------------------------------------------------------------

    def draft(self, device: Device) -> None:
        """One more token of the devices' draft, on the device or on the server."""
        token, statistics = self.recorded_token(device) if self.recording else self.parametric_token(device)
        if self.predictor:
            token.p_accept = float(self.predictor.probability(np.array(statistics)))
        device.tokens.append(token)

    def draft_at_server(self, device: Device) -> None:
        """One more token of the server's draft."""
        if self.other is None:
            self.draft(device)
            return
        key, right = self.key(draws.SERVER_EVIDENCE, device.index, device.request), self.on_path(device)
        place = device.request.committed + len(device.tokens) if right else off_path_place(device)
        fate = device.request.server_fates[place] if right else 0
        evidence = (fate - 0.5) * self.separation + draws.normal(key, place)
        p_accept = sigmoid(logit(self.other.share) + self.separation * evidence)
        device.tokens.append(Token(fate, p_accept, 0.0, 0.0, 0.0, 0.0))

    def on_path(self, device: Device) -> bool:
        """Whether all drafted tokens are right."""
        return all(token.fate for token in device.tokens)

    def recorded_token(self, device: Device) -> tuple[Token, list[float]]:
        """The next token of the row at which the round began, and its four statistics."""
        fate = self.next_fate(device) if self.on_path(device) else 0
        row = self.recording.positions(device.request.answer).start + device.request.committed
        recorded = self.recording.statistics
        statistics = (
            [float(x) for x in recorded[row, len(device.tokens)]]
            if recorded is not None
            else self.of_place(len(device.tokens))
        )
        return Token(fate, statistics[0], *statistics), statistics

    def of_place(self, j: int) -> list[float]:
        """Statistics that stand for token j of a round where none were recorded: how often it is accepted if all before it are."""
        trace = self.recording
        chances = trace.acceptance
        if chances is None:
            chances = np.arange(trace.draft_tokens) < trace.accepted_run[:, None]
        before = chances[:, :j].astype(np.float32).prod(axis=1, dtype=float)
        p = float((before * chances[:, j].astype(np.float32)).sum() / before.sum()) if before.sum() else 0.0
        p = min(max(p, 0.001), 0.999)
        found = p, -p * math.log(p) - (1 - p) * math.log(1 - p), abs(2 * p - 1), abs(logit(p)) / 2
        return [float(np.float32(x)) for x in found]

    def parametric_token(self, device: Device) -> tuple[Token, list[float]]:
        """A token with evidence about its fate, and the four statistics that hold the evidence."""
        r, i = device.request, device.index
        if self.on_path(device):
            place = r.committed + len(device.tokens)
            fate, noise = r.fates[place], draws.normal(self.key(draws.EVIDENCE, i, r), place)
        else:
            place = off_path_place(device)
            fate, noise = 0, draws.normal(self.key(draws.OFF_PATH, i, r), place)
        evidence = (fate - 0.5) * self.separation + noise
        views = [draws.normal(self.key(draws.VIEWS, i, r), place * 3 + k) for k in range(3)]
        y = VIEW_DIRECTION * evidence + VIEW_NOISE @ views
        confidence = sigmoid(self.base_logit + self.scenario.draft.statistics.overconfidence + 2.0 * y[0])
        statistics = [confidence, 1.2 * math.exp(-0.6 * y[1]), sigmoid(0.5 + 1.5 * y[2]), 3.0 * math.exp(0.15 * y[3])]
        return Token(fate, sigmoid(self.base_logit + self.separation * evidence), *statistics), statistics
