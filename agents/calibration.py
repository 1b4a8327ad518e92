"""One calibration of what WISP's evaluation leaves open: eight global numbers, fitted once to all published cells.

    python -m agents.calibration --search --evaluations 200 --out FILE.toml    # prints the progress and the fit
    python -m agents.calibration                                               # prints the shipped calibration

The search is the cross-entropy method on the logarithms of the parameters, within their ranges; the loss is the mean squared
logarithm of measured / published over the twelve capacities and three goodputs. Nothing is fitted per cell.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tomllib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from agents.command_line import Parser, output_file, run, whole
from agents.published import CAPACITY, GOODPUT, SLO_TOKENS_PER_S, SYSTEMS
from agents.tables import aligned
from estimators.cli import InputError, write_text
from wisp_gym.controllers.catalogue import Controller, resolve
from wisp_gym.metrics import Metrics
from wisp_gym.scenario import Scenario, load, with_, with_slo
from wisp_gym.simulation import simulate

PROGRAM = "python -m agents.calibration"
FILE = Path(__file__).resolve().parents[1] / "wisp_gym" / "scenarios" / "calibration" / "wisp-study.toml"
TARGETS = {
    "qwen3-32b": "wisp-a100-qwen3-32b",
    "qwen3-14b": "wisp-a100-qwen3-14b",
    "llama-3.1-70b": "wisp-a100-llama-70b",
}
LIMIT = 4096  # devices; no system comes near
GOODPUT_SLO = 8  # tokens/s of the class at which goodput is read (assumption: see docs/calibration.md)
POPULATION, ELITE = 20, 5


@dataclass(frozen=True)
class Parameter:
    """One fitted number with its range and why that range."""

    value: float
    low: float
    high: float
    reason: str


Calibration = dict[str, Parameter]


def read(path: Path = FILE) -> Calibration:
    """The calibration of a file."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
        calibration = {name: Parameter(**table) for name, table in tables.items()}
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}: no calibration: {error}") from None
    for name, p in calibration.items():
        if not 0 < p.low <= p.value <= p.high:
            raise InputError(f"{path}: {name}: value given {p.value}, allowed is {p.low} to {p.high}")
    return calibration


def text(calibration: Calibration, header: str) -> str:
    """The calibration as TOML."""
    parts = [f"# {line}" for line in header.splitlines()]
    for name, p in calibration.items():
        parts += [
            "",
            f"[{name}]",
            f"value = {p.value:.4g}",
            f"low = {p.low}",
            f"high = {p.high}",
            f'reason = "{p.reason}"',
        ]
    return "\n".join(parts) + "\n"


def values(calibration: Calibration) -> dict[str, float]:
    """Name → value."""
    return {name: p.value for name, p in calibration.items()}


def study_scenario(target: str, given: dict[str, float]) -> Scenario:
    """The preset of a target with the calibrated quantities in place."""
    scenario = load(TARGETS[target])
    changes: dict[str, float] = {
        "workload.prompt.median_tokens": given["prompt_median_tokens"], "workload.output.median_tokens": given["output_median_tokens"],
    }  # fmt: skip
    for index, device in enumerate(scenario.devices):
        changes[f"devices.{index}.draft_tokens_per_s"] = device.draft_tokens_per_s * given["draft_speed_scale"]
        changes[f"devices.{index}.link.one_way_s"] = device.link.one_way_s * given["delay_scale"]
    return with_(scenario, **changes)


def controllers(given: dict[str, float], scenario: Scenario) -> dict[str, Controller]:
    """The three published systems, and the two baselines without their limits."""
    length, batch, sequences = (
        round(given["sled_length"]),
        round(given["sled_batch"]),
        round(given["centralized_sequences"]),
    )
    names = {
        "wisp": "wisp+wisp", "centralized": f"centralized:{sequences}", "sled": f"fixed:{length}+static:{batch},0.1",
        "centralized, no cap": "centralized:0", "sled, no cap": f"fixed:{length}+fcfs", "wisp, first come first served": "wisp+fcfs",
    }  # fmt: skip
    return {label: resolve(name, scenario) for label, name in names.items()}


def worlds(scenario: Scenario, controller: Controller, seeds: Sequence[int], n: int) -> list[Metrics]:
    """Metrics of `n` devices in each world, on this thread."""
    return simulate(scenario, controller, seeds, n, threads=1)


def capacity(
    scenario: Scenario, controller: Controller, seeds: Sequence[int], target: float, guess: int
) -> tuple[int, float]:
    """Largest number of devices whose mean attainment reaches the target (0: not even one), and the attainment there."""
    seen: dict[int, float] = {}

    def attained(n: int) -> float:
        if n not in seen:
            seen[n] = float(np.nanmean([m.slo_attainment for m in worlds(scenario, controller, seeds, n)]))
        return seen[n]

    low = largest(attained, target, guess, tolerance=0.01)
    return low, seen.get(low, math.nan)


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


def cell(
    target: str, given: dict[str, float], system: str, speed: float, seeds: Sequence[int], guess: int
) -> tuple[int, float]:
    """Capacity of a system at one SLO speed, and the attainment there."""
    scenario = with_slo(study_scenario(target, given), speed)
    return capacity(scenario, controllers(given, scenario)[system], seeds, given["attainment"], guess)


