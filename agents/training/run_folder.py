"""A run's folder: configuration, command, versions, seeds, checkpoints, metrics, results. Never written over."""

import contextlib
import json
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import CSVOutputFormat, Logger, TensorBoardOutputFormat

from wisp_gym.errors import InputError, near
from wisp_gym.files import read_text, write_json, write_text
from wisp_gym.scenario import Scenario, dumps

PACKAGES = ("wisp-gym", "gymnasium", "stable-baselines3", "torch", "numpy", "numba", "scikit-learn")
CHECKPOINTS = "checkpoints"
RUN = "argument --trained-agent"


def check_parent(parent: Path) -> None:
    """Refuse a parent in which no folder can be made, before anything is computed; nothing is left of the trial.

    Raises:
        InputError: the parent cannot be written.
    """
    there = next(path for path in (parent.absolute(), *parent.absolute().parents) if path.exists())
    try:
        tempfile.TemporaryDirectory(dir=there).cleanup()
    except OSError as error:
        raise unwritable(parent, error) from None


def unwritable(parent: Path, error: OSError) -> InputError:
    """What is said of it."""
    return InputError(f"argument --log-folder: cannot write '{parent}': {error.strerror}; allowed is a writable folder")


def new_folder(parent: Path, name: str) -> Path:
    """Make `parent/name_1`, or the next number that is free.

    Raises:
        InputError: the parent cannot be written.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        numbers = [path.name.rpartition("_")[2] for path in parent.glob(f"{name}_*")]
        n = max((int(number) for number in numbers if number.isdecimal()), default=0)
        while True:
            n += 1
            with contextlib.suppress(FileExistsError):  # of another run that starts at the same time
                folder = parent / f"{name}_{n}"
                folder.mkdir()
                (folder / CHECKPOINTS).mkdir()
                return folder
    except OSError as error:
        raise unwritable(parent, error) from None


def installed(package: str) -> str | None:
    """Version of a package, None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def commit() -> str | None:
    """Commit of these sources, with "+changes" where they were edited since; None without version control."""
    folder = Path(__file__).resolve().parent
    command = ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"]
    try:
        return subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip() or None
    except (OSError, subprocess.CalledProcessError):
        return None


def versions() -> dict[str, str | None]:
    """Versions of everything that numbers may depend on."""
    here = {"python": platform.python_version(), "machine": platform.machine(), "commit": commit()}
    return {**here, **{name: installed(name) for name in PACKAGES}}


def describe_run(
    folder: Path, settings: dict[str, Any], scenario: Scenario, command: Sequence[str] | None = None
) -> None:
    """Write what the run is: settings with seeds, command (default: this program's), versions, the whole scenario."""
    write_json(folder / "config.json", settings)
    write_json(folder / "versions.json", versions())
    write_text(folder / "command.txt", shlex.join([Path(sys.executable).name, *(command or sys.argv)]) + "\n")
    write_text(folder / "scenario.toml", dumps(scenario))


def make_logger(folder: Path, tensorboard: Path | None) -> Logger:
    """SB3's metrics into progress.csv and, if asked, as TensorBoard events into a folder of the run's name.

    Raises:
        InputError: the TensorBoard folder cannot be written, or TensorBoard is not installed.
    """
    flag = "argument --tensorboard-log"
    try:
        events = [TensorBoardOutputFormat(str(tensorboard / folder.name))] if tensorboard is not None else []
    except OSError as error:
        words = f"{flag}: cannot write '{tensorboard}': {error.strerror}; allowed is a writable folder"
        raise InputError(words) from None
    except AssertionError:  # SB3's way to say that the package is missing
        raise InputError(f"{flag}: needs the package tensorboard, which is not installed") from None
    return Logger(str(folder), [CSVOutputFormat(str(folder / "progress.csv")), *events])


# --- reading a run again ---------------------------------------------------------------------------------------------


def folder_of(run: Path) -> Path:
    """The run folder that is meant: `run`, or that of a checkpoint.

    Raises:
        InputError: there is nothing of that name.
    """
    if run.is_dir():
        return run
    if run.is_file():
        return run.resolve().parent.parent
    alike = near(str(run), map(str, sorted(run.parent.glob("*"))) if run.parent.is_dir() else [])
    hint = f"; did you mean '{alike}'?" if alike else ""
    raise InputError(f"{RUN}: '{run}' does not exist{hint}; allowed is a run folder or one of its checkpoints/*.pt")


def latest_checkpoint(run: Path) -> Path:
    """The newest checkpoint of a run folder, or the file itself.

    Raises:
        InputError: there is none.
    """
    if run.is_file():
        return run
    found = sorted((run / CHECKPOINTS).glob("*.pt"))
    if not found:
        raise InputError(f"{RUN}: '{run}' holds no checkpoint; allowed is a run folder or one of its checkpoints/*.pt")
    return found[-1]


def settings_of(run: Path) -> dict[str, Any]:
    """The settings with which a run was made.

    Raises:
        InputError: no such run, or none that can be read.
    """
    path = folder_of(run) / "config.json"
    try:
        settings = json.loads(read_text(path))
    except OSError as error:
        raise InputError(f"{RUN}: '{path}' cannot be read: {error.strerror}; allowed is a run folder") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{RUN}: '{path}' is no JSON: {error}") from None
    if not isinstance(settings, dict):
        raise InputError(f"{RUN}: '{path}' holds no settings")
    return settings


def check_settings(path: Path, given: Any, example: Any, at: str = "") -> None:
    """Refuse settings that lack a key of the example or hold a value of another kind there.

    Raises:
        InputError: one line with the file, the key, what was given and an example.
    """
    if isinstance(example, dict) and isinstance(given, dict):
        for key, value in example.items():
            where = f"{at}.{key}" if at else key
            if key not in given:
                raise InputError(f"{RUN}: '{path}': '{where}' is missing, allowed is for instance {value!r}")
            check_settings(path, given[key], value, where)
        return
    if isinstance(example, list) and isinstance(given, list) and (given or not example):
        for value in given if example else []:
            check_settings(path, value, example[0], at)
        return
    kinds = (int, float) if isinstance(example, float) else type(example)
    if not isinstance(given, kinds) or (isinstance(given, (bool, list)) and not isinstance(example, bool)):
        raise InputError(f"{RUN}: '{path}': '{at}' given {given!r}, allowed is for instance {example!r}")
