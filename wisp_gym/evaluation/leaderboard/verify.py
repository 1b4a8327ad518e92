"""`wisp-gym leaderboard verify`: run every row again and compare it byte for byte."""

from collections.abc import Sequence
from pathlib import Path

from wisp_gym import cli
from wisp_gym.cli import Parser
from wisp_gym.errors import one_of
from wisp_gym.evaluation.arguments import EachOnce, controller_names
from wisp_gym.evaluation.leaderboard.arguments import add_suite
from wisp_gym.evaluation.leaderboard.checking import check
from wisp_gym.evaluation.leaderboard.rows import read_rows, shipped_rows
from wisp_gym.evaluation.leaderboard.suite import find_suite

PROGRAM = "wisp-gym leaderboard verify"
WRONG = 1  # exit code: a row does not hold
EPILOG = "exit code: 0 where every row holds, 1 where one does not, 2 where the file is none of rows."


def main(arguments: Sequence[str] | None = None) -> int:
    """Check each row; the exit code."""
    parser = Parser(prog=PROGRAM, description="Run every row again and compare it byte for byte.", epilog=EPILOG)
    add = parser.add_argument
    add("--file", type=Path, metavar="FILE.jsonl", help="rows (default: those that come with wisp-gym)")
    add("--controllers", type=controller_names, nargs="+", action=EachOnce, metavar="a,b,...", help="these rows alone")
    add("--own-code", action="store_true", help="run controllers that are Python modules too: it runs their code")
    add_suite(parser)
    given = parser.parse_args(arguments)
    suite = find_suite(given.suite)
    rows = read_rows(given.file or shipped_rows(suite.name))
    names = [written.row.controller for written in rows]
    chosen = [one_of("argument --controllers", name, names) for name in given.controllers or names]
    rows = [written for written in rows if written.row.controller in chosen]
    failed = 0
    with cli.progress(len(rows) * len(suite.scenarios) * len(suite.worlds)) as bar:
        for written in rows:
            verdict = check(written, suite, given.own_code, bar=bar)
            failed += not verdict.holds
            print(f"{written.row.controller}: {verdict.words}", flush=True)
    print(f"{len(rows) - failed} of {len(rows)} rows hold")
    return WRONG if failed else 0
