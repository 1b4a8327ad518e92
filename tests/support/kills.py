"""Work that is killed (SIGKILL) at random moments and gone on with: what is lost, and whether the end is that of a straight run.

    python -m tests.support.kills --moments 20                 # each kind of work, about half an hour
    python -m tests.support.kills --work study --moments 100 --seed 3

Every kind is tiny. It is begun in a fork of this process, which has imported all that it needs, so that moments fall into the
work and not into imports. The suite runs a few moments of each (tests/evaluation/test_kills.py).
"""

from __future__ import annotations

import argparse
import csv
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.tiny import SCENARIO, SUITE
from wisp_gym.cli import run
from wisp_gym.files import DRAFT

OUT = "out"  # what a work writes, in its folder
ROLLOUTS = 4  # of a training, each with a checkpoint
PROFILE = ["--shape", "tiny", "--requests", "4", "--new", "4", "--prompt", "64", "--cached", "128", "--count", "24",
           "--room", "600", "--repeats", "2", "--seconds", "0"]  # fmt: skip


@dataclass(frozen=True)
class Work:
    """A kind of work that can be gone on with.

    Attributes:
        prepare: writes into a new folder what the work needs. begin: does it, from the start or from what is there.
        reached: what the work promises to end with, however often it was killed; comparable.
        kept: what may not be lost any more, read from a folder whose work was killed.
    """

    prepare: Callable[[Path], None]
    begin: Callable[[Path], int]
    reached: Callable[[Path], Any]
    kept: Callable[[Path], set[Any]]


# --- training --------------------------------------------------------------------------------------------------------


def checkpoints(folder: Path) -> list[Path]:
    """All checkpoints of all runs, the furthest last."""
    return sorted(folder.rglob("checkpoint-*.pt"), key=lambda path: path.name)


def begin_training(folder: Path) -> int:
    """Train, from the furthest checkpoint where there is one."""
    import train
    from agents.training.settings import ALGORITHMS

    rollout = ALGORITHMS["ppo"].n_envs * ALGORITHMS["ppo"].hyperparameters["n_steps"]
    flags = ["-f", str(folder / OUT), "--no-comparison"]
    if found := checkpoints(folder):
        if found[-1].stem.endswith(str(ROLLOUTS * rollout)):
            return 0
        return run(train.main, train.PROGRAM, [*flags, "-i", str(found[-1])])
    flags += ["--algo", "ppo", "-n", str(ROLLOUTS * rollout), "--eval-freq", str(rollout), "--n-eval-envs", "2"]
    return run(train.main, train.PROGRAM, [*flags, "--env-kwargs", f"scenario:{folder / 'tiny.toml'}", "horizon_s:8"])


def training_reached(folder: Path) -> Any:
    """Weights, worlds and generators at the end, with the scores and the best policy on the way."""
    import torch

    from agents.training.checkpoint import read_checkpoint

    last = checkpoints(folder)[-1]
    state = read_checkpoint(last)
    del state["episodes"]  # of SB3's log, with times of day
    flat = json.dumps(
        state, default=lambda value: value.numpy().tobytes().hex() if torch.is_tensor(value) else str(value)
    )
    return last.name, flat, *((last.parents[1] / name).read_bytes() for name in ("policy.json", "validation.csv"))


# --- recording and measuring -----------------------------------------------------------------------------------------


def prepare_recording(folder: Path) -> None:
    """A pair of models, and prompts for several pieces."""
    from tests.support.testbed_world import save_pair, text_of

    save_pair(folder)
    (folder / "prompts.txt").write_text("".join(f"{text_of(range(i % 9 + 1))}\n" for i in range(40)))


def begin_recording(folder: Path) -> int:
    """Record what is missing."""
    from traces import record

    files = {"draft": "draft", "target": "target", "prompts": "prompts.txt", "out": f"{OUT}/trace.npz"}
    flags = [word for name, file in files.items() for word in (f"--{name}", str(folder / file))]
    return run(record.main, "record", [*flags, "--draft-tokens", "4", "--max-new-tokens", "24"])


def begin_pair(folder: Path) -> int:
    """Train what is left of a pair."""
    from traces import train_pair

    text = Path(json.__file__).parent  # a small package of Python's own
    sizes = [
        "--hidden",
        "32",
        "--layers",
        "2",
        "--heads",
        "2",
        "--kv-heads",
        "1",
        "--intermediate",
        "48",
        "--steps",
        "40",
    ]
    flags = [word.replace("--", f"--{side}-") for side in ("target", "draft") for word in sizes]
    more = [
        "--vocabulary",
        "300",
        "--batch",
        "2",
        "--block",
        "32",
        "--prompts",
        "4",
        "--save-every",
        "5",
        "--dtype",
        "float32",
    ]
    return run(train_pair.main, "pair", ["--out", str(folder / OUT), "--text", str(text), *flags, *more])


def begin_profile(folder: Path) -> int:
    """Measure what is left."""
    from estimators.profiling import batches

    return run(batches.main, "profile", ["--out", str(folder / OUT / "profile.csv"), *PROFILE])


def measured(folder: Path) -> list[dict[str, str]]:
    """The rows of a profile."""
    path = folder / OUT / "profile.csv"
    lines = path.read_text().splitlines() if path.exists() else []
    return list(csv.DictReader(line for line in lines if not line.startswith("#")))


