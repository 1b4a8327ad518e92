"""Scenarios: presets and catalogue, what is refused and how, TOML there and back, changes, warnings."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wisp_gym.engine.feasibility import best_tokens_per_s, warnings
from wisp_gym.scenario import (
    Horizon,
    Lengths,
    ScenarioError,
    dumps,
    load,
    loads,
    presets,
    save,
    with_,
    with_slo,
)
from wisp_gym.scenario import toml as scenario_toml

DEFAULT = "wisp-a100-qwen3-32b"
BASE = f'use = "{DEFAULT}"\n'
PHONE = '[[devices]]\nuse = "phone"\nshare = 1\n'


@pytest.fixture(scope="module")
def default():
    return load(DEFAULT)


# --- presets and catalogue -------------------------------------------------------------------------------------------


def test_presets_are_the_promised_ones():
    promised = {DEFAULT, "wisp-a100-qwen3-14b", "wisp-a100-llama-70b", "h100-qwen3-32b", "h200-qwen3-32b"}
    assert promised <= set(presets())


@pytest.mark.parametrize("name", presets())
def test_preset_is_complete_and_survives_toml(name):
    scenario = load(name)
    assert scenario.name == name
    assert {slo.speed_tokens_per_s for slo in scenario.slo} == {2.0, 4.0, 6.0, 8.0}
    assert sum(device.share for device in scenario.devices) == pytest.approx(1.0)
    assert loads(dumps(scenario)) == scenario
    assert "use =" not in dumps(scenario)


def test_catalogue_holds_the_promised_devices_and_links():
    devices = {"raspberry-pi-4b", "raspberry-pi-5", "jetson-orin-nano", "jetson-agx-orin", "phone", "laptop"}
    assert devices <= scenario_toml.catalogue("devices").keys()
    assert {"wifi-good", "wifi-bad", "lte", "5g", "5g-driving"} <= scenario_toml.catalogue("links").keys()


@pytest.mark.parametrize("draft", sorted(scenario_toml.catalogue("drafts")))
@pytest.mark.parametrize("device", sorted(scenario_toml.catalogue("devices")))
def test_every_device_has_a_speed_and_a_power_for_every_draft(device, draft):
    target = next(iter(scenario_toml.catalogue("drafts")[draft]["acceptance"]))
    server = next(s for s, targets in scenario_toml.catalogue("verification").items() if target in targets)
    scenario = loads(
        f'{BASE}server = {{use = "{server}"}}\ntarget = {{use = "{target}"}}\ndraft = {{use = "{draft}"}}\n'
        f'[[devices]]\nuse = "{device}"\nshare = 1\nlink = "lte"\n')  # fmt: skip
    assert scenario.devices[0].draft_tokens_per_s > 1.0
    assert scenario.devices[0].draft_w > scenario.devices[0].idle_w


@pytest.mark.parametrize("name", presets())
def test_memory_follows_from_the_shapes(name):
    scenario = load(name)
    target, server = scenario.target, scenario.server
    assert target.kv_bytes_per_token == 2 * target.layers * target.kv_heads * target.head_dim * 2
    used = scenario.kv_tokens * target.kv_bytes_per_token + target.weights_bytes + server.activation_bytes
    assert 0 <= server.memory_bytes * server.memory_utilisation - used < target.kv_bytes_per_token


def test_kv_memory_of_known_models(default):
    assert default.target.kv_bytes_per_token == 256 * 1024
    assert load("wisp-a100-qwen3-14b").target.kv_bytes_per_token == 160 * 1024
    assert load("wisp-a100-llama-70b").target.kv_bytes_per_token == 320 * 1024


def test_attention_arithmetic_follows_from_the_shapes():
    """FlashAttention-2's highest rate is 230 TFLOP/s on A100 and 335 on H100 (arXiv 2307.08691); causal: half."""
    servers, targets = (scenario_toml.catalogue(kind) for kind in ("servers", "targets"))
    for server, by_target in scenario_toml.catalogue("verification").items():
        rate = (230e12 if server.startswith("a100") else 335e12) * servers[server]["gpus"]
        for target, time in by_target.items():
            shape = targets[target]
            flop = 2 * shape["layers"] * shape["heads"] * shape["head_dim"]
            assert time["pair_s"] == pytest.approx(flop / rate, rel=0.005), (server, target)


