"""Running worlds: what each controller makes of each seed's world."""

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, TypeVar

import numpy as np

from wisp_gym.cli import Bar
from wisp_gym.controllers.resolve import AnyController, resolve
from wisp_gym.engine.trace_load import load_trace
from wisp_gym.engine.worlds import NO_TRACE, Worlds
from wisp_gym.errors import InputError
from wisp_gym.evaluation.metrics import measure, per_class
from wisp_gym.evaluation.own.asked import is_asked
from wisp_gym.evaluation.own.controller import Own, own
from wisp_gym.evaluation.own.driven import Driven, filled
from wisp_gym.evaluation.own.named import own_of_name
from wisp_gym.evaluation.pool import Pool, Threads
from wisp_gym.jit_pointer import is_compiled
from wisp_gym.rules.controller import Controller
from wisp_gym.scenario import AnyScenario, Scenario, load, with_, with_slo
from wisp_gym.values import DEVICES, SEEDS, Kind, only, shown

Row = dict[str, Any]
Controllers = AnyController | Iterable[AnyController]  # one or several, by name or themselves
EvaluatedControllers = (
    Controllers | Own | Any
)  # or the caller's own: any other object with `predict` decides for the devices
Chosen = TypeVar("Chosen", Controller, Controller | Own)


@dataclass(frozen=True)
class Outcome:
    """What one world gave: `metrics` by name, and one row per SLO class; None where nothing was counted."""

    metrics: Row
    classes: list[Row]


def chosen_scenario(scenario: AnyScenario, devices: int | None = None, slo: float | None = None) -> Scenario:
    """A scenario, or the one of this name or file, with another population and one SLO class (tokens/s) if asked for."""
    scenario = load(scenario) if slo is None else with_slo(load(scenario), slo)
    return scenario if devices is None else with_(scenario, n_devices=DEVICES.checked("devices", devices))


def chosen_controllers(controllers: Controllers, scenario: Scenario) -> dict[str, Controller]:
    """Name → controller, in the order given.

    Raises:
        InputError: none at all, a controller that is given twice, or a name that means none.
    """
    return each_once(resolve(one, scenario) for one in CONTROLLERS.checked("controllers", controllers))


def chosen_or_own(controllers: EvaluatedControllers, scenario: Scenario) -> dict[str, Controller | Own]:
    """The same, with the caller's own; raises as `chosen_controllers`."""
    return each_once(chosen(one, scenario) for one in CONTROLLERS.checked("controllers", controllers))


def each_once(controllers: Iterable[Chosen]) -> dict[str, Chosen]:
    """By their names."""
    found: dict[str, Chosen] = {}
    for controller in controllers:
        if controller.name in found:
            raise InputError(f"controllers: '{controller.name}' is given twice, allowed is every controller once")
        found[controller.name] = controller
    return found


def chosen(given: Any, scenario: Scenario) -> Controller | Own:
    """A controller, or one of the caller's own that is asked as worlds run; what the engine can run alone is a controller."""
    if (is_asked(given) or is_compiled(given)) and not isinstance(given, (Own, Controller)):
        given = own(given)
    if isinstance(given, (str, PathLike)):
        given = own_of_name(os.fspath(given)) or given
    if not isinstance(given, Own):
        return resolve(given, scenario)
    controller = given.controller(scenario)  # what is wrong with it is said now
    return given if given.is_driven else controller


def take_several(given: Any) -> list[Any]:
    """Controllers, one by one."""
    if isinstance(given, (str, PathLike, Controller, Own)) or is_asked(given) or is_compiled(given):
        return [given]
    each = list(only(not isinstance(given, bytes), given))
    return list(only(len(each) > 0, each))


CONTROLLERS = Kind("a controller or at least one, by name or themselves", take_several)


def run_world(scenario: Scenario, controller: Controller, seed: int, trace: np.ndarray = NO_TRACE) -> Outcome:
    """Run one world of `scenario.n_devices` devices to its end, on the calling thread."""
    worlds = Worlds(1, scenario.n_devices, trace=trace, threads=1)
    worlds.fill(0, scenario, seed, controller)
    worlds.run(early=True)
    return outcome_of(worlds, 0, scenario)


def outcome_of(worlds: Worlds, index: int, scenario: Scenario) -> Outcome:
    """What the world at an index gave."""
    rows = per_class(worlds.arrays, index, scenario)
    classes = [{key: None if math.isnan(value) else value for key, value in row.items()} for row in rows]
    return Outcome(measure(worlds.arrays, index, scenario).row(), classes)


def run_driven(scenario: Scenario, asked: Own, seeds: Sequence[int], trace: np.ndarray, bar: Bar) -> list[Outcome]:
    """Run a world for each seed, side by side, as Python objects decide."""
    worlds = filled(scenario, asked.controller(scenario), seeds, trace)
    for _ in Driven(worlds, asked.drivers, f"controller '{asked.name}'").run():
        bar.update()
    return [outcome_of(worlds, index, scenario) for index in range(len(seeds))]


def run_all(
    scenario: Scenario,
    controllers: Sequence[Controller | Own],
    seeds: Sequence[int],
    pool: Pool | None = None,
    bar: Bar | None = None,
) -> list[list[Outcome]]:
    """Outcomes of every controller (outer) in every world (inner), run on all cores or in a pool; `bar` counts worlds.

    Raises:
        InputError: what is no pool or bar.
    """
    for name, value, method in (("pool", pool, "map"), ("bar", bar, "update")):
        if value is not None and not callable(getattr(value, method, None)):
            raise InputError(f"{name}: given {shown(value)}, allowed is what has the method `{method}`")
    trace, counted = load_trace(scenario), bar or Bar()
    inside = [controller for controller in controllers if isinstance(controller, Controller)]
    outcomes = []
    for outcome in (pool or Threads()).map(run_world, [(scenario, c, seed, trace) for c in inside for seed in seeds]):
        outcomes.append(outcome)
        counted.update()
    found = iter([outcomes[first : first + len(seeds)] for first in range(0, len(outcomes), len(seeds))])
    return [run_driven(scenario, c, seeds, trace, counted) if isinstance(c, Own) else next(found) for c in controllers]


def chosen_seeds(seeds: Iterable[int]) -> tuple[int, ...]:
    """Seeds of a comparison: at least one, each once.

    Raises:
        InputError: others.
    """
    each: tuple[int, ...] = SEEDS.checked("seeds", seeds)
    if len(set(each)) < len(each):
        raise InputError(f"seeds: given {shown(each)}, allowed is every seed once")
    return each


def goodput(outcomes: Sequence[Outcome]) -> list[float]:
    """Goodput of every world, tokens/s."""
    return [outcome.metrics["goodput_tokens_per_s"] for outcome in outcomes]
