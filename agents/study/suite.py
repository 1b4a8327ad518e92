"""Suites: which worlds a study plays, with which controllers, seeds and budget, as TOML files.

A suite's cells are scenarios with a few overrides. In training cells controllers are tuned and tested (on other seeds); in
held-out cells they are tested alone. docs/guide/study.md describes every key.
"""

import argparse
import hashlib
import itertools
import math
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from wisp_gym.cli import seed_list, seeds
from wisp_gym.errors import InputError
from wisp_gym.evaluation.capacities import Goal
from wisp_gym.files import read_text
from wisp_gym.rules.catalogue import (
    ADDITIONS,
    ALIASES,
    BATCHING,
    CENTRALIZED,
    COLOCATED,
    DRAFTERS,
    SPECULATION,
    TRIMMING,
)
from wisp_gym.scenario import Horizon, Scenario, ScenarioError, dumps, load, loads, with_, with_slo
from wisp_gym.scenario.fields import Count, CountOrZero, Name, NonNegative, Part, Positive, Range, Ratio, build, nearest

SUITES = Path(__file__).parent / "suites"
WISP = (ALIASES["wisp"], "wisp+fcfs")  # WISP's stop rule with its own scheduler and with a plain queue: always played
ALL = "all"  # in a suite's controllers: every rule of the catalogue
AS_IT_IS: dict[str, Any] = {"devices": 0, "slo": 0.0, "held_out": False, "overrides": {}}  # a cell's optional keys
MAX_CELLS = 1_000


@dataclass(frozen=True)
class Cell:
    """One case of a suite: a scenario with its population, and whether tuning may see it."""

    name: str
    group: str
    held_out: bool
    scenario: Scenario


@dataclass(frozen=True)
class Tuning(Part):
    """How long settings are searched.

    Attributes:
        world_seconds: simulated seconds for each controller and training cell, all its worlds together.
    """

    world_seconds: Positive


@dataclass(frozen=True)
class CellTable(Part):
    """A `[[cells]]` table: 0 devices and an SLO of 0 keep the scenario's own."""

    name: Name
    group: Name
    scenario: Name
    devices: CountOrZero
    slo: NonNegative
    held_out: bool
    overrides: dict


@dataclass(frozen=True)
class CapacityTable(Part):
    """The `[capacity]` table, as of `Capacity` and `Goal`."""

    scenario: Name
    slo: list
    seeds: Name
    attainment: Ratio
    starved: Annotated[float, Range(0.0, 1.0)]
    max_devices: Count


@dataclass(frozen=True)
class Capacity:
    """At which SLO speeds (tokens/s, each that of all devices) a study searches the largest populations that reach a goal."""

    scenario: Scenario
    slo: tuple[float, ...]
    seeds: tuple[int, ...]
    goal: Goal


@dataclass(frozen=True)
class SuiteTable(Part):
    """The top of a suite's file; `horizon`, where given, replaces that of every scenario (overrides come after it)."""

    name: Name
    description: str
    controllers: list
    train_seeds: Name
    test_seeds: Name
    horizon: dict
    tuning: Tuning
    capacity: dict
    cells: list


