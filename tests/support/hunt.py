"""Property tests as commands: random worlds, as many as are asked for, with the smallest one that fails."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

BATCH = 500  # worlds of one search: hypothesis remembers each of them
EVERY_S = 30.0  # between lines of progress


def hunt(
    worlds: st.SearchStrategy[Any], check: Callable[[Any], int], enough: Callable[[int, int], bool], seed: int
) -> None:
    """Check random worlds until that is enough; prints how many, and raises for the smallest that fails.

    Args:
        worlds: a strategy. check: raises where a world is wrong, else returns the number of its events.
        enough: whether so many worlds with so many events suffice. seed: of the first search.
    """
    done, events, started_s = 0, 0, time.monotonic()
    shown_s = started_s

    def one(world: Any) -> None:
        nonlocal done, events, shown_s
        if enough(done, events):
            return
        events += check(world)
        done += 1
        if time.monotonic() > shown_s + EVERY_S:
            shown_s = time.monotonic()
            print(f"{done:,} worlds, {events:,} events, {shown_s - started_s:.0f} s", flush=True)

    calm = settings(
        deadline=None, max_examples=BATCH, database=None, suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink), print_blob=False,
    )  # fmt: skip
    while not enough(done, events):
        seeded(seed)(calm(given(worlds)(one)))()
        seed += 1
    print(f"{done:,} worlds, {events:,} events in {time.monotonic() - started_s:.0f} s: no fault")
