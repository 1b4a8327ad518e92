"""Small random worlds for property tests, and one call that runs the engine on a scenario."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from wisp_gym.controllers.resolve import resolve
from wisp_gym.engine.state import LOG_KINDS, TRACE_ROW, World
from wisp_gym.engine.worlds import NO_TRACE, Worlds
from wisp_gym.scenario import Scenario, load, with_
from wisp_gym.traces.speculation import SpeculationTrace

BASE = load("wisp-a100-qwen3-32b")
SPECULATIONS = (
    "fixed:0", "fixed:3", "fixed:8", "confidence:0.6", "confidence:0.3,4", "wisp", "wisp:0.3,6", "survival:0.5",
    "survival:0.7,8,2", "perfect", "oracle", "margin:0.6", "svip:1", "adaedl:0.2,0.4,0.6,0.1", "price:0.8,0.05", "aligned", "aligned:0.02,0.5,1,0.2",
    "leviathan", "ratio", "specstop:0.1", "banditspec:0.1", "contextual", "sglang", "awc", "turbospec", "vllm-dynamic", "sglang-load", "goodspeed:4",
    "dipsd",
)  # fmt: skip
BATCHINGS = (
    "fcfs", "static:2,0.15", "static:3,0.02", "edf", "wisp", "wisp:0.2,0.5", "edf-demoted", "edf-demoted:0.5", "least-laxity",
    "control-limit:2,0.15", "marginal", "marginal:0.3", "pipelined", "pipelined", "pipelined:0.3", "pipelined:5", "aged:0.5", "aged:5",
)  # fmt: skip
TRIMS = ("", "", "+dspark", "+tetris:3", "+tetris:12", "+adaserve:2", "+adaserve:8")
CHUNKS = ("", "", "+chunk:0", "+chunk:16", "+chunk:8,0.3")
ADMISSIONS = ("", "", "+admit:0.5", "+admit:0.9")
PACES = (
    "",
    "",
    "+pace:0.05,0.5,1,1.3,0.2",
    "+pace:0.12,1,0.5,2,1",
    "+pace:0.4,3,3,0.5,0.1,0",
    "+pace:0.06,0.2,0.4,6,0.5,2",
)
CENTRALIZED = (
    "centralized:0",
    "centralized:0,2",
    "centralized:3",
    "centralized:3,5",
    "centralized-paced",
    "centralized-paced:1",
)

DRAFTERS = (
    "by-load:1", "by-load:3", "by-class:6", "by-class:2,2", "by-speed:40", "by-speed:100,2", "by-price", "by-price:5,3", "by-price:20",
    "by-price:100", "by-price:60,2", "by-price:-1", "by-device", "by-device:2",
)  # fmt: skip
OVERLAPS = ("", "", "+overlap", "+overlap:1", "+overlap:3,0.3", "+overlap:12,0.1")
LADDERS = ("1,3,7", "0,1,3", "0,2,5", "2,1,4")

# Every position is accepted with the same probability.
CONSTANT_ACCEPTANCE = {
    "draft.acceptance.request_std": 0.0,
    "draft.acceptance.drift_std": 0.0,
    "draft.acceptance.after_rejection_logit": 0.0,
}


@dataclass(frozen=True)
class SmallWorld:
    """A scenario with a controller's name, a seed and the rows of a request trace."""

    scenario: Scenario
    controller: str
    seed: int
    trace: np.ndarray


def plain(scenario: Scenario = BASE, **changes: Any) -> Scenario:
    """A copy with one device class and one service class, nothing random but acceptance, and further changes.

    Link without jitter, loss, outage or sleep; no throttling; no noise; whole prefill. Names as `with_` takes them.
    """
    device = asdict(scenario.devices[2]) | {"throttle_ratio": 1.0, "predictor_s": 0.0, "round_overhead_s": 0.0}
    device["link"] |= {"jitter": 0.0, "loss": 0.0, "outages_per_s": 0.0, "wake_s": 0.0}
    calm = {"server.noise": 0.0, "server.prefill_chunk_tokens": 0}
    return with_(with_(scenario, devices=[device], slo=[asdict(scenario.slo[0])], **calm), **changes)


def memory_for(
    kv_tokens: int, scenario: Scenario = BASE, weights_bytes: int = 0, kv_bytes_per_token: int = 0
) -> dict[str, Any]:
    """Changes that leave room for exactly `kv_tokens` keys and values, beside a draft with such weights, keys and values."""
    target = scenario.target
    bytes_ = target.weights_bytes + weights_bytes + kv_tokens * (target.kv_bytes_per_token + kv_bytes_per_token)
    return {"server.memory_bytes": bytes_, "server.memory_utilisation": 1.0, "server.activation_bytes": 0}


