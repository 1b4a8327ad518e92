"""Everything that is measured on a GPU, by one command: batch times of Qwen3 shapes, and a pair of models with traces.

    python -m estimators.profiling gpu --device cuda --out gpu --minutes 25
    python -m estimators.profiling gpu --device cuda --out gpu --dry        # what is done, what is left

In order of importance: profiles of Qwen3-32B, -14B and -8B; fits, presets and pictures of them; a target of about 150 M
parameters and a draft of about 15 M, trained on the Python code that the machine has; speculation traces of the pair,
greedy and at temperature 1; their figures beside published ones. Each step is a command of its own that goes on where it
was stopped, so this one does too: FOLDER/steps.json knows what is done. A step that outlasts its share of the time makes
room for the next and has what is left at the end. Steps that need no GPU may be done elsewhere, with FOLDER brought there.
"""

import json
import subprocess
import sys
import sysconfig
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wisp_gym.cli import OUT_OF_TIME, OutOfTime, Parser, table
from wisp_gym.errors import InputError
from wisp_gym.files import read_text, write_json, write_text
from wisp_gym.interrupts import leaves
from wisp_gym.process import call

PROGRAM = "python -m estimators.profiling gpu"
SHAPES = {"full": ("qwen3-32b", "qwen3-14b", "qwen3-8b"), "tiny": ("tiny",)}
LEAST_S = 30  # with less time left nothing is begun: making a model of 65 GB takes as long
GRACE_S = 120  # beyond its share, after which a step that does not stop by itself is ended
# Text beside the standard library: packages of Python code under BSD, Apache-2.0 or PSF-like licences, where installed.
PACKAGES = ("numpy", "scipy", "sympy", "networkx", "sklearn", "matplotlib", "torch")
LICENCES = "PSF-2.0 (Python's standard library), BSD-3-Clause, Apache-2.0 and matplotlib's own (installed packages)"
PAIRS: dict[str, dict[str, dict[str, float]]] = {
    "full": {  # target 151 M parameters, draft 16 M: 16,384 tokens of vocabulary, untied and tied
        "target": {"hidden": 768, "layers": 20, "heads": 12, "kv-heads": 4, "intermediate": 2048, "steps": 2000},
        "draft": {"hidden": 384, "layers": 6, "heads": 6, "kv-heads": 2, "intermediate": 1024, "steps": 2000},
        "": {"vocabulary": 16_384, "batch": 48, "block": 512, "learning-rate": 6e-4, "save-every": 500, "prompts": 512},
    },
    "tiny": {
        "target": {"hidden": 32, "layers": 2, "heads": 2, "kv-heads": 1, "intermediate": 48, "steps": 60},
        "draft": {"hidden": 16, "layers": 1, "heads": 1, "kv-heads": 1, "intermediate": 24, "steps": 30},
        "": {"vocabulary": 400, "batch": 2, "block": 128, "learning-rate": 2e-3, "save-every": 20, "prompts": 30},
    },
}
GRIDS: dict[str, dict[str, float]] = {"full": {}, "tiny": {"requests": 4, "new": 4, "prompt": 64, "cached": 128, "count": 24, "room": 600,
                              "repeats": 2, "seconds": 0}}  # fmt: skip
RECORDER = {"full": {"draft-tokens": 8, "max-new-tokens": 128, "batch": 128, "answers": 64},
            "tiny": {"draft-tokens": 4, "max-new-tokens": 16, "batch": 16, "answers": 15}}  # fmt: skip
