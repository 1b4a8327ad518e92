"""What a scenario's machines can reach at most, and what is allowed but doubtful about it."""

from wisp_gym.engine.trace_load import trace_use
from wisp_gym.engine.verification import clean_batch_s
from wisp_gym.scenario import DeviceClass, Scenario


def lone_batch_s(scenario: Scenario, new_tokens: int) -> float:
    """Time of a batch of one request with so many new tokens and the shortest prompt cached, without noise."""
    cached = scenario.workload.prompt.min_tokens
    return clean_batch_s(scenario, 1, new_tokens, new_tokens * (new_tokens + cached), cached)


def best_tokens_per_s(scenario: Scenario, device: DeviceClass) -> float:
    """Tokens/s that a device of this class reaches at most: alone, unthrottled, with every draft token accepted.

    The best over k = 0 … max_draft_tokens of `(k + 1) / (overhead + k·(1/speed + predictor) + 2·one-way + batch time)`,
    with a batch of k + 1 new tokens and the shortest prompt cached (link at its median, no noise).
    """
    token_s = 1.0 / device.draft_tokens_per_s + device.predictor_s
    fixed_s = device.round_overhead_s + 2.0 * device.link.one_way_s
    lengths = range(scenario.max_draft_tokens + 1)
    return max((k + 1) / (fixed_s + k * token_s + lone_batch_s(scenario, k + 1)) for k in lengths)


def warnings(scenario: Scenario) -> list[str]:
    """Things that are allowed but that a reader should know, one line each: speeds beyond physics, scarce KV memory, a request
    trace that is not replayed as it is. Raises TraceError or ScenarioError where that cannot be replayed.
    """
    best = {device.name: best_tokens_per_s(scenario, device) for device in scenario.devices}
    found = [
        f"slo '{slo.name}' asks for {slo.speed_tokens_per_s:g} tokens/s, but '{name}' reaches at most "
        f"{tokens_per_s:.2f} tokens/s with every draft token accepted and no queue"
        for name, tokens_per_s in best.items()
        for slo in scenario.slo
        if slo.speed_tokens_per_s > tokens_per_s
    ]
    session_tokens = scenario.workload.prompt.median_tokens + scenario.workload.output.median_tokens
    sessions = int(scenario.kv_tokens / session_tokens)
    if sessions < scenario.n_devices:
        found.append(
            f"KV memory holds {scenario.kv_tokens} tokens, about {sessions} sessions of median length, "
            f"but n_devices is {scenario.n_devices}: prefixes will be evicted and recomputed")  # fmt: skip
    use = trace_use(scenario)
    return found + (use.doubts() if use else [])
