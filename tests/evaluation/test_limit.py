"""The benchmark of bare loops: each takes so many events, in the order of time."""

from __future__ import annotations

import heapq

import numpy as np
import pytest

from wisp_gym.engine.draws import exponential, stream_key
from wisp_gym.evaluation import limit


def test_the_compiled_loop_is_the_one_that_it_says() -> None:
    key, events = stream_key(7, 0, 0, 0), [(0.0, i) for i in range(5)]
    for k in range(200):
        now_s, i = events[0]
        heapq.heapreplace(events, (now_s + exponential(key, k), i))
    assert limit.compiled_loop(np.zeros(5), np.arange(5), 200, 7) == events[0][0]


@pytest.mark.parametrize("name", limit.LOOPS)
def test_loops_take_about_so_many_events(name: str) -> None:
    run, _ = limit.LOOPS[name]
    assert 0.5 < run(6_000) / 6_000 < 1.5


def test_the_command_prints_each_loop_and_its_ratio_to_the_fastest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(limit, "measured", lambda repeats: {"compiled loop": 100.0, "engine": 850.0})
    limit.main(["--quick"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].split() == ["compiled", "loop", "100", "10,000,000", "1"]
    assert lines[-1].split() == ["engine", "850", "1,176,471", "8.5"]


def test_the_least_of_all_repeats_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([9.0, 5.0, 7.0])
    monkeypatch.setattr(limit, "LOOPS", {"one": (int, 1000)})
    monkeypatch.setattr(limit, "ns_an_event", lambda run, n_events: next(times))
    assert limit.measured(2) == {"one": 5.0}
