"""The entries of what a device sees when it decides: names, units, ranges and their places. Numbers alone, nothing compiled.

Times are divided by the mean batch time T that the last reply carried, tokens by the cap K or by the service class's period,
never by the number of devices.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Entry(NamedTuple):
    """One entry of an observation."""

    name: str
    unit: str
    low: float
    high: float
    meaning: str


ENTRIES = (
    Entry("drafted_tokens", "K", 0, 1, "tokens drafted in this round"),
    Entry("survival", "probability", 0, 1, "predicted probability that all of them are accepted (1 before the first)"),
    Entry("accept_probability", "probability", 0, 1, "predictor's output for the last token (1 before the first)"),
    Entry("confidence", "probability", 0, 1, "draft model's probability of the last token"),
    Entry("entropy", "nats", 0, 8, "entropy of the draft distribution at the last token"),
    Entry("margin", "probability", 0, 1, "top-2 margin at the last token"),
    Entry("logit_spread", "logits", 0, 16, "spread of the logits at the last token"),
    Entry("acceptance_average", "probability", 0, 1, "running share of examined tokens that were accepted"),
    Entry("expected_tokens", "K", 0, 2, "expected tokens committed if sent now: 1 + sum of survivals"),
    Entry("draft_time", "T", 0, 20, "time to draft one token"),
    Entry("one_way_delay", "T", 0, 20, "running mean of the one-way delay"),
    Entry("jitter", "T", 0, 20, "running mean absolute deviation of the one-way delay"),
    Entry("slo_period", "T", 0, 50, "time between tokens that the service class asks for"),
    Entry("slack", "tokens", -20, 20, "time until the next token is due, in tokens of the service class"),
    Entry("tokens_left", "64 tokens", 0, 1, "output tokens still wanted, counted up to 64"),
    Entry("boundary_left", "T", 0, 5, "time from arrival at the server, if sent now, to the next batch boundary"),
    Entry("draftable_tokens", "K", 0, 1, "tokens that can still be drafted before that boundary"),
    Entry("boundaries_missed", "batches", 0, 8, "batch boundaries that pass before arrival, if sent now"),
    Entry("server_busy", "flag", 0, 1, "a batch was running when the last reply left"),
    Entry("queue_work", "T", 0, 10, "predicted verification time of the requests waiting then"),
    Entry("utilisation", "share", 0, 1, "running share of time that the server verifies"),
    Entry("own_rate", "tokens/T", 0, 20, "tokens per batch time that this device has been getting"),
    Entry("price", "tokens", 0, 10, "server's price of one draft token, in expected accepted tokens"),
    Entry("batch_time", "0.1 s", 0, 20, "mean batch time T"),
    Entry("info_age", "T", 0, 20, "age of the server state"),
    Entry("context", "1,000 tokens", 0, 32, "prompt and output so far"),
    Entry("round_time", "T", 0, 20, "time since this round began"),
    Entry("suggested_tokens", "K", 0, 1, "length that the last reply suggested (0 where the server suggests none)"),
    Entry(
        "adapted_survival", "probability", 0, 1, "survival with the predictor's odds scaled to the acceptance average"
    ),
    Entry("last_rejected", "flag", 0, 1, "the last reply corrected a drafted token"),
)
NAMES = tuple(entry.name for entry in ENTRIES)
SIZE = len(ENTRIES)
LOW = np.array([entry.low for entry in ENTRIES], dtype=np.float32)
HIGH = np.array([entry.high for entry in ENTRIES], dtype=np.float32)

(
    DRAFTED, SURVIVAL, ACCEPT_PROBABILITY, CONFIDENCE, ENTROPY, MARGIN, LOGIT_SPREAD, ACCEPTANCE_AVERAGE, EXPECTED_TOKENS,
    DRAFT_TIME, ONE_WAY_DELAY, JITTER, SLO_PERIOD, SLACK, TOKENS_LEFT, BOUNDARY_LEFT, DRAFTABLE, BOUNDARIES_MISSED,
    SERVER_BUSY, QUEUE_WORK, UTILISATION, OWN_RATE, PRICE, BATCH_TIME, INFO_AGE, CONTEXT, ROUND_TIME, SUGGESTED, ADAPTED_SURVIVAL, LAST_REJECTED,
) = range(SIZE)  # fmt: skip
