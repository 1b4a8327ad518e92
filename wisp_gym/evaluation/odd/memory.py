"""Memory that holds too few sessions, or no room for a draft that the server is to host."""

from collections.abc import Iterator

from wisp_gym.evaluation.odd.finding import Finding, presets_hold, share
from wisp_gym.scenario import Scenario

MOST_SHARE = 0.5  # of KV memory, for one session


def sessions(scenario: Scenario) -> Iterator[Finding]:
    """Fewer sessions of median length than devices, or one session that fills half of the memory."""
    if scenario.workload.arrivals == "trace":
        return  # lengths are the trace's: `wisp_gym.evaluation.odd.workload` reads it
    tokens = scenario.kv_tokens
    session = scenario.workload.prompt.median_tokens + scenario.workload.output.median_tokens
    held = int(tokens / session)
    if held < scenario.n_devices:
        why = f"sessions of median length ({session:g} tokens) fit, for {scenario.n_devices} devices: prefixes are evicted"
        yield Finding("server.memory_bytes", f"{held}", f"{why} and computed again", "twice as many as devices or more")
    if scenario.longest_tokens > MOST_SHARE * tokens:
        part = share(scenario.longest_tokens / tokens)
        why = f"tokens at most take {part} of KV memory ({tokens:,} tokens) for one session"
        yield Finding("workload.prompt.max_tokens", f"{scenario.longest_tokens:,}", why, "less than 10 %")


def server_drafts(scenario: Scenario) -> Iterator[Finding]:
    """Drafts that leave no room for the longest session once the server has loaded them."""
    for draft in scenario.server_drafts:
        left = scenario.kv_tokens_beside(draft.weights_bytes, draft.kv_bytes_per_token)
        if left < scenario.longest_tokens and scenario.workload.arrivals != "trace":
            path = f"server_drafts.{draft.name}.weights_bytes"
            why = f"leave KV memory for {max(left, 0):,} tokens, the longest session takes {scenario.longest_tokens:,}"
            yield Finding(
                path,
                f"{draft.weights_bytes / 1e9:.3g} GB",
                f"{why}: it can never be loaded",
                presets_hold("server_drafts.weights_bytes"),
            )
