"""Flags that all commands of the board have."""

from pathlib import Path

from wisp_gym.cli import Parser
from wisp_gym.evaluation.leaderboard.suite import LATEST

OWN_FILE = Path("leaderboard.jsonl")


def add_suite(parser: Parser) -> None:
    """The flag `--suite`."""
    help_ = "a suite that comes with wisp-gym, or a folder (default %(default)s)"
    parser.add_argument("--suite", default=LATEST, metavar="NAME|DIR", help=help_)
