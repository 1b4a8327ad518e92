"""A controller in all worlds of a suite."""

from wisp_gym.cli import Bar
from wisp_gym.evaluation.leaderboard.provenance import digests, versions
from wisp_gym.evaluation.leaderboard.rows import BoardRow
from wisp_gym.evaluation.leaderboard.suite import Suite
from wisp_gym.evaluation.outcomes import chosen_or_own, run_all
from wisp_gym.evaluation.pool import Pool


def measured(controller: str, suite: Suite, pool: Pool | None = None, bar: Bar | None = None) -> BoardRow:
    """The row of a controller. It depends on nothing else: not on how many worlds run at once.

    Args:
        controller: its name; one with `package.module:Name` in it runs that code. pool: where worlds run; default all cores.
        bar: counts worlds.

    Raises:
        InputError: a name that means none.
    """
    found = digests(controller)
    figures = {cell: in_cell(controller, suite, cell, pool, bar) for cell in suite.scenarios}
    return BoardRow(suite.name, suite.digest, controller, found, versions(), suite.seeds, figures)


def in_cell(
    controller: str, suite: Suite, cell: str, pool: Pool | None, bar: Bar | None
) -> dict[str, list[float | None]]:
    """Measure → a value for each world of a cell."""
    scenario = suite.scenarios[cell]
    (chosen,) = chosen_or_own(controller, scenario).values()
    (outcomes,) = run_all(scenario, [chosen], suite.worlds, pool, bar)
    return {metric: [outcome.metrics[metric] for outcome in outcomes] for metric in suite.metrics}
