"""What is known of a deployment before it serves: its numbers, as a choice between controllers sees them.

All are logarithms but shares, so that a scenario twice as large lies as far away as one half as large. Times and loads are those
that matter to who should draft: work of prompts and of tokens beside what a batch costs anyway, sessions beside the room for
them, ways through the network beside a batch.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from wisp_gym.engine.build import mean_acceptance
from wisp_gym.errors import of_kind
from wisp_gym.scenario import Lengths, Scenario, ServerDraft

SMALL = 1e-4  # in place of nothing, in logarithms
FEW_SESSIONS_TOKENS = 1_000  # that drafts are compared with (ours)
OWN, HEAD = "own", "head"  # the devices' draft on the server, and a small other one


def mean_tokens(lengths: Lengths) -> float:
    """Mean of a log-normal length, cut at its longest."""
    return min(lengths.median_tokens * math.exp(lengths.log_std**2 / 2.0), float(lengths.max_tokens))


def mean_of(values: Sequence[float], shares: Sequence[float]) -> float:
    """Mean, weighted by shares that need not sum to 1."""
    return float(np.average(values, weights=shares))


def draft_places(scenario: Scenario) -> dict[str, int]:
    """Places among the scenario's server drafts: `own`, that of the devices, and `head`, a small other one.

    That is, of those that are right at least half as often as the best other one, the one that takes least memory. What has no room for
    one request beside it is left out.
    """
    drafts = {k: d for k, d in enumerate(scenario.server_drafts) if has_room(scenario, d)}
    own = [k for k, draft in drafts.items() if draft.name == scenario.draft.name]
    others = {k: draft for k, draft in drafts.items() if k not in own}
    places = {OWN: own[0]} if own else {}
    if others:
        needed = max(map(share_of, others.values())) / 2.0
        places[HEAD] = min(
            (k for k, d in others.items() if share_of(d) >= needed), key=lambda k: memory_bytes(others[k])
        )
    return places


def memory_bytes(draft: ServerDraft) -> float:
    """Memory that a draft takes, with the keys and values of a few sessions."""
    return float(draft.weights_bytes + FEW_SESSIONS_TOKENS * draft.kv_bytes_per_token)


def share_of(draft: ServerDraft) -> float:
    """Share of places at which a draft is right, where it offers a token."""
    return draft.offer * mean_acceptance(draft.acceptance)


def has_room(scenario: Scenario, draft: ServerDraft) -> bool:
    """Whether memory holds one request beside a draft."""
    return scenario.kv_tokens_beside(draft.weights_bytes, draft.kv_bytes_per_token) >= scenario.longest_tokens


def draft_of(scenario: Scenario, kind: str) -> ServerDraft | None:
    """The scenario's draft of this kind, if it has one with room."""
    place = draft_places(scenario).get(kind)
    return None if place is None else scenario.server_drafts[place]


def log(value: float) -> float:
    """Natural logarithm, of at least SMALL."""
    return math.log(max(value, SMALL))


# --- the numbers -----------------------------------------------------------------------------------------------------


def context_tokens(scenario: Scenario) -> float:
    """Mean context of a session halfway through its response."""
    return mean_tokens(scenario.workload.prompt) + mean_tokens(scenario.workload.output) / 2.0


def batch_s(scenario: Scenario) -> float:
    """Time of a batch apart from its tokens."""
    return scenario.verification.launch_s + scenario.verification.weights_s + scenario.server.host_s


def room(scenario: Scenario, kind: str) -> float:
    """Sessions that memory has room for beside a draft of this kind ("": none), over devices."""
    draft = draft_of(scenario, kind) if kind else None
    tokens = scenario.kv_tokens_beside(draft.weights_bytes, draft.kv_bytes_per_token) if draft else scenario.kv_tokens
    return tokens / context_tokens(scenario) / scenario.n_devices


def one_way_s(scenario: Scenario) -> float:
    """Mean of the median one-way delays."""
    return mean_of([d.link.one_way_s for d in scenario.devices], [d.share for d in scenario.devices])


def device_token_s(scenario: Scenario) -> float:
    """Mean time in which a device drafts a token, its throttling half done."""
    times = [2.0 / (d.draft_tokens_per_s * (1.0 + d.throttle_ratio)) + d.predictor_s for d in scenario.devices]
    return mean_of(times, [d.share for d in scenario.devices])


def promised_tokens_per_s(scenario: Scenario) -> float:
    """Mean speed that is promised."""
    return mean_of([c.speed_tokens_per_s for c in scenario.slo], [c.share for c in scenario.slo])


def spread_of_speeds(scenario: Scenario) -> float:
    """Highest over mean speed that is promised."""
    return max(c.speed_tokens_per_s for c in scenario.slo) / promised_tokens_per_s(scenario)


def head_number(scenario: Scenario, number: Callable[[ServerDraft], float]) -> float:
    """A number of the head, SMALL where there is none."""
    head = draft_of(scenario, HEAD)
    return number(head) if head else SMALL


NUMBERS: Mapping[str, Callable[[Scenario], float]] = {
    "log devices": lambda s: log(s.n_devices),
    "log room for sessions, over devices": lambda s: log(room(s, "")),
    "log room beside the head, over devices": lambda s: log(room(s, HEAD)),
    "log room beside the devices' draft, over devices": lambda s: log(room(s, OWN)),
    "log time of a batch apart from its tokens, s": lambda s: log(batch_s(s)),
    "log time of a token of each device, over that": lambda s: log(s.n_devices * s.verification.token_s / batch_s(s)),
    "log prompt tokens for each output token": lambda s: log(mean_tokens(s.workload.prompt) / mean_tokens(s.workload.output)),
    "log output tokens": lambda s: log(mean_tokens(s.workload.output)),
    "log think time, s": lambda s: log(s.workload.think_s),
    "log one-way delay, s": lambda s: log(one_way_s(s)),
    "log one-way delay, over time of a batch": lambda s: log(one_way_s(s) / batch_s(s)),
    "log device's time for a draft token, over time of a batch": lambda s: log(device_token_s(s) / batch_s(s)),
    "acceptance of the devices' draft": lambda s: mean_acceptance(s.draft.acceptance),
    "acceptance of the head": lambda s: head_number(s, share_of),
    "log step of the head, over time of a batch": lambda s: log(head_number(s, lambda d: d.time.launch_s) / batch_s(s)),
    "log promised speed, tokens/s": lambda s: log(promised_tokens_per_s(s)),
    "log promised speed of all devices, tokens in a batch": lambda s: log(promised_tokens_per_s(s) * s.n_devices * batch_s(s)),
    "highest over mean promised speed": spread_of_speeds,
}  # fmt: skip
NAMES = tuple(NUMBERS)


def numbers_of(scenario: Scenario) -> np.ndarray:
    """(NAMES,) float64: what a choice sees of a scenario."""
    of_kind("scenario", scenario, Scenario)
    return np.array([number(scenario) for number in NUMBERS.values()])
