"""`python -m agents.training`: what a learned policy owes to what, and how fast it is learned."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small batches: a second thread costs more than it brings

from wisp_gym.cli import Commands
from wisp_gym.process import program

COMMANDS = Commands(
    "python -m agents.training",
    "Measurements of training; `python train.py` trains.",
    {
        "ablation": ("agents.training.ablation", "without one thing at a time, and a rule tuned with the same budget"),
        "rewards": ("agents.training.rewards", "with other factors of the externality, and other pressures"),
        "benchmark": ("agents.training.benchmark", "decisions a second, of rollouts alone and of training"),
    },
)

if __name__ == "__main__":
    program(COMMANDS)
