"""Recorded decisions of the engine, told to a serving controller as a device would live them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from wisp_gym.contract.device import (
    CONFIDENCE,
    ENTROPY,
    HEAD_TOKENS,
    LOGIT_SPREAD,
    MARGIN,
    SERVER_RATE,
    SERVER_SHARE,
    SERVER_TOKENS,
    TAKES_OVER,
)
from wisp_gym.engine.build import accepted_share, smallest_batch_s
from wisp_gym.engine.state import LOG_ARRIVE, LOG_DELIVER, LOG_DRAFT, LOG_END, LOG_REQUEST, LOG_SEND, LOG_VERIFY
from wisp_gym.envs.speculation import SpeculationLengthTask, SpeculationSettings, SpeculationTask
from wisp_gym.scenario import Scenario
from wisp_gym.serving.bundle.bundle import Bundle
from wisp_gym.serving.device.controller import DeviceProfile, Reply, SpeculationController, Token

LOG_ROWS = 1_500_000


@dataclass(frozen=True)
class Decision:
    """One decision: what the engine saw, and the controller that has been told the same facts."""

    seen: np.ndarray  # (SIZE,) float32
    now_s: float
    controller: SpeculationController


def profile_of(scenario: Scenario, d: Any) -> DeviceProfile:
    """What a device of the engine knows beforehand."""
    return DeviceProfile(
        slo_tokens_per_s=float(d["slo_tokens_per_s"]), draft_token_s=float(d["token_s"]), one_way_s=float(d["one_way_s"]),
        accept_share=accepted_share(scenario), batch_s=smallest_batch_s(scenario), grace_s=float(d["grace_s"]), ttft_s=float(d["ttft_s"]),
        clock_from_arrival=bool(d["clock_from_arrival"]),
    )  # fmt: skip


def live(task: SpeculationTask, controller: SpeculationController, begun: dict[str, float]) -> None:
    """Tell the controller what the event log holds of its device since the last decision; `begun` keeps what is under way."""
    world = task.episodes.arrays
    i, s, d = int(task.device[0]), world.server[0, 0], world.device[0, int(task.device[0])]
    log = world.log[0, int(begun.get("row", 0)) : int(s["log_length"])]
    assert s["log_length"] < LOG_ROWS
    begun["row"] = int(s["log_length"])
    for row in log[(log["device"] == i) | (log["kind"] == LOG_END)]:
        time_s = float(row["time_s"])
        if row["kind"] == LOG_DRAFT:
            begun["drafted"] = float(row["value"])
        elif row["kind"] == LOG_REQUEST:
            begun["request_s"], begun["prompt"] = time_s, float(row["value"])
            controller.begin_request(time_s, int(row["value"]), 1 << 20)
        elif row["kind"] == LOG_SEND:
            controller.sent(time_s)
            begun["sent_s"], begun["drafted"], begun["sent"] = time_s, float(row["value"]), 1.0
        elif row["kind"] == LOG_ARRIVE:
            begun["arrived_s"] = time_s
        elif row["kind"] == LOG_END:
            begun["end_s"] = time_s
        elif row["kind"] == LOG_VERIFY:
            begun["accepted"] = float(row["value"])
        elif row["kind"] == LOG_DELIVER:
            receive(controller, d, begun, int(row["value"]), time_s)
            begun["sent"] = begun["drafted"] = 0.0


def receive(controller: SpeculationController, d: Any, begun: dict[str, float], tokens: int, time_s: float) -> None:
    """A reply; the server state of one that another has followed since is lost, and nothing depends on it."""
    end_s = begun["end_s"]
    last = float(d["info_s"]) == end_s
    controller.output_tokens = int(d["output_tokens"]) if last else 1 << 20
    controller.arrival_s = float(d["arrival_s"]) if last else begun["request_s"]
    reply = Reply(
        accepted_tokens=int(begun["accepted"]), committed_tokens=tokens, verified_tokens=int(begun["drafted"]),
        busy=bool(d["info_busy"]), running_left_s=float(d["info_end_s"] - d["info_s"]), mean_batch_s=float(d["info_batch_s"]),
        queue_s=float(d["info_queue_s"]), utilisation=float(d["info_utilisation"]), held_s=end_s - begun["arrived_s"], price=float(d["price"]),
        suggested_tokens=int(d["suggested_tokens"]), by_server=not begun["sent"],
    )  # fmt: skip
    up_s, down_s = begun["arrived_s"] - begun["sent_s"], time_s - end_s
    controller.receive(reply, time_s, up_s, down_s)
    controller.begin_round(time_s)  # as the engine does; a round of no tokens asks for no decision


def tell_of_server(controller: SpeculationController, o: np.ndarray, cap: int) -> None:
    """What the last reply said of the server's own drafting; the engine keeps no copy of it but the observation."""
    controller.takes_over, controller.server_tokens = bool(o[TAKES_OVER] > 0.5), round(float(o[SERVER_TOKENS]) * cap)
    controller.server_rate, controller.server_share = float(o[SERVER_RATE]), float(o[SERVER_SHARE])


def token_of(o: np.ndarray, d: Any) -> Token:
    """Statistics of the last drafted token."""
    return Token(float(d["p_token"]), *(float(o[k]) for k in (CONFIDENCE, ENTROPY, MARGIN, LOGIT_SPREAD)))


def replayed(bundle: Bundle, scenario: Scenario, name: str, seed: int, n: int, devices: int = 12) -> Iterator[Decision]:
    """n decisions of one device of a world whose others follow controller `name`; the bundle's policy takes each of them.

    The reader of this iterator asks the controller; it is then told of what came of it.
    """
    task_type = SpeculationLengthTask if bundle.schema.decision.startswith("length") else SpeculationTask
    ways = bundle.schema.decision.endswith("-way")
    settings = SpeculationSettings(scenario=scenario, devices=devices, controller=name, ways=ways, horizon_s=1e3)
    task = task_type(1, settings, LOG_ROWS, threads=1)
    task.restart(np.ones(1, bool), [np.random.default_rng(seed)])
    d = task.episodes.arrays.device[0, int(task.device[0])]
    controller = SpeculationController(bundle, replace(profile_of(scenario, d), drafts_on=ways))
    begun: dict[str, float] = {}
    for _ in range(n):
        o, now_s = task.observations[0], float(d["clock_s"])
        if d["drafted"] == 0:
            live(task, controller, begun)
            tell_of_server(controller, o, bundle.schema.max_draft_tokens)
            head = round(float(o[HEAD_TOKENS]) * bundle.schema.max_draft_tokens)
            controller.begin_round(now_s, float(d["draft_token_s"]), head)
        else:
            controller.drafted(token_of(o, d), now_s)
        yield Decision(o.copy(), now_s, controller)
        action = bundle.decide({"observation": o[None].copy()})[0]
        task.step(action.astype(np.int64))
        if task.kinds[0] == 0:
            return
