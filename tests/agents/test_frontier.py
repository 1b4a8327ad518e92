"""Where drafting at the edge pays: margins, winners and ties, of rows as a study writes them."""

from __future__ import annotations

import pytest

from agents.study.frontier import PRICES, asks_who_drafts, cheapest, dollars_per_1k, frontier_figure, margins, winners
from agents.study.report_figures import figures
from agents.study.report_tables import who_is_cheapest, who_wins
from agents.study.results import BEST_RULE, Results
from agents.study.rows import GOODPUT, METRICS, PER_CELL, TRAINING, Row
from agents.study.suite import read_suite

WORLDS = {
    ("wisp+wisp", "rule"): (100.0, 101.0, 99.0, 100.0),
    ("aligned+fcfs", "rule"): (110.0, 112.0, 108.0, 110.0),
    ("centralized:0", "centralized"): (90.0, 92.0, 89.0, 93.0),
    ("colocated:2", "colocated"): (150.0, 152.0, 148.0, 150.0),
    ("aligned+wisp+colocated:2+by-price", "mixed"): (149.0, 153.0, 147.0, 150.5),
}


def rows(**changes: tuple[float, ...]) -> list[Row]:
    """The rows of a study of one cell; goodput of some controllers changed, by kind."""
    found = []
    for (name, kind), worlds in WORLDS.items():
        for seed, value in enumerate(changes.get(kind, worlds) if kind != "rule" else worlds):
            found.append(
                dict.fromkeys(METRICS, 1.0) | {
                    "table": "worlds", "controller": name, "tuning": PER_CELL, "setting": name, "kind": kind, "cell": "a",
                    "group": "load", "held_out": False, "scenario": "s", "devices": 8, "seed": seed, GOODPUT: value,
                    TRAINING: sum(worlds) / 4, "bound_information_tokens_per_s": 200.0,
                }
            )  # fmt: skip
    return found


def test_margins_are_those_over_the_best_whose_devices_draft() -> None:
    found = {one.way: one for one in margins(Results(rows()), "a")}
    assert list(found) == ["device", "nobody", "server", "device or server"]
    assert (found["device"].setting, found["device"].share) == ("aligned+fcfs", 0.0)
    assert found["server"].share == pytest.approx(40.0 / 110.0)
    assert found["nobody"].share == pytest.approx(-19.0 / 110.0)
    for one in found.values():
        assert one.low <= one.share <= one.high


def test_what_may_be_nothing_is_a_tie() -> None:
    assert [one.way for one in winners(Results(rows()), "a")] == ["server", "device or server"]
    ahead = Results(rows(mixed=(160.0, 163.0, 158.0, 161.0)))
    assert [one.way for one in winners(ahead, "a")] == ["device or server"]


def test_the_picture_is_drawn_where_a_study_asks() -> None:
    results = Results(rows())
    assert asks_who_drafts(results)
    words = [text.get_text() for text in frontier_figure(results).axes[0].texts]
    assert words == ["server = device or server"]
    alone = Results([row for row in rows() if row["kind"] in ("rule", "centralized")])
    assert not asks_who_drafts(alone)
    assert len(figures(results)) == len(figures(alone)) + 1


def test_who_is_cheapest_changes_with_the_price_of_the_server() -> None:
    found = rows()
    for row in found:  # a dollar for 1,000 tokens, and 40 kWh where devices draft
        devices = row["kind"] == "rule"
        row |= {
            "dollars_per_1k_tokens": 1.0,
            "joules_per_1k_tokens": 1.44e8 if devices else 0.0,
            "throughput_tokens_per_s": row[GOODPUT],
        }
        row |= {"dollars_per_1k_tokens": 0.5} if devices else {}
    results = Results(found)
    own = results.rungs["a"][BEST_RULE]
    assert dollars_per_1k(own, 2.0) == pytest.approx(2.0 * 0.5 + 12.0)
    assert cheapest(results, "a", 1.0) != "device"
    assert cheapest(results, "a", 100.0) == "device"
    wins, prices = who_wins(results), who_is_cheapest(results)
    assert wins.lines[0][-2:] == ["server, device or server", "colocated:2"]
    assert len(prices.lines) == len(PRICES)
    assert all(sum(map(int, line[1:])) == 1 for line in prices.lines)


def test_the_suite_varies_one_axis_at_a_time() -> None:
    suite = read_suite("frontier")
    groups = {cell.group for cell in suite.cells}
    assert groups == {"load", "gpu", "memory", "draft at the server", "devices", "round trip", "prompts", "speed"}
    trips = {
        cell.name: {d.link.one_way_s for d in cell.scenario.devices}
        for cell in suite.cells
        if cell.group == "round trip"
    }
    assert trips == {"rtt-1ms": {5e-4}, "rtt-20ms": {0.01}, "rtt-50ms": {0.025}, "rtt-150ms": {0.075}}
