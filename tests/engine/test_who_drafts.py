"""Who drafts, in closed form: co-located steps, overlapped rounds, and the limit of how many more clients devices that draft allow."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.reference import Reference
from tests.support.reference_parts import Request
from tests.support.reference_source import Source
from tests.support.small_worlds import (
    CONSTANT_ACCEPTANCE,
    NO_TRACE,
    SmallWorld,
    horizon,
    log_of,
    memory_for,
    plain,
    run,
    scenarios,
)
from tests.support.twins import LOG_ROWS, assert_same
from wisp_gym.controllers.resolve import resolve
from wisp_gym.scenario import Scenario, with_

EXACT = {"rtol": 0.0, "atol": 1e-9}
ALWAYS, NEVER = 20.0, -20.0  # logits: one token in half a billion is otherwise
PROMPT, OUTPUT, SPEED, OVERHEAD_S = 60, 50, 40.0, 0.03
TIME = {"overhead_s": 0.003, "launch_s": 0.002, "sequence_s": 2e-4, "token_s": 3e-5, "cached_token_s": 2e-7}
Log = list[tuple[float, str, int, float]]
Story = tuple[Log, Mapping[str, float]]  # events, and totals


def by_reference(scenario: Scenario, controller: str) -> Story:
    """What the plain reference simulator tells."""
    world = Reference(scenario, 5, resolve(controller, scenario)).run()
    return world.log, world.totals


def by_engine(scenario: Scenario, controller: str) -> Story:
    """What the engine tells up to the world's end, beyond which it writes down what devices will do."""
    arrays, h = run(scenario, controller, [5], LOG_ROWS), scenario.horizon
    end_s = h.warmup_s + h.measure_s + h.drain_s
    return [event for event in log_of(arrays) if event[0] < end_s], arrays.totals[0, 0]


SIMULATORS = {"reference": by_reference, "engine": by_engine}


@pytest.fixture(params=SIMULATORS)
def tell(request: pytest.FixtureRequest) -> Callable[[Scenario, str], Story]:
    """A simulator."""
    return SIMULATORS[request.param]


def times(log: Log, kind: str, device: int) -> np.ndarray:
    """When events of a kind happened to a device (−1: the server)."""
    return np.array([time_s for time_s, k, d, _ in log if (k, d) == (kind, device)])


def lengths(tokens: int) -> dict[str, float]:
    """Of prompts or outputs, all the same."""
    return {"median_tokens": tokens, "log_std": 0.0, "min_tokens": tokens, "max_tokens": tokens}


Changes = dict[str, Any]
NONE: Changes = {}


def world(
    logit_mean: float, n_devices: int = 1, device: Changes = NONE, draft: Changes = NONE, **changes: Any
) -> Scenario:
    """Identical devices that ask for identical responses at one moment; every token has the same fate, nothing else is random.

    Changes of the devices, of the server's draft (by default it has the devices' fates and takes no memory), and of the rest.
    """
    scenario = plain(**CONSTANT_ACCEPTANCE | {
        "draft.acceptance.logit_mean": logit_mean, "n_devices": n_devices, "horizon": horizon(0.0, 60.0),
        "workload.arrivals": "closed", "workload.start_window_s": 0.0, "workload.think_s": 1e6,
        "workload.prompt": lengths(PROMPT), "workload.output": lengths(OUTPUT), "verification.pair_s": 1e-8, "estimator.pair_s": 1e-8,
    } | changes)  # fmt: skip
    own = {"name": "own", "weights_bytes": 0, "kv_bytes_per_token": 0, "offer": 1.0, "correlation": 1.0, "time": TIME}
    drafts = [own | {"acceptance": asdict(scenario.draft.acceptance)} | draft]
    devices = [asdict(scenario.devices[0]) | {"draft_tokens_per_s": SPEED, "round_overhead_s": OVERHEAD_S} | device]
    return with_(scenario, devices=devices, server_drafts=drafts)


