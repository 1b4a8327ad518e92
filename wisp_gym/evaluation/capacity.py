"""Capacity: the largest number of devices whose SLO attainment is at least a stated share, with its interval.

    wisp-gym capacity --slo 8 --controllers wisp,sled,centralized --json capacity.json

**Search.** A(N) is the mean attainment over the paired worlds of all seeds with N devices; device i is the same in
every world of a seed, so A changes little from N to N + 1. Doubling N finds the last rung that reaches the share (a few
devices may miss it although more reach it, because a small population need not hold the mix of device classes), and
bisection narrows the gap behind it to one device. Near the crossing A may cross the share more than once; the search
then ends at one of the crossings, and the interval tells how far apart they can lie.

With `--starved X` a load counts only where, besides, the mean share of starved devices (under 1 token/s) is at most X: in a
closed loop a starved device asks for little, so its requests hardly count in the attainment.

**Interval.** Seeds are drawn with replacement 2,000 times; in each sample the capacity is read off the mean curve
through all N that were run (the largest N that reaches the share, and linearly on towards the next N); the interval
holds the middle 95 % of these readings.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from wisp_gym.cli import (
    MAX_DEVICES,
    Parser,
    aligned,
    refuse_same_files,
    run,
    seed_list,
    share,
    share_or_zero,
    whole,
    write_rows,
)
from wisp_gym.engine.feasibility import warnings
from wisp_gym.engine.worlds import NO_TRACE
from wisp_gym.errors import InputError
from wisp_gym.evaluation.arguments import add_comparison, chosen_controllers, chosen_scenario
from wisp_gym.evaluation.evaluate import EPILOG, Row, run_all, slo_words
from wisp_gym.evaluation.tables import CONFIDENCE, cell, interval_cell, mean, resampled
from wisp_gym.rules.controller import Controller
from wisp_gym.scenario import Scenario

PROGRAM = "wisp-gym capacity"
DEFAULT_SEEDS = 10
MIX_DEVICES = 16  # from here on a population resembles the scenario's mix of device classes
MISSED_RUNGS = 2  # so many rungs missed in a row, the last of at least MIX_DEVICES, end the climb

Measure = Callable[[int], float]


@dataclass
class Curve:
    """Attainment of one controller by number of devices, measured where it is asked for.

    Attributes:
        attained: N → (seeds,) attainment of each world, NaN where no request was counted.
        starved: N → (seeds,) share of starved devices in each world.
        goodput_tokens_per_s: N → mean over the worlds.
    """

    scenario: Scenario
    controller: Controller
    seeds: Sequence[int]
    bar: tqdm[Any]
    attained: dict[int, NDArray[np.float64]] = field(default_factory=dict)
    starved: dict[int, NDArray[np.float64]] = field(default_factory=dict)
    goodput_tokens_per_s: dict[int, float | None] = field(default_factory=dict)

    def run(self, n_devices: int) -> list[Row]:
        """The measures of each world with `n_devices` devices."""
        scenario = replace(self.scenario, n_devices=n_devices)
        (outcomes,) = run_all(scenario, [self.controller], self.seeds, NO_TRACE, self.bar)
        return [outcome.metrics for outcome in outcomes]

    def margin(self, n_devices: int, target: float, limit: float | None) -> float:
        """By how much the worlds with `n_devices` devices reach the target (see `margins`), run where they have not been."""
        if n_devices not in self.attained:
            worlds = self.run(n_devices)
            self.attained[n_devices] = np.array([world["slo_attainment"] for world in worlds], dtype=np.float64)
            self.starved[n_devices] = np.array([world["starved_share"] for world in worlds], dtype=np.float64)
            self.goodput_tokens_per_s[n_devices] = mean([world["goodput_tokens_per_s"] for world in worlds])
        return float(margins(self.attained[n_devices], target, self.starved[n_devices], limit))


class Attained(Protocol):
    """What an interval is computed from: the seeds, and N → (seeds,) attainment of each world."""

    seeds: Sequence[int]
    attained: dict[int, NDArray[np.float64]]


def mean_attainment(attained: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the last axis of the worlds that counted a request; NaN without any."""
    counted = (~np.isnan(attained)).sum(axis=-1)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.nansum(attained, axis=-1) / counted)


