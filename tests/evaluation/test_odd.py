"""What is valid in a scenario and yet strange: each finding, none on what is shipped, and the table of all fields."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from wisp_gym.__main__ import main
from wisp_gym.evaluation.odd import oddities
from wisp_gym.scenario import Scenario, load, presets, with_
from wisp_gym.scenario.table import all_fields, markdown, usual

ROOT = Path(__file__).resolve().parents[2]
DEFAULT = "wisp-a100-qwen3-32b"
SHIPPED = [*presets(), *map(str, sorted((ROOT / "agents" / "study" / "suites" / "scenarios").glob("*.toml")))]
# What is changed in the default preset → the field that is named, and words of its line.
ODD: list[tuple[dict[str, Any], str, str]] = [
    ({"devices.phone-lte.link.one_way_s": 10.5}, "devices.phone-lte.link.one_way_s", "meant in ms?"),
    ({"devices.laptop.link.one_way_s": 0.5}, "devices.laptop.link.one_way_s", "the round trip is longer than the 625 ms"),
    ({"server.host_s": 2.0}, "server.host_s", "1,000 times the highest that any preset has: meant in ms?"),
    ({"devices.laptop.link.uplink_bytes_per_s": 6.0}, "devices.laptop.link.uplink_bytes_per_s", "1/100,000 of the lowest"),
    ({"draft.parameters": 1}, "draft.parameters", "meant in millions or billions?"),
    ({"draft.parameters": 40_000_000_000}, "draft.parameters", "no fewer than the target's 32,800,000,000"),
    ({"target.kv_heads": 80, "n_devices": 4}, "target.kv_heads", "more than its 64 query heads"),
    ({"draft.acceptance.logit_mean": -4.0}, "draft.acceptance", "next to none is of use"),
    ({"draft.acceptance.logit_mean": 9.0}, "draft.acceptance", "next to all are of use"),
    ({"verification.weights_s": 0.001}, "verification.weights_s", "faster than any memory"),
    ({"verification.weights_s": 0.2}, "estimator", "of another server or target?"),
    ({"server.idle_w": 500.0}, "server.idle_w", "more than 400 W when busy"),
    ({"devices.laptop.idle_w": 60.0}, "devices.laptop.idle_w", "more than 51 W when drafting"),
    ({"devices.laptop.predictor_s": 0.02}, "devices.laptop.predictor_s", "longer than the 11 ms"),
    ({"devices.phone-lte.link.timeout_s": 0.0}, "devices.phone-lte.link.timeout_s", "losses cost nothing"),
    ({"devices.phone-lte.link.outage_s": 0.0}, "devices.phone-lte.link.outage_s", "0.007 times a second"),
    ({"devices.phone-lte.link.idle_after_s": 0.0}, "devices.phone-lte.link.idle_after_s", "waits 200 ms"),
    ({"devices.laptop.link.loss": 0.4}, "devices.laptop.link.loss", "40 % of messages are lost"),
    ({"n_devices": 215}, "server.memory_bytes", "137 sessions of median length (280 tokens) fit, for 215 devices"),
    ({"workload.prompt.max_tokens": 30_000}, "workload.prompt.max_tokens", "79 % of KV memory"),
    ({"workload.prompt.max_tokens": 30_000}, "server_drafts.qwen3-0.6b.weights_bytes", "it can never be loaded"),
    ({"slo.speed-8.speed_tokens_per_s": 20.0}, "slo.speed-8.speed_tokens_per_s", "'raspberry-pi-4b' does not reach more"),
    ({"slo.speed-8.speed_tokens_per_s": 90.0}, "slo.speed-8.speed_tokens_per_s", "no device reaches more than 85.96"),
    ({"devices.laptop.draft_tokens_per_s": 1.5}, "devices.laptop.draft_tokens_per_s", "the slowest promise, 2 tokens/s"),
    ({"slo.speed-2.ttft_s": 0.05}, "slo.speed-2.ttft_s", "alone on the server"),
    ({"workload.arrivals": "open", "workload.requests_per_s": 5.0}, "n_devices", "the server commits at most"),
    ({"workload.output.median_tokens": 500.0}, "workload.output.max_tokens", "cuts 49 % of them"),
    ({"workload.prompt.min_tokens": 140}, "workload.prompt.min_tokens", "lengthens 47 % of them"),
    ({"workload.start_window_s": 500.0}, "workload.start_window_s", "of which 140 s are simulated"),
    ({"horizon.drain_s": 100.0}, "horizon.drain_s", "takes 256 s at 2 tokens/s"),
    ({"n_devices": 1, "horizon.measure_s": 60.0}, "horizon.measure_s", "about 3 requests a world"),
]  # fmt: skip


@pytest.fixture(scope="module")
def default() -> Scenario:
    return load(DEFAULT)


@pytest.mark.parametrize("name", SHIPPED)
def test_nothing_that_is_shipped_is_odd(name: str) -> None:
    assert not oddities(name)


@pytest.mark.parametrize(("changes", "field", "words"), ODD, ids=lambda value: value if isinstance(value, str) else "")
def test_what_is_odd_is_said_with_field_figure_and_what_is_usual(
    default: Scenario, changes: dict[str, Any], field: str, words: str
) -> None:
    found = [str(finding) for finding in oddities(with_(default, **changes)) if finding.field == field]
    assert any(words in line for line in found), found
    for line in found:
        assert line.startswith(f"{field}: ")
        assert "; usual: " in line
        assert "\n" not in line


def test_a_session_longer_than_any_context_is_odd() -> None:
    roomy = with_(load("wisp-a100-llama-70b"), **{"workload.output.max_tokens": 150_000, "horizon.drain_s": 80_000.0})
    assert "longer than any context" in "\n".join(map(str, oddities(roomy)))


def test_a_trace_that_is_not_replayed_whole_is_odd(tmp_path: Path) -> None:
    rows = "".join(f"2024-05-10 00:{minute:02}:00.0000000,100,600\n" for minute in range(4))
    (tmp_path / "trace.csv").write_text(f"TIMESTAMP,ContextTokens,GeneratedTokens\n{rows}")
    workload = '[workload]\narrivals = "trace"\ntrace = "trace.csv"\ntrace_format = "azure"\n[workload.output]\n'
    lengths = "median_tokens = 130\nlog_std = 0.8\nmin_tokens = 8\nmax_tokens = 512\n"
    (tmp_path / "own.toml").write_text(f'use = "{DEFAULT}"\nname = "own"\n{workload}{lengths}')
    assert any(finding.field == "workload.trace" for finding in oddities(tmp_path / "own.toml"))


def test_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd, wrong = tmp_path / "odd.toml", tmp_path / "wrong.toml"
    odd.write_text(f'use = "{DEFAULT}"\nname = "odd"\nn_devices = 215\n')
    wrong.write_text(f'use = "{DEFAULT}"\nn_devices = 0\n')
    assert main(["scenario", "check", DEFAULT]) == 0
    assert capsys.readouterr().out == f"{DEFAULT}: nothing is odd\n"
    assert main(["scenario", "check", str(odd), DEFAULT]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[1] for line in lines] == ["server.memory_bytes", "nothing is odd"]
    assert main(["scenario", "check", str(wrong)]) == 2
    assert "wrong.toml: n_devices: given 0" in capsys.readouterr().err


def test_the_page_holds_the_generated_table_of_all_fields(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scenario", "fields"]) == 0
    printed = capsys.readouterr().out.strip()
    assert printed == markdown()
    assert printed in (ROOT / "docs" / "guide" / "scenario-fields.md").read_text(encoding="utf-8")


def test_every_field_has_a_unit_or_is_a_pure_number_of_a_known_kind() -> None:
    pure = {
        *("memory_utilisation", "noise", "parameters", "layers", "heads", "kv_heads", "head_dim", "loop_enter"),
        *("loop_leave", "loop_whole", "auc", "overconfidence", "sharpness", "offer", "correlation", "share", "jitter"),
        *("autocorrelation", "loss", "throttle_ratio", "log_std"),
    }
    assert {field.name for field in all_fields() if not field.unit} == pure
    assert all(field.meaning for field in all_fields() if not field.unit and field.name not in ("layers", "head_dim"))


def test_the_guides_own_devices_are_valid_and_not_odd(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "guide" / "scenario.md").read_text(encoding="utf-8")
    (text,) = (block for block in re.findall(r"```toml\n(.*?)```", page, re.DOTALL) if "shop-floor" in block)
    (tmp_path / "own.toml").write_text(text)
    assert [device.name for device in load(tmp_path / "own.toml").devices] == ["camera", "gateway"]
    assert not oddities(tmp_path / "own.toml")
    (tmp_path / "own.toml").write_text(text.replace("one_way_s = 0.004", "one_way_s = 4.0"))
    line = next(str(finding) for finding in oddities(tmp_path / "own.toml"))
    assert line in " ".join(page.split())


def test_what_is_usual_is_what_presets_hold(default: Scenario) -> None:
    speeds = [device.draft_tokens_per_s for name in presets() for device in load(name).devices]
    assert usual("devices.draft_tokens_per_s") == (min(speeds), max(speeds))
    assert usual("devices.name") is None
