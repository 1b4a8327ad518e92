"""Measures of a deployment as the engine counts them (docs/model/model.md, §8), and the two side by side."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from agents.sim2real.devices import Deployed, RoundRow
from wisp_gym.engine.build import SLO_STEP, classes_of
from wisp_gym.scenario import Scenario, SLOClass

TOLERANCE = 0.10
COMPARED = {
    "goodput_tokens_per_s": "goodput, tokens/s",
    "round_latency_p50_s": "round latency p50, s",
    "round_latency_p95_s": "round latency p95, s",
    "acceptance": "acceptance",
}
BESIDE = (
    "throughput_tokens_per_s", "drafted_per_round", "committed_per_round", "batch_requests", "batch_s", "server_use",
)  # fmt: skip
INTERVAL = (0.025, 0.975)


def classes(scenario: Scenario, n_devices: int) -> list[SLOClass]:
    """The service class of each device, as the engine gives them."""
    kinds = classes_of(n_devices, [slo.share for slo in scenario.slo], SLO_STEP)
    return [scenario.slo[kind] for kind in kinds]


def on_time(row: RoundRow, first_s: float, slo: SLOClass) -> int:
    """Tokens of a reply that came by `first token + k/v + grace`."""
    due = (first_s + (row.position + j) / slo.speed_tokens_per_s + slo.grace_s for j in range(row.committed))
    return sum(row.received_s <= due_s for due_s in due)


def measures(deployed: Deployed, scenario: Scenario, n_devices: int) -> dict[str, float]:
    """Goodput, latency, acceptance and what explains them, over the scenario's window of measurement."""
    start_s = deployed.start_s + scenario.horizon.warmup_s
    end_s, measure_s = start_s + scenario.horizon.measure_s, scenario.horizon.measure_s
    kinds = classes(scenario, n_devices)
    first_s = {(row.device, row.request): row.received_s for row in deployed.rounds if row.position == 0}
    inside = [row for row in deployed.rounds if start_s <= row.received_s < end_s]
    rounds = [row for row in inside if row.position > 0]
    latency = np.array([row.received_s - row.begun_s for row in rounds])
    good = sum(on_time(row, first_s[row.device, row.request], kinds[row.device]) for row in inside)
    batches = [row for row in deployed.ran if start_s <= row.end_s < end_s]
    members = sum(row.requests for row in batches)
    return {
        "goodput_tokens_per_s": good / measure_s,
        "round_latency_p50_s": float(np.quantile(latency, 0.5)),
        "round_latency_p95_s": float(np.quantile(latency, 0.95)),
        "acceptance": sum(row.accepted for row in rounds) / max(sum(row.drafted for row in rounds), 1),
        "throughput_tokens_per_s": sum(row.committed for row in inside) / measure_s,
        "drafted_per_round": sum(row.drafted for row in rounds) / len(rounds),
        "committed_per_round": sum(row.committed for row in rounds) / len(rounds),
        "batch_requests": members / max(len(batches), 1),
        "batch_s": sum(row.requests * row.seconds for row in batches) / max(members, 1),
        "server_use": sum(row.seconds for row in batches) / measure_s,
    }  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One measure of one controller at one load, deployed and in the engine.

    Attributes:
        deployed: mean of the runs. engine: mean of the worlds with the same prompts, on a machine as fast as the yardstick says it was
            in each run. low, high: between which 95 % of all worlds lie. unadjusted: as `engine`, but at the profile's speed.
    """

    load: int
    controller: str
    measure: str
    deployed: float
    engine: float
    low: float
    high: float
    unadjusted: float

    @property
    def difference(self) -> float:
        """Of the engine from the deployment, as a share of the deployment."""
        return apart(self.engine, self.deployed)

    @property
    def unadjusted_difference(self) -> float:
        """The same at the profile's speed."""
        return apart(self.unadjusted, self.deployed)

    @property
    def within(self) -> bool:
        """Whether the engine is as near as it is asked to be."""
        return abs(self.difference) <= TOLERANCE


def apart(engine: float, deployed: float) -> float:
    """The difference as a share of what was deployed."""
    return (engine - deployed) / deployed if deployed else float(engine != 0.0)


@dataclass(frozen=True)
class Result:
    """A controller at a load.

    Attributes:
        deployed: measures of each run. predicted: of the world with each run's prompts, on a machine as fast as it was in that run.
        engine: of all worlds, at the mean of those speeds. unadjusted: of the worlds with the runs' prompts, at the profile's speed.
        machine: of each run, how many times as long as in the profile the yardstick took. level: so many times as long as predicted, at
            those speeds, the runs' batches took.
    """

    load: int
    controller: str
    deployed: Sequence[dict[str, float]]
    predicted: Sequence[dict[str, Any]]
    engine: Sequence[dict[str, Any]]
    unadjusted: Sequence[dict[str, Any]]
    machine: Sequence[float]
    level: float

    def cell(self, measure: str) -> Cell:
        """One measure, both ways."""
        low, high = np.quantile([row[measure] for row in self.engine], INTERVAL)
        deployed, engine, unadjusted = (
            mean(rows, measure) for rows in (self.deployed, self.predicted, self.unadjusted)
        )
        return Cell(self.load, self.controller, measure, deployed, engine, float(low), float(high), unadjusted)


def mean(rows: Sequence[dict[str, Any]], measure: str) -> float:
    """Mean of a measure."""
    return sum(row[measure] for row in rows) / len(rows)


@dataclass(frozen=True)
class Order:
    """Two controllers at a load whose goodput the engine tells apart in paired worlds.

    Attributes:
        better, worse: as the engine has it. engine, deployed: difference of goodput, tokens/s.
        half: half of the 95 % interval of the deployed one, by Student's t over the runs, paired by prompts; infinite for a single run.
    """

    load: int
    better: str
    worse: str
    engine: float
    deployed: float
    half: float

    @property
    def same(self) -> bool:
        """Whether the deployment agrees."""
        return self.deployed > 0.0

    @property
    def separated(self) -> bool:
        """Whether the deployment tells both apart."""
        return abs(self.deployed) > self.half


def cells(results: Sequence[Result]) -> list[Cell]:
    """Every compared measure of every result."""
    return [result.cell(measure) for result in results for measure in COMPARED]


def orders(results: Sequence[Result], measure: str = "goodput_tokens_per_s") -> list[Order]:
    """The pairs of controllers that the engine separates: the 95 % interval of their paired differences leaves out 0."""
    found = []
    for a, b in itertools.combinations(results, 2):
        if a.load != b.load:
            continue
        paired = np.array([x[measure] - y[measure] for x, y in zip(a.engine, b.engine, strict=True)])
        low, high = np.quantile(paired, INTERVAL)
        if low > 0.0 or high < 0.0:
            better, worse = (a, b) if low > 0.0 else (b, a)
            gained = np.array([x[measure] - y[measure] for x, y in zip(better.deployed, worse.deployed, strict=True)])
            means = (abs(float(paired.mean())), float(gained.mean()))
            found.append(Order(a.load, better.controller, worse.controller, *means, half_interval(gained)))
    return found


def half_interval(values: NDArray[np.float64]) -> float:
    """Half of the 95 % interval of a mean."""
    if len(values) < 2:
        return float("inf")
    return float(student.ppf(INTERVAL[1], len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