def margins(
    attained: NDArray[np.float64], target: float, starved: NDArray[np.float64], limit: float | None
) -> NDArray[np.float64]:
    """Mean attainment over the last axis less the target or, where less, what the limit leaves above the starved share.

    0 or more where both hold; NaN where no request was counted.
    """
    above = mean_attainment(attained) - target
    return above if limit is None else np.minimum(above, limit - starved.mean(axis=-1))


def rungs(limit: int) -> Iterator[int]:
    """1, 2, 4, … and `limit`."""
    n = 1
    while n < limit:
        yield n
        n *= 2
    yield limit


def climb(measured: Measure, target: float, limit: int) -> int:
    """The last rung that reaches the target, 0 if none does."""
    best, missed = 0, 0
    for n in rungs(limit):
        if measured(n) >= target:
            best, missed = n, 0
        else:
            missed += 1
        if missed >= MISSED_RUNGS and n >= MIX_DEVICES:
            break
    return best


def capacity(measured: Measure, target: float, limit: int) -> int:
    """The largest number of devices, up to `limit`, that reaches the target; 0 if no rung does."""
    low = climb(measured, target, limit)
    high = min(2 * low, limit + 1) if low else 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if measured(middle) >= target else (low, middle)
    return low


def crossings(devices: NDArray[np.float64], means: NDArray[np.float64], target: float) -> NDArray[np.float64]:
    """Capacity read off each of several mean curves.

    Args:
        devices: (P,) increasing numbers of devices. means: (R, P) mean attainment at each.

    Returns:
        (R,) whole numbers: the largest N that reaches the target, and on a straight line towards the next N.
    """
    reached = means >= target
    last = means.shape[1] - 1 - np.argmax(reached[:, ::-1], axis=1)
    after = np.minimum(last + 1, means.shape[1] - 1)
    curve = np.arange(len(means))
    here, there = means[curve, last], means[curve, after]
    with np.errstate(invalid="ignore", divide="ignore"):
        inside = np.where(after > last, (here - target) / (here - there), 0.0)
    inside = np.nan_to_num(inside, nan=0.0, posinf=0.0)
    # the next N misses the target, so at least one device of the gap is beyond the capacity
    found = np.floor(devices[last] + np.clip(inside, 0.0, 1.0) * np.maximum(devices[after] - devices[last] - 1.0, 0.0))
    return np.where(reached.any(axis=1), found, 0.0)


def capacity_interval(
    curve: Attained,
    target: float,
    found: int,
    starved: Mapping[int, NDArray[np.float64]] | None = None,
    limit: float | None = None,
) -> tuple[int | None, int | None]:
    """95 % interval of the capacity over seeds; None for fewer than two seeds.

    Args:
        found: the capacity. starved: N → (seeds,) share of starved devices, at most `limit` where there is one.
    """
    if len(curve.seeds) < 2:
        return None, None
    devices = sorted(curve.attained)
    samples = resampled(len(curve.seeds))  # (R, seeds)
    means = []
    for n in devices:
        shares = np.zeros(len(curve.seeds)) if starved is None else starved[n]
        means.append(margins(curve.attained[n][samples], target, shares[samples], limit))  # (R,)
    values = crossings(np.array(devices, dtype=np.float64), np.stack(means, axis=1), 0.0)  # (R,)
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], method="inverted_cdf")
    return min(int(low), found), max(int(high), found)


