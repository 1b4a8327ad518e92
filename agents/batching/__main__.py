"""Train a batching policy: clone the strongest rule, refine it by MaskablePPO and by search, keep the best.

    python -m agents.batching                       # wisp_gym/Batching-v1, beside the learned speculation policy
    python -m agents.batching --decision joint      # wisp_gym/Joint-v1: prices too, from batching-v1
    python -m agents.batching --log-folder runs --seed 3

`python train.py --preset batching` and `--preset joint` do the same. Worlds differ in GPU, load, prompts and service
classes. The candidates (clone, during PPO, during the search) are compared in validation worlds; policy.json is the
best of them, policy.onnx the same for servers, and scores.json holds all scores. Use the run folder in place of a
batching rule: `speculation-v1+runs/batching_1+admit`, with the limit of admission that it was trained under. More:
docs/guide/train.md.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wisp_gym.process import begin, program

if __name__ == "__main__":
    begin()
os.environ.setdefault("OMP_NUM_THREADS", "1")  # small batches: a second thread costs more than it brings

from agents.batching.settings import Settings, preset
from agents.batching.training import PROGRAM, train_anew
from agents.training.arguments import flag, parse
from wisp_gym.cli import run


@dataclass(frozen=True)
class Arguments(Settings):
    """The flags: fields of the settings, and where the run's folder is."""

    log_folder: Path = flag(Path("runs"), "where the run's folder is made, never over another", "-f", metavar="DIR")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and say where the policy is."""
    args, given = parse(Arguments, PROGRAM, __doc__, arguments)
    changes = {name: getattr(args, name) for name in sorted(given - {"decision", "log_folder"})}
    print(train_anew(preset(args.decision, **changes), args.log_folder))


if __name__ == "__main__":
    program(lambda: run(main, PROGRAM))
