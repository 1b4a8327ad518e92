"""Strange requests: lengths that are mostly cut, answers longer than a context or a horizon, a trace that is not replayed whole."""

import math
from collections.abc import Iterator
from statistics import NormalDist

from wisp_gym.engine.trace_load import trace_use
from wisp_gym.evaluation.odd.finding import Finding, share, time
from wisp_gym.scenario import Scenario
from wisp_gym.scenario.parts import Lengths

CONTEXT_TOKENS = (
    131_072  # the longest context of the catalogue's targets: Llama-3.1, and Qwen3 with YaRN (their model cards)
)
MOST_CUT = 0.25  # of requests, to either end
FEWEST_REQUESTS = 30  # counted in a world


def lengths(scenario: Scenario) -> Iterator[Finding]:
    """Lengths of which many are cut, and requests beyond any context."""
    if scenario.workload.arrivals == "trace":
        return
    for name, each in (("prompt", scenario.workload.prompt), ("output", scenario.workload.output)):
        longer, shorter = cut(each)
        if longer > MOST_CUT:
            why = f"cuts {share(longer)} of them (median {each.median_tokens:g}, log_std {each.log_std:g})"
            yield Finding(f"workload.{name}.max_tokens", f"{each.max_tokens:,} tokens", why, "less than 6 %")
        if shorter > MOST_CUT:
            why = f"lengthens {share(shorter)} of them (median {each.median_tokens:g}, log_std {each.log_std:g})"
            yield Finding(f"workload.{name}.min_tokens", f"{each.min_tokens:,} tokens", why, "less than 1 %")
    if (longest := scenario.longest_tokens) > CONTEXT_TOKENS:
        why = f"are a request at most, longer than any context of the catalogue's targets ({CONTEXT_TOKENS:,})"
        yield Finding("workload.output.max_tokens", f"{longest:,} tokens", why, "2,572 with prompt and drafts")


def cut(lengths: Lengths) -> tuple[float, float]:
    """Shares of log-normal lengths above the longest and below the shortest."""
    if lengths.log_std == 0.0:
        return 0.0, 0.0
    longer, shorter = (
        math.log(end / lengths.median_tokens) / lengths.log_std for end in (lengths.max_tokens, lengths.min_tokens)
    )
    return 1.0 - NormalDist().cdf(longer), NormalDist().cdf(shorter)


def horizon(scenario: Scenario) -> Iterator[Finding]:
    """A world that ends before what it counts: requests still to begin, answers still under way, hardly any counted."""
    h, w = scenario.horizon, scenario.workload
    if w.arrivals == "trace":
        return
    if w.arrivals == "closed" and w.start_window_s > h.warmup_s + h.measure_s:
        why = f"until all devices have begun, of which {time(h.warmup_s + h.measure_s)} are simulated"
        yield Finding("workload.start_window_s", time(w.start_window_s), why, "10 s, half of warmup_s")
    slowest = min(slo.speed_tokens_per_s for slo in scenario.slo)
    longest_s = w.output.max_tokens / slowest
    if longest_s > h.drain_s:
        why = f"after what is measured, the longest answer takes {time(longest_s)} at {slowest:g} tokens/s: it counts as missed"
        yield Finding("horizon.drain_s", time(h.drain_s), why, "longer than that")
    if (requests := expected_requests(scenario)) < FEWEST_REQUESTS:
        why = f"of measurement count about {requests:.0f} requests a world"
        yield Finding("horizon.measure_s", time(h.measure_s), why, "120 s, some hundred requests")


def expected_requests(scenario: Scenario) -> float:
    """Requests that arrive in the window of measurement; of closed arrivals as if each were served at the promised speed."""
    w, window_s = scenario.workload, scenario.horizon.measure_s * scenario.n_devices
    if w.arrivals == "open":
        return window_s * w.requests_per_s
    fastest = max(slo.speed_tokens_per_s for slo in scenario.slo)
    return window_s / (w.output.median_tokens / fastest + w.think_s)


def trace(scenario: Scenario) -> Iterator[Finding]:
    """What a request trace loses on its way into the world."""
    for doubt in use.doubts() if (use := trace_use(scenario)) else []:
        yield Finding(
            "workload.trace", doubt.removeprefix("trace "), "", "the whole file, to the end of what is measured"
        )
