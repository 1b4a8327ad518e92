"""Train a controller on the calibrated model and compare it with its rivals on held-out worlds.

    python train.py                         # the default: PPO over whole fleets of devices, under three minutes on two cores
    python train.py -n 1000000 --seed 3     # shorter, another seed
    python train.py --preset speculation    # the shipped policy again: many GPUs, loads, links, predictors and pairs of models
    python train.py --preset batching       # the shipped policy of the server (joint: the one that sets prices too)
    python train.py --env-kwargs scenario:mine.toml devices:32           # on a scenario of one's own
    python train.py --algo ppo              # PPO on wisp_gym/Speculation-v0, one learning device in each world
    python train.py -i runs/ppo-Speculation-v0_1                         # go on with an interrupted run
    python train.py -i runs/ppo-Speculation-v0_1 -n 1200000              # train a finished run for longer
    python train.py --seeds 5                                            # seeds 0 to 4, and how far they spread
    python train.py --seeds 5 --distributed 10.0.0.5:6379                # on a Ray cluster: docs/guide/distributed.md

A run folder holds config.json, command.txt, versions.json, scenario.toml, progress.csv (SB3's log), validation.csv, checkpoints/,
policy.json (the policy that was best on validation worlds; use it wherever a controller's name is expected), comparison.json,
comparison.txt and comparison.png. Ctrl-C leaves a run that can be used and gone on with. More: docs/guide/training.md.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wisp_gym.files import write_json

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small batches: a second thread costs more than it brings

import numpy as np
import torch
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from agents.distributed import RayPool, add_distributed
from agents.pool import pool_at
from agents.training import run_folder
from agents.training.callbacks import Progress, StopRequest, Validate
from agents.training.checkpoint import load_checkpoint, read_checkpoint
from agents.training.fleet_ppo import FleetPPO
from agents.training.fleet_tasks import TaskFleet
from agents.training.learners import (
    ACTIVATION,
    ALGORITHMS,
    DECISIONS,
    DEFAULT_ENV_KWARGS,
    ENVIRONMENTS,
    FLEET,
    HYPERPARAMETERS,
    LEARNING_RATE,
    N_ENVS,
    WIDTHS,
    fleet_settings,
    make_env,
    make_model,
    standardise,
)
from agents.training.learning_plot import draw
from agents.training.seeds import LAST_SEED, refuse_seeds, train_seeds
from wisp_gym.cli import Parser, add_log_folder, progress, run, whole
from wisp_gym.envs.arguments import ARGUMENTS, check_argument, env_kwargs
from wisp_gym.errors import InputError, did_you_mean
from wisp_gym.evaluation import evaluate
from wisp_gym.evaluation.comparison_tables import show
from wisp_gym.evaluation.pool import Pool
from wisp_gym.files import write_bytes, write_text
from wisp_gym.scenario import Scenario, ScenarioError, load, with_, with_slo
from wisp_gym.simulation import simulate

PROGRAM = "python train.py"
INTERRUPTED = 130  # exit code after Ctrl-C
Scores = list[tuple[int, float, float]]  # as of Validate

# The shipped policies again.
PRESETS: dict[str, dict[str, Any]] = {
    "speculation": {
        "n_timesteps": 12_000_000,
        "fleet": {
            "scenarios": ["wisp-study", "wisp-a100-qwen3-32b", "h100-qwen3-32b", "wisp-a100-llama-70b"], "worlds": 4,
            "varied": {
                "verification_time": [0.4, 1.6], "jitter": [0.0, 3.0], "separation": [0.3, 2.0], "draft_speed": [0.4, 2.5],
                "acceptance_logit": [-0.8, 0.8], "slo_speed": [0.5, 1.5], "price": [0.0, 0.2],
            },
        },
    },
}  # fmt: skip

SCORERS = ("batching", "joint")  # presets of agents/batching/__main__.py

# Worlds are told apart by their seeds: training draws its own, validation and test use these and no other.
VALIDATION_SEED = 2_000_000  # the first of them
TEST_SEEDS = range(1_000_000, 1_000_000 + 20)
TUNING_SEEDS = range(3_000_000, 3_000_000 + 4)  # for WISP's threshold
BATCHING = "fcfs"  # beside the learned policy; the batching controller is learned elsewhere
FIXED = [f"fixed:{k}+fcfs" for k in (0, 1, 2, 3, 4, 6, 8)]
RIVALS = [
    "random:0.5+fcfs", "wisp", "wisp+fcfs", "sled", "centralized", "centralized:0", "survival:0.5+fcfs", "aligned+fcfs", *FIXED, "perfect+fcfs",
]  # fmt: skip


# --- settings --------------------------------------------------------------------------------------------------------

# Flags that decide the run's numbers, with their defaults; a run that is gone on with has its own.
DEFAULTS: dict[str, Any] = {
    "preset": "", "algo": "fleet", "env": "wisp_gym/Speculation-v0", "n_timesteps": 0, "seed": 0, "eval_freq": None, "n_eval_envs": 8,
    "env_kwargs": [],
}  # fmt: skip
CHANGEABLE = ("n_timesteps", "eval_freq")  # even when going on


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The flags (the names are those of RL Baselines3 Zoo); those of DEFAULTS are None where they are not given."""
    parser = Parser(prog=PROGRAM, description=__doc__)
    add = parser.add_argument
    add("--preset", help=f"train a shipped policy again: {', '.join([*PRESETS, *SCORERS])}")
    add("--algo", help=f"algorithm: {', '.join(ALGORITHMS)} (default fleet)")
    add("--env", metavar="ID", help=f"environment: {', '.join(ENVIRONMENTS)} (default the first)")
    add("-n", "--n-timesteps", type=whole(1, 10**9), metavar="N",
        help="decisions to train on, in all (default 2500000, with ppo and a2c 600000; with -i those of the run)")  # fmt: skip
    add("--seed", type=whole(0, LAST_SEED), help="seed of everything (default 0)")
    add(
        "--seeds",
        type=whole(1, 1000),
        metavar="N",
        help="train N times, from this seed on, each in a run folder of its own",
    )
    add_distributed(parser)
    add_log_folder(parser)
    add("--eval-freq", type=whole(0, 10**9), metavar="N",
        help="decisions between two validations, each with a checkpoint; 0: only at the end (default a twelfth of N)")  # fmt: skip
    add("--n-eval-envs", type=whole(1, 1000), metavar="N", help="validation worlds (default 8)")
    add("-i", "--trained-agent", type=Path, metavar="RUN",
        help="go on from a run folder (or one of its checkpoints) with its settings, in a new folder")  # fmt: skip
    add("-P", "--progress", action="store_true", help="progress bar even where standard error is no terminal")
    add("--device", default="cpu", help="torch device: cpu, cuda or auto (default cpu: the network is small)")
    add("--tensorboard-log", type=Path, metavar="DIR", help="write TensorBoard events there too")
    add("--env-kwargs", nargs="+", metavar="KEY:VALUE",
        help=f"arguments of the environment, e.g. devices:32 scenario:h100-qwen3-32b; keys: {', '.join(ARGUMENTS)}")  # fmt: skip
    add("--no-comparison", action="store_true", help="stop after training, without the comparison on held-out worlds")
    return parser.parse_args(arguments)


