"""Values that a caller gives from Python: kinds with their ranges, checked before anything is done with what is given.

    @dataclass(frozen=True)
    class Settings(Checked):
        devices: Annotated[int, whole(1, 100)] = 8     # the type of a field is its documentation and its check

Kinds of what stands on a command line, as text, are in `wisp_gym.cli`.
"""

import math
import numbers
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, get_args, get_type_hints

from wisp_gym.errors import InputError, did_you_mean, shown

MAX_DEVICES = 100_000  # about 10 GB of state: more is a slip of the finger
MAX_SEED = 2**63 - 1  # the engine's counter-based draws take 64 bits; numpy's and SB3's seeds are signed
MAX_WORLDS = 2**20
MAX_THREADS = 4096


class ArgumentError(InputError, TypeError):
    """An argument that is unknown, or of a type for which Gymnasium and Python raise TypeError."""


@dataclass(frozen=True)
class Kind:
    """What a value may be.

    Attributes:
        words: what is allowed, as messages say it.
        take: the value as it is used from now on; TypeError, ValueError or OverflowError where it is none of the kind.
    """

    words: str
    take: Callable[[Any], Any]

    def checked(self, place: str, given: Any) -> Any:
        """The value as it is used from now on; `place` is what the caller calls it.

        Raises:
            InputError: one line with the place, what was given and what is allowed.
        """
        try:
            return self.take(given)
        except (TypeError, ValueError, OverflowError):
            colon = "" if ":" in place else ":"  # "devices: given 0", and "options: devices given 0"
            raise InputError(f"{place}{colon} given {shown(given)}, allowed is {self.words}") from None


@dataclass(frozen=True)
class Table(Kind):
    """A table of values by name, each of its own kind; None is an empty one.

    Attributes:
        kinds: name → what its value may be.
    """

    kinds: Mapping[str, Kind]

    def checked(self, place: str, given: Any) -> dict[str, Any]:
        """As `Kind.checked`, for the table and then for each of its values."""
        table = super().checked(place, given)
        for name in table:
            if name not in self.kinds:
                raise InputError(f"{place}: unknown '{name}'; {did_you_mean(name, list(self.kinds))}")
        return {name: self.kinds[name].checked(f"{place}: {name}", value) for name, value in table.items()}


def table(kinds: Mapping[str, Kind], words: str) -> Table:
    """Tables with some of these names; `words` says what of, with an example."""
    return Table(words, lambda given: dict(only(given is None or isinstance(given, Mapping), given or {})), kinds)


def only(inside: bool, value: Any) -> Any:
    """The value, where it is inside of what is allowed; else ValueError."""
    if not inside:
        raise ValueError
    return value


def whole(low: int, high: int) -> Kind:
    """Whole numbers from `low` to `high`, NumPy's too; no truth value and no 2.0."""

    def take(given: Any) -> int:
        fine = isinstance(given, numbers.Integral) and not isinstance(given, bool)
        return int(only(fine and low <= given <= high, given))

    return Kind(f"a whole number from {low} to {high}", take)


def number(inside: Callable[[float], bool], words: str) -> Kind:
    """Finite numbers for which `inside` holds, whole ones and NumPy's too."""

    def take(given: Any) -> float:
        value = float(only(isinstance(given, numbers.Real) and not isinstance(given, bool), given))
        return float(only(math.isfinite(value) and inside(value), value))

    return Kind(words, take)


def between(low: float, high: float) -> Kind:
    """Numbers from `low` to `high`, whole ones and NumPy's too; an infinite one where a bound is."""

    def take(given: Any) -> float:
        value = float(only(isinstance(given, numbers.Real) and not isinstance(given, bool), given))
        return float(only(low <= value <= high, value))

    return Kind(f"a number from {low:g} to {high:g}", take)


def positive(unit: str) -> Kind:
    """Finite numbers above 0, of a unit."""
    return number(lambda value: value > 0.0, f"a positive, finite number of {unit}")


def optional(kind: Kind) -> Kind:
    """None, or values of a kind."""
    return Kind(kind.words, lambda given: None if given is None else kind.take(given))


def texts(words: str) -> Kind:
    """Names, and paths as text or `pathlib.Path`; `words` says of what."""

    def take(given: Any) -> str:
        path = os.fspath(given)
        return str(only(isinstance(path, str), path))

    return Kind(words, take)


FLAG = Kind("True or False", lambda given: only(isinstance(given, bool), given))
DEVICES = whole(1, MAX_DEVICES)
WORLDS = whole(1, MAX_WORLDS)
THREADS = optional(whole(1, MAX_THREADS))
SEED = whole(0, MAX_SEED)


def take_seeds(given: Any) -> tuple[int, ...]:
    """Seeds of worlds, in order."""
    only(isinstance(given, Iterable) and not isinstance(given, (str, bytes, dict, set, frozenset)), given)
    each = tuple(SEED.take(seed) for seed in given)
    return tuple(only(len(each) > 0, each))


SEEDS = Kind(f"at least one whole number from 0 to {MAX_SEED}, such as range(10)", take_seeds)


class Checked:
    """Base of frozen dataclasses whose fields are checked by the kinds that their types are annotated with.

    Raises:
        InputError: a field of another kind or out of its range; one line.
    """

    def __post_init__(self) -> None:
        for name, kind in kinds_of(type(self)).items():
            object.__setattr__(self, name, kind.checked(name, getattr(self, name)))


def kinds_of(settings: Any) -> dict[str, Kind]:
    """Field → its kind, of a class of settings."""
    return _kinds_of(settings)


@cache
def _kinds_of(settings: Any) -> dict[str, Kind]:
    hints = get_type_hints(settings, include_extras=True)
    found = {field.name: [k for k in get_args(hints[field.name]) if isinstance(k, Kind)] for field in fields(settings)}
    return {name: kinds[0] for name, kinds in found.items() if kinds}