def test_14b_is_32b_scaled_by_parameters_and_traffic(default):
    small = load("wisp-a100-qwen3-14b")
    big_time, time = default.verification, small.verification
    weights = small.target.weights_bytes / default.target.weights_bytes
    kv = small.target.kv_bytes_per_token / default.target.kv_bytes_per_token
    layers = small.target.layers / default.target.layers
    assert time.weights_s == pytest.approx(big_time.weights_s * weights, rel=1e-3)
    assert time.token_s == pytest.approx(big_time.token_s * weights, rel=1e-3)
    assert time.cached_token_s == pytest.approx(big_time.cached_token_s * kv, rel=1e-3)
    assert time.launch_s == pytest.approx(big_time.launch_s * layers, rel=1e-3)


@pytest.mark.parametrize(("new", "cached", "difference"), [(1, 500, 0.12), (64, 32_000, 0.075), (512, 64_000, 0.03)])
def test_14b_is_near_the_fit_of_its_own_operator_times(new, cached, difference):
    """The fit: t0 5.51 ms, W 14.96 ms, b .1063 ms, p 1.824, c .1104 us; the derived roofline is a little slower."""
    time = load("wisp-a100-qwen3-14b").verification
    soft = (time.weights_s**time.sharpness + (time.token_s * new) ** time.sharpness) ** (1 / time.sharpness)
    derived_s = time.launch_s + soft + time.cached_token_s * cached
    fitted_s = 5.51e-3 + (14.96e-3**1.824 + (0.1063e-3 * new) ** 1.824) ** (1 / 1.824) + 0.1104e-6 * cached
    assert 0.0 < derived_s / fitted_s - 1.0 < difference


def test_statistics_follow_from_the_published_operating_point(default):
    """WISP: .801 of accepted and .425 of rejected tokens pass; binormal: AUC = Phi((z(.801) - z(.425)) / sqrt 2)."""
    normal = NormalDist()
    auc = normal.cdf((normal.inv_cdf(0.801) - normal.inv_cdf(0.425)) / math.sqrt(2.0))
    assert default.draft.statistics.auc == pytest.approx(auc, abs=5e-4)


