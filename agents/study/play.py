"""Playing a study: tuning in training worlds, testing in others, chunk by chunk into its folder."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from agents.bounds.fluid import bounds_of
from agents.bounds.kinds import BOUNDS, COLOCATED
from agents.study.folder import Worlds
from agents.study.rows import DEFAULT, GOODPUT, METRICS, PER_CELL, TRAINING, TUNED, Row
from agents.study.suite import Cell, Suite
from wisp_gym.cli import Bar, progress
from wisp_gym.controllers.resolve import resolve
from wisp_gym.engine.trace_load import load_trace
from wisp_gym.evaluation.outcomes import Outcome, run_world
from wisp_gym.evaluation.pool import Pool
from wisp_gym.evaluation.tuning import Scores, Tuned, families, pieces, tune
from wisp_gym.rules.controller import Controller
from wisp_gym.rules.speculation import ORACLE, PERFECT
from wisp_gym.scenario import Scenario

Job = tuple[str, Cell]


@dataclass(frozen=True)
class Entrant:
    """A controller as it enters a cell: the row it belongs to, and the setting it plays with.

    Attributes:
        controller: the suite's name, or that of a family where it is tuned. tuning: `default`, `tuned`, `tuned per cell`.
        setting: the controller that runs.
    """

    controller: str
    tuning: str
    setting: str
    cell: Cell


# --- worlds ----------------------------------------------------------------------------------------------------------


def chunk(
    scenario: Scenario,
    player: str | Controller,
    seeds: Sequence[int],
    trace: np.ndarray,
    keep: Callable[[Outcome], Any],
) -> list[Any]:
    """What to keep of every world of a controller, given by name or itself, in a scenario; a job of a `Pool`."""
    controller = resolve(player, scenario) if isinstance(player, str) else player
    return [keep(run_world(scenario, controller, seed, trace)) for seed in seeds]


def player(name: str, scenario: Scenario) -> str | Controller:
    """What is sent to where a chunk runs: the name, or a learned policy whole, as its file may not be there."""
    return name if pieces(name) else resolve(name, scenario)


def training_goodput(world: Outcome) -> float:
    """What is kept of a training world, tokens/s."""
    return float(world.metrics[GOODPUT])


def testing_measures(world: Outcome) -> Row:
    """What is kept of a test world."""
    return {**{key: world.metrics[key] for key in METRICS}, "classes": world.classes}


class Runner:
    """Runs worlds in a pool; what the study's folder already holds is not run again."""

    def __init__(self, suite: Suite, worlds: Worlds, bar: Bar, pool: Pool):
        self.suite, self.worlds, self.bar, self.pool = suite, worlds, bar, pool
        self.load_trace = cache(load_trace)

    def run(
        self, kind: str, jobs: Iterable[Job], seeds: Sequence[int], keep: Callable[[Outcome], Any]
    ) -> list[list[Any]]:
        """What is kept of every job's worlds, in order; each chunk is stored as soon as those before it are."""
        asked = list(jobs)
        missing = {}
        for name, cell in asked:
            if (key := (kind, name, cell.name)) not in self.worlds.known:
                missing[key] = (player(name, cell.scenario), cell)
        self.bar.update((len(asked) - len(missing)) * len(seeds))
        chunks = [(c.scenario, who, seeds, self.load_trace(c.scenario), keep) for who, c in missing.values()]
        for key, values in zip(missing, self.pool.map(chunk, chunks), strict=True):
            self.worlds.add(key, values)
            self.bar.update(len(seeds))
        return [self.worlds.known[kind, name, cell.name] for name, cell in asked]

    def train(self, jobs: Sequence[Job]) -> Scores:
        """Mean goodput over the training worlds of controllers in cells."""
        goodput = self.run("train", jobs, self.suite.train_seeds, training_goodput)
        return {(name, cell.name): float(np.mean(values)) for (name, cell), values in zip(jobs, goodput, strict=True)}

    def test(self, jobs: Sequence[Job]) -> list[list[Row]]:
        """The measures of the test worlds of controllers in cells."""
        return self.run("test", jobs, self.suite.test_seeds, testing_measures)


# --- who enters ------------------------------------------------------------------------------------------------------


def entrants(suite: Suite, tuned: dict[str, Tuned]) -> list[Entrant]:
    """Everyone that is tested: each controller as it is, each family tuned, and tuned per cell where tuning may see it."""
    everyone = [Entrant(name, DEFAULT, name, cell) for name in suite.controllers for cell in suite.cells]
    everyone += [Entrant(name, TUNED, of.everywhere, cell) for name, of in tuned.items() for cell in suite.cells]
    local = [(name, of.per_cell[cell.name], cell) for name, of in tuned.items() for cell in suite.training]
    return everyone + [Entrant(name, PER_CELL, setting, cell) for name, setting, cell in local]