def verify_s(scenario: Scenario, n: int, drafts: int, context: int) -> float:
    """Time of verifying so many drafts for each of n sequences with the same context, all but its last token in memory."""
    v, new = scenario.verification, 1 + drafts
    roofline_s = (v.weights_s**v.sharpness + (v.token_s * n * new) ** v.sharpness) ** (1.0 / v.sharpness)
    attention_s = v.cached_token_s * n * (context - 1) + v.pair_s * n * new * (context - 1 + new)
    return scenario.server.host_s + v.launch_s + roofline_s + attention_s


def draft_s(n: int, drafts: int, context: int, cached: int) -> float:
    """Time of drafting for n such sequences, of whose context so much is in the draft's cache."""
    total_s = TIME["overhead_s"]
    for j in range(1, drafts + 1):
        new, read = (context - cached, cached) if j == 1 else (1, context + j - 2)
        total_s += TIME["launch_s"] + n * (TIME["sequence_s"] + TIME["token_s"] * new + TIME["cached_token_s"] * read)
    return total_s


def delay_s(scenario: Scenario, payload_bytes: float, direction: str) -> float:
    """One way over the link."""
    link = scenario.devices[0].link
    return link.one_way_s + (256.0 + payload_bytes) / getattr(link, f"{direction}_bytes_per_s")


# --- co-located ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("logit_mean", [ALWAYS, NEVER])
def test_a_colocated_step_takes_drafting_and_verification(
    tell: Callable[[Scenario, str], Story], logit_mean: float, k: int, n: int
) -> None:
    """Each step of identical sequences takes `draft + verify`; its tokens are delivered one downlink later."""
    scenario = world(logit_mean, n)
    log, totals = tell(scenario, f"colocated:{k}")
    end_s, committed, cached, delivered_s = times(log, "end", -1)[0], 1, 0, []
    while committed < OUTPUT:
        drafts, context = min(k, OUTPUT - committed - 1), PROMPT + committed
        end_s += verify_s(scenario, n, drafts, context) + (draft_s(n, drafts, context, cached) if drafts else 0.0)
        accepted = drafts if logit_mean == ALWAYS else 0
        cached = context + min(accepted, drafts - 1) if drafts else cached
        delivered_s.append(end_s + delay_s(scenario, 4.0 * (accepted + 1), "downlink"))
        committed += accepted + 1
    for device in range(n):
        np.testing.assert_allclose(times(log, "deliver", device)[1:], delivered_s, **EXACT)
    np.testing.assert_allclose(times(log, "end", -1)[-1], end_s, **EXACT)
    assert totals["drafted"] == sum(value for _, kind, _, value in log if kind == "draft") > 0
    assert totals["accepted"] == (totals["drafted"] if logit_mean == ALWAYS else 0)
    assert totals["wasted_s"] == 0.0
    assert totals["server_drafted"] == totals["window_drafted"] == totals["drafted"]


@pytest.mark.parametrize(("kv_tokens", "together"), [(2 * (PROMPT + 1 + 12), 2), (2 * (PROMPT + 1 + 12) - 1, 1)])
def test_each_sequence_keeps_places_for_its_longest_draft(
    tell: Callable[[Scenario, str], Story], kv_tokens: int, together: int
) -> None:
    """Both prompts fit, then one token of each and places for 12 drafts: all that a rule may choose, though one or two come to be."""
    scenario = world(NEVER, 2, **{"workload.output": lengths(4)} | memory_for(kv_tokens))
    log, totals = tell(scenario, "colocated:12")
    assert [value for _, kind, _, value in log if kind == "launch"][:2] == [2, together]
    assert max(value for _, kind, _, value in log if kind == "draft") == 2
    assert totals["kv_peak_tokens"] <= kv_tokens


@pytest.mark.parametrize("name", ["centralized:0", "centralized:3", "centralized-paced"])
def test_without_a_draft_colocated_is_centralized(tell: Callable[[Scenario, str], Story], name: str) -> None:
    """k = 0: the same events, byte for byte; and the same where a rule has a draft loaded and never uses it."""
    scenario = world(0.5, 6, **{"workload.think_s": 0.5, "server.noise": 0.1})
    plainly = tell(scenario, name)
    assert plainly == tell(scenario, f"{name}+colocated:0")
    assert plainly[0] == tell(scenario, f"{name}+colocated-table(k_max=4, stretch=0)")[0]
    assert len(plainly[0]) > 1000
    if name == "centralized:0":
        assert plainly == tell(scenario, "colocated:0")


