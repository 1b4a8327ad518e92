"""Promises that nobody can keep: speeds, first tokens, round trips, and all of them together."""

import math
from collections.abc import Iterator
from functools import partial

from wisp_gym.engine.feasibility import best_tokens_per_s
from wisp_gym.engine.verification import clean_batch_s
from wisp_gym.evaluation.odd.finding import Finding, presets_hold, time
from wisp_gym.scenario import Scenario, SLOClass


def speeds(scenario: Scenario) -> Iterator[Finding]:
    """Speeds beyond a device's best, alone on the server, and devices that draft slower than the slowest promise."""
    slowest = min(slo.speed_tokens_per_s for slo in scenario.slo)
    for slo in scenario.slo:
        given, path = f"{slo.speed_tokens_per_s:g} tokens/s", f"slo.{slo.name}.speed_tokens_per_s"
        best = {device.name: best_tokens_per_s(scenario, device) for device in scenario.devices}
        short = [name for name, reached in best.items() if reached < slo.speed_tokens_per_s]
        if short:
            who = "no device" if len(short) == len(best) else f"'{short[0]}' does not"
            verb = "reaches" if len(short) == len(best) else "reach"
            top = best[short[0]] if len(short) < len(best) else max(best.values())
            why = f"are promised, {who} {verb} more than {top:.2f} alone on the server with every draft accepted"
            yield Finding(path, given, why, presets_hold("slo.speed_tokens_per_s"))
    for device in scenario.devices:
        if device.draft_tokens_per_s < slowest:
            why = f"is slower than the slowest promise, {slowest:g} tokens/s: its drafts cannot keep up"
            given = f"{device.draft_tokens_per_s:g} tokens/s"
            yield Finding(
                f"devices.{device.name}.draft_tokens_per_s", given, why, presets_hold("devices.draft_tokens_per_s")
            )


def first_tokens(scenario: Scenario) -> Iterator[Finding]:
    """A first token that comes too late though the device is alone: the message, and a prompt of median length."""
    prompt = 0.0 if scenario.workload.arrivals == "trace" else scenario.workload.prompt.median_tokens
    for device in scenario.devices:
        alone_s = 2.0 * device.link.one_way_s + prefill_s(scenario, prompt)
        for slo in scenario.slo:
            if alone_s > slo.ttft_s:
                why = f"for the first token, which takes '{device.name}' {time(alone_s)} alone on the server"
                yield Finding(f"slo.{slo.name}.ttft_s", time(slo.ttft_s), why, presets_hold("slo.ttft_s"))
                return


def prefill_s(scenario: Scenario, tokens: float) -> float:
    """Seconds that a prompt of so many tokens takes alone on the server, in chunks."""
    chunk = scenario.server.prefill_chunk_tokens or math.inf
    done, total_s = 0.0, 0.0
    while done < tokens:
        new = min(chunk, tokens - done)
        total_s += clean_batch_s(scenario, 1, new, new * (done + new), done)
        done += new
    return total_s


def round_trips(scenario: Scenario) -> Iterator[Finding]:
    """Round trips that take longer than a promise leaves for all tokens of the longest round."""
    for device in scenario.devices:
        round_trip_s = 2.0 * device.link.one_way_s
        late = [slo for slo in scenario.slo if round_trip_s > slack_s(scenario, slo)]
        if late:
            slo = max(late, key=lambda one: one.speed_tokens_per_s)
            why = f"each way: the round trip is longer than the {time(slack_s(scenario, slo))} that slo '{slo.name}' leaves"
            given = time(device.link.one_way_s)
            yield Finding(
                f"devices.{device.name}.link.one_way_s", given, f"{why} a round", presets_hold("devices.link.one_way_s")
            )


def slack_s(scenario: Scenario, slo: SLOClass) -> float:
    """How long a round may take: the grace, and the time of a token at the promised speed."""
    return slo.grace_s + 1.0 / slo.speed_tokens_per_s


def load(scenario: Scenario) -> Iterator[Finding]:
    """More tokens a second promised to all than the server could verify in any batch, with every draft accepted."""
    wanted, most = demand_tokens_per_s(scenario), most_tokens_per_s(scenario)
    if wanted > most:
        why = f"are asked for by {scenario.n_devices} devices, the server commits at most {most:,.0f} in any batch"
        yield Finding("n_devices", f"{wanted:,.0f} tokens/s", why, "less than half of it")


def demand_tokens_per_s(scenario: Scenario) -> float:
    """Tokens/s that all devices ask for: of open arrivals those that come, of closed ones those promised; 0 of a trace."""
    workload, n = scenario.workload, scenario.n_devices
    if workload.arrivals == "trace":
        return 0.0
    tokens = workload.output.median_tokens
    if workload.arrivals == "open":
        return n * workload.requests_per_s * tokens
    weights = math.fsum(slo.share for slo in scenario.slo)
    each = (slo.share / weights * tokens / (tokens / slo.speed_tokens_per_s + workload.think_s) for slo in scenario.slo)
    return n * math.fsum(each)


def most_tokens_per_s(scenario: Scenario) -> float:
    """The most that any batch commits a second: the best size with the longest round, each at the shortest context."""
    k = scenario.max_draft_tokens + 1
    cached = scenario.workload.prompt.min_tokens
    sizes = {min(2**power, scenario.server.max_batch_requests, scenario.n_devices) for power in range(17)}
    batch_s = partial(clean_batch_s, scenario)
    return max(b * k / batch_s(b, b * k, b * k * (k + cached), b * cached) for b in sizes)
