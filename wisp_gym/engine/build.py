"""From a scenario to the arrays of a world."""

import math
from functools import cache
from statistics import NormalDist

import numpy as np

from wisp_gym.contract.averages import PRIOR_TOKENS
from wisp_gym.contract.device import SIZE
from wisp_gym.engine import state
from wisp_gym.engine.acceptance import DRIFT_BLOCK_TOKENS
from wisp_gym.engine.state import World
from wisp_gym.engine.trace_files import load_draft_trace
from wisp_gym.rules.bandits import MEMORY
from wisp_gym.rules.batching import FEATURES
from wisp_gym.scenario import Acceptance, DeviceClass, Estimator, Scenario, SLOClass

ANSWER_TOKENS = (
    130  # the presets' median: what of loops is known before a world begins is their mean over such an answer
)
LEAST_SHARE = 2e-9  # as `Logit`'s ends have it
ARRIVALS = {"closed": state.CLOSED, "open": state.OPEN, "trace": state.TRACE}

# Device i's class and service class follow two low-discrepancy sequences: shares are met for any number of devices,
# the two are independent, and a device keeps its classes when others are added.
CLASS_STEP = (math.sqrt(5.0) - 1.0) / 2.0
SLO_STEP = math.sqrt(2.0) - 1.0


def separation(auc: float) -> float:
    """Distance d' of two unit normals whose area under the ROC curve is `auc`: `√2·Φ⁻¹(auc)`."""
    return math.sqrt(2.0) * NormalDist().inv_cdf(auc)


def sigmoid(x: np.ndarray) -> np.ndarray:
    """Logistic function."""
    return 1.0 / (1.0 + np.exp(-x))


@cache
def normal_nodes() -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of a mean over a unit normal."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(61)
    return nodes, weights / weights.sum()


def mean_acceptance(a: Acceptance) -> float:
    """Share of positions at which the draft's token is accepted: in the long run, of loops in answers of `ANSWER_TOKENS`.

    With p and q the mean probabilities after an accepted and after a rejected token, the share solves
    `m = m·p + (1 − m)·q` (Gauss–Hermite over request effect and drift). In a loop it is `whole + (1 − whole)·E[1 − 1/period]`.
    """
    nodes, weights = normal_nodes()
    logit = a.logit_mean + math.hypot(a.request_std, a.drift_std) * nodes
    after_accepted = sigmoid(logit)
    after_rejected = sigmoid(logit - a.after_rejection_logit)
    outside = float(weights @ (after_rejected / (1.0 - after_accepted + after_rejected)))
    inside = loop_share(a)
    if inside == 0.0:
        return outside
    share = (1.0 - inside) * outside + inside * loop_acceptance(a)
    return min(max(share, LEAST_SHARE), 1.0 - LEAST_SHARE)  # odds stay numbers where all lies in loops


def longer(a: Acceptance) -> float:
    """Chance that the period of a loop is one token longer, so that it is `loop_more_tokens` longer on average."""
    return a.loop_more_tokens / (1.0 + a.loop_more_tokens)


def loop_share(a: Acceptance) -> float:
    """Share of the positions of an answer that lie in loops: the mean of `s·(1 − r^n)`, s = enter/(enter + leave), r = 1 − enter − leave."""
    if a.loop_enter == 0.0:
        return 0.0
    both = a.loop_enter + a.loop_leave
    left = (1.0 - both) ** np.arange(1, ANSWER_TOKENS + 1)
    return float(a.loop_enter / both * (1.0 - left).mean())


def loop_acceptance(a: Acceptance) -> float:
    """Share of a loop's tokens that are accepted."""
    more = np.arange(10_000)
    shares = (1.0 - longer(a)) * longer(a) ** more
    rejected = float((shares / (a.loop_period_tokens + more)).sum())
    return a.loop_whole + (1.0 - a.loop_whole) * (1.0 - rejected)


def accepted_share(scenario: Scenario) -> float:
    """Share of positions at which the draft's token is accepted: of the trace, or else of the parametric process."""
    return load_draft_trace(scenario).share if scenario.draft.trace else mean_acceptance(scenario.draft.acceptance)


def classes_of(n: int, shares: list[float], step: float) -> np.ndarray:
    """(n,) class of each device."""
    edges = np.cumsum(shares) / sum(shares)
    return np.searchsorted(edges, (0.5 + step * np.arange(1, n + 1)) % 1.0, side="right").clip(max=len(shares) - 1)