TRACES = {"full": "python-150m-15m", "tiny": "python-tiny"}
SHARE_MINUTES = {"profile": 7.0, "train": 7.0, "record": 3.0}


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: unique.
        runs: what `python -m` runs.
        flags: its arguments.
        after: steps that must be done before.
        minutes: its share of the time; 0 where it takes no limit of its own (seconds of work, no GPU).
        says: file beside the results that keeps what it prints; "" = none.
    """

    name: str
    runs: str
    flags: tuple[str, ...]
    after: tuple[str, ...] = ()
    minutes: float = 0.0
    says: str = ""

    def command(self, minutes: float) -> list[str]:
        """Return the command line, limited to so many minutes where it takes a limit."""
        limit = ["--minutes", f"{minutes:.2f}"] if self.minutes else []
        return [sys.executable, "-m", *self.runs.split(), *self.flags, *limit]


def flags(values: Mapping[str, float], prefix: str = "") -> list[str]:
    """Return values as flags."""
    return [word for name, value in values.items() for word in (f"--{prefix}{name}", str(value))]


def training_text(sizes: str) -> list[str]:
    """Return the flags that name the text: the standard library with packages, or a small part of it."""
    library = Path(sysconfig.get_path("stdlib"))
    if sizes == "tiny":
        return ["--text", str(library / "asyncio")]
    installed = [Path(sysconfig.get_path("purelib")) / name for name in PACKAGES]
    return ["--text", str(library), *(str(folder) for folder in installed if folder.is_dir()), "--licence", LICENCES]


def plan(given: Namespace) -> list[Step]:
    """Return all steps in order of importance."""
    out, sizes, device = given.out, given.sizes, ["--device", given.device]
    profiles = [out / f"profile-{shape}.csv" for shape in SHAPES[sizes]]
    steps = [
        Step(f"profile {shape}", "estimators.profiling batches",
             (*device, "--shape", shape, "--out", str(file), *flags(GRIDS[sizes])), minutes=SHARE_MINUTES["profile"])
        for shape, file in zip(SHAPES[sizes], profiles, strict=True)
    ]  # fmt: skip
    written = ("--presets", str(out / "presets"), "--plots", str(out / "pictures"), "--json", str(out / "fits.json"))
    profiled = tuple(step.name for step in steps)
    steps.append(
        Step("fit", "estimators.batch_time profiles", (*map(str, profiles), *written), profiled, says="fits.txt")
    )
    pair, trained = out / "pair", [f for model in ("target", "draft") for f in flags(PAIRS[sizes][model], f"{model}-")]
    steps.append(Step("train pair", "traces.train_pair",
                      (*device, "--out", str(pair), *trained, *flags(PAIRS[sizes][""]), *training_text(sizes)),
                      minutes=SHARE_MINUTES["train"]))  # fmt: skip
    return steps + trace_steps(given, pair, device)


def trace_steps(given: Namespace, pair: Path, device: list[str]) -> list[Step]:
    """Return the steps from the pair to the figures of its traces."""
    out, sizes, name = given.out, given.sizes, TRACES[given.sizes]
    models = ("--draft", str(pair / "draft"), "--target", str(pair / "target"), "--recipe", str(pair / "recipe.json"))
    steps, files = [], {"greedy": (out / f"{name}.npz", 0), "sampled": (out / f"{name}-sampled.npz", 1)}
    for kind, (file, temperature) in files.items():
        steps.append(Step(f"record {kind}", "traces.record",
                          (*device, *models, "--prompts", str(pair / "prompts.jsonl"), "--out", str(file),
                           "--temperature", str(temperature), *flags(RECORDER[sizes])),
                          ("train pair",), SHARE_MINUTES["record"]))  # fmt: skip
    # The tiny target repeats itself when greedy, so that nothing may be left to tell apart.
    told = [kind for kind in files if sizes == "full" or kind == "sampled"]
    for kind in told:
        stem = files[kind][0].stem
        steps.append(Step(f"predict {kind}", "estimators.rejection",
                          (str(files[kind][0]), "--json", str(out / f"{stem}-predictor.json")), (f"record {kind}",),
                          says=f"{stem}-predictor.txt"))  # fmt: skip
    report = (*(str(file) for file, _ in files.values()), "--json", str(out / "traces.json"))
    needed = (*(f"record {kind}" for kind in files), *(f"predict {kind}" for kind in told))
    steps.append(Step("report", "estimators.acceptance report", report, needed, says="traces.txt"))
    return steps


def done_steps(out: Path) -> list[str]:
    """Return the names of the steps that are done, in the order in which they ended."""
    return list(read_steps(out)["done"])


def read_steps(out: Path) -> dict[str, Any]:
    """Return what steps.json of a folder holds: `sizes` (None without one) and the steps that are `done`.

    Raises:
        InputError: it is damaged.
    """
    path = out / "steps.json"
    if not path.exists():
        return {"sizes": None, "done": []}
    try:
        found = json.loads(read_text(path))
        return {"sizes": str(found["sizes"]), "done": [str(name) for name in found["done"]]}
    except (ValueError, TypeError, KeyError, RecursionError):
        raise InputError(f"{path}: not what this command writes; choose another --out or remove it") from None


def start(step: Step, given: Namespace, seconds_left: float) -> int:
    """Run a step and return its exit code; 75 where it was ended because its time was up."""
    share = min(60 * step.minutes or seconds_left, seconds_left)
    print(f"\n=== {step.name}" + (f", at most {share / 60:.1f} minutes" if step.minutes else ""), flush=True)
    began = time.monotonic()
    try:
        code, said = call(step.command(share / 60), share + GRACE_S, captured=bool(step.says))
    except subprocess.TimeoutExpired:
        return OUT_OF_TIME
    if step.says and code == 0:
        write_text(given.out / step.says, said)
        print(said, flush=True)
    print(f"{step.name}: {time.monotonic() - began:.0f} s", flush=True)
    return code


def measure(given: Namespace) -> tuple[list[str], dict[str, int]]:
    """Run the steps until all are done or the time is up; return the names of those done, and codes of those that failed."""
    ends, steps = time.monotonic() + 60 * given.minutes, plan(given)
    done = done_steps(given.out)
    failed: dict[str, int] = {}
    paused: set[str] = set()
    write_json(given.out / "steps.json", {"sizes": given.sizes, "done": done})
    while ends - time.monotonic() > LEAST_S:
        ready = [s for s in steps if s.name not in (*done, *failed) and set(s.after) <= set(done)]
        step = next((s for s in ready if s.name not in paused), None)
        if step is None and not paused:
            break
        if step is None:  # each had its share: what is left of the time goes to the first of them again
            paused.clear()
            continue
        code = start(step, given, ends - time.monotonic())
        if code == 0:
            done.append(step.name)
            write_json(given.out / "steps.json", {"sizes": given.sizes, "done": done})
        elif code == OUT_OF_TIME:
            paused.add(step.name)
        else:
            failed[step.name] = code
    return done, failed


def listing(given: Namespace, done: Sequence[str]) -> str:
    """Return the plan as a table: what is done, what is left, and the command of each."""
    rows = []
    for step in plan(given):
        limit = f"{step.minutes:g}" if step.minutes else "-"
        state = "done" if step.name in done else "left"
        rows.append([step.name, state, limit, f"python {' '.join(step.command(step.minutes)[1:])}"])
    commands = "\n".join(f"{row[0]}: {row[3]}" for row in rows)
    return f"{table(['step', 'state', 'minutes'], [row[:3] for row in rows])}\n\n{commands}"


def parse(arguments: Sequence[str] | None) -> Namespace:
    """Return the flags, checked."""
    parser = Parser(prog=PROGRAM, description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="made if missing, gone on with if not"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda", help="(default %(default)s)")
    parser.add_argument("--sizes", choices=tuple(SHAPES), default="full", help="tiny: proves every step in a minute")
    parser.add_argument("--minutes", type=float, default=25, help="for all steps together (default %(default)s)")
    parser.add_argument("--dry", action="store_true", help="print the steps and do nothing")
    given = parser.parse_args(arguments)
    if not 1 <= given.minutes <= 1e5:
        raise InputError(f"--minutes {given.minutes:g}: 1 to 100000 is needed")
    if (other := read_steps(given.out)["sizes"]) not in (None, given.sizes):
        raise InputError(f"--out {given.out}: holds results of --sizes {other}; choose another folder")
    return given


@leaves("the same command goes on")
def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is left, and say what is left after that."""
    given = parse(arguments)
    if given.dry:
        print(listing(given, done_steps(given.out)))
        return
    given.out.mkdir(parents=True, exist_ok=True)
    done, failed = measure(given)
    left = [step.name for step in plan(given) if step.name not in done]
    print(f"\n{len(done)} steps are done, their results in {given.out}", flush=True)
    if failed:
        raise InputError("failed: " + ", ".join(f"{name} (exit code {code})" for name, code in failed.items()))
    if left:
        raise OutOfTime(f"left: {', '.join(left)}; the same command goes on")
