"""One call of a fuzz: arguments, what may come of it, and that a refused call has changed no world."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import random
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np

from tests.fuzz.targets import Target
from tests.fuzz.values import EXACT, anything, value_for
from wisp_gym.engine.state import World
from wisp_gym.errors import InputError

# What a wrong argument may end in: one class of errors of our own, Python's word for a wrong number of arguments, Gymnasium's
# errors, files, and memory.
ALLOWED = (InputError, OSError, MemoryError, gym.error.Error)
MOST_ITEMS = 20  # of what a generator yields


@dataclass(frozen=True)
class Fault:
    """Something that must not be."""

    name: str
    what: str
    message: str = field(default="", compare=False)


def parameters(call: Any, bound: bool) -> list[inspect.Parameter]:
    """Parameters of a function, or of a method without its instance."""
    try:
        found = list(inspect.signature(call).parameters.values())
    except (TypeError, ValueError):
        return []
    return found[1:] if bound else found


def arguments(target: Target, rng: random.Random) -> tuple[list[Any], dict[str, Any]]:
    """Positional and keyword arguments: all as they should be, one wrong, or many wrong."""
    hostile = rng.choice([0.0, 0.1, 0.1, 0.3, 1.0])
    positional: list[Any] = []
    named: dict[str, Any] = {}
    for p in parameters(target.call, bool(target.owner)):
        value = value_for(p.name, str(p.annotation), hostile, rng)
        if p.kind is p.VAR_POSITIONAL:
            continue
        if p.kind is p.VAR_KEYWORD:
            named |= {
                key: anything(rng)
                for key in rng.sample(["devices", "n_devices", "slo.0.share", "x"], rng.choice([0, 1]))
            }
        elif p.default is not p.empty and rng.random() < 0.5:
            continue
        elif p.kind is p.KEYWORD_ONLY or named or rng.random() < 0.3:
            if p.kind is not p.POSITIONAL_ONLY:
                named[p.name] = value
        else:
            positional.append(value)
    return positional, named


def worlds_in(value: Any, depth: int = 3) -> Iterator[World]:
    """Arrays of worlds that an object holds."""
    if isinstance(value, World):
        yield value
    elif depth and type(value).__module__.startswith(("wisp_gym", "gymnasium")):
        for inner in list(getattr(value, "__dict__", {}).values()):
            yield from worlds_in(inner, depth - 1)


def digest(value: Any) -> str:
    """Hash of all worlds that an object holds."""
    content = hashlib.sha256()
    for world in worlds_in(value):
        for array in world.own().values():
            content.update(array.tobytes())
    return content.hexdigest()


def shown(value: Any) -> str:
    """A value, on one line and not too long."""
    with contextlib.suppress(Exception):
        return " ".join(
            (f"array{value.shape} {value.dtype}" if isinstance(value, np.ndarray) else repr(value)).split()
        )[:80]
    return f"<{type(value).__name__}>"


def described(name: str, positional: list[Any], named: dict[str, Any]) -> str:
    """A call as one line."""
    return f"{name}({', '.join([*map(shown, positional), *(f'{key}={shown(value)}' for key, value in named.items())])})"


def fault_of(name: str, error: Exception, strict: bool) -> Fault | None:
    """What is wrong with an error, if anything is."""
    if not strict or isinstance(error, ALLOWED):
        several = isinstance(error, InputError) and ("\n" in str(error) or not str(error).strip())
        return Fault(name, f"an error that is not one line: {str(error)[:100]!r}") if several and strict else None
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, TypeError) and len(frames) == 1:
        return None  # the call itself: a missing or an unknown argument
    if len(frames) > 1 and "gymnasium" in frames[-2].filename:
        return None  # its own message about an object that cannot be shown
    last = frames[-1]
    if (
        isinstance(error, ValueError | TypeError)
        and "\n" not in str(error)
        and is_ours(last)
        and (last.line or "").startswith("raise ")
    ):
        return None
    if isinstance(error, NotImplementedError) and ("gymnasium" in last.filename or is_ours(last)):
        return None  # of a base class
    ours = [frame for frame in frames if is_ours(frame)] or [last]
    place = f"{ours[-1].filename.rpartition('wisp_gym/')[2]}:{ours[-1].lineno}"
    return Fault(name, f"{type(error).__name__} at {place}", str(error).partition("\n")[0][:100])


def is_ours(frame: traceback.FrameSummary) -> bool:
    """Whether a line of code is the package's."""
    return "wisp_gym/" in frame.filename.rpartition("site-packages")[2]


def attempt(
    name: str, holder: Any, call: Any, positional: list[Any], named: dict[str, Any], strict: bool
) -> Fault | None:
    """Make a call; a fault is an error of the wrong kind, or one after which a world of `holder` is another."""
    before = digest(holder) if holder is not None else ""
    try:
        made = call(*positional, **named)
        if inspect.isgenerator(made):
            for _ in zip(range(MOST_ITEMS), made, strict=False):
                pass
    except Exception as error:
        found = fault_of(name, error, strict)
        if found is None and holder is not None and digest(holder) != before:
            return Fault(name, f"changed a world and then raised {type(error).__name__}: {error}")
        return found
    return None


def function_call(target: Target, rng: random.Random, note: Any) -> Fault | None:
    """Call a function, or a method of a fresh instance. `note` is told of the call before it is made."""
    positional, named = arguments(target, rng)
    holder = None
    if target.owner:
        if target.owner not in EXACT:
            return None
        holder = EXACT[target.owner](rng)
        positional = [holder, *positional]
    note(described(target.name, positional, named))
    return attempt(target.name, holder, target.call, positional, named, target.front)
