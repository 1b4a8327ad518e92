"""What is counted of tokens and answers in time, and that a dashboard asks for nothing that nobody exports."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

prometheus_client = pytest.importorskip("prometheus_client")

from wisp_gym.testbed import dashboard
from wisp_gym.testbed.metrics import (
    DEVICE,
    MOST_CLASSES,
    NOBODY,
    OTHER_CLASS,
    SERVER,
    Metrics,
    ServerMetrics,
    SteeringMetrics,
)
from wisp_gym.testbed.punctual import in_time
from wisp_gym.testbed.vllm_steering.accounts import Accounts, promised

NAME = re.compile(r"\b(?:wisp_\w+|vllm:\w+)")


def asked() -> set[str]:
    """Metrics that the dashboard's panels ask for."""
    panels = json.loads(dashboard.DASHBOARD.read_text())["panels"]
    return {name for panel in panels for target in panel["targets"] for name in NAME.findall(target["expr"])}


def exported(metrics: Metrics) -> set[str]:
    """Names under which samples are exposed, those without one yet among them."""
    endings = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}
    return {f"{each.name}{end}" for each in metrics.registry.collect() for end in endings[each.type]}


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(name, labels) or 0.0


def test_every_metric_of_a_panel_is_exported() -> None:
    ours = {name for name in asked() if name.startswith("wisp_")}
    server, steering = exported(ServerMetrics()), exported(SteeringMetrics())
    assert ours <= server | steering
    common = {name for name in ours if name in server and name in steering}
    assert len(common) > 12  # one dashboard serves both


def test_the_panels_that_operators_want_are_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dashboard.main(["-o", str(tmp_path / "d.json")])
    found = json.loads((tmp_path / "d.json").read_text())
    titles = [panel["title"] for panel in found["panels"]]
    for wanted in ("Goodput", "Attainment by class", "Acceptance", "Fallbacks", "Who drafts"):
        assert wanted in titles
    assert any("predicted and measured" in title for title in titles)
    assert all(
        target["datasource"]["uid"] == "${datasource}" for panel in found["panels"] for target in panel["targets"]
    )
    assert len({panel["id"] for panel in found["panels"]}) == len(titles)
    assert all('job=~"$job"' in target["expr"] for panel in found["panels"] for target in panel["targets"])
    assert capsys.readouterr().out == "wrote d.json\n"
    dashboard.main([])
    assert json.loads(capsys.readouterr().out) == found


def test_tokens_are_in_time_by_the_speed_that_was_promised() -> None:
    assert in_time(5.0, 2.0, 3, 5.5, first=False) == [False, True, True]  # due at 5, 5.5, 6
    assert in_time(5.0, 2.0, 3, 5.6, first=False) == [False, False, True]
    assert in_time(5.0, 2.0, 3, 9.0, first=True) == [False, True, True]  # its own first token starts the clock
    assert in_time(math.inf, 0.0, 2, 9.0, first=False) == [True, True]
    assert in_time(5.0, 2.0, 0, 9.0, first=False) == []


def test_answers_are_counted_by_class_and_classes_are_few() -> None:
    metrics = Metrics()
    for speed in range(MOST_CLASSES + 5):
        metrics.answer(float(speed), attained=speed % 2 == 0)
    metrics.answer(2.0, attained=False)
    assert value(metrics, "wisp_answers_total") == MOST_CLASSES + 6
    assert value(metrics, "wisp_class_answers_total", slo_tokens_per_s="2") == 2
    assert value(metrics, "wisp_class_attained_total", slo_tokens_per_s="2") == 1
    assert value(metrics, "wisp_class_answers_total", slo_tokens_per_s=OTHER_CLASS) == 5
    assert len(metrics.classes) == MOST_CLASSES


def test_rounds_are_counted_by_who_drafts() -> None:
    metrics = Metrics()
    metrics.round(DEVICE, 4, 2)
    metrics.round(SERVER, 0, 0)
    metrics.round(SERVER, 0, 0, first=True)
    assert value(metrics, "wisp_rounds_total") == 3
    assert value(metrics, "wisp_drafter_rounds_total", drafter=DEVICE) == 1
    assert value(metrics, "wisp_drafter_rounds_total", drafter=NOBODY) == 1
    assert value(metrics, "wisp_drafter_rounds_total", drafter=SERVER) == 0


def test_accounts_follow_what_each_request_was_promised() -> None:
    metrics = Metrics()
    accounts = Accounts(metrics)
    accounts.begin("quick", {"slo_tokens_per_s": 10, "ttft_s": 1.0}, 0.0)
    accounts.begin("free", None, 0.0)
    accounts.begin("gone", {"slo_tokens_per_s": "fast"}, 0.0)
    accounts.tokens("quick", 1, 0.5, ended=False)  # in time; the next ones are due at 0.6, 0.7, 0.8
    accounts.tokens("quick", 2, 0.65, ended=False)  # one late
    accounts.tokens("quick", 1, 0.9, ended=True)  # late
    accounts.tokens("free", 3, 100.0, ended=True)
    accounts.forget("gone")
    accounts.tokens("gone", 1, 1.0, ended=True)
    assert value(metrics, "wisp_committed_tokens_total") == 7
    assert value(metrics, "wisp_on_time_tokens_total") == 5
    assert value(metrics, "wisp_class_attained_total", slo_tokens_per_s="10") == 0
    assert value(metrics, "wisp_class_attained_total", slo_tokens_per_s="0") == 1
    assert value(metrics, "wisp_answers_total") == 2
    assert not accounts.open


@pytest.mark.parametrize("given", [None, "8", True, -1, math.nan, math.inf, 1e9])
def test_what_no_request_can_be_promised_is_no_promise(given: object) -> None:
    assert promised(given) == 0.0
    assert promised(8) == 8.0
