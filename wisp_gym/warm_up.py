"""`wisp-gym warm-up`: compile everything ahead, the rules that nobody has asked for yet included.

Else compiled code comes when a world first needs it: the engine in the first minute of an installation, a rule with the first
world that follows it. An image of a container or a machine without a compiler's minute to spare is warmed up once.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from wisp_gym.cli import Parser, progress
from wisp_gym.engine.run import run
from wisp_gym.jit import COMPILES, INTEGER, NUMBERS, SINGLES
from wisp_gym.jit_cache import compilation
from wisp_gym.jit_demand import OnDemand
from wisp_gym.jit_folder import cache_folder
from wisp_gym.rules.observed import decide_batching, decide_drafting, score_batching

PROGRAM = "wisp-gym warm-up"
ROWS, INTEGERS = SINGLES.copy(ndim=2), INTEGER[::1]


def work() -> Iterator[tuple[str, Callable[[], Any]]]:
    """What Python calls and what compiled code calls on demand: names, and what compiles each."""
    yield "engine", partial(run.compile, (INTEGER, INTEGER, INTEGER, INTEGER))
    for demanded in OnDemand.every.values():
        yield demanded.name.removeprefix("wisp_gym."), demanded.bind
    drafting = INTEGER, NUMBERS, SINGLES, NUMBERS, INTEGER, INTEGER, ROWS, INTEGERS, NUMBERS, INTEGERS
    yield "drafting", partial(decide_drafting.compile, drafting)
    yield "batching", partial(decide_batching.compile, (INTEGER, NUMBERS, INTEGER, INTEGER, ROWS, INTEGERS))
    yield "scoring", partial(score_batching.compile, (SINGLES, INTEGER, INTEGER, ROWS, INTEGERS))


def main(arguments: Sequence[str] | None = None) -> None:
    """Compile, and say where the code is kept."""
    Parser(prog=PROGRAM, description="Compile everything ahead: the engine and every rule.").parse_args(arguments)
    if not COMPILES:
        print("nothing to compile: NUMBA_DISABLE_JIT is set")
        return
    pieces = list(work())
    with compilation, progress(len(pieces), unit="piece") as bar:  # one compilation, so that its lines are said once
        for _, compile_one in pieces:
            compile_one()
            bar.update(1)
    print(f"{len(pieces)} pieces of compiled code are kept in {cache_folder()}")
