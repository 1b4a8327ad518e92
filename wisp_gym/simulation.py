"""Run a scenario under a controller over several seeds."""

from collections.abc import Sequence

from wisp_gym.controllers.resolve import AnyController, resolve
from wisp_gym.engine.trace_load import load_trace, warn_of_changes
from wisp_gym.engine.worlds import Worlds
from wisp_gym.evaluation.metrics import Metrics, measure
from wisp_gym.scenario import AnyScenario, load
from wisp_gym.values import DEVICES, SEEDS, optional


def simulate(
    scenario: AnyScenario,
    controller: AnyController = "wisp",
    seeds: Sequence[int] = (0,),
    n_devices: int | None = None,
    threads: int | None = None,
) -> list[Metrics]:
    """Metrics of one world per seed.

    Two controllers given the same seeds meet exactly the same worlds, so their metrics can be compared pair by pair.

    Args:
        scenario: a scenario, a preset's name or a TOML file.
        controller: a controller or its name, see `wisp_gym.controllers.resolve.listing`.
        seeds: one world each, at least one, each from 0 to 2^63 - 1.
        n_devices: population, 1 to 100,000; default the scenario's.
        threads: threads to run on; default one for each core.

    Raises:
        InputError (ScenarioError, ControllerError, PolicyError, TraceError): one line that names what is wrong.

    Warns:
        UserWarning: requests of the scenario's trace are cut or skipped.
    """
    scenario, each = load(scenario), SEEDS.checked("seeds", seeds)
    n_devices = optional(DEVICES).checked("n_devices", n_devices)
    controller = resolve(controller, scenario)
    warn_of_changes(scenario)
    worlds = Worlds(len(each), n_devices or scenario.n_devices, trace=load_trace(scenario), threads=threads)
    for index, seed in enumerate(each):
        worlds.fill(index, scenario, seed, controller, n_devices)
    worlds.run(early=True)
    return [measure(worlds.arrays, index, scenario) for index in range(len(each))]