def fill_config(c: np.void, scenario: Scenario, seed: int, n_devices: int) -> None:
    """Write the scenario's constants into a world's CONFIG row."""
    v, e, s, w, h = scenario.verification, scenario.estimator, scenario.server, scenario.workload, scenario.horizon
    a = scenario.draft.acceptance
    keep = math.exp(-DRIFT_BLOCK_TOKENS / a.drift_tokens)
    share = mean_acceptance(a)
    values = {
        "seed": seed & (2**64 - 1), "n_devices": n_devices, "max_draft_tokens": scenario.max_draft_tokens, "from_trace": bool(scenario.draft.trace),
        "warmup_s": h.warmup_s, "window_end_s": h.warmup_s + h.measure_s, "end_s": h.warmup_s + h.measure_s + h.drain_s,
        "host_s": s.host_s, "launch_s": v.launch_s, "weights_s": v.weights_s, "token_s": v.token_s, "sharpness": v.sharpness,
        "cached_token_s": v.cached_token_s, "pair_s": v.pair_s, "noise": s.noise,
        "host_request_s": s.host_request_s, "host_token_s": s.host_token_s, "graph_tokens": s.graph_tokens, "eager_s": s.eager_s,
        "est_launch_s": e.launch_s, "est_new_token_s": e.new_token_s, "est_pair_s": e.pair_s, "est_cached_token_s": e.cached_token_s,
        "est_request_s": e.request_s,
        "kv_capacity_tokens": scenario.kv_tokens, "memory_tokens": scenario.kv_tokens,
        "max_batch_requests": s.max_batch_requests, "prefill_chunk_tokens": s.prefill_chunk_tokens,
        "logit_mean": a.logit_mean, "request_std": a.request_std, "drift_std": a.drift_std, "drift_keep": keep,
        "drift_fresh": math.sqrt(1.0 - keep * keep), "after_rejection_logit": a.after_rejection_logit,
        "loop_enter": a.loop_enter, "loop_leave": a.loop_leave, "loop_whole": a.loop_whole, "loop_period_tokens": a.loop_period_tokens,
        "loop_longer": longer(a), "accept_prior": accepted_share(scenario),
        "separation": separation(scenario.draft.statistics.auc), "base_logit": math.log(share / (1.0 - share)),
        "overconfidence": scenario.draft.statistics.overconfidence,
        "arrivals": ARRIVALS[w.arrivals], "think_s": w.think_s, "requests_per_s": w.requests_per_s, "start_window_s": w.start_window_s,
        "prompt_log_mean": math.log(w.prompt.median_tokens), "prompt_log_std": w.prompt.log_std,
        "prompt_min": w.prompt.min_tokens, "prompt_max": w.prompt.max_tokens,
        "output_log_mean": math.log(w.output.median_tokens), "output_log_std": w.output.log_std,
        "output_min": w.output.min_tokens, "output_max": w.output.max_tokens,
        "external_device": -1, "visible_requests": n_devices,
    }  # fmt: skip
    for name, value in values.items():
        c[name] = value
    fill_sizes(c, e)


def fill_sizes(c: np.void, estimator: Estimator) -> None:
    """Write the estimator's levels by size."""
    n = c["est_sizes"] = len(estimator.sizes)
    c["est_size_tokens"][:n] = [size.tokens for size in estimator.sizes]
    c["est_size_s"][:n] = [size.add_s for size in estimator.sizes]


def device_constants(d: DeviceClass, index: int) -> dict[str, float]:
    """Constants of a device of a class, by field of DEVICE."""
    link = d.link
    return {
        "token_s": 1.0 / d.draft_tokens_per_s, "round_overhead_s": d.round_overhead_s, "predictor_s": d.predictor_s,
        "draft_w": d.draft_w, "idle_w": d.idle_w, "radio_j": d.radio_j, "throttle_ratio": d.throttle_ratio, "throttle_s": d.throttle_s,
        "one_way_s": link.one_way_s, "jitter": link.jitter, "jitter_keep": link.autocorrelation,
        "jitter_fresh": math.sqrt(1.0 - link.autocorrelation**2), "loss": link.loss, "timeout_s": link.timeout_s,
        "outages_per_s": link.outages_per_s, "outage_s": link.outage_s, "uplink_bytes_per_s": link.uplink_bytes_per_s,
        "downlink_bytes_per_s": link.downlink_bytes_per_s, "idle_after_s": link.idle_after_s, "wake_s": link.wake_s,
        "delay_mean_s": link.one_way_s, "class_id": index, "link_used_s": -1e18,
    }  # fmt: skip