def horizon(warmup_s: float, measure_s: float, drain_s: float = 0.0) -> dict[str, float]:
    """A scenario's horizon, as `with_` takes it."""
    return {"warmup_s": warmup_s, "measure_s": measure_s, "drain_s": drain_s}


def run(
    scenario: Scenario, controller: str, seeds: list[int], log_rows: int = 0, trace: np.ndarray = NO_TRACE
) -> World:
    """Arrays of one world for each seed, run to their end."""
    worlds = Worlds(len(seeds), scenario.n_devices, log_rows=log_rows, trace=trace, threads=1)
    for index, seed in enumerate(seeds):
        worlds.fill(index, scenario, seed, resolve(controller, scenario))
    worlds.run()
    return worlds.arrays


def log_of(world: World, index: int = 0) -> list[tuple[float, str, int, float]]:
    """(time_s, kind, device, value) of one world's log, in the order written."""
    n = int(world.server["log_length"][index, 0])
    assert n <= world.log.shape[1], "the log is full: ask for more rows"
    return [(float(t), LOG_KINDS[k], int(d), float(v)) for t, k, d, v in world.log[index, :n].tolist()]


@st.composite
def links(draw: st.DrawFn) -> dict[str, Any]:
    """A network path, calm or not."""
    return {
        "name": "random", "one_way_s": draw(st.floats(0.001, 0.1)), "jitter": draw(st.sampled_from([0.0, 0.1, 0.8])),
        "autocorrelation": draw(st.sampled_from([0.0, 0.7])), "loss": draw(st.sampled_from([0.0, 0.02, 0.3])),
        "timeout_s": 0.2, "outages_per_s": draw(st.sampled_from([0.0, 0.05])), "outage_s": 1.5,
        "uplink_bytes_per_s": draw(st.sampled_from([2e4, 1e6])), "downlink_bytes_per_s": 1e6,
        "idle_after_s": 0.3, "wake_s": draw(st.sampled_from([0.0, 0.2])),
    }  # fmt: skip


@st.composite
def device_classes(draw: st.DrawFn, name: str) -> dict[str, Any]:
    """A device class."""
    return asdict(BASE.devices[0]) | {
        "name": name, "share": draw(st.floats(0.2, 1.0)), "draft_tokens_per_s": draw(st.floats(5.0, 150.0)),
        "round_overhead_s": draw(st.sampled_from([0.0, 0.03])), "predictor_s": draw(st.sampled_from([0.0, 0.002])),
        "throttle_ratio": draw(st.sampled_from([1.0, 0.5])), "throttle_s": 10.0, "link": draw(links()),
    }  # fmt: skip


@st.composite
def slo_classes(draw: st.DrawFn, name: str) -> dict[str, Any]:
    """A service class."""
    return {
        "name": name, "share": draw(st.floats(0.2, 1.0)), "speed_tokens_per_s": draw(st.floats(0.5, 12.0)),
        "grace_s": draw(st.sampled_from([0.0, 0.5])), "ttft_s": draw(st.floats(0.2, 3.0)),
        "clock": draw(st.sampled_from(["first_token", "arrival"])),
    }  # fmt: skip


@st.composite
def server_drafts(draw: st.DrawFn, acceptance: dict[str, Any]) -> list[dict[str, Any]]:
    """None, one or two drafts of a server: one with the fates of the devices' draft, another with its own."""
    times = st.fixed_dictionaries({
        "overhead_s": st.sampled_from([0.0, 0.004]), "launch_s": st.sampled_from([0.0, 0.002, 0.015]),
        "sequence_s": st.sampled_from([0.0, 0.0005]), "token_s": st.sampled_from([0.0, 2e-5, 1e-3]), "cached_token_s": st.sampled_from([0.0, 1e-6]),
    })  # fmt: skip
    same = {"name": "same", "correlation": 1.0, "offer": draw(st.sampled_from([0.0, 1.0])), "acceptance": acceptance}
    other = {
        "name": "other", "correlation": draw(st.sampled_from([0.0, 0.6, 1.0])), "offer": draw(st.sampled_from([0.0, 0.5, 1.0])),
        "acceptance": {
            "logit_mean": draw(st.floats(-2.0, 3.0)), "request_std": draw(st.sampled_from([0.0, 0.7])),
            "drift_std": draw(st.sampled_from([0.0, 0.8])), "drift_tokens": 30.0,
            "after_rejection_logit": draw(st.sampled_from([0.0, 2.0, -0.7])),
        } | draw(loops("")),
    }  # fmt: skip
    drafts = draw(st.sampled_from([[], [same], [other], [same, other], [other, same]]))
    sizes = {"weights_bytes": 10**9, "kv_bytes_per_token": draw(st.sampled_from([0, 10**5]))}
    return [draft | sizes | {"time": draw(times)} for draft in drafts]


