"""A board as tables, for a terminal and for docs/results/leaderboard.md."""

from collections.abc import Sequence

from wisp_gym.cli import aligned, cell
from wisp_gym.evaluation.leaderboard.ranking import Ranked
from wisp_gym.evaluation.leaderboard.suite import Suite

HEADER = ("controller", "place", "score [95 %]", "within SLO", "in the worst cell", "starved", "J per 1,000 tokens")


def name_of(one: Ranked) -> str:
    """A controller's name, with the first digits of what it is made of where that is code or a file of its author's."""
    own = [digest[:8] for name, digest in one.row.digests.items() if ":" in name or "." in name]
    return f"{one.row.controller} ({', '.join(own)})" if own else one.row.controller


def judged_cells(one: Ranked) -> list[str]:
    """A row's cells of the first table, without its name."""
    return [
        str(one.place) if one.place else "bound", f"{one.score:.3f} [{one.low:.3f}, {one.high:.3f}]",
        f"{cell(one.attainment, 1, 100)} %", f"{cell(one.least_attainment, 1, 100)} %", f"{cell(one.starved, 1, 100)} %",
        cell(one.joules, 0),
    ]  # fmt: skip


def goodput_cells(one: Ranked, suite: Suite) -> list[str]:
    """Goodput of each cell in tokens/s."""
    return [cell(one.goodput[name], 0) for name in suite.scenarios]


def text(board: Sequence[Ranked], suite: Suite) -> str:
    """Both tables for a terminal."""
    first = aligned([HEADER], [[name_of(one), *judged_cells(one)] for one in board])
    rows = [[name_of(one), *goodput_cells(one, suite)] for one in board]
    return f"{first}\n\ngoodput, tokens/s\n{aligned([('controller', *suite.scenarios)], rows)}"


def markdown(board: Sequence[Ranked], suite: Suite) -> str:
    """Both tables in Markdown."""
    first = [[f"`{name_of(one)}`", *judged_cells(one)] for one in board]
    second = [[f"`{name_of(one)}`", *goodput_cells(one, suite)] for one in board]
    header = ("controller", *suite.scenarios)
    return f"{lines(HEADER, first)}\n\nGoodput, tokens/s, mean over the worlds of each cell:\n\n{lines(header, second)}"


def lines(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, the first column to the left, the others to the right."""
    rule = "|---|" + "--:|" * (len(header) - 1)
    return "\n".join([f"| {' | '.join(header)} |", rule, *(f"| {' | '.join(row)} |" for row in rows)])
