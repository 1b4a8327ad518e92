"""Which controller a learned choice takes for a scenario, at once: who drafts, with what, how long, by which rules of the server.

    wisp-gym choose --devices 64
    wisp-gym choose --scenario mine.toml --slo 8

`wisp-gym evaluate --controllers controller-v2` runs what it takes; `wisp-gym advise` searches for minutes and measures.
"""

import math
from collections.abc import Sequence

from wisp_gym.cli import Parser, speed, table, whole
from wisp_gym.controllers.choice import load_choice
from wisp_gym.evaluation.outcomes import chosen_scenario
from wisp_gym.scenario import DEFAULT_SCENARIO
from wisp_gym.values import MAX_DEVICES

PROGRAM = "wisp-gym choose"
DEFAULT = "controller-v2"
HEADER = ["controller, the first is taken", "of the best, as predicted"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the controllers that the scenario allows, the one that is taken first."""
    parser = Parser(prog=PROGRAM, description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--scenario", default=DEFAULT_SCENARIO, metavar="NAME|FILE", help="preset or TOML file (default %(default)s)")
    add("--devices", type=whole(1, MAX_DEVICES), metavar="N", help="population (default: the scenario's)")
    add("--slo", type=speed, metavar="V", help="one class of V tokens/s for all devices (default: the scenario's mix)")
    add(
        "--choice",
        default=DEFAULT,
        metavar="NAME|FILE",
        help="shipped choice, choice.json or its run folder (default %(default)s)",
    )
    given = parser.parse_args(arguments)
    scores = load_choice(given.choice).scores(chosen_scenario(given.scenario, given.devices, given.slo))
    print(table(HEADER, [[name, f"{100.0 * min(math.exp(score), 1.0):.1f} %"] for name, score in scores.items()]))
