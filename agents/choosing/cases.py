"""Deployments to learn a choice in: drawn at random along every axis of the frontier suite, several at once.

Ranges are assumptions of the training; each axis stays at its preset's value in most cases, so that the usual is seen most.
"""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from agents.study.suite import SUITES
from wisp_gym.scenario import DEFAULT_SCENARIO, Horizon, Scenario, load, with_, with_slo

HORIZON = Horizon(warmup_s=20.0, measure_s=40.0, drain_s=80.0)  # as the frontier suite has it
ELSEWHERE = 10_000  # cases from here on are of other targets and drafts
CROWDED = 20_000  # from here on of more devices than memory or compute bears
BASES = (*(DEFAULT_SCENARIO,) * 5, "h100-qwen3-32b", "h100-qwen3-32b", "h200-qwen3-32b", "wisp-study")
OTHERS = (DEFAULT_SCENARIO, DEFAULT_SCENARIO, "wisp-a100-qwen3-14b", "wisp-a100-llama-70b", "wisp-a100-llama-70b-nf4")
DEVICES = {  # fewest, most
    DEFAULT_SCENARIO: (6, 220), "h100-qwen3-32b": (24, 280), "h200-qwen3-32b": (48, 340), "wisp-study": (6, 180),
    "wisp-a100-qwen3-14b": (8, 400), "wisp-a100-llama-70b": (8, 220), "wisp-a100-llama-70b-nf4": (6, 120),
}  # fmt: skip
MIXES = ("pis", "phones", "boards")  # the frontier's devices, on the default preset
SAMPLES = np.arange(4.0, 320.0, 4.0)  # new tokens of batches that an estimator is fitted to
CONTEXT_TOKENS = 300.0  # of a request of those


def case(number: int) -> Scenario:
    """The deployment of this number: the same number is the same scenario."""
    rng = np.random.default_rng(number)
    elsewhere, crowded = ELSEWHERE <= number < CROWDED, number >= CROWDED
    bases = OTHERS if elsewhere else BASES
    base = bases[rng.integers(len(bases))]
    scenario = preset(base)
    if base == DEFAULT_SCENARIO and rng.random() < 0.3:
        scenario = preset(str(rng.choice(MIXES)))
    low, high = DEVICES[base]
    devices = round(between(rng, 0.5 * high, 1.1 * high) if crowded else between(rng, low, high))
    changes = {**server(rng, scenario), **workload(rng, scenario), **network(rng, scenario)}
    if elsewhere:
        changes |= drafts(rng, scenario)
    if crowded:
        changes |= memory(rng, scenario, chance=0.6, most=1.15)
    scenario = with_(scenario, **changes)
    if rng.random() < 0.4:
        scenario = with_slo(scenario, between(rng, 2.0, 12.0))
    return replace(scenario, n_devices=devices, horizon=HORIZON)


@cache
def preset(name: str) -> Scenario:
    """A preset, or one of the frontier suite's scenarios."""
    beside = Path(SUITES) / "scenarios" / f"{name}.toml"
    return load(beside if beside.is_file() else name)


def between(rng: np.random.Generator, low: float, high: float) -> float:
    """A number whose logarithm is uniform."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def server(rng: np.random.Generator, scenario: Scenario) -> dict[str, Any]:
    """Arithmetic against reading weights, and memory."""
    changes: dict[str, Any] = {}
    if rng.random() < 0.25:
        token_s = scenario.verification.token_s * between(rng, 1.0, 3.5)
        weights_s = scenario.verification.weights_s * between(rng, 0.3, 1.0)
        changes |= {"verification.token_s": token_s, "verification.weights_s": weights_s}
        changes |= estimator(scenario, token_s, weights_s)
    return changes | memory(rng, scenario, chance=0.3, most=2.0)


def memory(rng: np.random.Generator, scenario: Scenario, chance: float, most: float) -> dict[str, Any]:
    """Less or up to `most` times the memory, with a chance."""
    if rng.random() >= chance:
        return {}
    return {"server.memory_bytes": int(scenario.server.memory_bytes * between(rng, 0.92, most))}


def estimator(scenario: Scenario, token_s: float, weights_s: float) -> dict[str, float]:
    """The line through a roofline, as the server estimates with: least squares over batches of SAMPLES."""
    time, known = scenario.verification, scenario.estimator
    p = time.sharpness
    batches_s = (weights_s**p + (token_s * SAMPLES) ** p) ** (1.0 / p) + time.launch_s + scenario.server.host_s
    rows = np.stack([np.ones_like(SAMPLES), SAMPLES], 1)
    line = np.linalg.lstsq(rows, batches_s - known.pair_s * SAMPLES * CONTEXT_TOKENS, rcond=None)[0]
    return {"estimator.launch_s": float(line[0]), "estimator.new_token_s": float(line[1])}


def workload(rng: np.random.Generator, scenario: Scenario) -> dict[str, Any]:
    """Prompts, answers and pauses."""
    changes: dict[str, Any] = {}
    if rng.random() < 0.4:
        changes["workload.prompt.median_tokens"] = scenario.workload.prompt.median_tokens * between(rng, 0.3, 5.5)
    if rng.random() < 0.2:
        changes["workload.output.median_tokens"] = scenario.workload.output.median_tokens * between(rng, 0.5, 2.0)
    if rng.random() < 0.2:
        changes["workload.think_s"] = between(rng, 1.0, 8.0)
    return changes


def network(rng: np.random.Generator, scenario: Scenario) -> dict[str, Any]:
    """One delay for all links."""
    if rng.random() >= 0.35:
        return {}
    one_way_s = between(rng, 5e-4, 0.075)
    return {f"devices.{i}.link.one_way_s": one_way_s for i in range(len(scenario.devices))}


def drafts(rng: np.random.Generator, scenario: Scenario) -> dict[str, Any]:
    """How often drafts are right, and how long they take at the server."""
    moved, slower = rng.uniform(-0.6, 0.6, size=2), [between(rng, 0.5, 2.0) for _ in range(2)]
    logit = scenario.draft.acceptance.logit_mean + float(moved[0])
    changes: dict[str, Any] = {"draft.acceptance.logit_mean": logit}
    for i, draft in enumerate(scenario.server_drafts[:2]):
        own = draft.name == scenario.draft.name
        changes[f"server_drafts.{i}.acceptance.logit_mean"] = (
            logit if own else draft.acceptance.logit_mean + float(moved[1])
        )
        changes[f"server_drafts.{i}.time.launch_s"] = draft.time.launch_s * slower[i]
    return changes
