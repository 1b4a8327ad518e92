"""`wisp-gym leaderboard show`: the board as tables, the rows of one's own among those that come with wisp-gym."""

from collections.abc import Sequence
from pathlib import Path

from wisp_gym.cli import Parser
from wisp_gym.evaluation.leaderboard import tables
from wisp_gym.evaluation.leaderboard.arguments import add_suite
from wisp_gym.evaluation.leaderboard.ranking import ranked
from wisp_gym.evaluation.leaderboard.rows import read_rows, shipped_rows
from wisp_gym.evaluation.leaderboard.suite import find_suite

PROGRAM = "wisp-gym leaderboard show"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the board."""
    parser = Parser(prog=PROGRAM, description="Controllers by their scores in a frozen suite.")
    add = parser.add_argument
    add("--file", type=Path, metavar="FILE.jsonl", help="rows of one's own, shown among those that come with wisp-gym")
    add("--markdown", action="store_true", help="as in docs/results/leaderboard.md")
    add_suite(parser)
    given = parser.parse_args(arguments)
    suite = find_suite(given.suite)
    shipped = shipped_rows(suite.name)
    rows = {one.row.identity: one.row for path in (shipped, given.file) if path and (path != shipped or path.is_file())
            for one in read_rows(path)}  # fmt: skip
    write = tables.markdown if given.markdown else tables.text
    print(write(ranked(list(rows.values()), suite), suite))
