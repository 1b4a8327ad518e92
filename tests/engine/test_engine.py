"""The engine keeps its numbered invariants (docs/model/model.md) and reproduces what can be computed by hand."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import astuple
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

from tests.support.invariants import LOG_ROWS, OF_A_RUN, Invariant, assert_kept, digest, ran
from tests.support.outside import arrays_for_one
from tests.support.scorers import random_scorer
from tests.support.small_worlds import (
    BASE,
    CONSTANT_ACCEPTANCE,
    SmallWorld,
    horizon,
    log_of,
    memory_for,
    plain,
    run,
    small_worlds,
)
from tests.support.wild_worlds import wild_worlds
from wisp_gym.controllers.resolve import resolve
from wisp_gym.controllers.scorer_policy import save_scorer
from wisp_gym.engine.build import separation
from wisp_gym.engine.loop import DONE
from wisp_gym.engine.run import BEGIN, STEP
from wisp_gym.engine.state import TRACE_ROW
from wisp_gym.engine.verification import batch_time_s, with_roofline_s
from wisp_gym.engine.worlds import NO_TRACE, Worlds
from wisp_gym.evaluation.metrics import measure
from wisp_gym.scenario import Scenario, load, with_

ROOT = Path(__file__).resolve().parents[2]
many_worlds = settings(derandomize=True, deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
Log = list[tuple[float, str, int, float]]


def of_kind(log: Log, kind: str, device: int | None = None) -> np.ndarray:
    """(n, 2) time and value of the events of a kind, in the order written."""
    rows = [(t, v) for t, k, d, v in log if k == kind and device in (None, d)]
    return np.array(rows).reshape(-1, 2)


# --- invariants ------------------------------------------------------------------------------------------------------


@many_worlds
@given(small_worlds())
def test_small_worlds_keep_the_invariants(world: SmallWorld) -> None:
    assert_kept(world)


@settings(many_worlds, max_examples=40)
@given(wild_worlds())
def test_worlds_at_the_ends_of_what_is_allowed_keep_the_invariants(world: SmallWorld) -> None:
    """`python -m tests.soak` runs thousands."""
    assert_kept(world)


@pytest.mark.parametrize(
    "controller",
    [
        "speculation-v1+batching-v1", "joint-v1", "speculation-v1+aged:2+admit+by-load:3+colocated:3",
        "speculation-v1+batching-v1+by-price+colocated-survival+overlap",
    ],
)  # fmt: skip
@pytest.mark.parametrize("memory_bytes", [BASE.server.memory_bytes, 78_000_000_000])
def test_learned_policies_keep_the_invariants_whoever_drafts(controller: str, memory_bytes: int) -> None:
    scenario = with_(BASE, n_devices=24, horizon=horizon(1.0, 8.0, 2.0), **{"server.memory_bytes": memory_bytes})
    assert_kept(SmallWorld(scenario, controller, 3, NO_TRACE))


@pytest.mark.parametrize("decision", ["batching-hosting", "joint-hosting"])
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("memory_bytes", [BASE.server.memory_bytes, 78_000_000_000])
def test_policies_that_say_for_whom_the_server_drafts_keep_the_invariants(
    decision: str, seed: int, memory_bytes: int, tmp_path: Path
) -> None:
    path = tmp_path / "policy.json"
    save_scorer(random_scorer(decision, seed), path)
    scenario = with_(BASE, n_devices=24, horizon=horizon(1.0, 8.0, 2.0), **{"server.memory_bytes": memory_bytes})
    controller = f"speculation-v1+{path}+by-load:0+colocated:4+overlap"
    assert_kept(SmallWorld(scenario, controller, seed, NO_TRACE))
    found = ran(SmallWorld(scenario, controller, seed, NO_TRACE))
    assert (found.kinds == "drafter").any()


@pytest.mark.parametrize("invariant", OF_A_RUN, ids=lambda invariant: invariant.__name__)
def test_an_invariant_sees_when_it_is_broken(invariant: Invariant) -> None:
    """Each is asked of a run with one number changed."""
    scenario = plain(n_devices=3, horizon=horizon(0.0, 5.0), **{"workload.start_window_s": 0.0})
    world = SmallWorld(scenario, "fixed:4+fcfs", 3, NO_TRACE)
    found = ran(world)
    arrays, log = found.arrays, found.log
    invariant(found)
    name = invariant.__name__[:2]
    if name == "i1":
        arrays.totals["accepted"] += 1
    elif name == "i2":
        arrays.totals["requests_in"] += 1
    elif name in ("i3", "i4"):
        log["time_s"][found.kinds == ("verify" if name == "i3" else "send")] += 1e3
        log["time_s"][np.flatnonzero(found.kinds == "end")[0]] += 1e3
    elif name == "i5":
        log["value"][np.flatnonzero(found.kinds == "end")[0]] += 1
    elif name == "i6":
        arrays.server["kv_tokens"] += 1
    elif name in ("i7", "i8"):
        arrays.log["value"][0, 0] += 1
    else:
        arrays.device["price"][0, 0] = np.nan
    with pytest.raises(AssertionError):
        invariant(found)


def digest_of_default(controller: str) -> str:
    """Hash of two default worlds (called in another process as well)."""
    short = with_(BASE, n_devices=8, horizon=horizon(1.0, 6.0, 1.0))
    return digest(run(short, controller, [1, 2], LOG_ROWS))


def test_i7_same_seed_same_bytes_in_two_processes() -> None:
    code = "from tests.engine.test_engine import digest_of_default as d; print(d('wisp+wisp'), d('centralized'))"
    command = [sys.executable, "-c", f"import sys; sys.path[:0] = {[str(ROOT)]}; {code}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [digest_of_default("wisp+wisp"), digest_of_default("centralized")]


def test_i7_threads_and_neighbours_change_no_byte() -> None:
    scenario = with_(BASE, n_devices=8, horizon=horizon(1.0, 6.0, 1.0))
    together = Worlds(4, 8, log_rows=LOG_ROWS, threads=2)
    for index in range(4):
        together.fill(index, scenario, index, resolve("wisp+wisp", scenario))
    together.run()
    alone = run(scenario, "wisp+wisp", [2], LOG_ROWS)
    assert together.arrays.totals[2].tobytes() == alone.totals[0].tobytes()
    assert together.arrays.log[2].tobytes() == alone.log[0].tobytes()
    assert together.arrays.totals[1].tobytes() != alone.totals[0].tobytes()


def watch(scenario: Scenario, seed: int, trace: np.ndarray = NO_TRACE, **config: float) -> list[tuple]:
    """(clock_s, time of the server's last word, committed tokens, observation) at each token of device 0."""
    worlds = Worlds(1, scenario.n_devices, trace=trace, threads=1)
    worlds.fill(0, scenario, seed, resolve("fixed:5+fcfs", scenario))
    c = worlds.arrays.config[0, 0]
    outside = {"external_speculation": 1, "external_device": 0, "sees_statistics": 1, "sees_observation": 1}
    for name, value in (outside | config).items():
        c[name] = value
    first, seen, written = worlds.arrays.device[0, 0], [], arrays_for_one()
    worlds.spread(BEGIN, which=np.ones(1, bool), **written)
    actions = np.zeros(1, np.int64)
    next_token = worlds.call(STEP, actions=actions, **written)
    while written["kinds"][0] != DONE:
        seen.append((first["clock_s"], first["info_s"], first["committed"], written["observations"].tobytes()))
        actions[0] = first["drafted"] < 5
        next_token.run(STEP)
    return seen


def test_i8_an_observation_knows_of_others_only_what_the_last_reply_carried() -> None:
    """A rival that arrives at 3 s changes no observation before the first reply that left after that time."""
    traced = {"workload.arrivals": "trace", "workload.trace": "given", "workload.trace_format": "azure"}
    scenario = plain(n_devices=2, **traced, **{"devices.0.draft_tokens_per_s": 10.0})
    alone = np.array([(0.0, 50, 200), (1e9, 50, 1)], TRACE_ROW)
    rival = np.array([(0.0, 50, 200), (3.0, 1500, 200)], TRACE_ROW)
    quiet, busy = watch(scenario, 5, alone), watch(scenario, 5, rival)
    before = [row for row in quiet if row[1] < 3.0]
    assert len(before) > 20
    assert any(row[0] > 3.05 for row in before), "some decision must fall between the rival's start and the next reply"
    assert busy[: len(before)] == before
    assert busy != quiet


def test_i8_an_observation_knows_no_fate_before_its_evidence() -> None:
    """Fates that differ only after the first rejected token show nothing until a token beyond it is drafted."""
    scenario = plain(n_devices=1, horizon=horizon(0.0, 30.0), **{"draft.acceptance.logit_mean": 1.0})
    easy, hard = watch(scenario, 3, after_rejection_logit=-30.0), watch(scenario, 3, after_rejection_logit=30.0)
    same = next(n for n, (a, b) in enumerate(zip(easy, hard, strict=False)) if a != b)
    # Until then every round is the same; what differs is the first token of a round, never the round's start.
    assert same > 6
    assert easy[same][2] == hard[same][2] == easy[same - 1][2] > easy[same - 2][2]


def test_i8_what_comes_after_the_end_changes_nothing_before_it() -> None:
    long = with_(BASE, n_devices=6, horizon=horizon(0.0, 8.0))
    short = with_(long, **{"horizon.measure_s": 4.0})
    first, second = (log_of(run(s, "wisp+wisp", [3], LOG_ROWS)) for s in (long, short))
    assert [row for row in first if row[0] < 4.0] == [row for row in second if row[0] < 4.0]


# --- by hand ---------------------------------------------------------------------------------------------------------

ENDLESS = {
    "workload.output": {"median_tokens": 50_000.0, "log_std": 0.0, "min_tokens": 1, "max_tokens": 50_000},
    "workload.prompt": {"median_tokens": 10.0, "log_std": 0.0, "min_tokens": 1, "max_tokens": 10},
} | memory_for(10_000_000)


def expected_tokens(alpha: float, k: int) -> float:
    """Tokens that a round of k drafted tokens commits (arXiv 2211.17192): (1 − α^(k+1)) / (1 − α)."""
    return (1.0 - alpha ** (k + 1)) / (1.0 - alpha)


@pytest.mark.parametrize(("alpha", "k"), [(0.5, 3), (0.8, 6), (0.9, 12)])
def test_constant_acceptance_gives_the_geometric_law(alpha: float, k: int) -> None:
    changes = (
        CONSTANT_ACCEPTANCE | ENDLESS | {"draft.acceptance.logit_mean": math.log(alpha / (1 - alpha)), "n_devices": 32}
    )
    scenario = plain(**changes, horizon=horizon(20.0, 400.0))
    t = run(scenario, f"fixed:{k}+fcfs", [1, 2, 3, 4]).totals[:, 0]
    rounds = t["rounds"].sum()
    assert rounds > 50_000
    assert t["window_drafted"].sum() == k * rounds
    assert t["tokens"].sum() / rounds == pytest.approx(expected_tokens(alpha, k), rel=0.01)


@pytest.mark.parametrize(
    ("groups", "size", "batching"),
    [(2, 8, "static:8,1000"), (3, 8, "static:8,1000"), (3, 8, "control-limit:8,1000"), (4, 5, "fcfs")],
)
def test_identical_devices_reach_the_periodic_schedule(groups: int, size: int, batching: str) -> None:
    """`R·(k/v + RTT + a) + w·R²·a/(1 − R·w) = n` and throughput `R·E[N]`: groups take turns, the server never waits."""
    k, alpha, n, a_s, w_s, drafting_s = 4, 0.7, groups * size, 0.040, 0.002, 0.03
    round_trip_s = (groups - 1) * (a_s + w_s * size) - drafting_s
    changes = CONSTANT_ACCEPTANCE | ENDLESS | {
        "n_devices": n, "server.host_s": 0.0, "server.max_batch_requests": size, "verification.launch_s": 0.0,
        "verification.weights_s": a_s, "verification.token_s": w_s / (k + 1), "verification.sharpness": 1.0,
        "verification.cached_token_s": 0.0, "verification.pair_s": 0.0, "devices.0.draft_tokens_per_s": k / drafting_s,
        "devices.0.link.one_way_s": round_trip_s / 2 - 1e-6, "devices.0.link.uplink_bytes_per_s": 1e12,
        "devices.0.link.downlink_bytes_per_s": 1e12, "draft.acceptance.logit_mean": math.log(alpha / (1 - alpha)),
    }  # fmt: skip

    def excess(rate: float) -> float:
        return rate * (drafting_s + round_trip_s + a_s) + w_s * rate**2 * a_s / (1 - rate * w_s) - n

    rate = brentq(excess, 0.0, 0.999 / w_s)
    t = run(plain(**changes, horizon=horizon(60.0, 300.0)), f"fixed:{k}+{batching}", [1]).totals[0, 0]
    assert t["rounds"] / 300.0 == pytest.approx(rate, rel=0.01)
    assert t["tokens"] / 300.0 == pytest.approx(rate * expected_tokens(alpha, k), rel=0.01)


def test_a_lone_device_takes_the_time_computed_by_hand() -> None:
    long = {"workload.output": {"median_tokens": 100.0, "log_std": 0.0, "min_tokens": 1, "max_tokens": 100}}
    k, changes = 4, long | {"devices.0.round_overhead_s": 0.011, "verification.pair_s": 3e-8}
    scenario = plain(n_devices=1, **changes)
    log, v, link = log_of(run(scenario, "fixed:4+fcfs", [2], LOG_ROWS)), scenario.verification, scenario.devices[0].link
    prompt = int(of_kind(log, "request")[0, 1])
    output = int(of_kind(log, "done")[0, 1])
    accepted, delivered = of_kind(log, "verify")[:, 1], of_kind(log, "deliver")
    committed, checked = 1, 0
    for n in range(1, len(accepted)):
        drafted = min(k, output - committed - 1)
        new, cached, tokens = drafted + 1, prompt + committed - 1, accepted[n] + 1
        by_hand_s = (
            (0.011 + drafted / scenario.devices[0].draft_tokens_per_s if drafted else 0.0)
            + link.one_way_s + (256 + 24 * drafted) / link.uplink_bytes_per_s
            + scenario.server.host_s + v.launch_s
            + (v.weights_s**v.sharpness + (v.token_s * new) ** v.sharpness) ** (1 / v.sharpness)
            + v.cached_token_s * cached + v.pair_s * new * (cached + new)
            + link.one_way_s + (256 + 4 * tokens) / link.downlink_bytes_per_s
        )  # fmt: skip
        assert delivered[n, 0] - delivered[n - 1, 0] == pytest.approx(by_hand_s, abs=1e-9)
        committed += int(tokens)
        checked += 1
        if committed >= output:
            break
    assert checked >= 20
    assert committed == output


def test_a_message_that_arrives_as_a_batch_ends_joins_the_next() -> None:
    """All times are exact in binary: the first batch ends at 0.75 s, when the second device's prompt arrives."""
    verification = dict.fromkeys(("launch_s", "cached_token_s", "pair_s"), 0.0)
    verification |= {"weights_s": 0.5, "token_s": 1e-300, "sharpness": 1.0}
    traced = {"workload.arrivals": "trace", "workload.trace": "given", "workload.trace_format": "azure"}
    bandwidth = {f"devices.0.link.{way}link_bytes_per_s": 1e300 for way in ("up", "down")}
    scenario = plain(
        n_devices=3, verification=verification, horizon=horizon(0.0, 1.0), **traced, **bandwidth,
        **{"server.host_s": 0.0, "devices.0.link.one_way_s": 0.25},
    )  # fmt: skip
    trace = np.array([(0.0, 50, 100), (0.5, 50, 100), (0.375, 50, 100)], TRACE_ROW)
    log = log_of(run(scenario, "fixed:4+fcfs", [1], LOG_ROWS, trace))
    assert [t for t, kind, _, _ in log if kind == "arrive"] == [0.25, 0.625, 0.75]
    assert of_kind(log, "launch").tolist() == [[0.25, 1.0], [0.75, 2.0]]


@pytest.mark.parametrize("controller", ["fixed:4+fcfs", "wisp+wisp", "fixed:6+static:4,0.1"])
def test_more_acceptance_gives_no_less_throughput(controller: str) -> None:
    tokens = []
    for logit in (-1.0, 0.0, 1.0, 2.0, 3.0):
        changes = {"draft.acceptance.logit_mean": logit, "n_devices": 24, "horizon": horizon(10.0, 60.0)}
        scenario = with_(BASE, **changes)
        tokens.append(run(scenario, controller, list(range(6))).totals["tokens"].mean())
    assert (np.diff(tokens) > 0).all(), tokens


def test_single_token_responses_queue_as_m_d_1() -> None:
    """Poisson arrivals, constant service S, one at a time: mean waiting ρ·S / (2·(1 − ρ)) (Pollaczek and Khinchine)."""
    lengths = {"median_tokens": 100.0, "log_std": 0.0, "min_tokens": 1, "max_tokens": 100}
    one = {"median_tokens": 1.0, "log_std": 0.0, "min_tokens": 1, "max_tokens": 1}
    changes = {"server.max_batch_requests": 1, "workload.prompt": lengths, "workload.output": one}
    scenario = plain(n_devices=400, horizon=horizon(100.0, 10_000.0, 100.0), **changes)
    v, link, load = scenario.verification, scenario.devices[0].link, 0.7
    service_s = scenario.server.host_s + v.launch_s + v.pair_s * 100 * 100
    service_s += (v.weights_s**v.sharpness + (v.token_s * 100) ** v.sharpness) ** (1 / v.sharpness)
    scenario = with_(scenario, **{"workload.arrivals": "open", "workload.requests_per_s": load / service_s / 400})
    t = run(scenario, "fixed:4+fcfs", [1, 2]).totals[:, 0]
    path_s = 2 * link.one_way_s + (256 + 4 * 100) / link.uplink_bytes_per_s + (256 + 4) / link.downlink_bytes_per_s
    waiting_s = t["ttft_s"].sum() / t["ttft_n"].sum() - service_s - path_s
    assert t["ttft_n"].sum() > 200_000
    assert t["busy_s"].mean() / 10_000.0 == pytest.approx(load, rel=0.01)
    assert waiting_s == pytest.approx(load * service_s / (2 * (1 - load)), rel=0.03)


def test_paced_serving_admits_what_its_decode_step_carries() -> None:
    """A step of k sequences is predicted to take 50 + 10·k ms; 8 tokens/s leave 125 ms: seven sequences."""
    step = {"launch_s": 0.05, "new_token_s": 0.01, "pair_s": 0.0, "cached_token_s": 0.0}
    slo = {"slo.0.speed_tokens_per_s": 8.0} | {f"estimator.{name}": value for name, value in step.items()}
    log = log_of(run(plain(n_devices=20, **slo, horizon=horizon(0.0, 20.0)), "centralized-paced", [1], LOG_ROWS))
    sizes = of_kind(log, "launch")[:, 1]
    assert sizes.max() == 7
    assert np.median(sizes) == 7
    slower = log_of(run(plain(n_devices=20, **slo, horizon=horizon(0.0, 20.0)), "centralized-paced:0.2", [1], LOG_ROWS))
    assert of_kind(slower, "launch")[:, 1].max() == 5  # 1.2·(50 + 10·k) ≤ 125


def test_a_prompt_in_chunks_by_hand() -> None:
    """100 tokens in chunks of 40: 40, 40, and the 19 left before the last one, which is run with it; rounds of 2 + 1 tokens follow."""
    hundred = {"median_tokens": 100, "log_std": 0.0, "min_tokens": 1, "max_tokens": 100}
    scenario = plain(
        n_devices=1, horizon=horizon(0.0, 5.0), **{"workload.prompt": hundred, "workload.start_window_s": 0.0}
    )
    taken = of_kind(log_of(run(scenario, "fixed:2+fcfs+chunk:40", [3], LOG_ROWS)), "member")[:, 1]
    assert taken[:5].tolist() == [40, 40, 20, 3, 3]


def test_a_controllers_chunk_takes_the_place_of_the_scenarios() -> None:
    whole, chunked = (
        with_(BASE, n_devices=6, horizon=horizon(0.0, 20.0), **{"server.prefill_chunk_tokens": n}) for n in (0, 64)
    )
    for controller in ("fixed:4+edf", "centralized:4"):
        assert log_of(run(whole, f"{controller}+chunk:64", [3], LOG_ROWS)) == log_of(
            run(chunked, controller, [3], LOG_ROWS)
        )
        assert log_of(run(chunked, f"{controller}+chunk:0", [3], LOG_ROWS)) == log_of(
            run(whole, controller, [3], LOG_ROWS)
        )


def fates_seen(log: Log, device: int) -> dict[tuple[int, int], int]:
    """(request, position) → fate, as far as verification has shown it."""
    fates, request, position, drafted = {}, -1, 0, 0
    for _, kind, d, value in log:
        if d != device:
            continue
        if kind == "request":
            request, position = request + 1, 0
        elif kind == "send":
            drafted = int(value)
        elif kind == "verify":
            for n in range(min(int(value) + 1, drafted)):
                fates[request, position + n] = int(n < value)
            position += int(value) + 1
    return fates


def test_controllers_meet_the_same_world() -> None:
    scenario = with_(BASE, n_devices=5, horizon=horizon(0.0, 150.0))
    logs = [log_of(run(scenario, name, [11], LOG_ROWS)) for name in ("fixed:7+fcfs", "wisp+wisp", "oracle+edf")]
    for device in range(5):
        fates = [fates_seen(log, device) for log in logs]
        for other in fates[1:]:
            both = fates[0].keys() & other.keys()
            assert len(both) > 50
            assert all(fates[0][place] == other[place] for place in both)
        for kind in ("request", "done"):
            lengths = [of_kind(log, kind, device)[:, 1] for log in logs]
            n = min(map(len, lengths))
            assert all((each[:n] == lengths[0][:n]).all() for each in lengths)


def test_a_round_of_no_drafts_commits_one_token() -> None:
    t = run(with_(BASE, n_devices=8), "fixed:0+fcfs", [1]).totals[0, 0]
    assert t["drafted"] == 0
    assert t["tokens"] == t["rounds"] + t["ttft_n"] > 1000


@pytest.mark.parametrize("threshold", [0.3, 0.5])
def test_wasted_drafting_follows_its_closed_form(threshold: float) -> None:
    """Tokens drafted beyond a rejected one: f/(1 − f), f the share of rejected tokens that the rule lets pass."""
    changes = (
        CONSTANT_ACCEPTANCE | ENDLESS | {"max_draft_tokens": 32, "draft.acceptance.logit_mean": 0.5, "n_devices": 8}
    )
    scenario = plain(**changes, horizon=horizon(0.0, 150.0))
    arrays = run(scenario, f"wisp:{threshold}+fcfs", [1], 400_000)
    log, d = log_of(arrays), separation(scenario.draft.statistics.auc)
    evidence = (math.log(threshold / (1 - threshold)) - 0.5) / d  # where the predicted acceptance crosses the threshold
    f = 1.0 - NormalDist(-d / 2, 1.0).cdf(evidence)
    wasted = []
    for device in range(8):
        sent, verified = of_kind(log, "send", device)[:, 1], of_kind(log, "verify", device)[:, 1]
        rounds = sent[1 : len(verified)], verified[1:]
        wasted += [k - a - 1 for k, a in zip(*rounds, strict=True) if a < k]
    assert len(wasted) > 5000
    assert np.mean(wasted) == pytest.approx(f / (1 - f), rel=0.03)


def test_noise_of_a_batch_is_the_stated_one() -> None:
    """True over clean time is log-normal with median 1 and the stated spread."""
    scenario = plain(n_devices=1, **ENDLESS, **{"server.noise": 0.2}, horizon=horizon(0.0, 400.0))
    log = log_of(run(scenario, "fixed:0+fcfs", [1], 200_000))
    launch, end = (of_kind(log, kind)[:, 0] for kind in ("launch", "end"))
    took_s, host_s = (end - launch[: len(end)])[1:], scenario.server.host_s
    contexts = range(10, 10 + len(took_s))  # one more token in the cache with every round
    coefficients = astuple(scenario.verification)
    clean_s = [batch_time_s(host_s, *coefficients, 1, float(cached + 1), cached) for cached in contexts]
    ratio = np.log(took_s / clean_s)
    assert abs(ratio.mean()) < 4 * 0.2 / math.sqrt(len(ratio))
    assert ratio.std() == pytest.approx(0.2, rel=0.05)


@pytest.mark.parametrize("name", ["wisp+wisp", "fixed:8+static:4,0.1", "centralized:2", "centralized:0,2"])
def test_ending_early_changes_nothing_that_is_measured(name: str) -> None:
    scenario = with_(load("wisp-a100-qwen3-32b"), **{"horizon.warmup_s": 5.0, "horizon.measure_s": 20.0})
    metrics = []
    for early in (False, True):
        worlds = Worlds(1, 12, threads=1)
        worlds.fill(0, scenario, 3, resolve(name, scenario), 12)
        worlds.run(early)
        row = measure(worlds.arrays, 0, scenario).row()
        assert row.pop("evictions") is not None  # counted until the world ends
        metrics.append(row)
        ends = float(worlds.arrays.server[0, 0]["now_s"])
    assert metrics[0] == metrics[1]
    assert ends < 25.0 + scenario.horizon.drain_s / 2


@settings(deadline=None, derandomize=True)
@given(new=st.integers(0, 5000), cached=st.integers(0, 50_000), sharpness=st.floats(0.5, 8.0))
def test_a_known_roofline_changes_no_bit_of_a_batch_time(new: int, cached: int, sharpness: float) -> None:
    powers = {"weights_s": 0.03, "token_s": 2e-4, "sharpness": sharpness}
    others = {"cached_token_s": 1e-7, "pair_s": 1e-9, "pairs": float(new) * (cached + new), "cached_tokens": cached}
    whole = batch_time_s(0.004, 0.001, **powers, **others, new_tokens=new)
    alone = batch_time_s(0.0, 0.0, **powers, cached_token_s=0.0, pair_s=0.0, new_tokens=new, pairs=0.0, cached_tokens=0)
    assert with_roofline_s(0.004, 0.001, alone, **others) == whole


def test_devices_have_rows_only_for_what_the_controller_keeps_of_them() -> None:
    rows = {}
    for name in ("wisp+fcfs", "banditspec+fcfs", "goodspeed+fcfs", "fixed:4+fcfs+tetris:8"):
        w = run(plain(n_devices=5), name, [1])
        rows[name] = w.memory.shape[1], w.observation.shape[1], w.survivals.shape[1]
    assert list(rows.values()) == [(1, 1, 1), (6, 5, 1), (6, 5, 1), (1, 1, 5)]


def test_worlds_keep_their_numbers_when_rows_are_added() -> None:
    w = run(plain(n_devices=3), "wisp+fcfs", [1, 2])
    w.memory[:, 0] = 7.0
    grown = w.with_rows(memory=4, observation=1)
    assert (grown.memory[:, 0] == 7.0).all()
    assert not grown.memory[:, 1:].any()
    assert grown.observation is w.observation