@dataclass(frozen=True)
class Suite:
    """A suite, read and checked."""

    name: str
    controllers: tuple[str, ...]
    train_seeds: tuple[int, ...]
    test_seeds: tuple[int, ...]
    tuning: Tuning
    cells: tuple[Cell, ...]
    capacity: Capacity | None = None

    @property
    def training(self) -> tuple[Cell, ...]:
        """The cells that tuning may see."""
        return tuple(cell for cell in self.cells if not cell.held_out)

    @property
    def candidates(self) -> int:
        """Settings that the budget pays for, each in every training world; the same for all controllers."""
        horizons = [cell.scenario.horizon for cell in self.training]
        nominal_s = sum(h.warmup_s + h.measure_s + h.drain_s for h in horizons) * len(self.train_seeds)
        return int(self.tuning.world_seconds * len(horizons) // nominal_s)


def suites() -> list[str]:
    """Names of the suites that come with the project, sorted."""
    return sorted(path.stem for path in SUITES.glob("*.toml"))


def read_suite(name: str) -> Suite:
    """The suite of this name, or in this TOML file.

    Raises:
        InputError, ScenarioError: no such suite, or something wrong inside; one line.
    """
    path = SUITES / f"{name}.toml" if name in suites() else Path(name)
    if not path.is_file():
        raise InputError(f"'{name}' is neither a suite nor a TOML file; {nearest(name, suites())}")
    try:
        return parse_suite(path)
    except ScenarioError as error:
        raise error.inside(file=error.file or path.name) from None


def parse_suite(path: Path) -> Suite:
    """The suite in a file; scenario files are looked for in its folder."""
    try:
        given = tomllib.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: no TOML: {error}") from None
    table = build(SuiteTable, {"description": "", "horizon": {}, "capacity": {}, **given})
    horizon = build(Horizon, table.horizon, "horizon") if table.horizon else None
    cells = [cell for i, one in enumerate(table.cells) for cell in read_cells(one, f"cells[{i}]", path.parent, horizon)]
    return checked(Suite(
        table.name, chosen_controllers(table.controllers), seeds_of("train_seeds", table.train_seeds),
        seeds_of("test_seeds", table.test_seeds), table.tuning, tuple(cells),
        read_capacity(table.capacity, path.parent, horizon) if table.capacity else None,
    ))  # fmt: skip


def checked(suite: Suite) -> Suite:
    """The suite itself, if its cells, seeds and budget can be used."""
    names = [cell.name for cell in suite.cells]
    for name in names:
        if names.count(name) > 1:
            raise ScenarioError(f"'{name}' is given twice, allowed: a name of its own", "cells")
    if not suite.training or len(names) > MAX_CELLS:
        reason = f"given {len(suite.training)} training cells of {len(names)}, allowed: 1 to {MAX_CELLS}"
        raise ScenarioError(reason, "cells")
    tested = {"test_seeds": suite.test_seeds, "capacity.seeds": suite.capacity.seeds if suite.capacity else ()}
    for key, own in tested.items():
        if both := sorted(set(suite.train_seeds) & set(own)):
            raise ScenarioError(f"holds training seeds {seed_list(both).rstrip(',')}, allowed: other seeds", key)
    if suite.candidates < 3:
        enough = f"enough for {suite.candidates} settings of a controller, allowed: enough for 3"
        raise ScenarioError(f"given {suite.tuning.world_seconds:g}, {enough}", "tuning.world_seconds")
    return suite


def seeds_of(key: str, text: str) -> tuple[int, ...]:
    """Seeds as `--seeds` reads them."""
    try:
        return seeds(text)
    except argparse.ArgumentTypeError as error:
        raise ScenarioError(str(error), key) from None


def chosen_controllers(given: Sequence[Any]) -> tuple[str, ...]:
    """The controllers of a suite, WISP's two first, each once; `all` stands for every rule of the catalogue."""
    for name in given:
        if not isinstance(name, str):
            raise ScenarioError(f"given {name!r}, allowed: names of controllers", "controllers")
    named = itertools.chain.from_iterable(every_rule() if name == ALL else [name] for name in given)
    return tuple(dict.fromkeys(ALIASES.get(name, name) if name == "wisp" else name for name in (*WISP, *named)))


def every_rule() -> list[str]:
    """Every speculation rule with a plain queue; with WISP's stop rule every batching rule and addition; the strongest together; every
    whole system.
    """
    plain = [f"{name}+fcfs" for name in SPECULATION]
    additions = [name for name in ADDITIONS if name not in COLOCATED | DRAFTERS]
    batched = [*(f"wisp+{name}" for name in BATCHING), *(f"wisp+fcfs+{name}" for name in additions)]
    best = [f"{name}+aged+chunk+admit" for name in ("wisp", "aligned")]  # what helps most, together
    alone = ["centralized:0", "centralized:0+chunk", "centralized:0+chunk+admit"]
    return [*plain, *batched, "aligned+fcfs+chunk", *best, *ALIASES, *CENTRALIZED, *alone, *who_drafts()]


def who_drafts() -> list[str]:
    """Every way to draft but at the device before it sends: the server's own lengths, the choice between both, drafting on while waiting."""
    trimmed = [f"colocated+{name}" for name in TRIMMING]
    mixed = [f"aligned+wisp+colocated+{name}" for name in DRAFTERS]
    overlapped = [f"{name}+wisp+overlap" for name in ("wisp", "aligned", "survival", "price")]
    return [*COLOCATED, *trimmed, *mixed, *overlapped]


# --- cells -----------------------------------------------------------------------------------------------------------


def read_cells(given: Any, path: str, folder: Path, horizon: Horizon | None) -> list[Cell]:
    """The cells of one table, one for each population that it lists."""
    if not isinstance(given, dict):
        raise ScenarioError(f"given {given!r}, allowed: a table ([[cells]])", path)
    table = {**AS_IT_IS, "group": given.get("name"), **given}
    several = isinstance(table["devices"], list)
    cells = []
    for n in table["devices"] if several else [table["devices"]]:
        cell = build(CellTable, table | {"devices": n}, path)
        name = f"{cell.name}-{cell.devices}" if several else cell.name
        try:
            cells.append(Cell(name, cell.group, cell.held_out, cell_scenario(cell, folder, horizon)))
        except ScenarioError as error:
            raise error.inside(prefix="" if error.file else path) from None
    return cells


def cell_scenario(cell: CellTable, folder: Path, horizon: Horizon | None) -> Scenario:
    """The scenario of a cell, with everything that the suite changes in it."""
    beside = folder / cell.scenario
    scenario = load(beside if beside.is_file() else cell.scenario)
    scenario = with_slo(scenario, cell.slo) if cell.slo else scenario
    scenario = replace(scenario, horizon=horizon) if horizon else scenario
    scenario = with_(scenario, **every_member(scenario, cell.overrides))
    return replace(scenario, n_devices=cell.devices) if cell.devices else scenario


def read_capacity(given: dict[str, Any], folder: Path, horizon: Horizon | None) -> Capacity:
    """The capacities that a suite asks for; a load that does not grow with the devices has none."""
    table = build(CapacityTable, {**vars(Goal(starved=0.1)), **given}, "capacity")
    scenario = cell_scenario(CellTable("capacity", "capacity", table.scenario, **AS_IT_IS), folder, horizon)
    if scenario.workload.arrivals == "trace":
        raise ScenarioError("given one with recorded arrivals, allowed: closed or open arrivals", "capacity.scenario")
    if not table.slo or not all(type(v) in (int, float) and 0.0 < v < math.inf for v in table.slo):
        raise ScenarioError(f"given {table.slo!r}, allowed: a list of speeds in tokens/s above 0", "capacity.slo")
    goal = Goal(table.attainment, table.starved, table.max_devices)
    return Capacity(scenario, tuple(map(float, table.slo)), seeds_of("capacity.seeds", table.seeds), goal)


def every_member(scenario: Scenario, overrides: dict[str, Any]) -> dict[str, Any]:
    """Overrides for `with_`: `devices.*.link.jitter` means that of every device class, `slo.*.grace_s` of every SLO."""
    changes: dict[str, Any] = {}
    for path, value in overrides.items():
        part, star, rest = path.partition(".*.")
        if star and part in ("devices", "slo"):
            changes |= {f"{part}.{i}.{rest}": value for i in range(len(getattr(scenario, part)))}
        else:
            changes[path] = value
    return changes


def own_cells(files: Sequence[str]) -> tuple[Cell, ...]:
    """Scenarios of a reader's own as training cells, each named by its scenario and population."""
    scenarios = [load(file) for file in files]
    return tuple(Cell(f"{s.name}-{s.n_devices}", "own", False, s) for s in scenarios)


# --- as plain values, for the folder of a study ----------------------------------------------------------------------


def described(suite: Suite) -> dict[str, Any]:
    """Everything that fixes a suite's results, as JSON values; `restored` reads it."""
    cells, asked = [vars(cell) | {"scenario": dumps(cell.scenario)} for cell in suite.cells], suite.capacity
    return {
        "name": suite.name, "controllers": list(suite.controllers), "train_seeds": seed_list(suite.train_seeds),
        "test_seeds": seed_list(suite.test_seeds), "world_seconds": suite.tuning.world_seconds, "cells": cells,
        "capacity": asked and {
            "scenario": dumps(asked.scenario), "slo": list(asked.slo), "seeds": seed_list(asked.seeds), **vars(asked.goal),
        },
        "traces": file_digests(c.scenario.workload.trace for c in suite.cells if c.scenario.workload.trace),
    }  # fmt: skip


def restored(told: dict[str, Any]) -> Suite:
    """The suite that `described` told of."""
    cells = tuple(Cell(**cell | {"scenario": loads(cell["scenario"])}) for cell in told["cells"])
    train, test = (seeds_of(key, told[key]) for key in ("train_seeds", "test_seeds"))
    names, tuning, capacity = tuple(told["controllers"]), Tuning(told["world_seconds"]), None
    if given := told["capacity"]:
        goal = Goal(given["attainment"], given["starved"], given["max_devices"])
        capacity = Capacity(loads(given["scenario"]), tuple(given["slo"]), seeds_of("seeds", given["seeds"]), goal)
    return Suite(told["name"], names, train, test, tuning, cells, capacity)


def file_digests(files: Iterable[str | Path]) -> dict[str, str]:
    """SHA-256 of files by name: a trace or a policy that changes changes the study."""
    return {str(file): hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in sorted(map(str, files))}
