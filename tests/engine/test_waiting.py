"""Who waits at the server: the line, what a batch looks at, and what is set aside."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.small_worlds import BASE, SmallWorld, horizon, run
from tests.support.twins import assert_same
from wisp_gym.engine.build import empty_arrays
from wisp_gym.engine.line import enqueue, leave_line
from wisp_gym.engine.state import NOBODY, QUEUED, World
from wisp_gym.engine.worlds import NO_TRACE
from wisp_gym.scenario import with_

CROWD = with_(BASE, n_devices=60, horizon=horizon(1.0, 9.0, 0.0), **{"server.prefill_chunk_tokens": 32})
APART = ("wisp+wisp", "wisp+wisp:0,0", "wisp+wisp+chunk:16", "fixed:4+fcfs", "fixed:4+static:3,0.1", "fixed:4+control-limit:3,0.1",
         "fixed:4+edf", "fixed:4+least-laxity", "fixed:8+edf+tetris:9+chunk:16", "centralized:0", "centralized:0+chunk:16", "colocated:3",
         "colocated:2,1")  # fmt: skip
# Bytes of memory in which sessions lose their context: with small chunks few are there, and a draft lies there as well.
TIGHT = {
    **dict.fromkeys(("wisp+wisp+chunk:16", "fixed:8+edf+tetris:9+chunk:16", "centralized:0+chunk:16"), 75_500_000_000),
    **dict.fromkeys(("colocated:3", "colocated:2,1"), 77_500_000_000),
}
TOGETHER = (
    "wisp+wisp+admit:0.5",
    "fixed:4+edf-demoted",
    "fixed:4+marginal",
    "wisp+aged:2",
    "dipsd",
    "centralized",
    "centralized-paced",
)


def line_of(w: World) -> list[int]:
    """Devices in the line, without the gaps."""
    s = w.server[0, 0]
    return [int(i) for i in w.line[0, s["line_first"] : s["line_end"]] if i != NOBODY]


@pytest.mark.parametrize("controller", [*APART, *TOGETHER])
def test_same_story_of_a_crowd(controller: str) -> None:
    """Many more wait than a batch takes, and sessions lose their context while they wait, but where `admit` keeps it free."""
    scenario = with_(CROWD, **{"server.memory_bytes": TIGHT.get(controller, 76_000_000_000)})
    assert (run(scenario, controller, [4]).totals["evictions"][0, 0] > 0) == ("admit" not in controller)
    assert assert_same(SmallWorld(scenario, controller, 4, NO_TRACE)) > 500


@pytest.mark.parametrize("controller", [*APART, *TOGETHER])
def test_who_waits_is_in_line_and_either_looked_at_or_set_aside(controller: str) -> None:
    w = run(with_(CROWD, n_devices=150), controller, [4])
    s, d, line = w.server[0, 0], w.device[0], line_of(w)
    queue, cold = w.queue[0, : s["n_queue"]].tolist(), w.cold[0, : s["n_cold"]].tolist()
    assert sorted(line) == sorted(queue + cold) == np.flatnonzero(d["phase"] == QUEUED).tolist()
    assert len(line) == s["n_waiting"] > 20
    assert [int(w.line[0, w.places[0, i]]) for i in line] == line
    assert not d["cached_tokens"][cold].any()
    assert s["cold_tokens"] == sum(d["prompt_tokens"][cold] + d["committed"][cold] - 1)
    assert (len(cold) > 10) == (controller in APART)
    if controller.startswith(("wisp", "fixed")):
        assert (np.diff(d["arrived_s"][line]) >= 0.0).all()


def test_the_line_moves_up_when_its_end_is_reached() -> None:
    w = empty_arrays(1, 3).at(0)
    s = w.server[0]

    def come(i: int) -> None:
        enqueue(s, w.device[i], w.line, w.places, w.queue, i)

    for i in (0, 1, 2):
        come(i)
    for i in (1, 2, 1, 0, 2):  # each leaves and comes again, beyond the end
        leave_line(s, w.line, w.places[i])
        s["n_queue"] -= 1
        come(i)
    assert [int(i) for i in w.line[s["line_first"] : s["line_end"]] if i != NOBODY] == [1, 0, 2]
    assert s["line_end"] <= w.line.shape[0] == 6
    assert s["n_waiting"] == 3
