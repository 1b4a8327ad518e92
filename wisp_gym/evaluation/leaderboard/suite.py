"""A frozen suite: complete scenario files, seeds and measures in one folder, known by a digest of all its bytes."""

import hashlib
import tomllib
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from wisp_gym.cli import seeds as seeds_of
from wisp_gym.errors import InputError, did_you_mean, one_of, shown
from wisp_gym.evaluation.metrics import Metrics
from wisp_gym.files import read_text
from wisp_gym.scenario import Scenario, load

FOLDER = Path(__file__).resolve().parents[2] / "data" / "leaderboard"
LATEST = "v1"
FILE = "suite.toml"
KEYS = ("name", "description", "seeds", "reference", "cells", "metrics")


@dataclass(frozen=True)
class Suite:
    """What every controller of a board is measured in.

    Attributes:
        name: such as "v1". digest: SHA-256 of the names and bytes of all its files, in hexadecimal.
        seeds: one world each, in every cell, as `--seeds` writes them. reference: the controller that scores divide by.
        scenarios: cell → scenario. metrics: measures of `wisp_gym.evaluation.metrics` that a row keeps.
    """

    name: str
    description: str
    digest: str
    seeds: str
    reference: str
    scenarios: dict[str, Scenario]
    metrics: tuple[str, ...]

    @property
    def worlds(self) -> tuple[int, ...]:
        """The seeds one by one."""
        return seeds_of(self.seeds)


def shipped() -> list[str]:
    """Names of the suites that come with the package, oldest first."""
    return sorted(path.parent.name for path in FOLDER.glob(f"*/{FILE}"))


@cache
def find_suite(given: str) -> Suite:
    """The suite of a name, or in a folder.

    Raises:
        InputError (ScenarioError): there is none, or something is wrong in it; one line.
    """
    folder = FOLDER / given if given in shipped() else Path(given)
    if not (folder / FILE).is_file():
        raise InputError(f"suite: given '{given}'; {did_you_mean(given, shipped())}, or a folder with a {FILE}")
    told = read(folder / FILE)
    paths = {cell: folder / f"{cell}.toml" for cell in told["cells"]}
    return Suite(
        told["name"], told["description"], digest_of([folder / FILE, *paths.values()]), told["seeds"], told["reference"],
        {cell: load(path) for cell, path in paths.items()}, tuple(told["metrics"]),
    )  # fmt: skip


def read(path: Path) -> dict[str, Any]:
    """The table of a suite's file, checked."""
    try:
        told = tomllib.loads(read_text(path))
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    for key in told:
        one_of(str(path), key, KEYS)
    for key in KEYS:
        kind: type = list if key in ("cells", "metrics") else str
        if not isinstance(told.get(key), kind) or not told[key]:
            raise InputError(
                f"{path}: {key} given {shown(told.get(key))}, allowed is {'a list' if kind is list else 'text'}"
            )
    for metric in told["metrics"]:
        one_of(f"{path}: metrics", metric, [field.name for field in fields(Metrics)])
    return told


def digest_of(paths: list[Path]) -> str:
    """SHA-256 of the names and bytes of files, in hexadecimal."""
    found = hashlib.sha256()
    for path in paths:
        content = path.read_bytes() if path.is_file() else b""
        found.update(f"{path.name} {len(content)}\n".encode() + content)
    return found.hexdigest()