def test_predictor_costs_what_wisp_published(default):
    cost_s = {device.name: device.predictor_s for device in default.devices}
    assert (cost_s["raspberry-pi-4b"], cost_s["raspberry-pi-5"]) == (2.038e-3, 0.459e-3)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("n_devces = 3", ["n_devces", "did you mean 'n_devices'"]),
        ("n_devices = 0", ["n_devices: given 0", ">= 1"]),
        ("n_devices = true", ["n_devices: given True", "whole number"]),
        ("n_devices = 6.5", ["n_devices: given 6.5", "whole number"]),
        (f"n_devices = 1{'0' * 400}", ["n_devices: given 1", "..."]),
        (f"n_devices = 1{'0' * 5000}", ["not valid TOML"]),
        ("max_draft_tokens = 33", ["max_draft_tokens: given 33", "<= 32"]),
        ("workload.think_s = -1", ["workload.think_s: given -1", ">= 0"]),
        ("workload.think_s = nan", ["workload.think_s: given nan", "finite"]),
        ("workload.think_s = inf", ["workload.think_s: given inf", "finite"]),
        ("workload.think_s = '2'", ["workload.think_s: given '2'", "number"]),
        ("workload.arrivals = 'opn'", ["workload.arrivals: given 'opn'", "did you mean 'open'", "closed, open, trace"]),
        ("workload.arrivals = 'open'", ["workload.requests_per_s", "> 0"]),
        ("workload.arrivals = 'trace'", ["workload.trace: given ''", "path of a trace file"]),
        ("workload.arrivals = 'trace'\nworkload.trace = 'a.csv'", ["workload.trace_format", "azure, mooncake"]),
        ("workload.prompt.median_tokens = 3", ["workload.prompt.median_tokens: given 3", "16 to 2048"]),
        ("workload.prompt.min_tokens = 3000", ["workload.prompt.min_tokens: given 3000", "<= max_tokens (2048)"]),
        ("workload.prompt.max_tokens = 60_000", ["workload.prompt.max_tokens", "60524", "KV memory of a100-80gb"]),
        ("workload.prompt = 7", ["workload.prompt: given 7", "median_tokens"]),
        ("horizon.measure_s = 0", ["horizon.measure_s: given 0", ">= 1e-09"]),
        ("draft.statistics.auc = 1.0", ["draft.statistics.auc: given 1.0", ">= 0.5 and < 1"]),
        ("draft.use = 'qwen3-06b'", ["draft.use", "did you mean 'qwen3-0.6b'"]),
        ("draft.acceptance = 3", ["draft.acceptance: given 3"]),
        ("server.use = 'a100-80g'", ["server.use", "did you mean 'a100-80gb'"]),
        ("server.memory = 3", ["server: unknown key 'memory'", "did you mean 'memory_bytes'"]),
        ("server = 3", ["server: given 3", "table"]),
        ("target.use = []", ["target.use: given []", "qwen3-14b"]),
        ("target.use = 'llama-70b'", ["draft.acceptance", "'qwen3-0.6b' by target 'llama-70b'"]),
        ("target.use = 'llama-70b'\ndraft.acceptance = 3", ["draft.acceptance", "'llama-70b'"]),
        ("target.use = 'llama-70b'\ndraft.use = 'llama-3.2-1b'", ["verification", "a100-80gb-x2 with llama-70b"]),
        ("verification.token = 3", ["verification: unknown key 'token'", "did you mean 'token_s'"]),
        ("verification.sharpness = 0.1", ["verification.sharpness: given 0.1", ">= 0.2"]),
        ("estimator.launch = 1", ["estimator: unknown key 'launch'", "did you mean 'launch_s'"]),
        ("devices = []", ["devices: given an empty list", "at least one"]),
        ("slo = []", ["slo: given an empty list", "at least one"]),
        ("devices = 3", ["devices: given 3", "[[devices]]"]),
        ("slo = [3]", ["slo[0]: given 3"]),
        (PHONE + 'link = "lt"', ["devices[0].link.use: given 'lt'", "did you mean 'lte'"]),
        (PHONE + 'link = {use = "lte", los = 1}', ["devices[0].link: unknown key 'los'", "did you mean 'loss'"]),
        (PHONE + 'link = {use = "lte", loss = 1}', ["devices[0].link.loss: given 1", "< 1"]),
        (PHONE.replace("1", "0") + 'link = "lte"', ["devices[0].share: given 0", ">= 1e-09"]),
        (PHONE, ["devices[0].link: missing"]),
        ((PHONE + 'link = "lte"\n') * 2, ["devices[1].name: given 'phone' twice"]),
        ("n_devices = [", ["not valid TOML"]),
    ],
)
def test_impossible_scenarios_say_where_and_what_is_allowed(tmp_path, text, parts):
    path = tmp_path / "mine.toml"
    path.write_text(BASE + text)
    with pytest.raises(ScenarioError) as caught:
        load(path)
    message = str(caught.value)
    assert "\n" not in message
    assert "mine.toml" in message
    for part in parts:
        assert part in message


def test_a_model_that_does_not_fit_is_refused_with_the_sizes():
    verification = "verification = {launch_s=0, weights_s=1, token_s=1, sharpness=2, cached_token_s=0, pair_s=0}\n"
    with pytest.raises(ScenarioError, match=r"server\.memory_bytes: given 86 GB \(77 GB usable\).*143 GB.*llama-70b"):
        loads(BASE + verification + 'target.use = "llama-70b"\ndraft.use = "llama-3.2-1b"')


@pytest.mark.parametrize("name", ["h200-qwen-32b", "missing.toml"])
def test_unknown_scenario_names_the_presets(name):
    with pytest.raises(ScenarioError, match=r"neither a preset nor a TOML file.*h200-qwen3-32b"):
        load(name)


def test_a_file_that_is_not_text_is_refused(tmp_path):
    path = tmp_path / "binary.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ScenarioError, match=r"binary\.toml: cannot be read as UTF-8"):
        load(path)


def test_parts_are_checked_however_they_are_made(default):
    with pytest.raises(ScenarioError, match="measure_s: given -1"):
        Horizon(warmup_s=0, measure_s=-1, drain_s=0)
    with pytest.raises(ScenarioError, match=r"n_devices: given 0"):
        replace(default, n_devices=0)
    with pytest.raises(FrozenInstanceError):
        default.n_devices = 3


