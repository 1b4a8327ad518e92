"""What figures depend on besides suite and controller's name: bytes of policies and code, and versions of what ran them."""

import hashlib
import importlib.util
import os
import platform
import sys
from functools import cache
from pathlib import Path

from wisp_gym.controllers.lookup import parts_of
from wisp_gym.controllers.names import RULES, outside
from wisp_gym.controllers.shipped import policy_path
from wisp_gym.errors import InputError
from wisp_gym.evaluation.own.named import OBJECT, is_own
from wisp_gym.machine import cpu_model, installed

PACKAGE = Path(__file__).resolve().parents[2]
# What decides a world: physics, rules, what a controller sees, how a world is measured.
DECIDES = (
    "contract",
    "controllers",
    "engine",
    "rules",
    "evaluation/own",
    "evaluation/metrics.py",
    "scenario/parts.py",
    "jit.py",
)
COMPILERS = ("numpy", "numba", "llvmlite", "onnxruntime")


class MissingError(InputError):
    """Code or a file that a controller's name says and that is not here."""


def codes(controller: str) -> list[str]:
    """The halves of a controller's name that are Python code of its author's: to run it is to run them."""
    return [half for half in outside(controller, "+") if is_own(half) and not half.endswith(".onnx")]


def digests(controller: str) -> dict[str, str]:
    """SHA-256 of each module, ONNX file and saved policy that a name says, in hexadecimal; empty where all are rules.

    A module is its own file, not those that it imports. It is found, as `python -m` would, from the current folder too; its
    parent packages are imported.

    Raises:
        MissingError: one of them is not here. ControllerError: the name means none.
    """
    halves = outside(controller, "+")
    if not any(map(is_own, halves)):
        policies = [part.name for part in parts_of(controller) if part.is_policy]
        return {name: of_file(name, policy_path(name)) for name in policies}
    found = {
        half: of_file(half, Path(half) if half.endswith(".onnx") else source_of(half))
        for half in filter(is_own, halves)
    }
    policies = [half for half in halves if half not in found and half not in RULES and policy_path(half).is_file()]
    return found | {name: of_file(name, policy_path(name)) for name in policies}


def source_of(half: str) -> Path:
    """The source file of the module of `module:Name`."""
    match = OBJECT.fullmatch(half)
    assert match, half
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        spec = importlib.util.find_spec(match["module"])
    except ImportError:
        spec = None
    if spec is None or not spec.origin:
        raise MissingError(f"module '{match['module']}' is not found from here")
    return Path(spec.origin)


def of_file(name: str, path: Path) -> str:
    """SHA-256 of a file's bytes."""
    if not path.is_file():
        raise MissingError(f"{name}: no such file")
    return hashlib.sha256(path.read_bytes()).hexdigest()


@cache
def engine_digest() -> str:
    """The first 16 hexadecimal digits of the SHA-256 of all sources that decide a world."""
    found = hashlib.sha256()
    paths = [
        path
        for place in DECIDES
        for path in ([PACKAGE / place] if place.endswith(".py") else (PACKAGE / place).rglob("*.py"))
    ]
    for path in sorted(paths):
        found.update(path.relative_to(PACKAGE).as_posix().encode() + b"\n" + path.read_bytes())
    return found.hexdigest()[:16]


def versions() -> dict[str, str]:
    """Versions of all that may change a figure: this package and its sources, compilers, mathematics, processor."""
    return {
        "wisp_gym": own_version(),
        "engine": engine_digest(),
        "python": platform.python_version(),
        **{package: installed(package) for package in COMPILERS},
        "libc": " ".join(platform.libc_ver()).strip() or "unknown",
        "machine": platform.machine(),
        "cpu": cpu_model(),
    }


def own_version() -> str:
    """The package's version where it is not installed: a checkout."""
    from wisp_gym import __version__

    return __version__