def one_of(place: str, given: str, allowed: list[str]) -> str:
    """`given`, which must be one of `allowed`."""
    if given not in allowed:
        raise InputError(f"{place}: given {given!r}; {did_you_mean(str(given), allowed)}")
    return given


def settings_from(flags: dict[str, Any]) -> dict[str, Any]:
    """All that decides the run's numbers, from the flags of DEFAULTS."""
    preset = PRESETS[one_of("argument --preset", flags["preset"], [*PRESETS, *SCORERS])] if flags["preset"] else {}
    algo = one_of("argument --algo", flags["algo"], list(ALGORITHMS))
    given = env_kwargs(flags["env_kwargs"])
    total = flags["n_timesteps"] or preset.get("n_timesteps", DECISIONS[algo])
    settings = {
        "algo": algo, "env": one_of("argument --env", flags["env"], list(ENVIRONMENTS)), "n_timesteps": total, "seed": flags["seed"],
        "eval_freq": total // 12 if flags["eval_freq"] is None else flags["eval_freq"], "n_envs": N_ENVS[algo],
        "env_kwargs": {**DEFAULT_ENV_KWARGS[algo], **given}, "hyperparameters": HYPERPARAMETERS[algo], "learning_rate": LEARNING_RATE[algo],
        "widths": WIDTHS, "activation": ACTIVATION[algo], "validation_seeds": [VALIDATION_SEED + k for k in range(flags["n_eval_envs"])],
        "test_seeds": list(TEST_SEEDS),
    }  # fmt: skip
    if algo == "fleet":
        settings["fleet"] = fleet_settings(given, FLEET | preset.get("fleet", {}))
    return settings


