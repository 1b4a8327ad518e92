"""Calibrations of what WISP's evaluation leaves open: eight global numbers, fitted once to all published cells.

`joint` is fitted to Qwen3-32B and Qwen3-14B together and knows what the host does for each message; `study`, the one before, to
Qwen3-32B alone, and is that of the preset `wisp-study`. What the numbers change stands in `study_scenario` and `controllers`;
`capacity` is what they are fitted to.
"""

import math
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from agents.wisp_study.published import CAPACITY, GOODPUT, SLO_TOKENS_PER_S, SYSTEMS
from wisp_gym.controllers.resolve import resolve
from wisp_gym.errors import InputError, one_of
from wisp_gym.evaluation.pool import Threads
from wisp_gym.files import read_text
from wisp_gym.rules.controller import Controller
from wisp_gym.scenario import Scenario, load, with_, with_slo
from wisp_gym.simulation import simulate

FOLDER = Path(__file__).resolve().parents[2] / "wisp_gym" / "scenarios" / "calibration"
FILES = {"joint": FOLDER / "wisp-joint.toml", "study": FOLDER / "wisp-study.toml"}
TARGETS = {
    "qwen3-32b": "wisp-a100-qwen3-32b",
    "qwen3-14b": "wisp-a100-qwen3-14b",
    "llama-3.1-70b": "wisp-a100-llama-70b-nf4",
    "llama-3.1-70b-copied": "wisp-a100-llama-70b-nf4",
    "llama-3.1-70b-x4": "wisp-a100-llama-70b",
}
# NF4 weights that are written out in 16 bits before each product, and read again (bitsandbytes' `matmul_4bit` for more than one
# token): 137 GB written and 38.5 GB read at 1.52 TB/s for every batch, then read as any weights in 16 bits.
CHANGES = {
    "llama-3.1-70b-copied": {
        "verification.launch_s": 17.9e-3 + (137e9 + 38.5e9) / 1.52e12, "verification.weights_s": 30.9e-3 * 141.2 / 65.6,
    }
}  # fmt: skip
MAIN, SECOND = "qwen3-32b", "qwen3-14b"  # targets with published capacities, and with published goodputs alone
LIMIT = 4096  # devices; no system comes near
GOODPUT_SLO = 8  # tokens/s of the class at which goodput is read (assumption: see docs/model/calibration.md)
SLED_LENGTH = 8  # tokens; of the pair length and batch, which trade off against each other, the batch is fitted
STATIC_TIMEOUT_S = 0.1
PLACES = {
    "prompt_median_tokens": "workload.prompt.median_tokens", "think_s": "workload.think_s",
    "memory_utilisation": "server.memory_utilisation",
}  # fmt: skip
TOLERANCE = 0.03  # relative width of the bracket between whose ends a capacity is interpolated in the search


@dataclass(frozen=True)
class Parameter:
    """One fitted number with its range and why that range."""

    value: float
    low: float
    high: float
    reason: str


Calibration = dict[str, Parameter]


def find(name: str) -> Path:
    """The file of a calibration's name, or the file that is named.

    Raises:
        InputError: neither is known.
    """
    path = FILES.get(name, Path(name))
    if not path.suffix:
        one_of("argument --calibration", name, FILES)
    return path


def read(path: Path = FILES["joint"]) -> Calibration:
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
    """The preset of a target with the calibrated quantities in place; what a calibration does not name stays the preset's.

    `verification_scale` multiplies every time of the GPU, true and predicted: the level of the tables behind them is uncertain
    by ±40 % (docs/model/estimators.md). `message_s` is the host's time for each message that a batch answers.
    """
    scenario = with_(load(TARGETS[target]), **CHANGES.get(target, {}))
    changes: dict[str, float] = {place: given[name] for name, place in PLACES.items() if name in given}
    if "prefill_chunk_tokens" in given:
        changes["server.prefill_chunk_tokens"] = round(given["prefill_chunk_tokens"])
    times = {part: getattr(scenario, part) for part in ("verification", "estimator")}
    times |= {f"server_drafts.{i}.time": draft.time for i, draft in enumerate(scenario.server_drafts)}
    for part, time in times.items():
        for name, value in asdict(time).items():
            if name.endswith("_s"):
                changes[f"{part}.{name}"] = value * given["verification_scale"]
    if "message_s" in given:
        changes["server.host_request_s"] = changes["estimator.request_s"] = given["message_s"]
    if "host_s" in given:
        changes["server.host_s"] = given["host_s"]
        changes["estimator.launch_s"] += given["host_s"] - scenario.server.host_s
    return with_(scenario, **changes)


def system_scenario(target: str, given: dict[str, float], system: str) -> Scenario:
    """`study_scenario` as a system meets it: sequences of centralized serving step on inside the engine, without messages."""
    scenario = study_scenario(target, given)
    if not system.startswith("centralized"):
        return scenario
    return with_(scenario, **{"server.host_request_s": 0.0, "estimator.request_s": 0.0})


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
    scenario = with_slo(system_scenario(target, given, system), speed)
    return capacity(scenario, controllers(given, scenario)[system], seeds, given["attainment"], guess)


def served_goodput(devices: float, attained: float) -> float:
    """Goodput at capacity, counted at the speed that the class asks for: devices × speed × attainment, tokens/s.

    Devices are not slowed down to their class's speed, so tokens delivered on time alone would count more than was asked for.
    """
    return devices * GOODPUT_SLO * attained


def cells(given: dict[str, float], seeds: Sequence[int], systems: Sequence[str] = SYSTEMS) -> dict[str, list[float]]:
    """Capacities of Qwen3-32B at the four speeds, and of Qwen3-14B at the fastest, by system."""
    jobs = []
    for system in systems:
        jobs += [(MAIN, given, system, v, seeds, CAPACITY[system][k]) for k, v in enumerate(SLO_TOKENS_PER_S)]
        jobs.append((SECOND, given, system, GOODPUT_SLO, seeds, round(GOODPUT[SECOND][system] / GOODPUT_SLO)))
    found = np.reshape(list(Threads().map(cell, jobs)), (len(systems), -1))
    return dict(zip(systems, found.tolist(), strict=True))


def lines(calibration: Calibration) -> list[list[str]]:
    """The calibration as a table: a header, and a line a parameter."""
    rows = [[name, f"{p.value:.4g}", f"{p.low:g}", f"{p.high:g}", p.reason] for name, p in calibration.items()]
    return [["parameter", "value", "low", "high", "why this range"], *rows]


def study_preset(calibration: Calibration) -> Scenario:
    """The calibrated scenario of Qwen3-32B with a name of its own."""
    words = "The default with the calibrated numbers of WISP's study in place (wisp_gym/scenarios/calibration/wisp-study.toml)"
    return replace(study_scenario(MAIN, values(calibration)), name="wisp-study", description=words)
