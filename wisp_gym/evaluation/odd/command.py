"""`wisp-gym scenario check FILE`: what is odd about a scenario, a line for each finding."""

from collections.abc import Sequence

from wisp_gym.cli import Parser
from wisp_gym.evaluation.odd.findings import oddities

PROGRAM = "wisp-gym scenario check"
ODD = 1  # exit code: valid, and something is odd; what is not valid ends with 2
EPILOG = "exit code: 0 where nothing is odd, 1 where something is, 2 where a scenario is not valid."


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the findings; the exit code."""
    parser = Parser(prog=PROGRAM, description="What is valid in a scenario and yet strange.", epilog=EPILOG)
    parser.add_argument("scenario", nargs="+", metavar="FILE", help="TOML file, or a preset's name")
    names = parser.parse_args(arguments).scenario
    found = {name: oddities(name) for name in dict.fromkeys(names)}
    for name, findings in found.items():
        for line in map(str, findings):
            print(f"{name}: {line}")
        if not findings:
            print(f"{name}: nothing is odd")
    return ODD if any(found.values()) else 0