def resumed_settings(run: Path, flags: dict[str, Any]) -> dict[str, Any]:
    """Those of the run; a flag that would change one of them, other than those of CHANGEABLE, is refused."""
    for name in flags:
        if name not in CHANGEABLE:
            raise InputError(
                f"argument --{name.replace('_', '-')}: not allowed with --trained-agent, which keeps the run's settings; allowed beside "
                "it are -n, -f, -P, --eval-freq, --device, --tensorboard-log and --no-comparison"
            )
    settings, config = run_folder.settings_of(run), run_folder.folder_of(run) / "config.json"
    place = f"argument --trained-agent: '{config}'"
    algo = one_of(f"{place}: algo", settings.get("algo", ""), list(ALGORITHMS))
    one_of(f"{place}: env", settings.get("env", ""), list(ENVIRONMENTS))
    run_folder.check_settings(config, settings, settings_from({**DEFAULTS, "algo": algo}))
    for name, value in settings["env_kwargs"].items():
        check_argument(place, name, value)
    scenario = str(config.with_name("scenario.toml"))  # as it was, whatever has become of the file that it came from
    kwargs = {**settings["env_kwargs"], "scenario": scenario}
    return {**settings, **flags, "env_kwargs": kwargs, "resumed_from": str(run)}


def chosen_settings(given: argparse.Namespace) -> dict[str, Any]:
    """All that decides the run's numbers, from the flags or from the run that is gone on with."""
    flags = {name: getattr(given, name) for name in DEFAULTS if getattr(given, name) is not None}
    return resumed_settings(given.trained_agent, flags) if given.trained_agent else settings_from({**DEFAULTS, **flags})


def chosen_device(name: str) -> str:
    """A torch device that is at hand."""
    cuda = ["cuda", *(f"cuda:{k}" for k in range(torch.cuda.device_count()))] if torch.cuda.is_available() else []
    return one_of("argument --device", name, ["cpu", "auto", *cuda])


# --- training --------------------------------------------------------------------------------------------------------


def learn(model: OnPolicyAlgorithm, total: int, validate: Validate, bar: Progress) -> bool:
    """Train up to `total` decisions; False when it was interrupted (the best policy and a checkpoint are kept)."""
    try:
        model.learn(total - model.num_timesteps, callback=[validate, bar], reset_num_timesteps=False)
        return True
    except KeyboardInterrupt:
        validate.score()
        return False
    finally:
        bar.close()


# --- comparison on held-out worlds -----------------------------------------------------------------------------------


def held_out_scenario(settings: dict[str, Any], scenario: Scenario) -> Scenario:
    """The scenario of validation and comparison: that of training, with its population and service class."""
    kwargs = settings["env_kwargs"]
    try:
        scenario = with_(scenario, n_devices=kwargs.get("devices", scenario.n_devices))
        return with_slo(scenario, kwargs["slo"]) if "slo" in kwargs else scenario
    except ScenarioError as error:
        raise InputError(f"argument --env-kwargs: {error}") from None


