"""Strange machines, models and links: what contradicts itself, or physics."""

from collections.abc import Iterator

from wisp_gym.engine.build import mean_acceptance
from wisp_gym.engine.verification import clean_batch_s
from wisp_gym.evaluation.odd.finding import Finding, presets_hold, share, time
from wisp_gym.scenario import Scenario

MOST_BYTES_PER_S = 10e12  # of memory, a GPU: above the 8 TB/s of NVIDIA's B200 data sheet
ACCEPTANCES = (0.3, 0.98)  # beyond these hardly anything, or all, is accepted
NEAR = 1.6  # estimate over truth, either way: a line through a roofline is off by less
TOKENS, CONTEXT_TOKENS = 5, 280  # a round of four drafts beyond a session of median length
SMALL, LARGE = 1, 16  # requests in a batch


def models(scenario: Scenario) -> Iterator[Finding]:
    """A draft as large as its target, a shape that no model has, a draft that is never or always right."""
    target, draft = scenario.target, scenario.draft
    if draft.parameters >= target.parameters:
        why = f"are no fewer than the target's {target.parameters:,}"
        yield Finding("draft.parameters", f"{draft.parameters:,}", why, "a 20th of the target's or fewer")
    if target.kv_heads > target.heads:
        why = f"heads of keys and values are more than its {target.heads} query heads"
        yield Finding("target.kv_heads", f"{target.kv_heads}", why, "8, at most as many as query heads")
    if not draft.trace:
        low, high = ACCEPTANCES
        accepted = mean_acceptance(draft.acceptance)
        if not low <= accepted <= high:
            why = f"of draft tokens are accepted: {'next to none is' if accepted < low else 'next to all are'} of use"
            yield Finding("draft.acceptance", share(accepted), why, "70 to 80 %")


def server(scenario: Scenario) -> Iterator[Finding]:
    """Weights read faster than any memory does, and a server that draws more when idle."""
    machine, weights = scenario.server, scenario.target.weights_bytes
    rate = weights / scenario.verification.weights_s / machine.gpus
    if rate > MOST_BYTES_PER_S:
        why = f"reads {weights / 1e9:.3g} GB of weights at {rate / 1e12:.3g} TB/s a GPU, faster than any memory"
        given = time(scenario.verification.weights_s)
        yield Finding("verification.weights_s", given, f"{why}: of another target?", "2 to 3.4 TB/s (A100, H200)")
    if machine.idle_w > machine.busy_w:
        why = f"are drawn when idle, more than {machine.busy_w:g} W when busy"
        yield Finding("server.idle_w", f"{machine.idle_w:g} W", why, "a tenth to a seventh of busy_w")


def devices(scenario: Scenario) -> Iterator[Finding]:
    """Devices that draw more when idle, or whose predictor takes longer than a token."""
    for device in scenario.devices:
        path = f"devices.{device.name}"
        if device.idle_w > device.draft_w:
            why = f"are drawn when idle, more than {device.draft_w:g} W when drafting"
            yield Finding(f"{path}.idle_w", f"{device.idle_w:g} W", why, "less than half of draft_w")
        token_s = 1.0 / device.draft_tokens_per_s
        if device.predictor_s > token_s:
            why = f"for a prediction is longer than the {time(token_s)} that drafting the token takes"
            yield Finding(f"{path}.predictor_s", time(device.predictor_s), why, presets_hold("devices.predictor_s"))


def links(scenario: Scenario) -> Iterator[Finding]:
    """Links whose fields contradict each other."""
    for device in scenario.devices:
        path, link = f"devices.{device.name}.link", device.link
        if link.loss > 0.0 and link.timeout_s == 0.0:
            why = f"until a lost message is sent again, with {share(link.loss)} lost: losses cost nothing"
            yield Finding(f"{path}.timeout_s", "0 s", why, presets_hold("devices.link.timeout_s"))
        if link.outages_per_s > 0.0 and link.outage_s == 0.0:
            why = f"for outages that begin {link.outages_per_s:g} times a second"
            yield Finding(f"{path}.outage_s", "0 s", why, presets_hold("devices.link.outage_s"))
        if link.wake_s > 0.0 and link.idle_after_s == 0.0:
            why = f"of silence send the radio to sleep: every message waits {time(link.wake_s)} for it"
            yield Finding(f"{path}.idle_after_s", "0 s", why, "0.3 s where wake_s is not 0")
        if link.loss > 0.1:
            yield Finding(f"{path}.loss", share(link.loss), "of messages are lost", presets_hold("devices.link.loss"))


def estimates(scenario: Scenario) -> Iterator[Finding]:
    """An estimator of another server or target: a fitted one does not follow a change of `[verification]`."""
    for requests in (SMALL, LARGE):
        expected_s, true_s = estimated_s(scenario, requests), batch_s(scenario, requests)
        if not 1.0 / NEAR <= expected_s / true_s <= NEAR:
            why = f"are expected of a batch of {requests} that takes {time(true_s)}: of another server or target?"
            yield Finding("estimator", time(expected_s), why, f"within {share(NEAR - 1)} of [verification]")
            return


def estimated_s(scenario: Scenario, requests: int) -> float:
    """What the scheduler expects of a batch of so many rounds, in s, without terms by size."""
    e, new = scenario.estimator, requests * TOKENS
    pairs = new * (TOKENS + CONTEXT_TOKENS)
    cached_s = e.cached_token_s * requests * CONTEXT_TOKENS
    return e.launch_s + e.new_token_s * new + e.pair_s * pairs + cached_s + e.request_s * requests


def batch_s(scenario: Scenario, requests: int) -> float:
    """What it takes, in s, without noise."""
    new = requests * TOKENS
    return clean_batch_s(scenario, requests, new, new * (TOKENS + CONTEXT_TOKENS), requests * CONTEXT_TOKENS)
