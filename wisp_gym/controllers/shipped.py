"""The trained policies that come with the package: JSON weights, an ONNX bundle and a model card each, by name."""

import os
from functools import cache
from pathlib import Path

from wisp_gym.errors import path_of

FOLDER = Path(__file__).resolve().parents[1] / "data" / "policies"


@cache
def shipped_names() -> tuple[str, ...]:
    """Names that stand for shipped policies, such as `speculation-v1`."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.json")))


def policy_path(name: str | Path) -> Path:
    """The JSON file that is meant: a shipped policy's, that of a run folder, or the file itself."""
    path = path_of("policy", name)
    if str(path) in shipped_names():
        return FOLDER / f"{name}.json"
    return path / "policy.json" if os.path.isdir(path) else path  # pathlib's raises for names that are too long
