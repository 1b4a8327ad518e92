"""What a controller writes into a world: its constants, and once, at the world's beginning, where every session stands."""

import math

import numpy as np

from wisp_gym.engine.state import World
from wisp_gym.rules import drafters
from wisp_gym.rules.controller import Controller, Plan
from wisp_gym.rules.who_drafts import Drafting, Hosted


def follow_plan(devices: np.ndarray, plan: Plan) -> None:
    """Write each device's group and length; those beyond the plan are of no group and draft as their class does."""
    n = min(len(plan.groups), len(devices))
    devices["group"] = -1
    devices["group"][:n], devices["suggested_tokens"][:n] = plan.groups[:n], plan.lengths[:n]
    for d in devices[n:]:
        alike = np.flatnonzero(devices["class_id"][:n] == d["class_id"])
        d["suggested_tokens"] = devices["suggested_tokens"][alike[0]] if len(alike) else 0


def follow_drafting(c: np.void, drafting: Drafting, centralized: bool) -> None:
    """Write into a CONFIG row who drafts besides a device before it sends, and the draft that the server has loaded."""
    c["overlap_tokens"], c["overlap_chance"] = drafting.overlap_tokens, drafting.overlap_chance
    c["drafter"] = drafters.SERVER if centralized else drafting.drafter
    c["server_length"], c["lookahead_tokens"] = drafting.length, drafting.lookahead_tokens
    c["kv_capacity_tokens"] = drafting.hosted.kv_tokens if drafting.hosted else c["memory_tokens"]
    if drafting.hosted:
        host(c, drafting.hosted)


def host(c: np.void, draft: Hosted) -> None:
    """Write a server draft's constants into a CONFIG row."""
    values = {
        "step_overhead_s": draft.overhead_s, "step_launch_s": draft.launch_s, "step_sequence_s": draft.sequence_s,
        "step_token_s": draft.token_s, "step_cached_token_s": draft.cached_token_s,
        "server_shares": draft.shares_fates, "server_offer": draft.offer, "server_correlation": draft.correlation,
        "server_own": math.sqrt(1.0 - draft.correlation**2), "server_logit_mean": draft.logit_mean,
        "server_request_std": draft.request_std, "server_drift_std": draft.drift_std, "server_drift_keep": draft.drift_keep,
        "server_drift_fresh": math.sqrt(1.0 - draft.drift_keep**2), "server_after_rejection_logit": draft.after_rejection_logit,
        "server_loop_enter": draft.loop_enter, "server_loop_leave": draft.loop_leave, "server_loop_whole": draft.loop_whole,
        "server_loop_period_tokens": draft.loop_period_tokens, "server_loop_longer": draft.loop_longer,
        "server_prior": draft.share, "server_base_logit": math.log(draft.share / (1.0 - draft.share)),
    }  # fmt: skip
    for name, value in values.items():
        c[name] = value
    if draft.shares_fates:  # of a recorded trace, its mean
        c["server_prior"] = c["accept_prior"]


def begin_drafting(arrays: World, index: int, controller: Controller) -> None:
    """Where the sessions of world `index` stand at its beginning: with whom, with no request and no round yet.

    Only then: a controller that takes over later finds requests under way, with tokens in the server's memory.
    """
    arrays.server["server_tokens"][index] = controller.drafting.lookahead_tokens
    arrays.device["at_server"][index] = controller.centralized
    begin_sessions(arrays.sessions[index])


def begin_sessions(sessions: np.ndarray) -> None:
    """Starting values of SESSION rows: no request and no round yet."""
    sessions["request"], sessions["device_tokens"] = -1, -1
