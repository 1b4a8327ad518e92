"""Does the model predict the deployment? Profiles a running pair, simulates it from the measurements alone, and compares.

    python -m agents.sim2real --out runs/sim2real

1. A speculation trace of the draft and the target is recorded on the prompts.
2. The pair runs on this machine, server and devices in processes of their own, with drafts of random lengths: drafting, network and
   verification are measured. A scenario is built from that and nothing else.
3. Each controller runs at each load, in the deployment and in the engine, on the same prompts. How fast the machine is meanwhile, a
   yardstick says that is the same whatever the controller does; the engine's batches take as much longer or shorter.
4. The report shows both side by side.

A folder whose run was broken off is gone on with by the same command. docs/serving/sim2real.md says what is real and what is shaped.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING

from agents.sim2real.settings import Settings, open_folder
from wisp_gym.cli import Parser, output_file, positive, seeds, whole
from wisp_gym.evaluation.arguments import controller_names
from wisp_gym.files import write_json
from wisp_gym.scenario import Scenario, load, save

if TYPE_CHECKING:  # torch takes seconds to import: --help and wrong flags do without
    from agents.sim2real.compare import Result
    from agents.sim2real.devices import Deployed
    from agents.sim2real.profile import Measured

PROGRAM = "python -m agents.sim2real"
CONTROLLERS = ("wisp+wisp", "fixed:4+fcfs", "aligned+fcfs", "speculation-v1+fcfs")
DTYPES = ("float32", "float64", "bfloat16", "float16")
INTERRUPTED_MEANS = "the same command goes on"


def parse(arguments: Sequence[str] | None) -> tuple[Namespace, Settings]:
    """The flags, checked."""
    parser = Parser(prog=PROGRAM, description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="FOLDER", help="new, or of a run that was broken off")
    add_pair(parser)
    add_runs(parser)
    add_devices(parser)
    add("--json", type=output_file(), metavar="FILE", help="also write the cells there")
    given = parser.parse_args(arguments)
    check(parser, given)
    given.first_seeds = given.seeds[: given.repeats]
    return given, Settings(**{field.name: getattr(given, field.name) for field in fields(Settings)})


def check(parser: Parser, given: Namespace) -> None:
    """Refuse flags that do not go together."""
    if given.repeats > len(given.seeds):
        most = len(given.seeds)
        parser.error(f"--repeats {given.repeats}: a seed of --seeds is deployed in each, allowed are {most} at most")
    if bool(given.draft) != bool(given.target):
        parser.error("--draft and --target belong together")
    if given.target and given.prompts is None:
        parser.error("--prompts: needed with a pair of your own")
    if given.prompts is not None and not given.prompts.is_file():
        parser.error(f"--prompts {given.prompts}: no such file")


def add_pair(parser: Parser) -> None:
    """The models, their prompts and where they run."""
    add = parser.add_argument
    draft = "name or folder of a transformers model (default: the small pair's)"
    add("--draft", default="", metavar="MODEL", help=draft)
    add("--target", default="", metavar="MODEL", help="of the same vocabulary (default: the small pair's)")
    add("--prompts", type=Path, metavar="FILE", help="text, or JSON lines with 'prompt' (default: the small pair's)")
    add("--n-prompts", type=whole(1, 100_000), default=64, metavar="N", help="take the first N (default %(default)s)")
    layers = "deepen a Llama-type target to N layers that change none of its tokens; 0: as it is (default %(default)s)"
    add("--target-layers", type=whole(0, 1000), default=24, metavar="N", help=layers)
    width = "width of the added MLPs; 0: as the others'"
    add("--target-intermediate", type=whole(0, 10**6), default=0, metavar="N", help=width)
    add("--device", default="cpu", help="of the target: cpu or cuda[:N] (default %(default)s)")
    add("--dtype", choices=DTYPES, default="float32", help="of the target's weights")


def add_runs(parser: Parser) -> None:
    """What runs, how often and how long."""
    add, names = parser.add_argument, ",".join(CONTROLLERS)
    add("--loads", type=loads, default=(2, 6, 16), metavar="a,b,...", help="devices (default 2,6,16)")
    add("--controllers", type=controller_names, default=[*CONTROLLERS], metavar="a,b,...", help=f"(default {names})")
    add("--seconds", type=whole(2, 36_000), default=25, metavar="S", help="measured in each run (default %(default)s)")
    cycles = "cycles of profiling and running all, with other prompts (default %(default)s)"
    add("--repeats", type=whole(1, 1000), default=3, metavar="R", help=cycles)
    add("--warmup-seconds", type=whole(0, 3600), default=6, metavar="S", help="before that (default %(default)s)")
    profile = "of profiling at each load, in each cycle (default %(default)s)"
    add("--profile-seconds", type=whole(1, 3600), default=18, metavar="S", help=profile)
    worlds = "of the engine's worlds; the first ones are deployed (default 20)"
    add("--seeds", type=seeds, default=tuple(range(20)), metavar="S", help=worlds)


def add_devices(parser: Parser) -> None:
    """What is shaped: drafting, network, promises and lengths."""
    add, ms = parser.add_argument, positive(10_000)
    add("--draft-token-ms", type=ms, default=40.0, metavar="T", help="shaped time of a drafted token (default 40)")
    add("--one-way-ms", type=ms, default=20.0, metavar="T", help="shaped median delay of a message (default 20)")
    add("--jitter", type=positive(2), default=0.2, metavar="S", help="its log-normal spread (default %(default)s)")
    promised = "tokens/s promised, in turn over the devices (default 2,4,6,8, WISP's)"
    add("--slo", type=speeds, default=(2.0, 4.0, 6.0, 8.0), metavar="a,b,...", help=promised)
    add("--max-draft-tokens", type=whole(1, 16), default=12, metavar="K", help="of a round (default %(default)s)")
    add("--max-new-tokens", type=whole(2, 2048), default=64, metavar="N", help="of an answer (default %(default)s)")


def loads(text: str) -> tuple[int, ...]:
    """Type of `--loads`."""
    return tuple(whole(1, 4096)(part) for part in text.split(","))


def speeds(text: str) -> tuple[float, ...]:
    """Type of `--slo`."""
    return tuple(positive(1e4)(part) for part in text.split(","))


def written(scenario: Scenario, folder: Path) -> Scenario:
    """The scenario in the run's folder, read again: its trace lies beside it."""
    save(scenario, folder / "scenario.toml")
    return load(folder / "scenario.toml")


