"""`python -m tests.soak --events 10000000`: the invariants of docs/model/model.md hold in random worlds of every kind."""

from __future__ import annotations

import argparse

from tests.support.hunt import hunt
from tests.support.invariants import assert_kept
from tests.support.wild_worlds import wild_worlds


def main() -> None:
    """Read the flags and run worlds until there were so many events."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__, allow_abbrev=False)
    parser.add_argument("--events", type=int, default=10**7, metavar="N", help="of the servers (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="of the worlds (default %(default)s)")
    arguments = parser.parse_args()
    hunt(wild_worlds(), assert_kept, lambda _, events: events >= arguments.events, arguments.seed)


if __name__ == "__main__":
    main()