def served_goodput(devices: int, attained: float) -> float:
    """Goodput at capacity, counted at the speed that the class asks for: devices × speed × attainment, tokens/s.

    Devices are not slowed down to their class's speed, so tokens delivered on time alone would count more than was asked for.
    """
    return devices * GOODPUT_SLO * attained


def all_cells(
    given: dict[str, float], seeds: Sequence[int], threads: int | None = None
) -> tuple[dict[str, list[int]], dict[str, float]]:
    """The twelve capacities and three goodputs of Qwen3-32B."""
    jobs = [(system, k) for system in SYSTEMS for k in range(len(SLO_TOKENS_PER_S))]
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        found = list(
            pool.map(
                lambda job: cell("qwen3-32b", given, job[0], SLO_TOKENS_PER_S[job[1]], seeds, CAPACITY[job[0]][job[1]]),
                jobs,
            )
        )
    capacities = {
        system: [found[jobs.index((system, k))][0] for k in range(len(SLO_TOKENS_PER_S))] for system in SYSTEMS
    }
    last = SLO_TOKENS_PER_S.index(GOODPUT_SLO)
    return capacities, {system: served_goodput(*found[jobs.index((system, last))]) for system in SYSTEMS}


def loss(capacities: dict[str, list[int]], goodputs: dict[str, float]) -> float:
    """Mean squared log error over the fifteen published figures."""
    errors = [math.log(max(m, 0.5) / p) for s in SYSTEMS for m, p in zip(capacities[s], CAPACITY[s], strict=True)]
    errors += [math.log(max(goodputs[s], 0.5) / GOODPUT[s]) if goodputs[s] == goodputs[s] else 5.0 for s in SYSTEMS]
    return float(np.mean(np.square(errors)))


def search(start: Calibration, evaluations: int, seeds: Sequence[int], seed: int) -> tuple[Calibration, float]:
    """Cross-entropy search; returns the best calibration seen and its loss."""
    rng = np.random.default_rng(seed)
    names = list(start)
    low, high = (np.log([getattr(start[n], end) for n in names]) for end in ("low", "high"))
    mean, std = np.log([start[n].value for n in names]), (high - low) / 5.0
    best, best_loss, tried = mean, math.inf, 0
    with tqdm(total=evaluations, unit=" calibrations", disable=not sys.stderr.isatty()) as bar:
        while tried < evaluations:
            points = np.clip(rng.normal(mean, std, (min(POPULATION, evaluations - tried), len(names))), low, high)
            points[0] = best if math.isfinite(best_loss) else mean
            losses = []
            for point in points:
                losses.append(loss(*all_cells(dict(zip(names, np.exp(point), strict=True)), seeds)))
                bar.update()
                tried += 1
                if losses[-1] < best_loss:
                    best, best_loss = point, losses[-1]
                    print(
                        f"{tried}: loss {best_loss:.4f}: "
                        + ", ".join(f"{n} {math.exp(v):.4g}" for n, v in zip(names, best, strict=True)),
                        flush=True,
                    )
            elite = points[np.argsort(losses)[:ELITE]]
            mean, std = elite.mean(axis=0), np.maximum(0.8 * elite.std(axis=0) + 0.2 * std, 0.01)
    fitted = {
        n: Parameter(float(np.exp(v)), start[n].low, start[n].high, start[n].reason)
        for n, v in zip(names, best, strict=True)
    }
    return fitted, best_loss


def show(calibration: Calibration) -> str:
    """The calibration as a table."""
    rows = [[name, f"{p.value:.4g}", f"{p.low:g}", f"{p.high:g}", p.reason] for name, p in calibration.items()]
    return aligned([["parameter", "value", "low", "high", "why this range"]], rows)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The flags."""
    parser = Parser(prog=PROGRAM, description=__doc__)
    add = parser.add_argument
    add("--search", action="store_true", help="fit again (about 3 s a calibration on two cores)")
    add("--evaluations", type=whole(1, 100_000), default=200, metavar="N", help="calibrations to try (default 200)")
    add("--seeds", type=whole(1, 1000), default=2, metavar="S", help="worlds for each capacity (default 2)")
    add("--seed", type=whole(0, 2**31 - 1), default=0, help="seed of the search (default 0)")
    add("--out", type=output_file(".toml"), metavar="FILE.toml", help="write the fitted calibration there")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Show the calibration, or fit it."""
    given = parse(arguments)
    calibration = read()
    if given.search:
        calibration, found = search(calibration, given.evaluations, range(given.seeds), given.seed)
        print(f"mean squared log error {found:.4f} (root {math.sqrt(found):.3f}) over 12 capacities and 3 goodputs")
        if given.out:
            header = (
                "What WISP's evaluation leaves open, as eight numbers fitted once to all of its published capacities and goodputs.\n"
                "None of them is WISP's own value. low and high: the range that was searched.\n"
                f"python -m agents.calibration --search --evaluations {given.evaluations} --seeds {given.seeds} --seed {given.seed}: "
                f"root mean squared log error {math.sqrt(found):.3f}"
            )
            write_text(given.out, text(calibration, header))
    print(show(calibration))


if __name__ == "__main__":
    sys.exit(run(main, PROGRAM))
