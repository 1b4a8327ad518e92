"""One training as a function of values: worlds and model, training with validation, comparison; a run's folder."""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from agents.pool import RayPool
from agents.training import run_folder
from agents.training.callbacks import STOPPING, Progress, Validate
from agents.training.checkpoint import load_checkpoint, read_checkpoint
from agents.training.fleet_ppo import FleetPPO
from agents.training.fleet_tasks import TaskFleet
from agents.training.learners import bare_model, make_env, make_model
from agents.training.rivals import BATCHING, Scores, compare_with_rivals, held_out_scenario
from agents.training.settings import Settings
from wisp_gym.errors import InputError, one_of
from wisp_gym.evaluation.pool import Pool
from wisp_gym.interrupts import StopRequest, leaves
from wisp_gym.scenario import Scenario, load

PROGRAM = "python train.py"  # what goes on with a run
Record = dict[str, Any]  # what a checkpoint remembers of the validations


@dataclass(frozen=True)
class Output:
    """What a run leaves and shows; none of it changes a number.

    Attributes:
        log_folder: where the run's folder is made. tensorboard_log: where TensorBoard's events go, if anywhere.
        progress: a progress bar even where standard error is no terminal. comparison: with the rivals, after the
            training. command: the run's command.txt; default this process's own.
    """

    log_folder: Path = Path("runs")
    tensorboard_log: Path | None = None
    progress: bool = False
    comparison: bool = True
    command: Sequence[str] | None = None

    @property
    def bar(self) -> bool:
        """Whether progress is shown."""
        return self.progress or sys.stderr.isatty()


def train(settings: Settings, output: Output, pool: Pool, device: str = "cpu", resume: Path | None = None) -> Path:
    """One run: worlds, model, training with validation, comparison.

    Args:
        pool: where the comparison, and on a cluster a fleet's worlds, run. device: of torch.
        resume: the run's folder or checkpoint that `settings` go on from.

    Returns:
        The run's folder.

    Raises:
        InputError: settings, a folder, a device or a checkpoint that cannot be used. Nothing is left then.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, with a note that says how to go on; the folder holds what was reached.
    """
    run_folder.check_parent(output.log_folder)
    scenario = load(settings.env_kwargs["scenario"])
    held_out = held_out_scenario(settings, scenario)
    model, record = make(settings, device, resume)
    if isinstance(model, FleetPPO) and model.fleet is not None and isinstance(pool, RayPool):
        model.fleet = TaskFleet(model.fleet, pool)

    with StopRequest(STOPPING) as stop:
        folder, log = open_folder(settings, scenario, output)
        model.set_logger(log)
        what = f"{settings.algo} on {settings.env}: {settings.n_timesteps:,} decisions, seed {settings.seed}"
        print(f"training {what}; run folder {folder}", flush=True)
        try:
            scores = fit(model, settings, held_out, folder, stop, record, output.bar)
        except KeyboardInterrupt as stopped:
            stopped.add_note(f"{model.num_timesteps:,} decisions done; {how_to_go_on(folder)}")
            raise
    if output.comparison:
        compare(folder, settings, held_out, scores, pool, output.bar, stop)
    return folder


def how_to_go_on(folder: Path) -> str:
    """What an interrupted run's folder is good for."""
    saved = any((folder / run_folder.CHECKPOINTS).glob("*.pt"))
    hint = f"go on with {PROGRAM} -i {folder}" if saved else "no checkpoint yet, so it cannot be gone on with"
    policy = folder / "policy.json"
    return f"best policy so far: {policy}; {hint}" if policy.exists() else hint


def make(settings: Settings, device: str, resume: Path | None = None) -> tuple[OnPolicyAlgorithm, Record | None]:
    """The model in its worlds, at its beginning or where `resume` stopped, then also with what it remembers.

    Raises:
        InputError: as `train`.
    """
    path = run_folder.latest_checkpoint(resume) if resume else None
    state = read_checkpoint(path) if path else None
    env = make_env(settings)
    cuda = ["cuda", *(f"cuda:{k}" for k in range(torch.cuda.device_count()))] if torch.cuda.is_available() else []
    device = one_of("argument --device", device, ["cpu", "auto", *cuda])
    if path is None or state is None:
        return make_model(settings, env, device), None
    model = bare_model(settings, env, device)
    record = load_checkpoint(path, state, model, env)
    if settings.n_timesteps <= model.num_timesteps:
        allowed = f"more than the {model.num_timesteps} that '{path}' has done"
        raise InputError(f"argument --n-timesteps: given {settings.n_timesteps}, allowed is {allowed}")
    return model, record


def open_folder(settings: Settings, scenario: Scenario, output: Output) -> tuple[Path, Logger]:
    """A new run's folder with its description, and its log; nothing is left of it when something is wrong.

    Raises:
        InputError: a folder cannot be written, or TensorBoard is not installed.
    """
    folder = run_folder.new_folder(output.log_folder, f"{settings.algo}-{settings.env.rpartition('/')[2]}")
    try:
        run_folder.describe_run(folder, settings.as_json(), scenario, output.command)
        return folder, run_folder.make_logger(folder, output.tensorboard_log)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def fit(
    model: OnPolicyAlgorithm, settings: Settings, held_out: Scenario, folder: Path, stop: StopRequest,
    record: Record | None = None, bar: bool = False,
) -> Scores:  # fmt: skip
    """Train up to the decisions of the settings, with validations and checkpoints into the folder.

    Args:
        model: with a logger, which is closed. held_out: scenario of the validation worlds. stop: whether to stop early.

    Returns:
        The scores.

    Raises:
        KeyboardInterrupt: it was interrupted; the best policy and, unless that was at once, a checkpoint are kept.
    """
    total, seeds = settings.n_timesteps, settings.validation_seeds
    validate = Validate(folder, held_out, BATCHING, seeds, settings.eval_freq, settings.decision, stop)
    if record is not None:
        validate.go_on(record)
    progress = Progress(total, validate, bar)
    try:
        model.learn(total - model.num_timesteps, callback=[validate, progress], reset_num_timesteps=False)
    except KeyboardInterrupt:
        validate.score()
        raise
    finally:
        progress.close()
        model.logger.close()
    return validate.scores


def compare(
    folder: Path, settings: Settings, held_out: Scenario, scores: Scores, pool: Pool, bar: bool = False,
    stop: StopRequest | None = None,
) -> None:  # fmt: skip
    """Compare a trained policy with its rivals, and say how it did.

    Args:
        stop: what came after the last rollout began.

    Raises:
        KeyboardInterrupt: after Ctrl-C or SIGTERM.
    """
    policy = folder / "policy.json"
    with leaves(f"the training is complete, without the comparison; policy: {policy}"):
        if stop is not None:
            stop.obey()
        print(f"\n{compare_with_rivals(folder, settings, held_out, scores, bar, pool)}")
    print(f"picture: {folder / 'comparison.png'}   policy: {policy}")