def tuned_wisp(scenario: Scenario) -> str:
    """WISP's stop rule with the threshold, of twelve, that delivers most in worlds of its own, and its better scheduler."""
    names = [f"wisp:{0.05 + 0.075 * k:.3f}+{batching}" for k in range(12) for batching in ("fcfs", "wisp")]
    goodput = [np.mean([m.goodput_tokens_per_s for m in simulate(scenario, name, TUNING_SEEDS)]) for name in names]
    return names[int(np.argmax(goodput))]


def compare_with_rivals(
    folder: Path, settings: dict[str, Any], scenario: Scenario, scores: Scores, shown: bool, pool: Pool
) -> str:
    """Run the learned policy and its rivals in the same held-out worlds; writes the results and returns the table."""
    learned = f"{folder / 'policy.json'}+{BATCHING}"
    tuned = tuned_wisp(scenario)
    names = [learned, tuned, *RIVALS]
    slo, seeds = settings["env_kwargs"].get("slo"), settings["test_seeds"]
    with progress(len(names) * len(seeds), " worlds", shown, desc="held-out worlds") as bar:
        found = evaluate(names, scenario, None, slo, seeds, "wisp", pool=pool, bar=bar)
    rows = found.rows()
    rows.sort(key=lambda row: -row["goodput_tokens_per_s"])
    write_json(folder / "comparison.json", rows)
    write_bytes(folder / "comparison.png", draw([(n, goodput) for n, goodput, _ in scores], rows, learned))
    named = [{**row, "controller": "learned" if row["controller"] == learned else row["controller"]} for row in rows]
    text = f"{show(named, scenario)}\n\n{verdict(rows, learned, tuned)}"
    write_text(folder / "comparison.txt", text + "\n")
    return text


def verdict(rows: Sequence[dict[str, Any]], learned: str, tuned: str) -> str:
    """One sentence on what the comparison shows."""
    goodput = {row["controller"]: row["goodput_tokens_per_s"] for row in rows}
    own = goodput[learned]
    fixed = max(FIXED, key=lambda name: goodput[name])
    ahead = [name for name in goodput if goodput[name] > own and not name.startswith("perfect")]

    def against(name: str) -> str:
        return f"{100 * (own / goodput[name] - 1):+.1f} %" if goodput[name] > 0 else f"{own:+.1f} tokens/s"

    return (
        f"learned: {own:.1f} tokens/s on time, {against('wisp')} against WISP, {against(tuned)} against WISP tuned ({tuned}), "
        f"{against(fixed)} against the best fixed length ({fixed}); "
        f"ahead of it: {', '.join(ahead) if ahead else 'none of the controllers'}"
    )


# --- the command -----------------------------------------------------------------------------------------------------


def prepare(settings: dict[str, Any], given: argparse.Namespace) -> tuple[OnPolicyAlgorithm, dict[str, Any] | None]:
    """The model in its worlds, at its beginning or where the run that is gone on with stopped (then also with the scores)."""
    path = run_folder.latest_checkpoint(given.trained_agent) if given.trained_agent else None
    state = read_checkpoint(path) if path else None
    env = make_env(settings)
    model = make_model(settings, env, chosen_device(given.device))
    if path is None or state is None:
        standardise(model, env, settings["seed"])
        return model, None
    record = load_checkpoint(path, state, model, env)
    if settings["n_timesteps"] <= model.num_timesteps:
        raise InputError(
            f"argument --n-timesteps: given {settings['n_timesteps']}, allowed is more than the {model.num_timesteps} that "
            f"'{path}' has done"
        )
    return model, record


