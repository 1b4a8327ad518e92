"""The trained policies that come with the package, by name: JSON weights, an ONNX bundle and a model card each.

So do learned choices between controllers (`wisp_gym.controllers.choice`): JSON and a card each.
"""

import os
from functools import cache
from pathlib import Path

from wisp_gym.errors import path_of

DATA = Path(__file__).resolve().parents[1] / "data"
FOLDER, CHOICES = DATA / "policies", DATA / "choices"
CHOICE_FILE = "choice.json"


@cache
def shipped_names() -> tuple[str, ...]:
    """Names that stand for shipped policies, such as `speculation-v1`."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.json")))


@cache
def shipped_choices() -> tuple[str, ...]:
    """Names that stand for shipped choices between controllers, such as `controller-v2`."""
    return tuple(sorted(path.stem for path in CHOICES.glob("*.json")))


def is_choice(name: str | Path) -> bool:
    """Whether a name is that of a choice: a shipped one, a file `choice.json`, or a run folder that holds one."""
    path = Path(name)
    return str(name) in shipped_choices() or path.name == CHOICE_FILE or os.path.isfile(path / CHOICE_FILE)


def policy_path(name: str | Path) -> Path:
    """The JSON file that is meant: a shipped policy's or choice's, that of a run folder, or the file itself."""
    path = path_of("policy", name)
    if str(path) in shipped_names():
        return FOLDER / f"{name}.json"
    if str(path) in shipped_choices():
        return CHOICES / f"{name}.json"
    if os.path.isfile(path / CHOICE_FILE):
        return path / CHOICE_FILE
    return path / "policy.json" if os.path.isdir(path) else path  # pathlib's raises for names that are too long
