"""Train a speculation controller on the calibrated model and compare it with its rivals on held-out worlds.

    python train.py                         # the default: PPO on wisp_gym/Speculation-v0, under five minutes on two cores
    python train.py -n 100000 --seed 3      # shorter, another seed
    python train.py -i runs/ppo-Speculation-v0_1 -n 1200000    # go on from a run's last checkpoint

A run folder holds config.json, command.txt, versions.json, scenario.toml, progress.csv (SB3's log), validation.csv, checkpoints/,
policy.json (the policy that was best on validation worlds; use it wherever a controller's name is expected), comparison.json,
comparison.txt and comparison.png.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small batches: a second thread costs more than it brings

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.logger import configure
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from tqdm import tqdm

import wisp_gym  # noqa: F401  (registers the environments)
from agents.callbacks import Progress, Validate
from agents.checkpoint import load_checkpoint, read_checkpoint
from agents.command_line import InputError, Parser, run, whole, write_bytes
from agents.evaluate import compare, run_all, show
from agents.learning_plot import draw
from agents.networks import Standardise
from agents.run_folder import describe_run, latest_checkpoint, new_folder, settings_of, write_json
from agents.vec_env import DecisionVecEnv
from estimators.cli import write_text
from wisp_gym.controllers.catalogue import did_you_mean, resolve
from wisp_gym.engine.worlds import load_trace
from wisp_gym.envs.shells import DecisionVectorEnv
from wisp_gym.scenario import Scenario, load, with_

PROGRAM = "python train.py"
ALGORITHMS = {"ppo": PPO, "a2c": A2C}
ENVIRONMENTS = {"wisp_gym/Speculation-v0": "token", "wisp_gym/SpeculationLength-v0": "length"}
N_ENVS = 64  # worlds side by side; many, because updates on large batches keep two cores busy

# Hyperparameters, with reasons. Steps are tokens: within a round reward comes at its end, and rounds hardly influence each
# other, so the discount only has to reach over a round. A discount nearer to 1 lets the agent lower its own average rate,
# against which time is charged, and learning collapses (seen at 0.995).
HYPERPARAMETERS: dict[str, dict[str, Any]] = {
    "ppo": {"n_steps": 64, "batch_size": 1024, "n_epochs": 4, "gamma": 0.97, "gae_lambda": 0.95, "ent_coef": 0.003},
    "a2c": {"n_steps": 16, "gamma": 0.97, "gae_lambda": 0.95, "ent_coef": 0.003},
}
LEARNING_RATE = 1e-3  # falls linearly to a twentieth
WIDTHS = [64, 64]

# Each episode draws its own population and GPU speed (fits of one GPU differ by ±40 % between stacks: docs/model.md).
DEFAULT_ENV_KWARGS = {"controller": "wisp+fcfs"}

# Worlds are told apart by their seeds: training draws its own, validation and test use these and no other.
VALIDATION_SEED = 2_000_000  # the first of them
TEST_SEEDS = range(1_000_000, 1_000_000 + 20)
BATCHING = "fcfs"  # beside the learned policy; the batching controller is learned elsewhere
FIXED = [f"fixed:{k}+fcfs" for k in (0, 1, 2, 3, 4, 6, 8)]
RIVALS = [
    "random:0.5+fcfs",
    "wisp",
    "wisp+fcfs",
    "sled",
    "centralized",
    "centralized:0",
    "survival:0.5+fcfs",
    *FIXED,
    "perfect+fcfs",
]


# --- settings --------------------------------------------------------------------------------------------------------


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The flags (the names are those of RL Baselines3 Zoo)."""
    parser = Parser(prog=PROGRAM, description=__doc__)
    add = parser.add_argument
    add("--algo", default="ppo", help=f"algorithm: {', '.join(ALGORITHMS)} (default ppo)")
    add("--env", default="wisp_gym/Speculation-v0", help=f"environment: {', '.join(ENVIRONMENTS)} (default the first)")
    add(
        "-n",
        "--n-timesteps",
        type=whole(1, 10**9),
        default=600_000,
        metavar="N",
        help="decisions to train on, in all (default 600000)",
    )
    add("--seed", type=whole(0, 2**31 - 1), default=0, help="seed of everything (default 0)")
    add(
        "-f",
        "--log-folder",
        type=Path,
        default=Path("runs"),
        metavar="DIR",
        help="where the run's folder is made (default runs)",
    )
    add(
        "--eval-freq",
        type=whole(0, 10**9),
        default=50_000,
        metavar="N",
        help="decisions between two validations, 0: only at the end",
    )
    add("--n-eval-envs", type=whole(1, 1000), default=8, metavar="N", help="validation worlds (default 8)")
    add(
        "-i",
        "--trained-agent",
        type=Path,
        metavar="RUN",
        help="go on from a run folder (or one of its checkpoints) with its settings",
    )
    add("-P", "--progress", action="store_true", help="progress bar even when it would be quiet")
    add("--device", default="cpu", help="torch device: cpu, cuda or auto (default cpu: the network is small)")
    add("--tensorboard-log", type=Path, metavar="DIR", help="write TensorBoard events there too")
    add(
        "--env-kwargs",
        nargs="+",
        default=[],
        metavar="KEY:VALUE",
        help="arguments of the environment, e.g. devices:32 scenario:'h100-qwen3-32b'",
    )
    add("--no-comparison", action="store_true", help="stop after training, without the comparison on held-out worlds")
    return parser.parse_args(arguments)