@st.composite
def loops(draw: st.DrawFn, key: str) -> dict[str, Any]:
    """Loops of a draft's acceptance, in one world of two."""
    if draw(st.booleans()):
        return {}
    return {
        f"{key}loop_enter": draw(st.sampled_from([0.02, 0.3])), f"{key}loop_leave": draw(st.sampled_from([0.0, 0.1])),
        f"{key}loop_whole": draw(st.sampled_from([0.0, 0.5, 1.0])), f"{key}loop_period_tokens": draw(st.sampled_from([1, 3])),
        f"{key}loop_more_tokens": draw(st.sampled_from([0.0, 1.5])),
    }  # fmt: skip


@st.composite
def engine_costs(draw: st.DrawFn) -> dict[str, Any]:
    """What a serving engine adds to its model's time, and an estimator that knows of it; in one world of two nothing."""
    if draw(st.booleans()):
        return {}
    tokens = sorted(draw(st.sets(st.integers(1, 60), max_size=4)))
    return {
        "server.host_request_s": draw(st.sampled_from([0.0, 0.003])), "server.host_token_s": draw(st.sampled_from([0.0, 2e-4])),
        "server.graph_tokens": draw(st.sampled_from([0, 1, 6, 40, 512])), "server.eager_s": draw(st.sampled_from([0.0, 0.02])),
        "estimator.request_s": draw(st.sampled_from([0.0, 0.004])),
        "estimator.sizes": [{"tokens": n, "add_s": draw(st.sampled_from([0.0, 0.005, 0.03]))} for n in tokens],
    }  # fmt: skip


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    """A scenario of one to six devices, short requests and often too little memory."""
    prompt, output = draw(st.integers(8, 120)), draw(st.integers(1, 60))
    longest = 4 * prompt + 2 * output + 16
    pairs_s = draw(st.sampled_from([0.0, 2e-8]))
    changes = {
        "n_devices": draw(st.integers(1, 6)), "max_draft_tokens": draw(st.sampled_from([1, 5, 12, 16])),
        "devices": [draw(device_classes("a")), draw(device_classes("b"))][: draw(st.integers(1, 2))],
        "slo": [draw(slo_classes("x")), draw(slo_classes("y"))][: draw(st.integers(1, 2))],
        "workload.arrivals": draw(st.sampled_from(["closed", "open", "trace"])),
        "workload.trace": "given", "workload.trace_format": "azure",
        "workload.think_s": draw(st.sampled_from([0.0, 0.5])),
        "workload.start_window_s": draw(st.sampled_from([0.0, 1.0])),
        "workload.requests_per_s": draw(st.sampled_from([0.1, 1.0])),
        "workload.prompt": {"median_tokens": prompt, "log_std": 0.8, "min_tokens": 1, "max_tokens": 4 * prompt},
        "workload.output": {"median_tokens": output, "log_std": 0.8, "min_tokens": 1, "max_tokens": 2 * output},
        "horizon": horizon(draw(st.sampled_from([0.0, 2.0])), 10.0, draw(st.sampled_from([0.0, 5.0]))),
        "server.noise": draw(st.sampled_from([0.0, 0.1, 0.5])), "server.host_s": draw(st.sampled_from([0.0, 0.002])),
        "server.max_batch_requests": draw(st.sampled_from([1, 2, 256])),
        "server.prefill_chunk_tokens": draw(st.sampled_from([0, 7, 64])),
        "verification.pair_s": pairs_s, "estimator.pair_s": pairs_s,
        "draft.acceptance.logit_mean": draw(st.floats(-2.0, 3.0)),
        "draft.acceptance.after_rejection_logit": draw(st.sampled_from([0.0, 1.0])),
        "draft.acceptance.drift_tokens": draw(st.sampled_from([5.0, 100.0])),
        "draft.statistics.auc": draw(st.sampled_from([0.5, 0.81, 0.97])),
    } | draw(engine_costs()) | draw(loops("draft.acceptance."))  # fmt: skip
    scenario = with_(BASE, **changes)
    drafts = draw(server_drafts(asdict(scenario.draft.acceptance)))
    size = [max((draft[key] for draft in drafts), default=0) for key in ("weights_bytes", "kv_bytes_per_token")]
    room = memory_for(longest + draw(st.sampled_from([0, 50, 100_000])), BASE, *size)
    return with_(scenario, server_drafts=drafts, **room)