@pytest.mark.parametrize("offer", [0.0, 1.0])
def test_a_source_offers_nothing_where_it_finds_nothing(tell: Callable[[Scenario, str], Story], offer: float) -> None:
    """With no right token, a source that never drafts in spite of it makes centralized serving; one that does is always rejected."""
    scenario = world(NEVER, 3, draft={"correlation": 0.5, "offer": offer})
    log, totals = tell(scenario, "colocated:4")
    if offer == 0.0:
        assert log == tell(scenario, "centralized:0")[0]
    else:
        assert totals["server_rounds"] == 3 * (OUTPUT - 2)  # none in the round of the last token …
        assert totals["rejected"] == 3 * (4 * (OUTPUT - 5) + 3 + 2 + 1)  # … and fewer in those before it
    assert totals["accepted"] == 0


def test_with_the_same_numbers_and_draws_fates_are_the_devices(tell: Callable[[Scenario, str], Story]) -> None:
    """A process that differs from the devices' by nothing that matters, all draws shared, tells the same story; half of them, another."""
    acceptance = asdict(plain().draft.acceptance)
    logs = []
    for changes in ({}, {"logit_mean": acceptance["logit_mean"] + 1e-13}):
        for correlation in (1.0, 0.5):
            draft = {"acceptance": acceptance | changes, "correlation": correlation}
            scenario = world(0.0, 3, draft=draft, **{"draft.acceptance": acceptance, "workload.think_s": 0.5})
            logs.append(tell(scenario, "colocated:4")[0])
    (same, half), (near, near_half) = logs[:2], logs[2:]
    assert same == near
    assert half == near_half != same


@pytest.mark.parametrize("correlation", [0.0, 0.6])
def test_shared_draws_keep_the_process(correlation: float) -> None:
    """With the same numbers, odds of whole requests spread as the devices' do, whatever is shared, and go along with them to that degree."""
    acceptance = CONSTANT_ACCEPTANCE | {"draft.acceptance.request_std": 1.0, "draft.acceptance.logit_mean": 0.0}
    own = asdict(plain(**acceptance).draft.acceptance) | {"logit_mean": 1e-13}
    scenario = world(0.0, draft={"acceptance": own, "correlation": correlation}, **acceptance)
    source = Source(scenario, 5, resolve("colocated:1", scenario).drafting.hosted)
    shares = []
    for number in range(600):
        request = Request(number, 0.0, PROMPT, 100, True)
        source.begin(0, request)
        shares.append([np.mean(request.fates), np.mean(request.server_fates)])
    theirs, ours = np.array(shares).T
    assert np.std(ours) == pytest.approx(np.std(theirs), rel=0.08)
    assert np.corrcoef(theirs, ours)[0, 1] == pytest.approx(correlation, abs=0.09)


# --- more clients ----------------------------------------------------------------------------------------------------


def test_devices_that_draft_leave_room_for_more_clients(tell: Callable[[Scenario, str], Story]) -> None:
    """(1 + γ·t_d/t_v) times more clients get the same speed if their devices draft (arXiv 2606.25091).

    Exact where the server's time is linear in the clients of a batch, γ steps of t_d and a verification of t_v for each, nothing for
    the batch itself, and the server never idles: a client then gets a round in every n·(t_v + γ·t_d), or n·t_v, however they are
    grouped. (Were batch times independent of their size, any number of clients would share a batch, and no ratio of clients
    would follow.) Here γ = 3 and γ·t_d = t_v/2: 12 clients with their own drafts, in batches of 6 that take turns, beside 8.
    """
    gamma, token_s = 3, 0.002
    verify_one_s = (gamma + 1) * token_s
    linear = {
        "server.host_s": 0.0, "verification.launch_s": 0.0, "verification.weights_s": 1e-7, "verification.token_s": token_s,
        "verification.cached_token_s": 0.0, "verification.pair_s": 0.0, "workload.output": lengths(400),
    }  # fmt: skip
    step = dict.fromkeys(TIME, 0.0) | {"sequence_s": 0.5 * verify_one_s / gamma}
    link = asdict(plain().devices[0].link) | {"one_way_s": 0.001}
    device = {"draft_tokens_per_s": 1000.0, "round_overhead_s": 0.0, "link": link}
    every_s = []
    for n, name in ((12, f"fixed:{gamma}+static:6,1"), (8, f"colocated:{gamma}")):
        log, totals = tell(world(ALWAYS, n, device, {"time": step}, **linear), name)
        assert totals["accepted"] == totals["drafted"]
        every_s += [np.diff(times(log, "deliver", i))[5:90] for i in range(n)]
    np.testing.assert_allclose(every_s, 12 * verify_one_s, **EXACT)


