"""`python -m agents.sim2real`: a running deployment profiled, simulated from the measurements alone, and compared."""

import os

from wisp_gym.cli import Commands
from wisp_gym.process import program

COMMANDS = Commands(
    "python -m agents.sim2real",
    "Does the model predict the deployment? One pair of models is profiled, run and simulated on this machine.",
    {
        "run": ("agents.sim2real.run", "profile, deploy, simulate, report; go on with what was broken off"),
        "server": ("agents.sim2real.server", "the verification server that `run` starts, from a file of its settings"),
        "stream": ("agents.sim2real.stream_server", "the server that drafts for itself, likewise"),
    },
    default="run",
)

if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    program(COMMANDS)
