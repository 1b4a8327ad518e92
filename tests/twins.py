"""`python -m tests.twins --worlds 5000`: the engine and the reference simulator tell the same story of random small worlds."""

from __future__ import annotations

import argparse

from tests.support.hunt import hunt
from tests.support.small_worlds import small_worlds
from tests.support.twins import assert_same


def main() -> None:
    """Read the flags and compare."""
    parser = argparse.ArgumentParser(prog="python -m tests.twins", description=__doc__, allow_abbrev=False)
    parser.add_argument("--worlds", type=int, default=5000, metavar="N", help="(default %(default)s)")
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="of the worlds (default %(default)s)")
    arguments = parser.parse_args()
    hunt(small_worlds(), assert_same, lambda worlds, _: worlds >= arguments.worlds, arguments.seed)


if __name__ == "__main__":
    main()
