"""The search behind advice: candidates tuned with one budget in training worlds, and the best one of each kind."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from wisp_gym.cli import Bar
from wisp_gym.controllers.resolve import resolve
from wisp_gym.engine.trace_load import load_trace
from wisp_gym.evaluation.advise_cases import DEVICE_RULES, SERVER, candidates, is_hosting, trials
from wisp_gym.evaluation.outcomes import goodput, run_all, run_world
from wisp_gym.evaluation.pool import Pool
from wisp_gym.evaluation.tuning import Scores, families, family_name, tune
from wisp_gym.scenario import Scenario, with_

TRAIN_SEEDS = range(1000, 1002)  # worlds that settings are chosen in
SETTINGS = 36  # of each controller that are tried; a third of them, see `wisp_gym.evaluation.tuning`, at random
LEAST_SETTINGS = 6
# Up to here all settings are tried; a larger case has fewer, in proportion: about half a minute of one core either way.
FULL_ROUNDS, FULL_DEVICES = 75_000, 300  # of a training world
DRAFTS = 2  # server drafts that are tuned
WARMUP_S, MEASURE_S = 20.0, 120.0  # of a training world at most: those of the presets


def settings_for(scenario: Scenario) -> int:
    """How many settings of each controller are tried, a multiple of 3: by the rounds of one world, not by a clock."""
    training = shortened(scenario)
    world = run_world(training, resolve(DEVICE_RULES[0], training), TRAIN_SEEDS[0], load_trace(training))
    size = max(world.metrics["rounds"] / FULL_ROUNDS, scenario.n_devices / FULL_DEVICES, 1.0)
    return max(LEAST_SETTINGS, int(SETTINGS / size) // 3 * 3)


def shortened(scenario: Scenario) -> Scenario:
    """The scenario of training worlds: a shorter window, and nothing after it, as goodput is measured within."""
    horizon = scenario.horizon
    warmup_s, measure_s = min(horizon.warmup_s, WARMUP_S), min(horizon.measure_s, MEASURE_S)
    return with_(scenario, **{"horizon.warmup_s": warmup_s, "horizon.measure_s": measure_s, "horizon.drain_s": 0.0})


@dataclass
class Search:
    """Mean goodput over the training worlds of every controller that was asked for; each runs once.

    Attributes:
        scenario: as its held-out worlds will run. settings: of each controller that are tried.
        pool: where worlds run; None for all cores of this machine. bar: counts worlds.
        scores: controller → tokens/s.
    """

    scenario: Scenario
    settings: int
    pool: Pool | None = None
    bar: Bar | None = None
    scores: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The one cell of the search."""
        return self.scenario.name

    def run(self, names: Sequence[str]) -> None:
        """Score those that have no score yet."""
        new = [name for name in dict.fromkeys(names) if name not in self.scores]
        training = shortened(self.scenario)
        chosen = [resolve(name, training) for name in new]
        for name, worlds in zip(new, run_all(training, chosen, TRAIN_SEEDS, self.pool, self.bar), strict=True):
            self.scores[name] = math.fsum(goodput(worlds)) / len(worlds)
        if self.bar:
            self.bar.update((len(names) - len(new)) * len(TRAIN_SEEDS))

    def evaluate(self, jobs: Sequence[tuple[str, "Search"]]) -> Scores:
        """As `tune` asks for it."""
        self.run([name for name, _ in jobs])
        return {(name, self.name): self.scores[name] for name, _ in jobs}

    def best_drafts(self, fitting: Sequence[int]) -> list[int]:
        """Places of the server drafts that are worth tuning, the best first."""
        self.run([name for draft in fitting for name in trials(draft)])
        return sorted(fitting, key=lambda draft: -max(self.scores[name] for name in trials(draft)))[:DRAFTS]

    def best_of_each_kind(self, fitting: Sequence[int]) -> dict[str, str]:
        """Who drafts → the controller with most goodput in the training worlds, tuned.

        Args:
            fitting: places of the server drafts that have room.
        """
        named = candidates(self.best_drafts(fitting))
        everyone = [name for names in named.values() for name in names]
        self.run([name for name in everyone if name not in tunable(everyone)])
        tuned = tune(families(everyone), [self], self.settings, self.evaluate)
        found = {}
        for kind, names in named.items():
            own = dict.fromkeys(
                [*(tuned[f].per_cell[self.name] for f in map(family_name, names) if f in tuned), *names]
            )
            tried = [name for name in own if name in self.scores]  # a small budget leaves a second start out
            ranked = sorted(tried, key=lambda name: -self.scores[name])
            found[kind] = next(name for name in ranked if kind != SERVER or is_hosting(name, self.scenario))
        return found


def tunable(controllers: Sequence[str]) -> set[str]:
    """Controllers that have something to tune."""
    return {name for family in families(controllers) for name in family.starts}


def training_worlds(fitting: Sequence[int], settings: int) -> int:
    """Worlds that a search asks for."""
    everyone = [name for names in candidates(fitting[:DRAFTS]).values() for name in names]
    fixed = len(everyone) - len(tunable(everyone))
    trial = sum(len(trials(draft)) for draft in fitting)
    return (trial + fixed + len(families(everyone)) * settings) * len(TRAIN_SEEDS)
