"""Train a controller on the calibrated model and compare it with its rivals on held-out worlds.

    python train.py                         # the default: PPO over whole fleets, a few minutes on two cores
    python train.py -n 1000000 --seed 3     # shorter, another seed
    python train.py --preset speculation    # the shipped policy again, made for many systems
    python train.py --preset batching       # the shipped policy of the server (joint: the one that sets prices too)
    python train.py --env-kwargs scenario:mine.toml devices:32           # on a scenario of one's own
    python train.py --algo ppo              # PPO on wisp_gym/Speculation-v1, one learning device in each world
    python train.py -i runs/ppo-Speculation-v1_1                         # go on with an interrupted run
    python train.py -i runs/ppo-Speculation-v1_1 -n 1200000              # train a finished run for longer
    python train.py --seeds 5                                            # seeds 0 to 4, and how far they spread
    python train.py --seeds 5 --distributed 10.0.0.5:6379                # on a Ray cluster: docs/guide/cluster.md

A run folder holds config.json, command.txt, versions.json, scenario.toml, progress.csv (SB3's log), validation.csv,
checkpoints/, policy.json (the policy that was best on validation worlds; use it wherever a controller's name is
expected), comparison.json, comparison.txt and comparison.png. Ctrl-C leaves a run that can be used and gone on with.
The steps are in agents/training/run.py: make, fit with validations, compare. More: docs/guide/train.md.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wisp_gym.process import begin, program

if __name__ == "__main__":
    begin()  # before the imports that take seconds
os.environ.setdefault("OMP_NUM_THREADS", "1")  # small batches: a second thread costs more than it brings

import torch

from agents.batching.settings import PRESETS as SERVER_PRESETS
from agents.batching.settings import preset as server_preset
from agents.batching.training import train_anew
from agents.pool import LOCAL, pool_at
from agents.training.arguments import flag, parse
from agents.training.run import PROGRAM, Output, train
from agents.training.seeds import train_seeds
from agents.training.settings import ALGORITHMS, ENVIRONMENTS, PRESETS, Settings, new_settings, resumed_settings
from wisp_gym.cli import run, whole
from wisp_gym.envs.arguments import ARGUMENTS, env_kwargs
from wisp_gym.errors import InputError, one_of

LAST_SEED = 2**31 - 1  # numpy's and stable-baselines3's


@dataclass(frozen=True)
class Arguments:
    """The flags, each with its help; the names are those of RL Baselines3 Zoo."""

    # What decides the run's numbers. A run that is gone on with keeps its own, but for the first two.
    n_timesteps: int | None = flag(
        None, f"decisions to train on, in all (default {ALGORITHMS['fleet'].n_timesteps}, with ppo and a2c "
        f"{ALGORITHMS['ppo'].n_timesteps}; with -i those of the run)",
        "-n", of=whole(1, 10**9), metavar="N",
    )  # fmt: skip
    eval_freq: int | None = flag(
        None, "decisions between two validations, each with a checkpoint; 0: only at the end (default a twelfth of N)",
        of=whole(0, 10**9), metavar="N",
    )  # fmt: skip
    preset: str = flag("", f"train a shipped policy again: {', '.join([*PRESETS, *SERVER_PRESETS])}")
    algo: str = flag("fleet", f"algorithm: {', '.join(ALGORITHMS)}")
    env: str = flag(next(iter(ENVIRONMENTS)), f"environment: {', '.join(ENVIRONMENTS)}", metavar="ID")
    seed: int = flag(0, "seed of everything", of=whole(0, LAST_SEED), metavar="N")
    n_eval_envs: int = flag(8, "validation worlds", of=whole(1, 1000), metavar="N")
    env_kwargs: tuple[str, ...] = flag(
        (), f"arguments of the environment, e.g. devices:32 scenario:h100-qwen3-32b; keys: {', '.join(ARGUMENTS)}",
        metavar="KEY:VALUE",
    )  # fmt: skip

    # Where it begins, how often and where it runs.
    trained_agent: Path | None = flag(
        None, "go on from a run folder (or one of its checkpoints) with its settings, in a new folder",
        "-i", metavar="RUN",
    )  # fmt: skip
    seeds: int | None = flag(
        None, "train N times, from this seed on, each in a run folder of its own", of=whole(1, 1000), metavar="N"
    )
    distributed: str | None = flag(
        None, "run on Ray (extra 'distributed'): on all cores of this machine, or on the cluster at HOST:PORT",
        metavar="ADDRESS", nargs="?", const=LOCAL,
    )  # fmt: skip
    device: str = flag("cpu", "torch device: cpu, cuda or auto; the network is small")

    # What it leaves and shows.
    log_folder: Path = flag(Path("runs"), "where the run's folder is made, never over another", "-f", metavar="DIR")
    tensorboard_log: Path | None = flag(None, "write TensorBoard events there too", metavar="DIR")
    progress: bool = flag(False, "progress bar even where standard error is no terminal", "-P")
    no_comparison: bool = flag(False, "stop after training, without the comparison on held-out worlds")


KEPT = frozenset({"preset", "algo", "env", "seed", "n_eval_envs", "env_kwargs"})  # by a run that is gone on with


def main(arguments: Sequence[str] | None = None) -> None:
    """Settings, and one run or several; or a policy of the server, which has a trainer of its own."""
    args, given = parse(Arguments, PROGRAM, __doc__, arguments)
    command = None if arguments is None else ["train.py", *arguments]
    if args.preset in SERVER_PRESETS:
        refuse(given - {"preset", "seed", "log_folder"}, f"--preset {args.preset}; allowed are --seed and -f")
        policy = train_anew(server_preset(args.preset, seed=args.seed), args.log_folder, command)
        print(f"policy: {policy}")
        return
    settings = chosen_settings(args, given)
    refuse_combinations(args, settings)
    output = Output(args.log_folder, args.tensorboard_log, args.progress, not args.no_comparison, command)
    torch.set_num_threads(1)
    with pool_at(args.distributed) as pool:
        if args.seeds is None:
            train(settings, output, pool, args.device, args.trained_agent)
        else:
            print(f"\n{train_seeds(settings, args.seeds, output, pool, args.device)}")


def chosen_settings(args: Arguments, given: frozenset[str]) -> Settings:
    """All that decides the run's numbers, from the flags or from the run that is gone on with."""
    if args.trained_agent is not None:
        allowed = "-n, -f, -P, --eval-freq, --device, --tensorboard-log and --no-comparison"
        refuse(given & KEPT, f"--trained-agent, which keeps the run's settings; allowed beside it are {allowed}")
        return resumed_settings(args.trained_agent, args.n_timesteps, args.eval_freq)
    preset = PRESETS[one_of("argument --preset", args.preset, [*PRESETS, *SERVER_PRESETS])] if args.preset else {}
    return new_settings(
        args.algo, env=args.env, n_timesteps=args.n_timesteps or preset.get("n_timesteps"), seed=args.seed,
        eval_freq=args.eval_freq, n_eval_envs=args.n_eval_envs, env_kwargs=env_kwargs(args.env_kwargs),
        fleet=preset.get("fleet"),
    )  # fmt: skip


def refuse(flags: frozenset[str], beside: str) -> None:
    """Refuse flags that do not go with another one."""
    for name in sorted(flags):
        raise InputError(f"argument --{name.replace('_', '-')}: not allowed with {beside}")


def refuse_combinations(args: Arguments, settings: Settings) -> None:
    """Refuse several seeds, or a cluster, where they cannot be, before anything is started."""
    if args.seeds is None:
        if args.distributed is not None and settings.algo != "fleet":
            words = "steps its worlds in one process; allowed beside it is --seeds N, or --algo fleet"
            raise InputError(f"argument --distributed: --algo {settings.algo} {words}")
        return
    if args.trained_agent is not None:
        raise InputError("argument --seeds: not allowed with --trained-agent, whose run has its seed")
    if settings.seed + args.seeds - 1 > LAST_SEED:
        raise InputError(f"argument --seeds: given {args.seeds}, allowed is a last seed of {LAST_SEED} at most")
    if args.distributed is not None and args.tensorboard_log is not None:
        words = "not allowed with --seeds and --distributed, whose runs are elsewhere"
        raise InputError(f"argument --tensorboard-log: {words}")


if __name__ == "__main__":
    program(lambda: run(main, PROGRAM))
