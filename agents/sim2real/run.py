"""Does the model predict the deployment? Profiles a running pair, simulates it from the measurements alone, and compares.

    python -m agents.sim2real --out runs/sim2real

1. A speculation trace of the draft and the target is recorded on the prompts.
2. The pair runs on this machine, server and devices in processes of their own, with drafts of random lengths: drafting, network and
   verification are measured. A scenario is built from that and nothing else.
3. Each controller runs at each load, in the deployment and in the engine, on the same prompts. How fast the machine is meanwhile, a
   yardstick says that is the same whatever the controller does; the engine's batches take as much longer or shorter.
   With controllers whose server drafts for itself (`colocated:3`; --engine vllm) vLLM is profiled and run so, too.
4. The report shows both side by side.

A folder whose run was broken off is gone on with by the same command. docs/serving/sim2real.md says what is real and what is shaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from agents.sim2real.settings import Settings, open_folder
from agents.training import arguments as flags
from agents.training.arguments import flag
from wisp_gym import cli
from wisp_gym.evaluation.arguments import controller_names
from wisp_gym.files import read_text, write_json
from wisp_gym.interrupts import leaves

if TYPE_CHECKING:  # torch takes seconds to import: --help and wrong flags do without
    from agents.sim2real.devices import Deployed

PROGRAM = "python -m agents.sim2real"
CONTROLLERS = ("wisp+wisp", "fixed:4+fcfs", "aligned+fcfs", "speculation-v1+fcfs")


@dataclass(frozen=True)
class Arguments(Settings):
    """The flags: those of the settings, what is compared, and where it is written."""

    out: Path = flag(None, "new, or of a run that was broken off", required=True, metavar="FOLDER")
    controllers: tuple[str, ...] = flag(
        CONTROLLERS, f"(default {','.join(CONTROLLERS)})", of=controller_names, metavar="a,b,..."
    )
    seeds: tuple[int, ...] = flag(
        tuple(range(20)), "of the engine's worlds; the first ones are deployed (default 20)", of=cli.seeds, metavar="S"
    )
    json: Path | None = flag(None, "also write the cells there", of=cli.output_file(), metavar="FILE")


def parse(arguments: Sequence[str] | None) -> tuple[Arguments, Settings]:
    """The flags, checked: all of them, and the settings among them."""
    given, _ = flags.parse(Arguments, PROGRAM, (__doc__ or "").splitlines()[0], arguments)
    error = cli.Parser(prog=PROGRAM).error
    if given.repeats > len(given.seeds):
        most = len(given.seeds)
        error(f"--repeats {given.repeats}: a seed of --seeds is deployed in each, allowed are {most} at most")
    if bool(given.draft) != bool(given.target):
        error("--draft and --target belong together")
    if given.target and given.prompts is None:
        error("--prompts: needed with a pair of your own")
    if given.prompts is not None and not given.prompts.is_file():
        error(f"--prompts {given.prompts}: no such file")
    own = {field.name: getattr(given, field.name) for field in fields(Settings)}
    return given, Settings(**own | {"first_seeds": given.seeds[: given.repeats]})


def in_turn(cases: Sequence[tuple[int, str]], cycle: int) -> Sequence[tuple[int, str]]:
    """The cases of a cycle, every second time the other way round: what drifts steadily hits all alike."""
    return cases[::-1] if cycle % 2 else cases


@leaves("the same command goes on")
def main(arguments: Sequence[str] | None = None) -> None:
    """Record, profile, build, deploy, simulate, report."""
    given, settings = parse(arguments)
    from agents.sim2real.colocated import check
    from agents.sim2real.compare import cells
    from agents.sim2real.deploy import check_pair
    from agents.sim2real.report import write_report
    from agents.sim2real.sides import Sides

    check(given.controllers, settings.engine)
    check_pair(settings)
    folder = open_folder(given.out, settings)
    sides = Sides(settings, folder, given.controllers)
    runs: dict[tuple[int, str], list[Deployed]] = {(n, name): [] for n in settings.loads for name in given.controllers}
    for cycle in range(settings.repeats):
        sides.profile(cycle)
        for n, name in in_turn(list(runs), cycle):
            runs[n, name].append(sides.deploy(name, n, cycle))
    results = [sides.compared(name, n, done, given.seeds) for (n, name), done in runs.items()]
    write_report(folder, settings, (sides.measured, sides.steps), results, sides.bench.notes)
    if given.json:
        rows = [asdict(cell) | {"difference": cell.difference, "within": cell.within} for cell in cells(results)]
        write_json(given.json, rows)
    print(read_text(folder / "report.md"))
