"""`wisp-gym leaderboard run CONTROLLER`: measure controllers in a frozen suite, and write a row for each.

wisp-gym leaderboard run mypkg.rules:MyRule+fcfs,wisp --file leaderboard.jsonl
"""

from collections.abc import Sequence

from wisp_gym import cli
from wisp_gym.cli import Parser, output_file
from wisp_gym.evaluation.arguments import EachOnce, controller_names
from wisp_gym.evaluation.leaderboard.arguments import OWN_FILE, add_suite
from wisp_gym.evaluation.leaderboard.measured import measured
from wisp_gym.evaluation.leaderboard.rows import put
from wisp_gym.evaluation.leaderboard.suite import find_suite
from wisp_gym.evaluation.outcomes import chosen_or_own

PROGRAM = "wisp-gym leaderboard run"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure each, write its row as soon as it is there."""
    parser = Parser(prog=PROGRAM, description="Measure controllers in a frozen suite, a row for each.")
    add = parser.add_argument
    add("controllers", type=controller_names, nargs="+", action=EachOnce, metavar="CONTROLLER", help="as in `evaluate`")
    add("--file", type=output_file(".jsonl"), default=OWN_FILE, metavar="FILE.jsonl", help="default %(default)s")
    add_suite(parser)
    given = parser.parse_args(arguments)
    suite = find_suite(given.suite)
    for name in given.controllers:  # a wrong name ends the command before anything runs
        chosen_or_own(name, next(iter(suite.scenarios.values())))
    worlds = len(given.controllers) * len(suite.scenarios) * len(suite.worlds)
    with cli.progress(worlds) as bar:
        for name in given.controllers:
            print(f"{name}: {put(given.file, measured(name, suite, bar=bar))}", flush=True)