# --- overlapped ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("k", "most"), [(4, 16), (6, 16), (1, 16), (4, 2), (2, 2), (4, 1), (1, 1)])
def test_rounds_of_a_device_that_drafts_on(tell: Callable[[Scenario, str], Story], k: int, most: int) -> None:
    """All accepted: a device that never pauses sends every (K + 1)·t_d; with a whole head it sends as soon as it hears; with a cap of
    m tokens it drafts the K + 1 − m others afresh, after an overhead where m = 1 leaves no head.
    """
    scenario = world(ALWAYS)
    log, totals = tell(scenario, f"fixed:{k}+fcfs+overlap:{most}")
    sent_s, delivered_s, step_s = times(log, "send", 0)[1:], times(log, "deliver", 0), 1.0 / SPEED
    np.testing.assert_allclose(sent_s[0], delivered_s[0] + OVERHEAD_S + k * step_s, **EXACT)
    committed, overlapped, used = 1, 0, 0
    drafts = min(k, OUTPUT - committed - 1)
    for n in range(len(sent_s)):
        uplink_s, downlink_s = (
            delay_s(scenario, 24.0 * drafts, "uplink"),
            delay_s(scenario, 4.0 * (drafts + 1), "downlink"),
        )
        away_s = uplink_s + verify_s(scenario, 1, drafts, PROMPT + committed) + downlink_s
        np.testing.assert_allclose(delivered_s[n + 1] - sent_s[n], away_s, **EXACT)
        done = min(most, math.floor(away_s / step_s)) if drafts else 0
        committed, overlapped = committed + drafts + 1, overlapped + done
        if committed == OUTPUT:
            break
        drafts = min(k, OUTPUT - committed - 1)
        afresh_s = max(drafts + 1 - most, 0) * step_s + (OVERHEAD_S if most == 1 and drafts else 0.0)
        every_s = away_s + afresh_s if done == most else max((drafts + 1) * step_s, away_s)
        np.testing.assert_allclose(sent_s[n + 1] - sent_s[n], every_s, **EXACT)
        used += min(done, drafts + 1)
    assert committed == OUTPUT
    assert (totals["overlapped"], totals["overlap_used"]) == (overlapped, used)
    assert totals["wasted_s"] == pytest.approx((overlapped - used) * step_s)
    assert totals["drafted"] == totals["accepted"] == OUTPUT - 1 - len(sent_s)


@pytest.mark.parametrize("logit_mean", [NEVER, 0.5])
def test_guesses_that_never_hold_change_nothing(tell: Callable[[Scenario, str], Story], logit_mean: float) -> None:
    """All rejected, or none sent: the same events as where devices wait, but for what they drafted in vain."""
    scenario = world(logit_mean, 3, **{"workload.think_s": 0.5})
    name = "fixed:3+fcfs" if logit_mean == NEVER else "fixed:0+fcfs"
    log, totals = tell(scenario, f"{name}+overlap")
    plainly, plain_totals = tell(scenario, name)
    ahead = sum(value for _, kind, _, value in log if kind == "overlap")
    assert [event for event in log if event[1] != "overlap"] == plainly
    assert (totals["overlapped"], totals["overlap_used"]) == (ahead, 0)
    assert totals["wasted_s"] == pytest.approx(plain_totals["wasted_s"] + ahead / SPEED)
    assert bool(ahead) == (logit_mean == NEVER)


