"""A run's folder: configuration, command, versions, seeds, checkpoints, metrics, results. Never written over."""

from __future__ import annotations

import json
import platform
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from estimators.cli import InputError, write_text
from wisp_gym.scenario import Scenario, dumps

PACKAGES = ("wisp-gym", "gymnasium", "stable-baselines3", "torch", "numpy", "numba", "scikit-learn")
CHECKPOINTS = "checkpoints"


def new_folder(parent: Path, name: str) -> Path:
    """Make `parent/name_1`, or the next number that is free.

    Raises:
        InputError: the parent cannot be written.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        taken = [
            int(path.name.rpartition("_")[2])
            for path in parent.glob(f"{name}_*")
            if path.name.rpartition("_")[2].isdigit()
        ]
        folder = parent / f"{name}_{max(taken, default=0) + 1}"
        (folder / CHECKPOINTS).mkdir(parents=True)
    except OSError as error:
        raise InputError(
            f"argument --log-folder: cannot write '{parent}': {error.strerror}; allowed is a writable folder"
        ) from None
    return folder


def installed(package: str) -> str | None:
    """Version of a package, None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def versions() -> dict[str, str | None]:
    """Versions of everything that numbers may depend on."""
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        **{name: installed(name) for name in PACKAGES},
    }


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def describe_run(folder: Path, settings: dict[str, Any], scenario: Scenario) -> None:
    """Write what the run is: settings with seeds, command, versions, the whole scenario."""
    write_json(folder / "config.json", settings)
    write_json(folder / "versions.json", versions())
    write_text(folder / "command.txt", shlex.join([Path(sys.executable).name, *sys.argv]) + "\n")
    write_text(folder / "scenario.toml", dumps(scenario))


def latest_checkpoint(run: Path) -> Path:
    """The newest checkpoint of a run folder, or the file itself.

    Raises:
        InputError: there is none.
    """
    if run.is_file():
        return run
    found = sorted((run / CHECKPOINTS).glob("*.pt"))
    if not found:
        raise InputError(
            f"argument --trained-agent: '{run}' holds no checkpoint; allowed is a run folder or one of its checkpoints/*.pt"
        )
    return found[-1]


def settings_of(run: Path) -> dict[str, Any]:
    """The settings with which a run was made."""
    folder = run.parent.parent if run.is_file() else run
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"argument --trained-agent: '{folder / 'config.json'}' cannot be read: {error}") from None
    if not isinstance(settings, dict):
        raise InputError(f"argument --trained-agent: '{folder / 'config.json'}' holds no settings")
    return settings