def capacity_row(given: argparse.Namespace, name: str, curve: Curve) -> Row:
    """The row of one controller."""
    found = capacity(lambda n: curve.margin(n, given.attainment, given.starved), 0.0, given.max_devices)
    if all(np.isnan(attained).all() for attained in curve.attained.values()):
        measure_s = curve.scenario.horizon.measure_s
        reason = f"no request was counted in {measure_s:g} s, allowed is a longer horizon"
        raise InputError(f"{curve.scenario.name}: horizon.measure_s: {reason}")
    low, high = capacity_interval(curve, given.attainment, found, curve.starved, given.starved)
    return {
        "controller": name,
        "scenario": curve.scenario.name,
        "slo_tokens_per_s": given.slo,
        "attainment_target": given.attainment,
        "starved_limit": given.starved,
        "capacity_devices": found,
        "capacity_low": low,
        "capacity_high": high,
        "at_limit": found == given.max_devices,
        "max_devices": given.max_devices,
        "slo_attainment": float(mean_attainment(curve.attained[found])) if found else None,
        "starved_share": float(curve.starved[found].mean()) if found else None,
        "goodput_tokens_per_s": curve.goodput_tokens_per_s.get(found),
        "seeds": len(given.seeds),
        "seed_list": seed_list(given.seeds),
    }


def show(rows: list[Row]) -> str:
    """The printed table."""
    first = rows[0]
    limit = first["starved_limit"]
    starved = "" if limit is None else f", at most {100 * limit:g} % of devices starved"
    title = (
        f"{first['scenario']}: {slo_words(first)}, at least {100 * first['attainment_target']:g} % of requests within "
        f"their SLO{starved}, {first['seeds']} paired worlds (seeds {first['seed_list']})"
    )
    names = ["controller", "capacity", "", "SLO met there", "starved there", "goodput there"]
    units = ["", "devices", "95 %", "%", "%", "tokens/s"]
    return f"{title}\n\n{aligned([names, units], [cells(row) for row in rows])}"


def cells(row: Row) -> list[str]:
    """A row of the printed table."""
    return [
        row["controller"],
        ("≥ " if row["at_limit"] else "") + str(row["capacity_devices"]),
        interval_cell(row["capacity_low"], row["capacity_high"], 0),
        cell(row["slo_attainment"], 1, 100.0),
        cell(row["starved_share"], 1, 100.0),
        cell(row["goodput_tokens_per_s"]),
    ]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The flags."""
    about = "The largest number of devices that a controller serves within their SLO."
    parser = Parser(prog=PROGRAM, description=about, epilog=EPILOG)
    add_comparison(parser, DEFAULT_SEEDS)
    add, limit = parser.add_argument, whole(1, MAX_DEVICES)
    add("--attainment", type=share, default=0.9, metavar="SHARE", help="of requests in their SLO (default %(default)s)")
    add(
        "--starved", type=share_or_zero, metavar="SHARE",
        help="count only loads at which at most this share of devices gets less than 1 token/s (default: any)",
    )  # fmt: skip
    add("--max-devices", type=limit, default=1024, metavar="N", help="where the search ends (default %(default)s)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Search, print, and write where asked."""
    given = parse(arguments)
    refuse_same_files({"--scenario": given.scenario}, {"--json": given.json, "--csv": given.csv})
    scenario = chosen_scenario(given)
    controllers = chosen_controllers(given, scenario)
    if scenario.workload.arrivals == "trace":
        reason = "given 'trace', whose load does not grow with the devices; allowed: closed, open"
        raise InputError(f"{given.scenario}: workload.arrivals: {reason}")
    for warning in warnings(replace(scenario, n_devices=1)):  # the population is what is searched for
        print(f"note: {warning}", file=sys.stderr)
    rows = []
    for name, controller in controllers.items():
        with tqdm(desc=name, unit="world", disable=None, leave=False) as bar:
            rows.append(capacity_row(given, name, Curve(scenario, controller, given.seeds, bar)))
    print(show(rows))
    write_rows(rows, given.json, given.csv)


if __name__ == "__main__":
    sys.exit(run(main, PROGRAM))
