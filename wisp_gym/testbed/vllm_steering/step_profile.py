"""Step times of the running engine, as `python -m estimators.batch_time steps` reads them (docs/serving/tables.md)."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

from wisp_gym.testbed.vllm_steering.bench_engine import Plan
from wisp_gym.testbed.vllm_steering.cycles import Player, Requests
from wisp_gym.testbed.vllm_steering.step_times import Step

GRAIN_TOKENS = 16  # of mean context: steps within it are one row, whose time is their median
COLUMNS = ("batch", "k", "context", "seconds", "steps")


def profile(play: Player, requests: Requests, concurrencies: Sequence[int], longest: int) -> list[dict[str, Any]]:
    """Rows of COLUMNS: each length at each concurrency, played with a fixed length."""
    timed: list[tuple[Step, float]] = []
    for concurrency in sorted(concurrencies):
        for length in range(longest + 1):
            plan = Plan(f"colocated:{length}", requests.others, requests.tokens, concurrency)
            timed += play(plan).timed
    return rows_of(timed)


def rows_of(timed: Iterable[tuple[Step, float]]) -> list[dict[str, Any]]:
    """Median times of steps in which all requests decode, with as many drafts verified for each as are drafted anew."""
    found: dict[tuple[int, int, int], list[float]] = defaultdict(list)
    for step, seconds in timed:
        if step.decoding and step.new_tokens == step.decoding * (step.length + 1):
            context = GRAIN_TOKENS * max(round(step.context / step.decoding / GRAIN_TOKENS), 1)
            found[step.decoding, step.length, context].append(seconds)
    return [dict(zip(COLUMNS, (*key, median(times), len(times)), strict=True)) for key, times in sorted(found.items())]
