"""`python -m agents.training`: what was learned owes to what, and how fast it is learned. `python train.py` trains."""

from __future__ import annotations

import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small batches: a second thread costs more than it brings

from wisp_gym.cli import Commands

main = Commands(
    "python -m agents.training",
    "Measurements of training itself; `python train.py` trains.",
    {
        "ablation": (
            "agents.training.ablation",
            "train without one thing at a time, and tune a rule with the same budget",
        ),
        "benchmark": ("agents.training.benchmark", "decisions a second, of rollouts alone and of training"),
    },
)

if __name__ == "__main__":
    sys.exit(main())
