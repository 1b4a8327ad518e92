"""All findings about a scenario, in the order in which a reader would look."""

from wisp_gym.evaluation.odd import machines, memory, promises, units, workload
from wisp_gym.evaluation.odd.finding import Finding
from wisp_gym.scenario import ANY_SCENARIO, AnyScenario, load

CHECKS = (
    *(units.slips, machines.models, machines.server, machines.devices, machines.links, machines.estimates),
    *(
        memory.sessions,
        memory.server_drafts,
        promises.speeds,
        promises.first_tokens,
        promises.round_trips,
        promises.load,
    ),
    *(workload.lengths, workload.horizon, workload.trace),
)


def oddities(scenario: AnyScenario) -> list[Finding]:
    """What is valid and strange about a scenario; empty where nothing is.

    Raises:
        ScenarioError, TraceError: it is not valid.
    """
    world = load(ANY_SCENARIO.checked("scenario", scenario))
    return [finding for check in CHECKS for finding in check(world)]