def test_numbers_become_plain():
    lengths = Lengths(median_tokens=np.float32(8), log_std=1, min_tokens=np.int64(1), max_tokens=9)
    assert [type(v) for v in (lengths.median_tokens, lengths.log_std, lengths.min_tokens)] == [float, float, int]


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_file_builds_on_a_preset_and_overrides_single_fields(default):
    scenario = loads(BASE + 'name = "mine"\nserver.host_s = 0.004\nworkload.prompt.median_tokens = 150\n')
    assert scenario.server == replace(default.server, host_s=0.004)
    assert scenario.workload.prompt == replace(default.workload.prompt, median_tokens=150.0)
    assert scenario.devices == default.devices


def test_device_speed_and_power_follow_the_draft(default):
    other = loads(BASE + 'draft.use = "qwen3-1.7b"')
    for slow, fast in zip(other.devices, default.devices, strict=True):
        assert slow.draft_tokens_per_s < fast.draft_tokens_per_s
    assert other.draft.parameters == 1_720_000_000


@settings(max_examples=60, deadline=None)
@given(
    number=st.floats(min_value=1e-300, max_value=1e9),
    count=st.integers(min_value=1, max_value=100_000),
    text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
)
def test_toml_keeps_every_bit(number, count, text):
    changes = {"workload.think_s": number, "devices.phone-5g.link.wake_s": number, "n_devices": count}
    scenario = with_(load(DEFAULT), description=text, **changes, **{"slo.0.name": text})
    assert loads(dumps(scenario)) == scenario


def test_save_replaces_the_file_whole(tmp_path, default):
    path = tmp_path / "saved.toml"
    path.write_text("old")
    save(default, path)
    assert load(path) == default
    assert [entry.name for entry in tmp_path.iterdir()] == ["saved.toml"]


def test_trace_is_found_beside_the_scenario(tmp_path):
    text = BASE + 'workload = {arrivals = "trace", trace = "t.csv", trace_format = "azure"}\n'
    path = tmp_path / "traced.toml"
    path.write_text(text)
    with pytest.raises(ScenarioError, match=r"workload\.trace: given 't\.csv', allowed: a file that exists"):
        load(path)
    (tmp_path / "t.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2026-01-01 00:00:00,9,3\n")
    assert Path(load(path).workload.trace) == (tmp_path / "t.csv").resolve()


def test_a_byte_order_mark_before_the_text_is_no_part_of_it(tmp_path, default):
    path = tmp_path / "bom.toml"
    path.write_bytes(b"\xef\xbb\xbf" + dumps(default).encode())
    assert load(path) == loads("\ufeff" + dumps(default)) == default


def test_estimator_comes_from_the_fitted_file_or_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(scenario_toml, "_ESTIMATORS", tmp_path)
    line, roofline = load(DEFAULT).estimator, load(DEFAULT).verification
    assert 0.8 * roofline.weights_s < line.launch_s - roofline.launch_s < roofline.weights_s + 0.002
    assert 0.5 * roofline.token_s < line.new_token_s < roofline.token_s
    fitted = {"launch_s": 0.04, "new_token_s": 2e-4, "pair_s": 0.0, "cached_token_s": 1e-7}
    (tmp_path / "a100-80gb--qwen3-32b.json").write_text(json.dumps({**fitted, "r2": 0.99}))
    assert load(DEFAULT).estimator.launch_s == 0.04
    assert loads(BASE + "estimator.launch_s = 0.05").estimator.launch_s == 0.05


# --- changes and warnings --------------------------------------------------------------------------------------------


def test_with_changes_by_dotted_path_position_and_name(default):
    changed = with_(default, **{"workload.prompt.median_tokens": 300, "devices.0.share": 2, "slo.speed-4.grace_s": 1})
    assert changed.workload.prompt.median_tokens == 300.0
    assert changed.devices[0].share == 2.0
    assert changed.slo[1].grace_s == 1.0
    assert with_(default, horizon=Horizon(1, 2, 3), devices=default.devices[:1]).horizon.drain_s == 3.0
    assert default == load(DEFAULT)


