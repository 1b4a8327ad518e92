"""Random scenarios for the bounds, and what it means that a controller stays below one."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np

from agents.bounds.fluid import Bound
from tests.support.small_worlds import BASE, horizon, memory_for
from wisp_gym.scenario import Scenario, with_
from wisp_gym.simulation import simulate

# The bounds are on long-run means. Worlds of 300 s may lie above them by chance, and by what they begin and end with.
WINDOW_SHARE = 0.02
STANDARD_ERRORS = 3.0


def assert_held(scenario: Scenario, name: str, bound: Bound) -> None:
    """A controller's mean over four worlds is not above its bound by more than chance and the window's ends allow."""
    metrics = simulate(scenario, name, range(4), threads=1)
    reached = np.array([m.throughput_tokens_per_s for m in metrics])
    margin = WINDOW_SHARE * bound.tokens_per_s + STANDARD_ERRORS * reached.std(ddof=1) / 2.0
    assert reached.mean() <= bound.tokens_per_s + margin, (name, reached.mean(), bound)
    assert np.mean([m.goodput_tokens_per_s for m in metrics]) <= reached.mean()


def server_draft(scenario: Scenario = BASE, name: str = "small", **changes: Any) -> dict[str, Any]:
    """A draft for the server with the devices' fates; `time` and `acceptance` take the fields that differ."""
    time = {"overhead_s": 1.3e-3, "launch_s": 2.5e-3, "sequence_s": 2e-5, "token_s": 8e-6, "cached_token_s": 2e-8}
    given = {
        "name": name, "weights_bytes": 1_200_000_000, "kv_bytes_per_token": 114_688, "offer": 1.0, "correlation": 1.0,
    } | changes  # fmt: skip
    given["time"] = time | changes.get("time", {})
    given["acceptance"] = asdict(scenario.draft.acceptance) | changes.get("acceptance", {})
    return given


def with_random_draft(scenario: Scenario, rng: np.random.Generator) -> Scenario:
    """The scenario with a server draft of the devices' source or of another one, quick or slow, large or small."""

    def pick(*options: Any) -> Any:
        return options[rng.integers(len(options))]

    time = {
        "overhead_s": pick(0.0, 2e-3), "launch_s": pick(3e-4, 2e-3, 8e-3), "sequence_s": pick(0.0, 2e-5, 3e-4),
        "token_s": pick(0.0, 8e-6, 1e-4), "cached_token_s": pick(0.0, 2e-8, 1e-6),
    }  # fmt: skip
    other = {
        "correlation": float(rng.uniform(0.0, 1.0)), "offer": pick(0.0, 0.5, 1.0),
        "acceptance": {"logit_mean": float(rng.uniform(-1.0, 3.0)), "request_std": pick(0.0, 0.7), "drift_tokens": 60.0},
    }  # fmt: skip
    small = {"weights_bytes": 0, "kv_bytes_per_token": pick(0, 20_000)}
    draft = server_draft(scenario, time=time, **small, **pick({}, other))
    room = scenario.server.memory_bytes + scenario.longest_tokens * draft["kv_bytes_per_token"]
    return with_(scenario, **{"server_drafts": [draft], "server.memory_bytes": room})


def random_scenario(rng: np.random.Generator) -> Scenario:
    """Device counts, servers, links, loads, acceptance and prompts at random; short requests, many of them."""

    def pick(*options: Any) -> Any:
        return options[rng.integers(len(options))]

    def device(name: str) -> dict[str, Any]:
        link = asdict(BASE.devices[0].link) | {
            "name": name, "one_way_s": float(rng.uniform(0.002, 0.08)), "jitter": pick(0.0, 0.2, 0.6),
            "autocorrelation": pick(0.0, 0.7), "loss": pick(0.0, 0.02), "outages_per_s": 0.0, "timeout_s": 0.2,
            "idle_after_s": 0.3, "wake_s": pick(0.0, 0.2), "uplink_bytes_per_s": pick(2e4, 1e6),
        }  # fmt: skip
        return asdict(BASE.devices[0]) | {
            "name": name, "share": float(rng.uniform(0.3, 1.0)), "link": link, "round_overhead_s": pick(0.0, 0.01),
            "draft_tokens_per_s": float(np.exp(rng.uniform(math.log(8), math.log(200)))), "throttle_s": 20.0,
            "predictor_s": pick(0.0, 0.002), "throttle_ratio": pick(1.0, 0.5),
        }  # fmt: skip

    prompt, output = int(rng.integers(10, 400)), int(rng.integers(15, 60))
    changes = {
        "n_devices": int(pick(1, 3, 10, 40, 90)), "max_draft_tokens": int(pick(4, 8, 12)),
        "devices": [device("a"), device("b")][: pick(1, 2)], "slo": [asdict(s) for s in BASE.slo[: pick(1, 4)]],
        "workload.arrivals": pick("closed", "closed", "open"), "workload.think_s": pick(0.0, 0.5, 3.0),
        "workload.start_window_s": 2.0, "workload.requests_per_s": pick(0.05, 0.5),
        "workload.prompt": {"median_tokens": prompt, "log_std": 0.6, "min_tokens": 1, "max_tokens": 4 * prompt},
        "workload.output": {"median_tokens": output, "log_std": 0.5, "min_tokens": 1, "max_tokens": 4 * output},
        "horizon": horizon(60.0, 300.0), "server.noise": pick(0.0, 0.1, 0.3), "server.max_batch_requests": pick(4, 256),
        "server.prefill_chunk_tokens": pick(0, 64, 512), "verification.pair_s": pick(0.0, 2e-8),
        "verification.weights_s": pick(0.005, 0.03), "verification.token_s": pick(5e-5, 2e-4, 1e-3),
        "draft.acceptance.logit_mean": float(rng.uniform(-1.0, 3.0)), "draft.acceptance.request_std": pick(0.0, 0.7),
        "draft.acceptance.drift_std": pick(0.0, 0.8), "draft.acceptance.after_rejection_logit": pick(0.0, 0.5),
        "draft.acceptance.drift_tokens": pick(30.0, 131.0), "draft.statistics.auc": pick(0.5, 0.77, 0.95),
    } | memory_for(max(4 * prompt + 4 * output + 16, pick(3_000, 1_000_000)))  # fmt: skip
    return with_(BASE, **changes)
