"""How fast fleets learn: decisions a second of the engine's rollouts alone, and of training from end to end.

    python -m agents.training benchmark

Medians of several repetitions after one that compiles. The figures are of this machine as it is used now; compare
ratios.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from agents.training.arguments import flag, parse
from agents.training.fleet_ppo import FleetPPO
from agents.training.learners import make_env, make_model
from agents.training.networks import engine_policy
from agents.training.settings import new_settings
from wisp_gym.cli import table, whole
from wisp_gym.machine import machine, shown

PROGRAM = "python -m agents.training benchmark"


@dataclass(frozen=True)
class Arguments:
    """The flags."""

    repetitions: int = flag(7, "of each figure", of=whole(1, 1000), metavar="N")


def rates(work: Callable[[], int], repetitions: int) -> list[float]:
    """Decisions per second of each repetition of `work`, which returns how many it took."""
    found = []
    for _ in range(repetitions):
        began = time.perf_counter()
        found.append(work() / (time.perf_counter() - began))
    return found


def measured(repetitions: int) -> dict[str, list[float]]:
    """Decisions per second of each repetition, of rollouts alone and with training."""
    torch.set_num_threads(1)
    settings = new_settings(n_timesteps=10**9)
    model, n = make_model(settings, make_env(settings)), settings.hyperparameters["decisions"]
    assert isinstance(model, FleetPPO)
    assert model.fleet is not None
    fleet, policy = model.fleet, engine_policy(model.policy, "token")
    model.learn(n)  # compiles

    def trained() -> int:
        model.learn(n, reset_num_timesteps=False)
        return n

    alone = rates(lambda: len(fleet.collect(policy).actions), repetitions)
    return {"rollouts alone": alone, "rollouts and training": rates(trained, repetitions)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    args, _ = parse(Arguments, PROGRAM, __doc__, arguments)
    found = measured(args.repetitions)
    print(shown(machine("numba", "numpy")) + "\n")
    rows = [[name, *(f"{of(each):,.0f}" for of in (np.median, min, max))] for name, each in found.items()]
    print(table(["decisions a second", "median", "least", "most"], rows))
