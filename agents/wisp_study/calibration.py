"""One calibration of what WISP's evaluation leaves open: eight global numbers, fitted once to all published cells.

What the numbers change stands in `study_scenario` and `controllers`; `capacity` is what they are fitted to.
"""

import math
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from agents.wisp_study.published import CAPACITY, SLO_TOKENS_PER_S, SYSTEMS
from wisp_gym.controllers.resolve import resolve
from wisp_gym.errors import InputError
from wisp_gym.evaluation.pool import Threads
from wisp_gym.files import read_text
from wisp_gym.rules.controller import Controller
from wisp_gym.scenario import Scenario, load, with_, with_slo
from wisp_gym.simulation import simulate

FILE = Path(__file__).resolve().parents[2] / "wisp_gym" / "scenarios" / "calibration" / "wisp-study.toml"
TARGETS = {
    "qwen3-32b": "wisp-a100-qwen3-32b",
    "qwen3-14b": "wisp-a100-qwen3-14b",
    "llama-3.1-70b": "wisp-a100-llama-70b",
}
LIMIT = 4096  # devices; no system comes near
GOODPUT_SLO = 8  # tokens/s of the class at which goodput is read (assumption: see docs/model/calibration.md)
SLED_LENGTH = 8  # tokens; of the pair length and batch, which trade off against each other, the batch is fitted
STATIC_TIMEOUT_S = 0.1
TOLERANCE = 0.03  # relative width of the bracket between whose ends a capacity is interpolated in the search


@dataclass(frozen=True)
class Parameter:
    """One fitted number with its range and why that range."""

    value: float
    low: float
    high: float
    reason: str


Calibration = dict[str, Parameter]


def read(path: Path = FILE) -> Calibration:
    """The calibration of a TOML file.

    Raises:
        InputError: it cannot be read, or a value lies outside its range.
    """
    try:
        tables = tomllib.loads(read_text(path))
        calibration = {name: Parameter(**table) for name, table in tables.items()}
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}: no calibration: {error}") from None
    for name, p in calibration.items():
        if not 0 < p.low <= p.value <= p.high:
            raise InputError(f"{path}: {name}: value given {p.value}, allowed is {p.low} to {p.high}")
    return calibration


def text(calibration: Calibration, header: str) -> str:
    """The calibration as TOML."""
    lines = [f"# {line}" for line in header.splitlines()]
    for name, p in calibration.items():
        numbers = [f"value = {p.value:.4g}", f"low = {p.low}", f"high = {p.high}"]
        lines += ["", f"[{name}]", *numbers, f'reason = "{p.reason}"']
    return "\n".join(lines) + "\n"


def values(calibration: Calibration) -> dict[str, float]:
    """Name → value."""
    return {name: p.value for name, p in calibration.items()}


def study_scenario(target: str, given: dict[str, float]) -> Scenario:
    """The preset of a target with the calibrated quantities in place.

    `verification_scale` multiplies every time of the server, true and predicted: the level of the tables behind them is uncertain
    by ±40 % (docs/model/estimators.md).
    """
    scenario = load(TARGETS[target])
    changes: dict[str, float] = {
        "workload.prompt.median_tokens": given["prompt_median_tokens"], "workload.think_s": given["think_s"],
        "server.memory_utilisation": given["memory_utilisation"],
        "server.prefill_chunk_tokens": round(given["prefill_chunk_tokens"]),
    }  # fmt: skip
    times = {part: getattr(scenario, part) for part in ("verification", "estimator")}
    times |= {f"server_drafts.{i}.time": draft.time for i, draft in enumerate(scenario.server_drafts)}
    for part, time in times.items():
        for name, value in asdict(time).items():
            if name.endswith("_s"):
                changes[f"{part}.{name}"] = value * given["verification_scale"]
    return with_(scenario, **changes)