def open_folder(
    settings: dict[str, Any], scenario: Scenario, given: argparse.Namespace, command: Sequence[str] | None
) -> tuple[Path, Logger]:
    """The run's folder with its description, and its log; nothing is left of it when something is wrong."""
    folder = run_folder.new_folder(given.log_folder, f"{settings['algo']}-{settings['env'].rpartition('/')[2]}")
    try:
        run_folder.describe_run(folder, settings, scenario, command)
        return folder, run_folder.make_logger(folder, given.tensorboard_log)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def fit(
    model: OnPolicyAlgorithm, record: dict[str, Any] | None, settings: dict[str, Any], held_out: Scenario, folder: Path, log: Logger,
    stop: StopRequest, shown: bool,
) -> tuple[bool, Scores]:  # fmt: skip
    """Train in a run's folder; False when it was interrupted, and the scores."""
    model.set_logger(log)
    decision = ENVIRONMENTS[settings["env"]]
    validate = Validate(folder, held_out, BATCHING, settings["validation_seeds"], settings["eval_freq"], decision, stop)
    if record is not None:
        validate.go_on(record)
    finished = learn(model, settings["n_timesteps"], validate, Progress(settings["n_timesteps"], validate, shown))
    log.close()
    return finished, validate.scores


def finish(
    folder: Path, settings: dict[str, Any], held_out: Scenario, scores: Scores, shown: bool, pool: Pool, stopped: bool = False
) -> None:  # fmt: skip
    """Compare a trained policy with its rivals."""
    policy = folder / "policy.json"
    try:
        if stopped:  # after the last rollout began
            raise KeyboardInterrupt
        print(f"\n{compare_with_rivals(folder, settings, held_out, scores, shown, pool)}")
    except KeyboardInterrupt:
        print(f"comparison interrupted, the training is complete; policy: {policy}")
        raise SystemExit(INTERRUPTED) from None
    print(f"picture: {folder / 'comparison.png'}   policy: {policy}")


def train(given: argparse.Namespace, settings: dict[str, Any], pool: Pool, command: Sequence[str] | None) -> Path:
    """One run: worlds, model, training, comparison; its folder."""
    scenario = load(settings["env_kwargs"]["scenario"])
    held_out = held_out_scenario(settings, scenario)
    model, record = prepare(settings, given)
    if isinstance(model, FleetPPO) and model.fleet is not None and isinstance(pool, RayPool):
        model.fleet = TaskFleet(model.fleet, pool)
    shown = given.progress or sys.stderr.isatty()

    with StopRequest() as stop:
        folder, log = open_folder(settings, scenario, given, command)
        print(
            f"training {settings['algo']} on {settings['env']}: {settings['n_timesteps']:,} decisions, seed {settings['seed']}; "
            f"run folder {folder}",
            flush=True,
        )
        finished, scores = fit(model, record, settings, held_out, folder, log, stop, shown)

    if not finished:
        saved = any((folder / run_folder.CHECKPOINTS).glob("*.pt"))
        hint = f"go on with {PROGRAM} -i {folder}" if saved else "no checkpoint yet, so it cannot be gone on with"
        policy = folder / "policy.json"
        print(f"interrupted after {model.num_timesteps:,} decisions; best policy so far: {policy}; {hint}")
        raise SystemExit(INTERRUPTED)
    if not given.no_comparison:
        finish(folder, settings, held_out, scores, shown, pool, stop.asked)
    return folder


def train_scorer(given: argparse.Namespace, command: Sequence[str] | None) -> None:
    """Train a policy of the server, which has a trainer of its own."""
    from agents.batching import __main__ as batching_training

    for name in (*DEFAULTS, "trained_agent", "seeds"):
        if name not in ("preset", "seed") and getattr(given, name) is not None:
            flag = name.replace("_", "-")
            raise InputError(f"argument --{flag}: not allowed with --preset {given.preset}; allowed are --seed and -f")
    settings = batching_training.preset(given.preset, seed=given.seed or 0)
    print(f"policy: {batching_training.train_anew(settings, given.log_folder, command)}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Settings, and one run or several."""
    given = parse(arguments)
    if given.preset in SCORERS:
        return train_scorer(given, None if arguments is None else ["train.py", *arguments])
    settings = chosen_settings(given)
    command = None if arguments is None else ["train.py", *arguments]
    torch.set_num_threads(1)
    refuse_seeds(given, settings)
    with pool_at(given.distributed) as pool:
        if given.seeds is None:
            train(given, settings, pool, command)
        else:
            print(f"\n{train_seeds(given, settings, pool, command)}")


if __name__ == "__main__":
    sys.exit(run(main, PROGRAM))