def test_a_device_that_drafts_on_does_not_cool(tell: Callable[[Scenario, str], Story]) -> None:
    """It heats from its first round on as if it never paused: `t_d = 1/(v·(1 − (1 − q)·heat))`, `heat = 1 − e^(−t/τ)`."""
    ratio, tau_s, k = 0.4, 3.0, 3
    log, _ = tell(world(NEVER, device={"throttle_ratio": ratio, "throttle_s": tau_s}), f"fixed:{k}+fcfs+overlap:32")
    begun_s, sent_s = times(log, "deliver", 0)[:20], times(log, "send", 0)[1:21]
    heat = 1.0 - np.exp(-(begun_s - begun_s[0]) / tau_s)
    np.testing.assert_allclose(sent_s - begun_s, OVERHEAD_S + k / (SPEED * (1.0 - (1.0 - ratio) * heat)), **EXACT)
    assert heat[-1] > 0.5


# --- who drafts next -------------------------------------------------------------------------------------------------


def test_the_server_drafts_for_nobody_where_no_place_is(tell: Callable[[Scenario, str], Story]) -> None:
    """Nothing moves with no place at the server, for a class that nobody is of, and for devices slower than all."""
    scenario = world(0.5, 4, **{"workload.think_s": 0.5})
    alone = tell(scenario, "fixed:3+fcfs")[0]
    for rule in ("by-load:0", "by-class:1e9", "by-speed:0", "by-price:1,0"):
        assert tell(scenario, f"fixed:3+fcfs+{rule}")[0] == alone


@pytest.mark.parametrize("rule", ["by-load:2", "by-class:0,2", "by-speed:1e9,2"])
def test_places_at_the_server_are_taken_and_given_up(tell: Callable[[Scenario, str], Story], rule: str) -> None:
    """Never more than n sessions, n of them while there are enough, each until its end; nothing arrives from those devices."""
    log, totals = tell(world(0.5, 5, **{"workload.think_s": 0.2}), f"fixed:3+fcfs+{rule}+colocated:2")
    committed, inside, most, kept = Counter(), set(), 0, 0
    for _, kind, device, value in log:
        assert kind != "arrive" or device not in inside
        if kind == "drafter":
            assert value == 1.0
            inside.add(device)
            most = max(most, len(inside))
        elif kind == "verify":
            committed[device] += int(value) + 1
            if committed[device] == OUTPUT:
                kept += device in inside
                inside.discard(device)
                committed[device] = 0
    assert most == 2
    assert kept > 2
    assert totals["server_drafted"] == 2 * totals["server_rounds"] - shorter_rounds(log)


def shorter_rounds(log: Log) -> int:
    """Rounds of one draft where the rule asks for two: those near the end of a response."""
    return sum(kind == "draft" and value == 1.0 for _, kind, _, value in log)


@settings(max_examples=60, deadline=None)
@given(scenarios(), st.integers(1, 8), st.integers(1, 16), st.integers(0, 2**40))
def test_drafting_on_never_slows_a_lone_device_but_by_heat(scenario: Scenario, k: int, most: int, seed: int) -> None:
    """With the same lengths, every token comes at the latest when it comes without."""
    changes = {"n_devices": 1, "devices.0.throttle_ratio": 1.0, "workload.arrivals": "closed", "workload.think_s": 0.0}
    lone = with_(scenario, devices=[asdict(scenario.devices[0])], **changes)
    delivered = []
    for name in (f"fixed:{k}+fcfs+overlap:{most}", f"fixed:{k}+fcfs"):
        log = log_of(run(lone, name, [seed], LOG_ROWS))
        rows = [(time_s, value) for time_s, kind, _, value in log if kind == "deliver"]
        at, tokens = np.array(rows).reshape(-1, 2).T
        delivered.append(np.repeat(at, tokens.astype(int)))
    n = min(map(len, delivered))
    assert (delivered[0][:n] <= delivered[1][:n] + 1e-9).all()


def test_a_prompt_of_one_token_begins_with_an_empty_draft_cache() -> None:
    """Nothing is prefilled for it; what the draft had kept of the request before is gone all the same."""
    short = world(ALWAYS, **{"workload.prompt": lengths(1), "workload.output": lengths(4), "workload.think_s": 0.0})
    assert assert_same(SmallWorld(short, "colocated:2", 7, NO_TRACE)) > 100
