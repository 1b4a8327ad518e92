"""What the fluid bound needs to know of a scenario: groups of equal devices, mean requests, links, tangents of batch time."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from agents.bounds.frontier import first_and_later
from wisp_gym.engine.build import CLASS_STEP, classes_of
from wisp_gym.engine.network import DRAFT_TOKEN_BYTES, MESSAGE_BYTES, TOKEN_BYTES
from wisp_gym.engine.trace_load import load_trace
from wisp_gym.scenario import DeviceClass, Lengths, Link, Scenario

LENGTH_POINTS = 20_001  # equally likely points of a log-normal length: means to about 1e-4


@dataclass(frozen=True)
class Group:
    """Devices of one class. Times are means in seconds; `kinds` of time that no controller can avoid.

    Attributes:
        devices: how many. token_s, slowest_s: drafting one token, cold and throttled. predictor_s: with it where the controller pays for it.
        round_s, request_s: links of a round without its draft payload, and of a prompt with think time.
        turns: pairs (g, e): n round trips of which m are told apart take those m at least `g·m − e·n`. See `turns_of`.
        waits: pairs (g, e): m of n messages chosen beforehand take at least m means, less `g·m + e·n`. See `waits_of`.
        draft_payload_s, token_payload_s: sending one drafted token up, one committed token down.
        heating: share of its speed that a device drafting all the time loses over the window. heat_error: see `heat`.
    """

    name: str
    devices: int
    token_s: float
    slowest_s: float
    predictor_s: float
    overhead_s: float
    round_s: float
    request_s: float
    turns: tuple[tuple[float, float], ...]
    waits: tuple[tuple[float, float], ...]
    draft_payload_s: float
    token_payload_s: float
    heating: float
    heat_error: float


@dataclass(frozen=True)
class Requests:
    """Means over requests; tokens.

    Attributes:
        prompt, prompt_root, prompt_square, prompt_min: mean of P, √P and P², least P.
        rounds_output: mean output less the first token, which the prompt brings.
        late_context: mean over those tokens of how far one lies beyond position K + 1.
        per_device_s: requests/s of a device at most; infinite in a closed loop.
    """

    prompt: float
    prompt_root: float
    prompt_square: float
    prompt_min: float
    rounds_output: float
    late_context: float
    per_device_s: float


def length_points(lengths: Lengths) -> NDArray[np.float64]:
    """(LENGTH_POINTS,) equally likely lengths of a clipped log-normal."""
    z = ndtri((np.arange(LENGTH_POINTS) + 0.5) / LENGTH_POINTS)
    values = np.round(lengths.median_tokens * np.exp(lengths.log_std * z))
    return np.clip(values, lengths.min_tokens, lengths.max_tokens)


def requests_of(scenario: Scenario) -> Requests:
    """Means over the scenario's requests, or over the rows of its trace that arrive before the window ends.

    Open arrivals are held to their long-run rate; a trace to the rows that can be served within the window.
    """
    w, h = scenario.workload, scenario.horizon
    rate = {"closed": math.inf, "open": w.requests_per_s}.get(w.arrivals, 0.0)
    prompt, output = length_points(w.prompt), length_points(w.output)
    if w.arrivals == "trace":
        trace = load_trace(scenario)
        trace = trace[trace["arrival_s"] < h.warmup_s + h.measure_s]
        rate = len(trace) / h.measure_s / scenario.n_devices
        if len(trace):
            prompt = np.clip(trace["prompt_tokens"], w.prompt.min_tokens, w.prompt.max_tokens).astype(float)
            output = np.clip(trace["output_tokens"], w.output.min_tokens, w.output.max_tokens).astype(float)
    beyond = np.maximum(output - 2.0 - scenario.max_draft_tokens, 0.0)
    late = (beyond * (beyond + 1.0) / 2.0).mean() / max(output.mean() - 1.0, 1e-12)
    return Requests(
        float(prompt.mean()), float(np.sqrt(prompt).mean()), float((prompt**2).mean()), float(prompt.min()),
        float(output.mean() - 1.0), float(late), rate,
    )  # fmt: skip


def message_s(link: Link, bytes_per_s: float) -> float:
    """Mean time of an empty message: median delay times the mean of its log-normal jitter, losses, header.

    Waking and outages are left out: they only add.
    """
    lost_s = link.timeout_s * link.loss / (1.0 - link.loss)
    return link.one_way_s * math.exp(link.jitter**2 / 2.0) + lost_s + MESSAGE_BYTES / bytes_per_s


def put(strike: float, median: float, spread: float) -> float:
    """Mean of `max(strike − x, 0)` for a log-normal x (Black and Scholes' put, 1973)."""
    if spread <= 0.0 or median <= 0.0:
        return max(strike - median, 0.0)
    z = math.log(strike / median) / spread
    return float(strike * ndtr(z) - median * math.exp(spread**2 / 2.0) * ndtr(z - spread))


def turns_of(link: Link) -> tuple[tuple[float, float], ...]:
    """Pairs (g, e): whichever m of n round trips are chosen, they take at least `g·m − e·n` seconds.

    For every g, a delay is at least `g − max(g − delay, 0)`; e is the mean of the last term, half of g each way.
    """
    fixed_s = MESSAGE_BYTES / link.uplink_bytes_per_s + MESSAGE_BYTES / link.downlink_bytes_per_s
    strikes = [link.one_way_s * factor for factor in ((0.6, 0.8, 1.0, 1.3) if link.jitter > 0.0 else (1.0,))]
    return tuple((fixed_s + 2.0 * g, 2.0 * put(g, link.one_way_s, link.jitter)) for g in strikes)


def waits_of(link: Link) -> tuple[tuple[float, float], ...]:
    """Pairs (g, e): m of n messages, each chosen by what is known before it, take at least m means less `g·m + e·n` seconds.

    A delay is expected to be log-normal in what is known: its mean, and of its jitter the share that the message before
    tells. With strike s, as in `turns_of`, the expectations sum up to at least `s·m − e·n`.
    """
    spread = link.jitter * link.autocorrelation
    mean_s = link.one_way_s * math.exp(link.jitter**2 / 2.0)
    median_s = mean_s * math.exp(-(spread**2) / 2.0)
    strikes = [median_s * factor for factor in ((0.6, 0.8, 0.9, 1.0, 1.1, 1.3, 2.0) if spread > 0.0 else (1.0,))]
    return tuple((mean_s - strike, put(strike, median_s, spread)) for strike in strikes)


def heat(device: DeviceClass, scenario: Scenario) -> tuple[float, float]:
    """(heating, error): a share b of the window spent drafting gives at most `v·(b·(1 + error) − heating·b²)` tokens/s.

    Heat is drafting smoothed by e^(−t/τ)/τ. Half of that kernel's symmetric form is positive definite, so over a window
    of length T the heat met while drafting is at least `b²·T/(T + 2τ)` (the least energy of a mass on an interval under
    an exponential kernel). The engine holds speed from a round's start: `error` covers its longest drafting.
    """
    lost, tau, window_s = 1.0 - device.throttle_ratio, device.throttle_s, scenario.horizon.measure_s
    longest_s = scenario.max_draft_tokens / (device.draft_tokens_per_s * device.throttle_ratio)
    return lost * window_s / (window_s + 2.0 * tau), lost * longest_s / (2.0 * tau)


def groups_of(scenario: Scenario, pays_predictor: bool) -> list[Group]:
    """One group for each device class that the population has."""
    kinds = classes_of(scenario.n_devices, [d.share for d in scenario.devices], CLASS_STEP)
    counts = np.bincount(kinds, minlength=len(scenario.devices))
    found = zip(scenario.devices, map(int, counts), strict=True)
    return [group_of(device, n, scenario, pays_predictor) for device, n in found if n]


def group_of(device: DeviceClass, n: int, scenario: Scenario, pays_predictor: bool) -> Group:
    """The group of `n` devices of a class."""
    link, w = device.link, scenario.workload
    both_s = message_s(link, link.uplink_bytes_per_s) + message_s(link, link.downlink_bytes_per_s)
    prompt_s = TOKEN_BYTES * requests_of(scenario).prompt / link.uplink_bytes_per_s
    think_s = w.think_s if w.arrivals == "closed" else 0.0
    heating, error = heat(device, scenario)
    token_s = 1.0 / device.draft_tokens_per_s
    return Group(
        device.name, n, token_s, token_s / device.throttle_ratio, device.predictor_s if pays_predictor else 0.0,
        device.round_overhead_s, both_s, both_s + prompt_s + think_s, turns_of(link), waits_of(link),
        DRAFT_TOKEN_BYTES / link.uplink_bytes_per_s, TOKEN_BYTES / link.downlink_bytes_per_s, heating, error,
    )  # fmt: skip


def tangent(scenario: Scenario, new_tokens: float) -> tuple[float, float]:
    """(a, s): the mean batch time with T new tokens is at least `a + s·T`, plus context and attention.

    The soft maximum `(weights^p + (token·T)^p)^(1/p)` is a p-norm of a straight line, hence convex in T, and lies above
    its tangent at `new_tokens`. Log-normal noise, drawn apart from what the batch holds, multiplies by e^(σ²/2).
    """
    v, noise = scenario.verification, math.exp(scenario.server.noise**2 / 2.0)
    x = max(new_tokens, 1e-9) * v.token_s
    top_s = math.exp(np.logaddexp(v.sharpness * math.log(v.weights_s), v.sharpness * math.log(x)) / v.sharpness)
    slope_s = v.token_s * (x / top_s) ** (v.sharpness - 1.0)
    constant_s = scenario.server.host_s + v.launch_s + top_s - slope_s * x / v.token_s
    return noise * constant_s, noise * slope_s


def batch_s(scenario: Scenario, new_tokens: float) -> float:
    """Mean time of a batch of new tokens alone, with the noise."""
    a, slope = tangent(scenario, new_tokens)
    return a + slope * new_tokens


def cached_per_token(scenario: Scenario, requests: Requests, rejected: float | None = None) -> float:
    """Least cached tokens that verification reads per committed token, beyond the shortest prompt in every round.

    Each rejected position ends a round, whatever the controller does, and that round began at most K positions before:
    its context was at least prompt + position − K − 1. `rejected`: share of positions; default that of the devices' draft.
    """
    if rejected is None:
        _, p, weights = first_and_later(scenario)
        rejected = float(weights @ (1.0 - p))
    return rejected * (requests.prompt - requests.prompt_min + requests.late_context)
