"""How fast fleets learn: decisions a second of the engine's rollouts alone, and of training from end to end.

    python -m agents.training benchmark

Medians of several repetitions after one that compiles. The figures are of this machine as it is used now; compare ratios.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from agents.training.fleet_ppo import FleetPPO
from agents.training.learners import default_settings, make_env, make_model, standardise
from agents.training.networks import engine_policy
from wisp_gym.cli import Parser, aligned, run, whole
from wisp_gym.machine import machine, shown

PROGRAM = "python -m agents.training benchmark"


def rates(work: Callable[[], int], repetitions: int) -> list[float]:
    """Decisions per second of each repetition of `work`, which returns how many it took."""
    found = []
    for _ in range(repetitions):
        began = time.perf_counter()
        decisions = work()
        found.append(decisions / (time.perf_counter() - began))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = Parser(prog=PROGRAM, description=__doc__)
    parser.add_argument("--repetitions", type=whole(1, 1000), default=7, metavar="N", help="of each figure (default 7)")
    given: argparse.Namespace = parser.parse_args(arguments)
    torch.set_num_threads(1)
    settings = default_settings(n_timesteps=10**9)
    env = make_env(settings)
    model = make_model(settings, env, "cpu")
    standardise(model, env, 0)
    assert isinstance(model, FleetPPO)
    assert model.fleet is not None
    fleet, policy, n = model.fleet, engine_policy(model.policy, "token"), settings["hyperparameters"]["decisions"]
    model.learn(n)  # compiles

    def trained() -> int:
        model.learn(n, reset_num_timesteps=False)
        return n

    rows = {
        "rollouts alone": rates(lambda: len(fleet.collect(policy).actions), given.repetitions),
        "rollouts and training": rates(trained, given.repetitions),
    }
    print(shown(machine("numba", "numpy")) + "\n")
    header = [["decisions a second", "median", "least", "most"]]
    print(
        aligned(
            header,
            [
                [name, f"{np.median(each):,.0f}", f"{min(each):,.0f}", f"{max(each):,.0f}"]
                for name, each in rows.items()
            ],
        )
    )


if __name__ == "__main__":
    sys.exit(run(main, PROGRAM))