def compared(
    scenario: Scenario, measured: Measured, name: str, n: int, runs: Sequence[Deployed], seeds: Sequence[int]
) -> Result:
    """A controller's runs beside the engine's worlds, the first of which have the runs' prompts."""
    from agents.sim2real.compare import Result, measures
    from agents.sim2real.profile import at_level, batch_level, machine_level
    from wisp_gym.simulation import simulate

    machine = [machine_level(measured, done.batches) for done in runs]
    predicted = [
        simulate(at_level(scenario, times), name, [seed], n)[0].row()
        for times, seed in zip(machine, seeds[: len(runs)], strict=True)
    ]
    at_mean = at_level(scenario, sum(machine) / len(machine))
    worlds, profiled = (
        [row.row() for row in simulate(where, name, chosen, n)]
        for where, chosen in ((at_mean, seeds), (scenario, seeds[: len(runs)]))
    )
    level = batch_level(measured, [done.batches for done in runs])
    return Result(n, name, [measures(done, scenario, n) for done in runs], predicted, worlds, profiled, machine, level)


def in_turn(cases: Sequence[tuple[int, str]], cycle: int) -> Sequence[tuple[int, str]]:
    """The cases of a cycle, every second time the other way round: what drifts steadily hits all alike."""
    return cases[::-1] if cycle % 2 else cases


def main(arguments: Sequence[str] | None = None) -> None:
    """Record, profile, build, deploy, simulate, report."""
    given, settings = parse(arguments)
    from agents.sim2real.compare import cells
    from agents.sim2real.deploy import Bench, check_pair
    from agents.sim2real.report import write_report

    check_pair(settings)
    folder = open_folder(given.out, settings)
    bench = Bench(settings, folder)
    runs: dict[tuple[int, str], list[Deployed]] = {(n, name): [] for n in settings.loads for name in given.controllers}
    for cycle in range(settings.repeats):
        measured = bench.profile(cycle)
        scenario = written(bench.scenario(measured), folder)
        for n, name in in_turn(list(runs), cycle):
            runs[n, name].append(bench.deploy(scenario, name, n, cycle))
    results = [compared(scenario, measured, name, n, done, given.seeds) for (n, name), done in runs.items()]
    write_report(folder, settings, measured, results, bench.notes)
    if given.json:
        rows = [asdict(cell) | {"difference": cell.difference, "within": cell.within} for cell in cells(results)]
        write_json(given.json, rows)
    print((folder / "report.md").read_text(encoding="utf-8"))
