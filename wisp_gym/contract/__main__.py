"""`python -m wisp_gym.contract` prints all that a controller sees: the tables of docs/guide/environments.md."""

from collections.abc import Sequence

from wisp_gym.cli import Parser, run
from wisp_gym.contract.entry import markdown
from wisp_gym.contract.tables import TABLES
from wisp_gym.process import program

PROGRAM = "python -m wisp_gym.contract"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables of a device, of the server and of a waiting request."""
    Parser(prog=PROGRAM, description=__doc__).parse_args(arguments)
    print("\n\n".join(markdown(list(table.values())) for table in TABLES.values()))


if __name__ == "__main__":
    program(lambda: run(main, PROGRAM))
