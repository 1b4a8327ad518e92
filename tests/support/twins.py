"""The engine beside the reference simulator: the same world in both, event by event and measure by measure."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest

from tests.support.reference import Reference
from tests.support.small_worlds import SmallWorld, log_of, run
from wisp_gym.controllers.resolve import resolve

LOG_ROWS = 40_000
SAME_S = 1e-9  # times that count as one, as they do where they are compared
COMPARED = (
    "rounds", "window_drafted", "window_accepted", "window_trimmed", "accepted", "rejected", "trimmed",
    "tokens", "tokens_on_time", "wasted_s", "interference_s", "batches",
    "batched_requests", "evictions", "kv_peak_tokens", "round_latency_s",
    "server_rounds", "server_drafted", "overlapped", "overlap_used",
)  # fmt: skip
COMPARED_BY_CLASS = ("arrived", "finished", "attained", "attained_tokens", "tokens", "tokens_on_time")


def grouped(log: list[tuple[float, str, int, float]], end_s: float) -> dict[tuple[str, int], np.ndarray]:
    """(time_s, value) rows before `end_s` of each (kind, device), in order of time; what is at one time by its value."""
    rows = defaultdict(list)
    for time_s, kind, device, value in log:
        if time_s < end_s:
            rows[kind, device].append((time_s, value))
    return {key: in_order(np.array(sorted(group))) for key, group in rows.items()}


def in_order(rows: np.ndarray) -> np.ndarray:
    """Rows in order of time, those within `SAME_S` of the one before in order of value: sums in another order differ by a rounding."""
    moments = np.cumsum(np.diff(rows[:, 0], prepend=rows[0, 0]) > SAME_S)
    return rows[np.lexsort((rows[:, 1], moments))]


def assert_same(world: SmallWorld) -> int:
    """Run both; compare logs up to the end of the world, and measures. Returns the number of events compared."""
    scenario, controller = world.scenario, resolve(world.controller, world.scenario)
    reference = Reference(scenario, world.seed, controller, world.trace).run()
    arrays = run(scenario, world.controller, [world.seed], LOG_ROWS, world.trace)
    ours = grouped(log_of(arrays), reference.end_s)
    theirs = grouped(reference.log, reference.end_s)
    assert ours.keys() == theirs.keys()
    for key, rows in theirs.items():
        assert ours[key].shape == rows.shape, key
        np.testing.assert_allclose(ours[key], rows, rtol=1e-9, atol=1e-9, err_msg=str(key))
    for name in COMPARED:
        assert arrays.totals[name][0, 0] == pytest.approx(reference.totals[name], rel=1e-9, abs=1e-9), name
    assert arrays.totals["recomputed_tokens"][0, 0] == reference.totals["recomputed_tokens"]
    for index, row in enumerate(reference.slo_totals):
        for name in COMPARED_BY_CLASS:
            assert arrays.slo_totals[name][0, index] == row[name], (index, name)
    return sum(map(len, theirs.values()))
