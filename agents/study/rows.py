"""The keys of a study's rows, by which they are written when worlds have run and read when a report is made."""

from typing import Any

Row = dict[str, Any]

GOODPUT = "goodput_tokens_per_s"
TRAINING = "training_goodput_tokens_per_s"
METRICS = (
    GOODPUT, "response_goodput_tokens_per_s", "throughput_tokens_per_s", "slo_attainment", "token_attainment",
    "starved_share", "wasted_drafting_share", "interference_s", "joules_per_1k_tokens", "dollars_per_1k_tokens",
    "round_latency_p95_s", "ttft_p95_s", "acceptance", "drafted_per_round", "server_use",
)  # fmt: skip
DEFAULT, TUNED, PER_CELL = "default", "tuned", "tuned per cell"  # the key `tuning`
CAPACITY = "capacity"  # the key `table` of rows that hold no world
