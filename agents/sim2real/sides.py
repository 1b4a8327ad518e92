"""The two ways to deploy in `agents.sim2real`, devices that draft and a server that does: profiled, run and simulated alike."""

from collections.abc import Sequence
from pathlib import Path

from agents.sim2real.colocated import Colocation, is_colocated
from agents.sim2real.compare import Result, measures
from agents.sim2real.deploy import Bench
from agents.sim2real.devices import Deployed
from agents.sim2real.profile import Measured, at_level, batch_level, machine_level
from agents.sim2real.settings import Settings
from agents.sim2real.steps import MeasuredSteps, step_level
from wisp_gym.scenario import Scenario, load, save
from wisp_gym.simulation import simulate


class Sides:
    """The two ways to deploy, each profiled for itself: devices draft, or the server does.

    Args:
        settings: of the run. folder: its folder. names: of all controllers.
    """

    def __init__(self, settings: Settings, folder: Path, names: Sequence[str]) -> None:
        self.folder, self.bench = folder, Bench(settings, folder)
        self.own = frozenset(name for name in names if is_colocated(name))
        self.colocation = Colocation(self.bench) if self.own else None

    def profile(self, cycle: int) -> None:
        """Measure each side, and write its scenario beside its trace."""
        self.measured = self.bench.profile(cycle)
        self.edge = self.kept(self.bench.scenario(self.measured), "scenario.toml")
        self.steps: MeasuredSteps | None = None
        if self.colocation:
            self.steps = self.colocation.profile(cycle)
            self.colocated = self.kept(self.colocation.scenario(self.steps, self.edge), "colocated.toml")

    def kept(self, scenario: Scenario, name: str) -> Scenario:
        """A scenario as its file says it."""
        save(scenario, self.folder / name)
        return load(self.folder / name)

    def deploy(self, name: str, n: int, cycle: int) -> Deployed:
        """A controller with `n` devices."""
        if self.colocation and name in self.own:
            return self.colocation.deploy(self.colocated, name, n, cycle)
        return self.bench.deploy(self.edge, name, n, cycle)

    def compared(self, name: str, n: int, runs: Sequence[Deployed], seeds: Sequence[int]) -> Result:
        """A controller's runs beside the engine's worlds."""
        if self.steps and name in self.own:
            return compared(self.colocated, self.steps, name, n, runs, seeds)
        return compared(self.edge, self.measured, name, n, runs, seeds)


def compared(
    scenario: Scenario,
    measured: Measured | MeasuredSteps,
    name: str,
    n: int,
    runs: Sequence[Deployed],
    seeds: Sequence[int],
) -> Result:
    """A controller's runs beside the engine's worlds, the first of which have the runs' prompts."""
    machine = [machine_level(measured.yardstick_s, done.ran) for done in runs]
    first, at_mean = seeds[: len(runs)], at_level(scenario, sum(machine) / len(machine))
    predicted = [
        simulate(at_level(scenario, times), name, [seed], n)[0].row()
        for times, seed in zip(machine, first, strict=True)
    ]
    worlds = [row.row() for row in simulate(at_mean, name, seeds, n)]
    profiled = [row.row() for row in simulate(scenario, name, first, n)]
    deployed = [measures(done, scenario, n) for done in runs]
    return Result(n, name, deployed, predicted, worlds, profiled, machine, level(measured, runs))


def level(measured: Measured | MeasuredSteps, runs: Sequence[Deployed]) -> float:
    """How many times as long as predicted the runs' batches, or steps, took together."""
    if isinstance(measured, Measured):
        return batch_level(measured, [done.batches for done in runs])
    return step_level(measured, [done.steps for done in runs])
