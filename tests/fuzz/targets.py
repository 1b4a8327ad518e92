"""What a fuzz calls: every public function, class and method, found in the modules themselves.

Front doors are what modules for users export, what pages call, and what says in its docstring which errors it raises: a
wrong argument ends there in one line of an error that says so. All other functions of the package are called too: they may
raise what they like, but must neither kill the process nor hang it.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import wisp_gym

FRONT_DOORS = (
    "wisp_gym.scenario", "wisp_gym.simulation", "wisp_gym.policies", "wisp_gym.evaluation", "wisp_gym.serving", "wisp_gym.traces.requests",
    "wisp_gym.traces.speculation", "wisp_gym.controllers.resolve", "wisp_gym.controllers.predict", "wisp_gym.controllers.predict_batching",
    "wisp_gym.controllers.policy", "wisp_gym.controllers.scorer_policy", "wisp_gym.controllers.describe", "wisp_gym.rules.rejection_predictor",
    "wisp_gym.rules.controller", "wisp_gym.engine.worlds",
)  # fmt: skip
# Commands read a command line, benchmarks take their time, the testbed is a network server: their own tests misuse them. The
# compiler's cache removes folders.
LEFT_OUT = (
    "wisp_gym.__main__", "wisp_gym.cli", "wisp_gym.interrupts", "wisp_gym.process", "wisp_gym.streams", "wisp_gym.jit", "wisp_gym.testbed",
    "wisp_gym.evaluation.speed", "wisp_gym.envs", "wisp_gym.serving.speed", "wisp_gym.serving.export.command", "wisp_gym.evaluation.pool",
    "wisp_gym.contract.__main__", "wisp_gym.serving.tables.command",
)  # fmt: skip
COMMANDS = {"main", "parse"}
WAIT_FOR_NOBODY = {"helpers"}  # makes what it is told to
INSIDE = {"learn", "refuse_others"}  # for the package itself; the manuals have other things of these names
METHODS = {"__call__", "__len__", "__iter__", "__getitem__"}


@dataclass(frozen=True)
class Target:
    """A function, or a method of a class that `owner` names."""

    name: str
    call: Any
    owner: str = ""
    front: bool = False


def modules() -> Iterator[Any]:
    """The modules of the package that a process can import here."""
    for found in pkgutil.walk_packages(wisp_gym.__path__, "wisp_gym."):
        if not found.name.startswith(LEFT_OUT):
            try:
                yield importlib.import_module(found.name)
            except ImportError:  # an extra that is not installed
                continue


@cache
def manuals() -> str:
    """Text of all pages."""
    root = Path(__file__).resolve().parents[2]
    pages = (root / "README.md", root / "traces" / "README.md", *(root / "docs").rglob("*.md"))
    return "\n".join(path.read_text(encoding="utf-8") for path in pages)


def is_promised(value: Any, name: str, before: str = "") -> bool:
    """Whether a docstring says what is raised, or a page calls or imports it."""
    if name in INSIDE:
        return False
    said = re.search(r"\b[Rr]aises?\b", inspect.getdoc(value) or "") is not None
    return said or re.search(rf"{before}\b{name}\(|import [^\n]*\b{name}\b", manuals()) is not None


def exported(module: Any) -> list[str]:
    """Names that a module offers: those of `__all__`, or its own public ones."""
    own = [
        name
        for name, value in vars(module).items()
        if getattr(value, "__module__", "") == module.__name__ and not name.startswith("_")
    ]
    return list(getattr(module, "__all__", own))


def targets() -> list[Target]:
    """Everything to call, front doors first, each once."""
    found: dict[int, Target] = {}
    for module in sorted(modules(), key=lambda module: (module.__name__ not in FRONT_DOORS, module.__name__)):
        door = module.__name__ in FRONT_DOORS
        for name in exported(module):
            value = getattr(module, name)
            if (
                name in COMMANDS | WAIT_FOR_NOBODY
                or not callable(value)
                or hasattr(value, "py_func")
                or id(value) in found
            ):
                continue
            if inspect.isclass(value) and (issubclass(value, BaseException) or getattr(value, "_is_protocol", False)):
                continue
            place, front = (
                f"{module.__name__}.{name}",
                door and (hasattr(module, "__all__") or is_promised(value, name)),
            )
            found[id(value)] = Target(place, value, front=front)
            if inspect.isclass(value):
                found |= {id(method.call): method for method in methods(place, value, front)}
    return list(found.values())


def methods(place: str, cls: type, front: bool) -> Iterator[Target]:
    """The public methods of a class."""
    for name, value in inspect.getmembers(cls, callable):
        own = any(name in vars(base) for base in cls.__mro__ if base.__module__.startswith("wisp_gym"))
        if own and (not name.startswith("_") or name in METHODS) and not inspect.isclass(value):
            yield Target(
                f"{place}.{name}",
                value,
                "" if inspect.ismethod(value) else cls.__name__,
                front and is_promised(value, name, r"\."),
            )