def one_of(flag: str, given: str, allowed: list[str]) -> str:
    """`given`, which must be one of `allowed`."""
    if given not in allowed:
        raise InputError(f"argument {flag}: given '{given}'; {did_you_mean(given, allowed)}")
    return given


def env_kwargs(pieces: Sequence[str]) -> dict[str, Any]:
    """KEY:VALUE pairs; a value is a Python literal or else text. Nothing is evaluated."""
    kwargs: dict[str, Any] = {}
    for piece in pieces:
        key, colon, text = piece.partition(":")
        if not colon or not key.isidentifier():
            raise InputError(f"argument --env-kwargs: given '{piece}', allowed is KEY:VALUE such as devices:32")
        try:
            kwargs[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            kwargs[key] = text
    return kwargs


def chosen_settings(given: argparse.Namespace) -> dict[str, Any]:
    """All that decides the run's numbers, from the flags or from the run that is gone on with."""
    if given.trained_agent is not None:
        settings = settings_of(given.trained_agent)
        return {**settings, "n_timesteps": given.n_timesteps, "resumed_from": str(given.trained_agent)}
    algo = one_of("--algo", given.algo, list(ALGORITHMS))
    return {
        "algo": algo, "env": one_of("--env", given.env, list(ENVIRONMENTS)), "n_timesteps": given.n_timesteps, "seed": given.seed, "n_envs": N_ENVS,
        "env_kwargs": {**DEFAULT_ENV_KWARGS, **env_kwargs(given.env_kwargs)}, "hyperparameters": HYPERPARAMETERS[algo],
        "learning_rate": LEARNING_RATE, "widths": WIDTHS, "validation_seeds": [VALIDATION_SEED + k for k in range(given.n_eval_envs)],
        "test_seeds": list(TEST_SEEDS),
    }  # fmt: skip


# --- training --------------------------------------------------------------------------------------------------------


def make_env(settings: dict[str, Any]) -> DecisionVecEnv:
    """The worlds to learn in."""
    try:
        envs = gym.make_vec(
            settings["env"],
            num_envs=settings["n_envs"],
            vectorization_mode="vector_entry_point",
            **settings["env_kwargs"],
        )
    except (TypeError, ValueError) as error:
        raise InputError(f"argument --env-kwargs: {error}") from None
    assert isinstance(envs, DecisionVectorEnv)
    return DecisionVecEnv(envs, settings["seed"])


def falling(start: float) -> Any:
    """Learning rate that falls linearly with the share of the training that is left."""
    return lambda left: start * max(left, 0.05)


def make_model(settings: dict[str, Any], env: DecisionVecEnv, device: str) -> OnPolicyAlgorithm:
    """The algorithm with a small network; its first layer standardises the observation."""
    return ALGORITHMS[settings["algo"]](
        "MlpPolicy", env, seed=settings["seed"], device=device, learning_rate=falling(settings["learning_rate"]),
        policy_kwargs={"features_extractor_class": Standardise, "net_arch": settings["widths"]}, **settings["hyperparameters"],
    )  # fmt: skip


def standardise(model: OnPolicyAlgorithm, env: DecisionVecEnv, seed: int, steps: int = 100) -> None:
    """Measure mean and spread of the observations under random play, once, before learning."""
    rng = np.random.default_rng(seed)
    seen = [np.asarray(env.reset())]
    for _ in range(steps):
        actions = rng.integers(0, env.envs.task.actions, env.num_envs)
        seen.append(np.asarray(env.step(actions)[0]))
    extractor = model.policy.features_extractor
    assert isinstance(extractor, Standardise)
    extractor.fit(np.concatenate(seen))


def learn(model: OnPolicyAlgorithm, settings: dict[str, Any], validate: Validate) -> bool:
    """Train; returns False when it was interrupted by Ctrl-C (the best policy and the last checkpoint are kept)."""
    left = settings["n_timesteps"] - model.num_timesteps
    if left <= 0:
        raise InputError(
            f"argument --n-timesteps: given {settings['n_timesteps']}, allowed is more than the {model.num_timesteps} done so far"
        )
    try:
        model.learn(left, callback=[validate, Progress(settings["n_timesteps"], validate)], reset_num_timesteps=False)
        return True
    except KeyboardInterrupt:
        validate.score()
        return False


# --- comparison on held-out worlds -----------------------------------------------------------------------------------


def held_out_scenario(settings: dict[str, Any], scenario: Scenario) -> Scenario:
    """The scenario of the comparison: that of training, with its population."""
    return with_(scenario, n_devices=settings["env_kwargs"].get("devices") or scenario.n_devices)


def compare_with_rivals(
    folder: Path, settings: dict[str, Any], scenario: Scenario, scores: list[tuple[int, float]]
) -> str:
    """Run the learned policy and its rivals in the same held-out worlds; writes the results and returns the table."""
    learned = f"{folder / 'policy.json'}+{BATCHING}"
    names = [learned, *RIVALS]
    controllers = [resolve(name, scenario) for name in names]
    seeds = settings["test_seeds"]
    with tqdm(
        total=len(names) * len(seeds),
        unit=" worlds",
        desc="held-out worlds",
        disable=not sys.stderr.isatty(),
        leave=False,
    ) as bar:
        outcomes = dict(zip(names, run_all(scenario, controllers, seeds, load_trace(scenario), bar), strict=True))
    given = argparse.Namespace(slo=settings["env_kwargs"].get("slo"), seeds=seeds, per_class=False)
    rows = compare(given, scenario, outcomes, "wisp")
    rows.sort(key=lambda row: -row["goodput_tokens_per_s"])
    write_json(folder / "comparison.json", rows)
    write_bytes(folder / "comparison.png", draw(scores, rows, learned))
    table = show(
        [{**row, "controller": "learned" if row["controller"] == learned else row["controller"]} for row in rows],
        scenario,
    )
    write_text(folder / "comparison.txt", table + "\n")
    return table


def verdict(folder: Path) -> str:
    """One sentence on what the comparison shows."""
    rows = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    goodput = {row["controller"]: row["goodput_tokens_per_s"] for row in rows}
    learned = next(value for name, value in goodput.items() if "policy.json" in name)
    fixed = max((name for name in FIXED), key=lambda name: goodput[name])
    ahead = [name for name in goodput if goodput[name] > learned and not name.startswith("perfect")]
    return (
        f"learned: {learned:.1f} tokens/s on time, {100 * (learned / goodput['wisp'] - 1):+.1f} % against WISP, "
        f"{100 * (learned / goodput[fixed] - 1):+.1f} % against the best fixed length ({fixed}); "
        f"ahead of it: {', '.join(ahead) if ahead else 'none of the controllers'}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Settings, worlds, model, training, comparison."""
    given = parse(arguments)
    settings = chosen_settings(given)
    torch.set_num_threads(1)
    scenario = load(settings["env_kwargs"].get("scenario", "wisp-a100-qwen3-32b"))
    checkpoint = None if given.trained_agent is None else read_checkpoint(latest_checkpoint(given.trained_agent))

    env = make_env(settings)
    model = make_model(settings, env, given.device)
    if checkpoint is None:
        standardise(model, env, settings["seed"])
    else:
        load_checkpoint(checkpoint, model, env)

    folder = new_folder(given.log_folder, f"{settings['algo']}-{settings['env'].rpartition('/')[2]}")
    describe_run(folder, settings, scenario)
    model.set_logger(
        configure(str(given.tensorboard_log or folder), ["csv", "tensorboard"] if given.tensorboard_log else ["csv"])
    )
    print(
        f"training {settings['algo']} on {settings['env']}: {settings['n_timesteps']:,} decisions, seed {settings['seed']}; run folder {folder}"
    )

    scenario = held_out_scenario(settings, scenario)
    validate = Validate(
        folder, scenario, BATCHING, settings["validation_seeds"], given.eval_freq, ENVIRONMENTS[settings["env"]]
    )
    finished = learn(model, settings, validate)
    if not finished:
        print(
            f"interrupted after {model.num_timesteps:,} decisions; best policy so far: {folder / 'policy.json'}; go on with -i {folder}"
        )
        return
    if given.no_comparison:
        return
    print(f"\n{compare_with_rivals(folder, settings, scenario, validate.scores)}\n\n{verdict(folder)}")
    print(f"picture: {folder / 'comparison.png'}   policy: {folder / 'policy.json'}")


if __name__ == "__main__":
    sys.exit(run(main, PROGRAM))