def world_count(suite: Suite) -> int:
    """Worlds that a study runs at most."""
    tunable = len(families(suite.controllers))
    settings = (suite.candidates * tunable + len(suite.controllers)) * len(suite.training)
    entering = len(suite.controllers) * len(suite.cells) + tunable * (len(suite.cells) + len(suite.training))
    return settings * len(suite.train_seeds) + entering * len(suite.test_seeds)


def play(suite: Suite, worlds: Worlds, pool: Pool) -> tuple[dict[str, Tuned], list[Row]]:
    """Settings that tuning found for each family, and a row for each entrant and test world."""
    with progress(world_count(suite)) as bar:
        runner = Runner(suite, worlds, bar, pool)
        tuned = tune(families(suite.controllers), suite.training, suite.candidates, runner.train)
        entering = entrants(suite, tuned)
        asked = {(one.setting, cell.name): (one.setting, cell) for one in entering for cell in seen_by(one, suite)}
        trained = runner.train(list(asked.values()))
        outcomes = runner.test([(one.setting, one.cell) for one in entering])
    bounds = all_bounds(suite, worlds, pool)
    return tuned, [
        identity(one, suite, trained) | {"seed": seed} | bounds[one.cell.name] | outcome
        for one, own in zip(entering, outcomes, strict=True)
        for seed, outcome in zip(suite.test_seeds, own, strict=True)
    ]


def seen_by(entrant: Entrant, suite: Suite) -> Sequence[Cell]:
    """The training cells that say how good an entrant promised to be: its own, or all where that is held out."""
    return suite.training if entrant.cell.held_out else (entrant.cell,)


def identity(entrant: Entrant, suite: Suite, trained: Scores) -> Row:
    """The keys that say what a row is of, and its goodput in training."""
    cell = entrant.cell
    return {
        "table": "worlds", "controller": entrant.controller, "tuning": entrant.tuning, "setting": entrant.setting,
        "kind": kind(entrant), "cell": cell.name, "group": cell.group, "held_out": cell.held_out,
        "scenario": cell.scenario.name, "devices": cell.scenario.n_devices,
        TRAINING: float(np.mean([trained[entrant.setting, one.name] for one in seen_by(entrant, suite)])),
    }  # fmt: skip


def kind(entrant: Entrant) -> str:
    """`bound` (knows what no device can), `learned`, `mixed` (device or server drafts), `colocated`, `centralized` or `rule`."""
    controller = resolve(entrant.setting, entrant.cell.scenario)
    if controller.speculation in (PERFECT, ORACLE):
        return "bound"
    if controller.policy.size:
        return "learned"
    if controller.drafting.mixes:
        return "mixed"
    if controller.drafting.hosted:
        return "colocated"
    return "centralized" if controller.centralized else "rule"


def all_bounds(suite: Suite, worlds: Worlds, pool: Pool) -> dict[str, Row]:
    """The bounds of every cell, stored as they are found: a linear programme takes seconds."""
    missing = [cell for cell in suite.cells if ("bounds", cell.name) not in worlds.known]
    names = bounds_shown(suite)
    found = pool.map(cell_bounds, [(cell.scenario, names) for cell in missing])
    with progress(len(missing), "cell", desc="bounds") as bar:
        for cell, bounds in zip(missing, found, strict=True):
            worlds.add(("bounds", cell.name), [bounds])
            bar.update()
    return {cell.name: worlds.known["bounds", cell.name][0] for cell in suite.cells}


def bounds_shown(suite: Suite) -> tuple[str, ...]:
    """The bounds of devices that draft and, where a suite has servers that do, of these. With both to choose from one takes a minute."""
    return (*BOUNDS, COLOCATED) if any("colocated" in name for name in suite.controllers) else BOUNDS


def cell_bounds(scenario: Scenario, names: Sequence[str] = BOUNDS) -> Row:
    """Upper bounds of a scenario's goodput by key, tokens/s; None where a window begins without a warm-up.

    The bounds are for the long run: when all devices begin at once, more can be delivered in the first window.
    """
    found = bounds_of(scenario, names=names) if scenario.horizon.warmup_s > 0.0 else {}
    return {f"bound_{name}_tokens_per_s": found[name].tokens_per_s if found else None for name in names}