@st.composite
def speculation_traces(draw: st.DrawFn, draft_tokens: int) -> SpeculationTrace:
    """A few short answers with random runs (greedy) or acceptance probabilities (temperature 1)."""
    lengths = draw(st.lists(st.integers(1, 40), min_size=1, max_size=5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = (sum(lengths), draft_tokens)
    statistics = rng.uniform(0, 1, (*shape, 4))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    to_the_end = np.concatenate([np.arange(n, 0, -1) for n in lengths])
    right = rng.random(shape[0]) < draw(st.sampled_from([0.2, 0.7, 0.95]))
    run = np.zeros(shape[0], np.int64)
    for n in range(shape[0])[::-1]:  # a right place continues the run that begins at the next
        following = run[n + 1] if to_the_end[n] > 1 else 0
        run[n] = min(following + 1, draft_tokens) if right[n] else 0
    greedy, header = draw(st.booleans()), {"draft_tokens": draft_tokens}
    if draw(st.booleans()):  # each position for itself
        run, header["runs"] = np.minimum(rng.integers(0, draft_tokens + 1, shape[0]), to_the_end), "independent"
    return SpeculationTrace(
        np.arange(len(lengths)), np.full(len(lengths), 9), offsets, run, statistics if draw(st.booleans()) else None,
        None if greedy else rng.choice([0.0, 0.3, 0.8, 1.0], shape), header | {"temperature": 0.0 if greedy else 1.0})  # fmt: skip


@st.composite
def traces(draw: st.DrawFn) -> np.ndarray:
    """Rows of a request trace in order of arrival."""
    rows = draw(st.lists(st.tuples(st.floats(0.0, 14.0), st.integers(1, 500), st.integers(1, 100)), max_size=12))
    return np.array(sorted(rows), TRACE_ROW)


@st.composite
def colocated(draw: st.DrawFn, drafts: int) -> str:
    """A rule of the server's own drafts, one of so many."""
    name = draw(st.sampled_from([
        "colocated:0", "colocated:1", "colocated:4", "colocated:9", "colocated-table:3,0.3", "colocated-table:6,4", "colocated-turbospec:1",
        "colocated-turbospec:1.1", f"colocated-ema:{draw(st.sampled_from(LADDERS))},0.4,-0.25,0,{draw(st.sampled_from(['1,0', '2,3']))}",
        f"colocated-throughput:{draw(st.sampled_from(LADDERS))},{draw(st.sampled_from(['0', '0.05']))}",
        "colocated-survival:0.6,7", "colocated-survival:0.2,12", "colocated-survival:1,3",
    ]))  # fmt: skip
    return f"{name},{draw(st.integers(0, drafts - 1))}"


@st.composite
def servers_alone(draw: st.DrawFn, drafts: int) -> str:
    """A server alone, which drafts for itself if it can."""
    name = draw(st.sampled_from(CENTRALIZED))
    if not drafts:
        return name
    own = draw(colocated(drafts))
    trim = "" if own.startswith("colocated:0") else draw(st.sampled_from(TRIMS))
    return draw(st.sampled_from([name, own + trim, f"{name}+{own}{trim}"]))


@st.composite
def with_devices(draw: st.DrawFn, drafts: int) -> str:
    """Devices that draft and a batching rule; the server may draft for some, and the devices while their rounds are away."""
    parts = SPECULATIONS, BATCHINGS, TRIMS, OVERLAPS
    speculation, batching, trim, overlap = (draw(st.sampled_from(names)) for names in parts)
    name = f"{speculation}+{batching}{trim}{overlap}"
    if draw(st.integers(0, 2)) == 0:
        return name
    name += f"+{draw(st.sampled_from(DRAFTERS))}"
    return f"{name}+{draw(colocated(drafts))}" if drafts and draw(st.integers(0, 3)) else name


@st.composite
def small_worlds(draw: st.DrawFn) -> SmallWorld:
    """A scenario with a controller, a seed and a trace (used where arrivals come from one)."""
    scenario = draw(scenarios())
    kind, drafts = (
        draw(st.sampled_from([with_devices, with_devices, with_devices, servers_alone])),
        len(scenario.server_drafts),
    )
    name = draw(kind(drafts))
    orders_by_deadline = any(f"+{rule}" in name for rule in ("wisp", "edf-demoted"))
    kept = (CHUNKS, ADMISSIONS) if orders_by_deadline else (CHUNKS, ADMISSIONS, PACES)
    additions = (draw(st.sampled_from(names)) for names in kept)
    return SmallWorld(scenario, name + "".join(additions), draw(st.integers(0, 2**40)), draw(traces()))