def controllers(given: dict[str, float], scenario: Scenario) -> dict[str, Controller]:
    """The three published systems, and the two baselines without their limits."""
    sled, centralized = round(given["sled_batch"]), round(given["centralized_batch"])
    names = {
        "wisp": "wisp+wisp", "centralized": f"centralized:{centralized}",
        "sled": f"fixed:{SLED_LENGTH}+static:{sled},{STATIC_TIMEOUT_S}",
        "centralized, no cap": "centralized:0", "sled, no cap": f"fixed:{SLED_LENGTH}+fcfs", "wisp, first come first served": "wisp+fcfs",
    }  # fmt: skip
    return {label: resolve(name, scenario) for label, name in names.items()}


def capacity(scenario: Scenario, controller: Controller, seeds: Sequence[int], target: float, guess: int) -> float:
    """Number of devices at which mean attainment crosses the target, interpolated, so that a small change shows."""
    seen: dict[int, float] = {}

    def attained(n: int) -> float:
        if n not in seen:
            seen[n] = float(np.nanmean([m.slo_attainment for m in simulate(scenario, controller, seeds, n, threads=1)]))
        return seen[n]

    low = largest(attained, target, guess, TOLERANCE)
    high = min((n for n in seen if n > low), default=low)
    if low == 0 or high == low or seen[high] >= target:
        return float(low)
    return low + (high - low) * (seen[low] - target) / (seen[low] - seen[high])


def largest(attained: Callable[[int], float], target: float, guess: int, tolerance: float = 0.0) -> int:
    """Largest number of devices that reaches the target, to a relative tolerance, searched from a guess."""
    low, high = bracket(attained, target, guess)
    while high - low > max(1, round(tolerance * low)):
        middle = (low + high) // 2
        low, high = (middle, high) if attained(middle) >= target else (low, middle)
    return low


def bracket(attained: Callable[[int], float], target: float, guess: int) -> tuple[int, int]:
    """A number of devices that reaches the target (0: none does) and a larger one that misses it, near a guess."""
    if attained(guess) >= target:
        low, high = guess, math.ceil(guess * 1.3)
        while high < LIMIT and attained(high) >= target:
            low, high = high, math.ceil(high * 1.3)
        return low, min(high, LIMIT)
    low, high = int(guess / 1.3), guess
    while low > 0 and attained(low) < target:
        low, high = int(low / 1.3), low
    return low, high


def cell(target: str, given: dict[str, float], system: str, speed: float, seeds: Sequence[int], guess: int) -> float:
    """Capacity of a system at one SLO speed."""
    scenario = with_slo(study_scenario(target, given), speed)
    return capacity(scenario, controllers(given, scenario)[system], seeds, given["attainment"], guess)


def served_goodput(devices: float, attained: float) -> float:
    """Goodput at capacity, counted at the speed that the class asks for: devices × speed × attainment, tokens/s.

    Devices are not slowed down to their class's speed, so tokens delivered on time alone would count more than was asked for.
    """
    return devices * GOODPUT_SLO * attained


def cells(given: dict[str, float], seeds: Sequence[int], systems: Sequence[str] = SYSTEMS) -> dict[str, list[float]]:
    """Capacities of Qwen3-32B at the four speeds, by system."""
    speeds = list(enumerate(SLO_TOKENS_PER_S))
    jobs = [("qwen3-32b", given, s, speed, seeds, CAPACITY[s][k]) for s in systems for k, speed in speeds]
    found = np.reshape(list(Threads().map(cell, jobs)), (-1, len(speeds)))
    return dict(zip(systems, found.tolist(), strict=True))


def lines(calibration: Calibration) -> list[list[str]]:
    """The calibration as a table: a header, and a line a parameter."""
    rows = [[name, f"{p.value:.4g}", f"{p.low:g}", f"{p.high:g}", p.reason] for name, p in calibration.items()]
    return [["parameter", "value", "low", "high", "why this range"], *rows]


def study_preset(calibration: Calibration) -> Scenario:
    """The calibrated scenario of Qwen3-32B with a name of its own."""
    words = "The default with the calibrated numbers of WISP's study in place (wisp_gym/scenarios/calibration/wisp-study.toml)"
    return replace(study_scenario("qwen3-32b", values(calibration)), name="wisp-study", description=words)