def begin_study(folder: Path) -> int:
    """Play what is left of a study."""
    from agents.study import run as study

    return run(study.main, "study", ["--suite", str(folder / "tiny.toml"), "--out", str(folder / OUT)])


def whole_lines(path: Path) -> set[bytes]:
    """The lines of a file that were ended."""
    return {line for line in path.read_bytes().splitlines(True) if line.endswith(b"\n")} if path.exists() else set()


def contents(folder: Path, *names: str) -> list[bytes]:
    """The content of files of a work's result."""
    return [(folder / OUT / name).read_bytes() for name in names]


WORKS = {
    "training": Work(
        lambda folder: (folder / "tiny.toml").write_text(SCENARIO) and None, begin_training, training_reached,
        lambda folder: {path.name for path in checkpoints(folder)},
    ),
    "study": Work(
        lambda folder: (folder / "tiny.toml").write_text(SUITE) and None, begin_study,
        lambda folder: contents(folder, "study.json", "worlds.jsonl", "rows.json", "tables.txt", "settings.json"),
        lambda folder: whole_lines(folder / OUT / "worlds.jsonl"),
    ),
    "recording": Work(
        prepare_recording, begin_recording, lambda folder: contents(folder, "trace.npz"),
        lambda folder: set(),  # pieces go when the trace is there
    ),
    "profile": Work(
        lambda folder: None, begin_profile, lambda folder: sorted(row["name"] for row in measured(folder)),
        lambda folder: {tuple(row.values()) for row in measured(folder)},
    ),
    "pair": Work(
        lambda folder: None, begin_pair,
        lambda folder: contents(folder, "target/model.safetensors", "draft/model.safetensors", "prompts.jsonl", "recipe.json"),
        lambda folder: set(),
    ),
}  # fmt: skip


# --- killing ---------------------------------------------------------------------------------------------------------


def forked(work: Work, folder: Path) -> int:
    """Begin a work in a process of its own; its id."""
    (folder / OUT).mkdir(exist_ok=True)
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    try:
        log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        code = work.begin(folder)
    except BaseException:
        traceback.print_exc()
        code = 1
    os._exit(code)


def finished(work: Work, folder: Path) -> None:
    """Do a work to its end."""
    code = os.waitstatus_to_exitcode(os.waitpid(forked(work, folder), 0)[1])
    assert code == 0, (folder / "log").read_text()


def killed(work: Work, folder: Path, after_s: float) -> bool:
    """Begin a work and kill it; whether it was still at it."""
    pid = forked(work, folder)
    time.sleep(after_s)
    os.kill(pid, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def check_files(folder: Path) -> None:
    """Every file that has its name is whole; drafts are told by theirs."""
    for path in folder.rglob("*"):
        if path.suffix == ".json":
            json.loads(path.read_bytes())
        elif path.suffix in (".pt", ".npz"):
            assert zipfile.ZipFile(path).testzip() is None, path
        assert not path.name.startswith(".") or path.suffix == DRAFT or path.name in (".lock", ".gitattributes"), path


def new_folder(work: Work, parent: Path, name: str) -> Path:
    """A folder in which a work can begin."""
    folder = parent / name
    folder.mkdir(parents=True)
    work.prepare(folder)
    return folder


def survives(name: str, moments: int, parent: Path, seed: int = 0) -> list[float]:
    """Kill a kind of work at random moments, twice in each of its runs, and go on; the moments, in seconds.

    Raises:
        AssertionError: something was lost or damaged, or the end is another than that of a straight run.
    """
    work, rng, hit = WORKS[name], random.Random(f"{name}-{seed}"), list[float]()
    straight, begun_s = new_folder(work, parent, f"{name}-straight"), time.monotonic()
    finished(work, straight)
    seconds, wanted = time.monotonic() - begun_s, work.reached(straight)
    while len(hit) < moments:
        folder, kept = new_folder(work, parent, f"{name}-{len(hit)}"), set[Any]()
        for _ in range(min(2, moments - len(hit))):
            after_s = rng.uniform(0.0, seconds)
            if killed(work, folder, after_s):
                hit.append(after_s)
            if name != "pair":  # transformers writes its folders itself
                check_files(folder / OUT)
            assert kept <= (kept := work.kept(folder)), (
                f"{name}: a kill after {after_s:.3f} s lost what was there before"
            )
        finished(work, folder)
        assert kept <= work.kept(folder), f"{name}: what was there is gone"
        assert work.reached(folder) == wanted, f"{name}: another end after kills at {hit[-2:]}"
        shutil.rmtree(folder)
    return hit


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    preload(given.work)
    for name in given.work:
        with tempfile.TemporaryDirectory() as parent:
            begun_s = time.monotonic()
            hit = survives(name, given.moments, Path(parent), given.seed)
            print(f"{name}: {len(hit)} kills between {min(hit):.2f} and {max(hit):.2f} s, nothing lost; "
                  f"{time.monotonic() - begun_s:.0f} s", flush=True)  # fmt: skip


def preload(works: list[str]) -> None:
    """Import what the works need: forks are to begin with the work."""
    models = ("traces.model_pair", "transformers.models.llama.modeling_llama")
    modules = {
        "training": ["train"], "study": ["agents.study.run"], "recording": ["traces.record", *models],
        "pair": ["traces.train_pair", *models], "profile": ["estimators.profiling.batches", "estimators.profiling.forward"],
    }  # fmt: skip
    for name in works:
        for module in modules[name]:
            importlib.import_module(module)


if __name__ == "__main__":
    main()
