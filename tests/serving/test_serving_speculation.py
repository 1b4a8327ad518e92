"""The device's controller sees what the engine saw, decides the same, and never stops the loop that it serves."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.bundles import SCENARIO, network_bytes, random_policy, rule
from tests.support.replay import replayed
from wisp_gym.contract.actions import DRAFT, DRAFT_ON, DRAFTS_ON, HAND_OVER, HANDS_OVER, SEND, SENDS
from wisp_gym.scenario import load, with_
from wisp_gym.serving.bundle.bundle import Bundle, from_bytes
from wisp_gym.serving.bundle.schema import BundleError
from wisp_gym.serving.device.controller import DeviceProfile, Reply, SpeculationController, Token

ROOT = Path(__file__).resolve().parents[2]
PROFILE = DeviceProfile(slo_tokens_per_s=8.0, draft_token_s=0.02, one_way_s=0.01, accept_share=0.8, batch_s=0.05)
REPLY = Reply(
    accepted_tokens=2, committed_tokens=3, verified_tokens=4, busy=True, running_left_s=0.03, mean_batch_s=0.05, queue_s=0.01,
    utilisation=0.7, held_s=0.06,
)  # fmt: skip
TOKEN = Token(accept_probability=0.95, confidence=0.9, entropy=0.4, margin=0.8, logit_spread=3.0)
NUMBERS = st.one_of(
    st.none(), st.text(max_size=3), st.floats(), st.integers(-(10**20), 10**20), st.booleans(), st.just(np.float32("nan")), st.just([])
)  # fmt: skip


def controller_of(name: str = "survival:0.5") -> SpeculationController:
    """A controller in the middle of a request, about to draft."""
    controller = SpeculationController(rule(name), PROFILE)
    controller.begin_request(0.0, 100, 50)
    controller.sent(0.0)
    controller.receive(replace(REPLY, accepted_tokens=0, committed_tokens=1, verified_tokens=0), 0.1)
    controller.begin_round(0.1)
    return controller


def action_of(controller: SpeculationController, more: bool) -> int:
    """The action that the controller has carried out."""
    if controller.by_length:
        return controller.way * (controller.max_draft_tokens + 1) + controller.target
    return DRAFT if more else {SENDS: SEND, DRAFTS_ON: DRAFT_ON, HANDS_OVER: HAND_OVER}[controller.way]


def both(bundle: Bundle, scenario: Any, others: str, n: int, seed: int = 1) -> tuple[float, SpeculationController]:
    """Largest difference between what the engine and the controller saw, over n decisions, all of them taken alike."""
    worst, controller = 0.0, None
    for decision in replayed(bundle, scenario, others, seed, n):
        controller = decision.controller
        theirs = int(bundle.decide({"observation": decision.seen[None]})[0][0])
        ours = controller.wants_more(decision.now_s)
        assert action_of(controller, ours) == theirs
        worst = max(worst, float(np.abs(controller.array[0] - decision.seen).max()))
    assert controller is not None
    assert controller.decisions == n
    assert not controller.fallbacks
    return worst, controller


@pytest.mark.parametrize("name", ["aligned", "survival:0.5", "wisp", "leviathan", "token", "length"])
def test_the_controller_sees_and_does_what_the_engine_did(name: str) -> None:
    bundle = from_bytes(network_bytes(random_policy(name))) if name in ("token", "length") else rule(name)
    worst, _ = both(bundle, SCENARIO, "wisp+wisp", 2_000)
    assert worst <= 1e-5


@pytest.mark.parametrize("decision", ["token-way", "length-way"])
@pytest.mark.parametrize(
    "others", ["wisp+wisp+by-device+colocated:2", "aligned+fcfs+by-device:1+colocated:3+overlap:4,0.4"]
)
def test_the_same_of_policies_that_say_how_rounds_end(decision: str, others: str) -> None:
    worst, ways = 0.0, set()
    for seed in range(3):
        bundle = from_bytes(network_bytes(random_policy(decision, seed=seed)))
        found, controller = both(bundle, SCENARIO, others, 120, seed)
        worst = max(worst, found)
        ways |= {controller.way}
    assert worst <= 1e-5
    assert ways - {SENDS}


@pytest.mark.parametrize("preset", ["h100-qwen3-32b", "wisp-study"])
def test_the_same_elsewhere(preset: str) -> None:
    worst, _ = both(rule("aligned", load(preset)), load(preset), "aligned+fcfs", 1_000)
    assert worst <= 1e-5


def test_the_same_with_recorded_tokens_and_a_schedule_from_arrival() -> None:
    slo = tuple(replace(s, clock="arrival") for s in SCENARIO.slo)
    draft = replace(SCENARIO.draft, trace="python-10m-1m.npz")
    scenario = replace(with_(SCENARIO, max_draft_tokens=8), slo=slo, draft=draft)
    worst, _ = both(rule("survival:0.5", scenario), scenario, "turbospec+edf", 1_000)
    assert worst <= 1e-5


def test_a_fault_is_counted_and_wisps_rule_decides() -> None:
    bundle = rule("fixed:0")  # would send at once
    for spoil, reason in (
        (lambda c: c.receive(replace(REPLY, mean_batch_s=math.nan), 0.1), "out of range"),
        (lambda c: c.receive(replace(REPLY, utilisation=None), 0.1), "missing"),
        (lambda c: c.begin_round(0.1, draft_token_s=-1.0), "out of range"),
        (lambda c: c.begin_request(0.1, 10, 20), "missing"),  # no reply yet
    ):
        controller = controller_of()
        controller.bundle = bundle
        assert not controller.wants_more(0.1)
        assert not controller.fallbacks
        spoil(controller)
        assert controller.wants_more(0.1)  # WISP drafts a first token
        assert controller.fallbacks == {reason: 1}


def test_a_token_without_statistics_falls_back_for_its_round() -> None:
    controller = controller_of("fixed:12")
    controller.drafted(replace(TOKEN, entropy=math.nan), 0.12)
    assert controller.wants_more(0.12)  # 0.95 is above WISP's threshold
    controller.drafted(replace(TOKEN, accept_probability=None, confidence=0.1), 0.14)  # type: ignore[arg-type]
    assert not controller.wants_more(0.14)  # confidence stands for what is missing
    controller.drafted(None, 0.16)  # type: ignore[arg-type]
    assert controller.fallbacks == {"out of range": 1, "missing": 1}
    controller.begin_round(0.3)
    assert controller.wants_more(0.3)
    assert sum(controller.fallbacks.values()) == 2


def test_an_old_server_state_is_late() -> None:
    controller = controller_of("fixed:0")
    assert not controller.wants_more(0.2)
    assert controller.wants_more(100.0)
    assert controller.fallbacks == {"late": 1}


def test_a_policy_that_fails_is_replaced() -> None:
    controller = controller_of("fixed:0")

    class Session:
        def run(self, *_: Any) -> None:
            raise RuntimeError("no memory")

    controller.bundle = replace(controller.bundle, session=Session())
    assert controller.wants_more(0.1)
    assert controller.fallbacks == {"failed": 1}


def test_half_the_round_trip_is_the_delay_where_clocks_differ() -> None:
    controller = controller_of()
    before = controller.delay_mean_s
    controller.sent(10.0)
    controller.receive(replace(REPLY, held_s=0.06), 10.1)
    assert controller.delay_mean_s == pytest.approx(0.81 * before + 0.19 * 0.02)
    assert controller.info_s == pytest.approx(10.08)


@settings(deadline=None)  # the machine may be busy
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["request", "sent", "reply", "round", "token", "ask"]),
            st.lists(NUMBERS, min_size=11, max_size=11),
        )
    )
)
def test_nothing_that_it_is_told_stops_the_loop(steps: list[tuple[str, list[Any]]]) -> None:
    controller = controller_of()
    for step, x in steps:
        if step == "request":
            controller.begin_request(x[0], x[1], x[2])
        elif step == "sent":
            controller.sent(x[0])
        elif step == "reply":
            controller.receive(Reply(*x[:9]), x[9], x[10])
        elif step == "round":
            controller.begin_round(x[0], x[1])
        elif step == "token":
            controller.drafted(Token(*x[:5]), x[5])
        else:
            assert controller.wants_more(x[0]) in (True, False)
    controller.begin_request(1e6, 10, 30)
    controller.sent(1e6)
    controller.receive(replace(REPLY, accepted_tokens=0, committed_tokens=1, verified_tokens=0), 1e6 + 0.1)
    controller.begin_round(1e6 + 0.1, 0.02)
    before = sum(controller.fallbacks.values())
    assert controller.wants_more(1e6 + 0.1)
    assert sum(controller.fallbacks.values()) == before  # what was wrong is forgotten
    assert np.isfinite(controller.array).all()


def test_what_is_given_once_is_checked() -> None:
    with pytest.raises(ValueError, match="draft_token_s: given 0"):
        SpeculationController(rule("wisp"), replace(PROFILE, draft_token_s=0))
    bundle = rule("wisp")
    server = replace(bundle, schema=replace(bundle.schema, decision="batching"))
    with pytest.raises(BundleError, match="a device needs"):
        SpeculationController(server, PROFILE)


def test_serving_imports_neither_gymnasium_nor_numba_nor_torch() -> None:
    code = """
import sys, pkgutil, importlib, wisp_gym.serving
for module in pkgutil.walk_packages(wisp_gym.serving.__path__, "wisp_gym.serving."):
    if ".export" not in module.name and ".tables" not in module.name:  # made ahead of serving, in environments and scenarios
        importlib.import_module(module.name)
import wisp_gym.contract, wisp_gym.traces, wisp_gym.policies
wisp_gym.policies.load("batching-v1").bundle()
wisp_gym.serving.load_bundle("speculation-wisp.onnx")
print(sorted({"gymnasium", "numba", "torch", "onnx", "stable_baselines3", "matplotlib"} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "[]", done.stderr