def test_with_checks_once_after_all_changes(default):
    changed = with_(default, **{"workload.output.min_tokens": 600, "workload.output.max_tokens": 900,
                                "workload.output.median_tokens": 700})  # fmt: skip
    assert changed.workload.output.min_tokens == 600


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("workload.promt.median_tokens", 3, "workload: unknown key 'promt'.*did you mean 'prompt'"),
        ("devices.phone-6g.share", 1, "devices: unknown key 'phone-6g'.*did you mean 'phone-5g'"),
        ("n_devices.x", 1, "n_devices: unknown key 'x'"),
        ("n_devices", 0, "n_devices: given 0"),
    ],
)
def test_with_refuses_unknown_paths_and_impossible_values(default, path, value, message):
    with pytest.raises(ScenarioError, match=message):
        with_(default, **{path: value})


def test_with_slo_leaves_one_class(default):
    (slo,) = with_slo(default, 8).slo
    assert (slo.speed_tokens_per_s, slo.name, slo.grace_s) == (8.0, "speed-8", default.slo[0].grace_s)
    with pytest.raises(ScenarioError, match="speed_tokens_per_s: given -1"):
        with_slo(default, -1)


@pytest.mark.parametrize(("draft_tokens_per_s", "k"), [(10.0, 0), (100.0, 1)])
def test_best_speed_by_hand(default, draft_tokens_per_s, k):
    """At 10 tokens/s a drafted token (0.1 s) costs more than a round without (0.06 s); at 100 it pays."""
    device = replace(
        default.devices[1], round_overhead_s=0.01, predictor_s=0.0, draft_tokens_per_s=draft_tokens_per_s
    )  # fmt: skip
    scenario = with_(default, max_draft_tokens=1, **{"verification.weights_s": 0.03, "verification.token_s": 1e-9})
    batch_s = 0.002 + 0.0143 + 0.03 + 0.179e-6 * 16 + 4.56e-9 * (k + 1) * (k + 1 + 16)
    expected = (k + 1) / (0.01 + k / draft_tokens_per_s + 2 * 1.22e-3 + batch_s)
    assert best_tokens_per_s(scenario, device) == pytest.approx(expected, rel=1e-6)


def test_speeds_beyond_physics_are_reported_not_refused(default):
    assert warnings(default) == []
    found = warnings(with_slo(default, 20))
    assert len(found) == 2
    assert all("raspberry-pi" in line and "20 tokens/s" in line for line in found)


def test_scarce_memory_is_reported(default):
    (line,) = warnings(with_(default, n_devices=500))
    assert f"{default.kv_tokens} tokens" in line


def test_import_is_light():
    """The package's own __init__ may register environments; the scenario itself needs neither numba nor gymnasium."""
    code = f"""
import sys, types
package = types.ModuleType("wisp_gym")
package.__path__ = [{str(Path(scenario_toml.__file__).parents[1])!r}]
sys.modules["wisp_gym"] = package
import wisp_gym.scenario as scenario
scenario.load(scenario.presets()[0])
print({{"numba", "numpy", "gymnasium"}} & set(sys.modules))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"


@pytest.mark.parametrize("arrivals", ["closed", "open", "trace"])
def test_a_batch_that_lasts_for_ever_is_refused_however_requests_arrive(arrivals: str) -> None:
    own = {"workload.arrivals": arrivals, "workload.trace": "given", "workload.trace_format": "azure"}
    scenario = with_(load("wisp-a100-qwen3-32b"), **{**own, "workload.requests_per_s": 0.1})
    with pytest.raises(ScenarioError, match=r"verification\.token_s: given 1e\+300, allowed"):
        with_(scenario, **{"verification.token_s": 1e300})


def test_members_of_a_list_without_names_are_changed_by_their_number() -> None:
    levels = [{"tokens": 8, "add_s": 0.0}, {"tokens": 64, "add_s": 0.001}]
    scenario = with_(load("wisp-study"), **{"estimator.sizes": levels})
    changed = with_(scenario, **{"estimator.sizes.1.add_s": 0.002})
    assert [size.add_s for size in changed.estimator.sizes] == [0.0, 0.002]
    with pytest.raises(ScenarioError, match=r"unknown key '2' in 'estimator.sizes.2.add_s'"):
        with_(scenario, **{"estimator.sizes.2.add_s": 0.002})