def slo_constants(s: SLOClass, index: int) -> dict[str, float]:
    """Constants of a device of a service class, by field of DEVICE."""
    return {
        "slo_tokens_per_s": s.speed_tokens_per_s, "grace_s": s.grace_s, "ttft_s": s.ttft_s,
        "clock_from_arrival": int(s.clock == "arrival"), "slo_id": index,
    }  # fmt: skip


def fill_devices(devices: np.ndarray, scenario: Scenario, n_devices: int) -> None:
    """Write constants and starting values of (n,) DEVICE rows."""
    kinds = classes_of(n_devices, [d.share for d in scenario.devices], CLASS_STEP)
    slos = classes_of(n_devices, [s.share for s in scenario.slo], SLO_STEP)
    view = devices[:n_devices]
    for index, device in enumerate(scenario.devices):
        for name, value in device_constants(device, index).items():
            view[name][kinds == index] = value
    for index, slo in enumerate(scenario.slo):
        for name, value in slo_constants(slo, index).items():
            view[name][slos == index] = value
    view["accepted_sum"], view["examined_sum"] = PRIOR_TOKENS * accepted_share(scenario), PRIOR_TOKENS
    view["token_sum"], view["time_sum_s"] = view["slo_tokens_per_s"], 1.0  # at first the rate that the class asks for
    view["newer"], view["older"], view["round"] = -1, -1, -1
    begin_server_info(view, scenario)


def begin_server_info(view: np.ndarray, scenario: Scenario) -> None:
    """What a device believes of the server before its first reply: an idle server and its smallest batch."""
    view["info_batch_s"] = smallest_batch_s(scenario)
    view["draft_token_s"] = view["token_s"]


def smallest_batch_s(scenario: Scenario) -> float:
    """Time of a batch of one token, without noise."""
    v = scenario.verification
    return scenario.server.host_s + v.launch_s + v.weights_s


def fill_server(s: np.void, scenario: Scenario) -> None:
    """Write the server's starting values."""
    s["lru_oldest"], s["lru_newest"] = -1, -1
    s["wake_s"] = math.inf
    s["mean_batch_s"] = smallest_batch_s(scenario)


def empty_arrays(n_worlds: int, n_devices: int, log_rows: int = 0, trace: np.ndarray = state.NO_TRACE) -> World:
    """Zeroed arrays of `n_worlds` worlds of at most `n_devices` devices; what only some controllers keep of each has one row."""
    shape = (n_worlds, n_devices)
    integers, floats = (lambda: np.zeros(shape, np.int64)), (lambda: np.zeros(shape, np.float64))
    return World(
        config=state.table((n_worlds, 1), state.CONFIG), server=state.table((n_worlds, 1), state.SERVER),
        totals=state.table((n_worlds, 1), state.TOTALS), slo_totals=state.table((n_worlds, state.SLO_CLASSES), state.SLO_TOTALS),
        histogram=np.zeros((n_worlds, 2, state.LATENCY_BINS), np.int64), device=state.table(shape, state.DEVICE),
        observation=np.zeros((n_worlds, 1, SIZE), np.float32), event_device=integers(), event_s=floats(),
        line=np.zeros((n_worlds, 2 * n_devices), np.int64), places=integers(), queue=integers(), cold=integers(), cold_keys=floats(),
        batch=integers(), replies=integers(), features=np.zeros((*shape, FEATURES)), keys=floats(), order=integers(),
        rooflines=np.zeros((n_worlds, state.ROOFLINES)),
        speculation_parameters=np.zeros((n_worlds, state.PARAMETERS)), batching_parameters=np.zeros((n_worlds, state.PARAMETERS)),
        drafter_parameters=np.zeros((n_worlds, state.PARAMETERS)), length_parameters=np.zeros((n_worlds, state.PARAMETERS)),
        server_memory=np.zeros((n_worlds, MEMORY)), sessions=state.table((n_worlds, 1), state.SESSION), memory=np.zeros((n_worlds, 1, MEMORY)),
        log=state.table((n_worlds, log_rows), state.LOG_ROW), decisions=state.table((n_worlds, 0), state.DECISION),
        seen=np.zeros((n_worlds, 0, SIZE), np.float32), outcomes=state.table((n_worlds, 0), state.OUTCOME),
        survivals=np.zeros((n_worlds, 1, state.SURVIVALS), np.float32), trace=trace,
    )  # fmt: skip


def fill_world(worlds: World, index: int, scenario: Scenario, seed: int, n_devices: int) -> None:
    """Set world `index` to the beginning of a scenario."""
    worlds.clear(index)
    fill_config(worlds.config[index, 0], scenario, seed, n_devices)
    fill_devices(worlds.device[index], scenario, n_devices)
    fill_server(worlds.server[index, 0], scenario)
