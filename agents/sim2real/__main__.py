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

import json
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agents.training.run_folder import versions
from wisp_gym.cli import Parser, number, run, seeds, whole
from wisp_gym.errors import InputError
from wisp_gym.evaluation.arguments import controller_names
from wisp_gym.files import write_json, write_text
from wisp_gym.scenario import Scenario, load, save

if TYPE_CHECKING:  # torch takes seconds to import: --help and wrong flags do without
    from agents.sim2real.compare import Result
    from agents.sim2real.devices import Deployed
    from agents.sim2real.profile import Measured

PROGRAM = "python -m agents.sim2real"
CONTROLLERS = ("wisp+wisp", "fixed:4+fcfs", "aligned+fcfs", "speculation-v1+fcfs")
SETTINGS = "settings.json"
# What the folder's figures depend on; a run that goes on must be given the same.
FIXED = (
    "draft", "target", "prompts", "n_prompts", "target_layers", "target_intermediate", "device", "dtype", "loads", "seconds", "warmup_seconds",
    "profile_seconds", "draft_token_ms", "one_way_ms", "jitter", "slo", "max_draft_tokens", "max_new_tokens", "first_seeds", "repeats",
)  # fmt: skip


def parse(arguments: Sequence[str] | None) -> Namespace:
    """The flags, checked."""
    parser = Parser(prog=PROGRAM, description=__doc__)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="new, or of a run that was broken off"
    )
    add_pair(parser)
    add_runs(parser)
    add_devices(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the cells there")
    given = parser.parse_args(arguments)
    check(parser, given)
    given.first_seeds = given.seeds[: given.repeats]
    return given


def check(parser: Parser, given: Namespace) -> None:
    """Refuse flags that do not go together."""
    if given.repeats > len(given.seeds):
        parser.error(
            f"--repeats {given.repeats}: a seed of --seeds is deployed in each, allowed are {len(given.seeds)} at most"
        )
    if bool(given.draft) != bool(given.target):
        parser.error("--draft and --target belong together")
    if given.target and given.prompts is None:
        parser.error("--prompts: needed with a pair of your own")


def add_pair(parser: Parser) -> None:
    """The models, their prompts and where they run."""
    add = parser.add_argument
    add(
        "--draft",
        default="",
        metavar="MODEL",
        help="name or folder of a transformers model (default: the small pair's)",
    )
    add("--target", default="", metavar="MODEL", help="of the same vocabulary (default: the small pair's)")
    add("--prompts", type=Path, metavar="FILE", help="text, or JSON lines with 'prompt' (default: the small pair's)")
    add("--n-prompts", type=whole(1, 100_000), default=64, metavar="N", help="take the first N (default %(default)s)")
    add("--target-layers", type=whole(0, 1000), default=24, metavar="N",
        help="deepen a Llama-type target to N layers that change none of its tokens; 0: as it is (default %(default)s)")  # fmt: skip
    add(
        "--target-intermediate",
        type=whole(0, 10**6),
        default=0,
        metavar="N",
        help="width of the added MLPs; 0: as the others'",
    )
    add("--device", default="cpu", help="of the target: cpu or cuda[:N] (default %(default)s)")
    add(
        "--dtype",
        choices=("float32", "float64", "bfloat16", "float16"),
        default="float32",
        help="of the target's weights",
    )


def add_runs(parser: Parser) -> None:
    """What runs, how often and how long."""
    add = parser.add_argument
    add("--loads", type=loads, default=(2, 6, 16), metavar="a,b,...", help="devices (default 2,6,16)")
    add(
        "--controllers",
        type=controller_names,
        default=list(CONTROLLERS),
        metavar="a,b,...",
        help=f"(default {','.join(CONTROLLERS)})",
    )
    add("--seconds", type=whole(2, 36_000), default=25, metavar="S", help="measured in each run (default %(default)s)")
    add("--repeats", type=whole(1, 1000), default=3, metavar="R",
        help="cycles of profiling and running all, with other prompts (default %(default)s)")  # fmt: skip
    add("--warmup-seconds", type=whole(0, 3600), default=6, metavar="S", help="before that (default %(default)s)")
    add("--profile-seconds", type=whole(1, 3600), default=18, metavar="S",
        help="of profiling at each load, in each cycle (default %(default)s)")  # fmt: skip
    add("--seeds", type=seeds, default=tuple(range(20)), metavar="S",
        help="of the engine's worlds; the first ones are deployed (default 20)")  # fmt: skip


def add_devices(parser: Parser) -> None:
    """What is shaped: drafting, network, promises and lengths."""
    add = parser.add_argument
    add(
        "--draft-token-ms",
        type=positive(10_000),
        default=40.0,
        metavar="T",
        help="shaped time of a drafted token (default 40)",
    )
    add(
        "--one-way-ms",
        type=positive(10_000),
        default=20.0,
        metavar="T",
        help="shaped median delay of a message (default 20)",
    )
    add("--jitter", type=positive(2), default=0.2, metavar="S", help="its log-normal spread (default %(default)s)")
    add("--slo", type=speeds, default=(2.0, 4.0, 6.0, 8.0), metavar="a,b,...",
        help="tokens/s promised, in turn over the devices (default 2,4,6,8, WISP's)")  # fmt: skip
    add("--max-draft-tokens", type=whole(1, 16), default=12, metavar="K", help="of a round (default %(default)s)")
    add("--max-new-tokens", type=whole(2, 2048), default=64, metavar="N", help="of an answer (default %(default)s)")


def positive(high: float) -> Callable[[str], float]:
    """Type of a number above 0."""
    return lambda text: number(text, high, f"a number above 0 and up to {high:g}")


def loads(text: str) -> tuple[int, ...]:
    """Type of `--loads`."""
    return tuple(whole(1, 4096)(part) for part in text.split(","))


def speeds(text: str) -> tuple[float, ...]:
    """Type of `--slo`."""
    return tuple(positive(1e4)(part) for part in text.split(","))


def open_folder(given: Namespace) -> Path:
    """The run's folder, new or gone on with.

    Raises:
        InputError: it holds something else, or a run with other settings.
    """
    folder: Path = given.out
    text = json.dumps({name: plain(getattr(given, name)) for name in FIXED}, indent=2) + "\n"
    path = folder / SETTINGS
    if path.is_file():
        if path.read_text(encoding="utf-8") != text:
            raise InputError(f"--out {folder}: a run with other settings; allowed are the same ones, or a new folder")
    elif folder.exists() and any(folder.iterdir()):
        raise InputError(f"--out {folder}: not empty; allowed is a new folder, or that of a run broken off")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
        write_json(folder / "versions.json", versions())
    return folder


def plain(value: Any) -> Any:
    """A flag's value as JSON has it."""
    return list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value


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
    given = parse(arguments)
    from agents.sim2real.compare import cells
    from agents.sim2real.deploy import Bench
    from agents.sim2real.report import write_report

    folder = open_folder(given)
    bench = Bench(given, folder)
    runs: dict[tuple[int, str], list[Deployed]] = {(n, name): [] for n in given.loads for name in given.controllers}
    for cycle in range(given.repeats):
        measured = bench.profile(cycle)
        scenario = written(bench.scenario(measured), folder)
        for n, name in in_turn(list(runs), cycle):
            runs[n, name].append(bench.deploy(scenario, name, n, cycle))
    results = [compared(scenario, measured, name, n, done, given.seeds) for (n, name), done in runs.items()]
    write_report(folder, given, measured, results, bench.notes)
    if given.json:
        write_json(
            given.json,
            [asdict(cell) | {"difference": cell.difference, "within": cell.within} for cell in cells(results)],
        )
    print((folder / "report.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(run(main, PROGRAM))
