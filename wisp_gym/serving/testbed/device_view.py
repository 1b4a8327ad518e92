"""What a device knows when it decides: its draft, its measurements and what the last reply said of the server.

The numbers are kept in a device record of the engine, and the engine's own functions write the documented observation
from it: a policy sees here what it saw in training. All times are of the device's clock; what the server tells are
durations.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wisp_gym.engine.observation import SIZE, observe_all, observe_round
from wisp_gym.engine.session import FRESH, KEEP, PRIOR_TOKENS
from wisp_gym.engine.state import CONFIG, DEVICE
from wisp_gym.serving.testbed.wire_pb2 import Reply

NO_SLO_TOKENS_PER_S = 1e-3  # stands for a request without a service class: nothing is ever due
FIRST_BATCH_S, FIRST_DRAFT_S, FIRST_DELAY_S = 0.05, 0.02, 0.01  # believed before anything was measured


class DeviceView:
    """A device's running averages, from its first request on, and the round that it drafts.

    Args:
        max_draft_tokens: cap K, at most 32.
        accept_prior: share of accepted tokens expected beforehand.
    """

    def __init__(self, max_draft_tokens: int, accept_prior: float = 0.7) -> None:
        self.max_draft_tokens = max_draft_tokens
        self.accept_prior = accept_prior
        self._c, self._d = np.zeros(1, CONFIG)[0], np.zeros(1, DEVICE)[0]
        self._c["max_draft_tokens"], self._c["recorded"] = max_draft_tokens, 1  # statistics are the draft's own
        self._o = np.zeros(SIZE, np.float32)
        d = self._d
        d["accepted_sum"], d["examined_sum"] = PRIOR_TOKENS * accept_prior, PRIOR_TOKENS
        d["info_batch_s"], d["draft_token_s"], d["delay_mean_s"] = FIRST_BATCH_S, FIRST_DRAFT_S, FIRST_DELAY_S
        self.survivals: list[float] = []

    @property
    def drafted(self) -> int:
        """Tokens drafted in this round."""
        return int(self._d["drafted"])

    @property
    def confidence(self) -> float:
        """The draft's probability of the last token, 1 before the first."""
        return float(self._d["confidence"]) if self.drafted else 1.0

    @property
    def expected_tokens(self) -> float:
        """Tokens that the round commits if it is sent now, as predicted: 1 + sum of survivals."""
        return float(self._d["expected_tokens"])

    @property
    def one_way_delay_s(self) -> float:
        """Running mean of the one-way delay."""
        return float(self._d["delay_mean_s"])

    def begin_request(self, now_s: float, prompt_tokens: int, max_new_tokens: int, slo_tokens_per_s: float) -> None:
        """A request begins."""
        d, speed = self._d, slo_tokens_per_s or NO_SLO_TOKENS_PER_S
        d["prompt_tokens"], d["output_tokens"], d["committed"] = prompt_tokens, max_new_tokens, 0
        d["slo_tokens_per_s"], d["arrival_s"], d["first_token_s"] = speed, now_s, now_s
        if not d["time_sum_s"]:  # at first the rate that the class asks for
            d["token_sum"], d["time_sum_s"] = speed, 1.0

    def begin_round(self, now_s: float, committed: int) -> None:
        """A round begins; nothing is drafted yet."""
        d = self._d
        d["round_start_s"] = d["clock_s"] = now_s
        d["committed"], d["drafted"], d["survival"], d["p_token"], d["expected_tokens"] = committed, 0, 1.0, 1.0, 1.0
        self.survivals = []

    def drafted_token(self, now_s: float, statistics: NDArray[np.float64], acceptance: float) -> None:
        """A token was drafted, with its (4,) statistics and predicted chance of being accepted."""
        d = self._d
        d["draft_token_s"] = KEEP * d["draft_token_s"] + FRESH * (now_s - d["clock_s"])
        d["clock_s"] = now_s
        d["confidence"], d["entropy"], d["margin"], d["logit_spread"] = statistics
        d["p_token"], d["drafted"] = acceptance, d["drafted"] + 1
        d["survival"] *= acceptance
        d["expected_tokens"] += d["survival"]
        self.survivals.append(float(d["survival"]))

    def observation(self, now_s: float) -> NDArray[np.float32]:
        """The (28,) documented observation; the array is reused."""
        self._d["clock_s"] = now_s
        observe_round(self._c, self._d, self._o)
        observe_all(self._c, self._d, self._o)
        return self._o

    def received(self, reply: Reply, now_s: float, round_trip_s: float | None) -> None:
        """A reply arrived.

        Args:
            round_trip_s: from sending the round to now; None where it was sent more than once, and nobody knows
                which copy was answered.
        """
        d, state = self._d, reply.state
        if round_trip_s is not None:
            self._learn_delay(max(round_trip_s - reply.held_s, 0.0) / 2.0)
        d["accepted_sum"] = KEEP * d["accepted_sum"] + reply.accepted + FRESH * PRIOR_TOKENS * self.accept_prior
        d["examined_sum"] = KEEP * d["examined_sum"] + reply.examined + FRESH * PRIOR_TOKENS
        if d["committed"]:
            d["token_sum"] = KEEP * d["token_sum"] + len(reply.tokens)
            d["time_sum_s"] = KEEP * d["time_sum_s"] + (now_s - d["round_start_s"])
        else:
            d["first_token_s"] = now_s
        d["info_s"] = now_s - d["delay_mean_s"]  # when the reply left, on this clock
        d["info_busy"], d["info_end_s"] = state.busy, d["info_s"] + state.batch_ends_in_s
        d["info_batch_s"] = max(state.mean_batch_s, 1e-6)
        d["info_queue_s"], d["info_utilisation"], d["price"] = state.queue_work_s, state.utilisation, state.price
        d["suggested_tokens"] = min(state.suggested_tokens, self.max_draft_tokens)

    def _learn_delay(self, delay_s: float) -> None:
        d = self._d
        for _ in range(2):  # up and down, as in the model
            d["delay_spread_s"] = KEEP * d["delay_spread_s"] + FRESH * abs(delay_s - d["delay_mean_s"])
            d["delay_mean_s"] = KEEP * d["delay_mean_s"] + FRESH * delay_s
