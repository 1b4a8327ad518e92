"""How a part of a scenario checks its fields: ranges written as types, and errors of one clear line."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from wisp_gym.errors import InputError, did_you_mean, shown

PartT = TypeVar("PartT", bound="Part")


class ScenarioError(InputError):
    """A scenario that cannot be: one line naming the file, the key, what was given and what is allowed."""

    def __init__(self, reason: str, key: str = "", file: str = "") -> None:
        self.reason, self.key, self.file = reason, key, file
        super().__init__(": ".join(part for part in (file, key, reason) if part))

    def inside(self, prefix: str = "", file: str = "") -> ScenarioError:
        """The same error seen from one level above: `key` becomes `prefix.key`."""
        key = ".".join(part for part in (prefix, self.key) if part)
        return ScenarioError(self.reason, key, file or self.file)


@dataclass(frozen=True)
class Range:
    """An interval of numbers; `open_` ends are excluded. Infinities and NaN lie in none."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def holds(self, value: float) -> bool:
        """Whether the finite number `value` lies in the interval."""
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return math.isfinite(value) and above and below

    def __str__(self) -> str:
        low = "" if math.isinf(self.low) else f"{'>' if self.open_low else '>='} {self.low:g}"
        high = "" if math.isinf(self.high) else f"{'<' if self.open_high else '<='} {self.high:g}"
        return " and ".join(part for part in (low, high) if part)


@dataclass(frozen=True)
class NonEmpty:
    """A string that must not be empty."""


# The ranges that fields are declared with: the type of a field is its documentation and its check. Each end is far beyond
# what is meant and still such that the engine's arithmetic stays finite: times of 30 years resolve 0.1 µs in a float64.
HUGE, TINY = 1e9, 1e-9
Positive = Annotated[float, Range(0.0, open_low=True)]
NonNegative = Annotated[float, Range(0.0)]
Seconds = Annotated[float, Range(0.0, HUGE)]
PositiveSeconds = Annotated[float, Range(TINY, HUGE)]
PerSecond = Annotated[float, Range(TINY, HUGE)]  # tokens or requests; its inverse is a time
Bandwidth = Annotated[float, Range(TINY)]  # bytes a second; without end, for messages that take no time
Amount = Annotated[float, Range(0.0, HUGE)]  # watts, joules, dollars
Weight = Annotated[float, Range(TINY, HUGE)]  # in a mix
LogStd = Annotated[
    float, Range(0.0, 10.0)
]  # of a log-normal, or in logits: 10 spreads over a factor of 22,000 either way
Logit = Annotated[float, Range(-20.0, 20.0)]  # odds from 2e-9 on, which a float64 tells from never and always
BelowOne = Annotated[float, Range(0.0, 1.0, open_high=True)]
Chance = Annotated[float, Range(0.0, 1.0)]
Ratio = Annotated[float, Range(0.0, 1.0, open_low=True)]
Count = Annotated[int, Range(1, 2**53)]  # whole numbers up to 2^53 are exact as floats
CountOrZero = Annotated[int, Range(0, 2**53)]
Tokens = Annotated[int, Range(1, 10**9)]  # of one prompt or answer
Name = Annotated[str, NonEmpty()]


class Part:
    """Base of the frozen dataclasses of a scenario: every field is checked against its declared type and range.

    Whole numbers are accepted for real-valued fields and become floats, NumPy scalars become plain numbers, and lists
    become tuples, so that equal scenarios compare equal.

    Raises:
        ScenarioError: a field of the wrong type or out of its range.
    """

    def __post_init__(self) -> None:
        optional = defaults(type(self))  # a list among them may be empty
        for name, hint in field_types(type(self)).items():
            object.__setattr__(self, name, _checked(getattr(self, name), hint, name, name in optional))
        self.check()

    def check(self) -> None:
        """Conditions that join several fields; parts that have some override this."""


def field_types(part: Any) -> dict[str, Any]:
    """Field name → declared type with its range, in order of declaration, of a part's class."""
    return _field_types(part)


def defaults(part: Any) -> dict[str, Any]:
    """Field name → default, of those fields that have one: a file may leave them out."""
    return {field.name: field.default for field in fields(part) if field.default is not MISSING}


@cache
def _field_types(part: Any) -> dict[str, Any]:
    hints = get_type_hints(part, include_extras=True)
    return {field.name: hints[field.name] for field in fields(part)}


def part_of(hint: Any) -> type[Part] | None:
    """The part class that a field holds, itself or in a tuple; None for plain values."""
    inner = get_args(hint)[0] if get_origin(hint) is tuple else hint
    return inner if isinstance(inner, type) and issubclass(inner, Part) else None


def nearest(word: str, allowed: Iterable[str]) -> str:
    """The end of an error message: the nearest valid word, if any is near, and all of them."""
    return did_you_mean(word, sorted(allowed) or ["none"], cutoff=0.5)


def build(part: type[PartT], table: Mapping[str, Any], path: str = "") -> PartT:
    """The part that nested plain tables describe.

    Args:
        part: class to build.
        table: field name → number, string, table, or list of tables; every field without a default must be there.
        path: where the table stands in its file, for messages.

    Raises:
        ScenarioError: unknown or missing key, wrong type, impossible value.
    """
    if not isinstance(table, Mapping):
        raise ScenarioError(f"given {shown(table)}, allowed: a table with {', '.join(field_types(part))}", path)
    refuse_unknown(table, field_types(part), path)
    optional = defaults(part)
    if missing := [name for name in field_types(part) if name not in table and name not in optional]:
        needed = ", ".join(name for name in field_types(part) if name not in optional)
        raise ScenarioError(f"missing; a {part.__name__} needs {needed}", dotted(path, missing[0]))
    given = {name: hint for name, hint in field_types(part).items() if name in table}
    values = {name: _built(hint, table[name], dotted(path, name)) for name, hint in given.items()}
    try:
        return part(**values)
    except ScenarioError as error:
        raise error.inside(path) from None


def refuse_unknown(table: Mapping[str, Any], allowed: Iterable[str], path: str) -> None:
    """Raise for the first key of a table that is not an allowed one."""
    for key in table:
        if key not in set(allowed):
            raise ScenarioError(f"unknown key '{key}'; {nearest(key, allowed)}", path)


def dotted(path: str, key: str) -> str:
    """`path.key`, or `key` at the top."""
    return f"{path}.{key}" if path else key


def _built(hint: Any, value: Any, path: str) -> Any:
    part = part_of(hint)
    if part is None:
        return value
    if get_origin(hint) is not tuple:
        return build(part, value, path)
    if not isinstance(value, (list, tuple)):
        raise ScenarioError(f"given {shown(value)}, allowed: a list of tables ([[{path}]])", path)
    return tuple(build(part, item, f"{path}[{i}]") for i, item in enumerate(value))


def _checked(value: Any, hint: Any, key: str, empty: bool = False) -> Any:
    if get_origin(hint) is Literal:
        return _choice(value, get_args(hint), key)
    if get_origin(hint) is tuple:
        return _parts(value, get_args(hint)[0], key, empty)
    if get_origin(hint) is Annotated:
        base, rule = get_args(hint)
        return _text(value, key, empty=False) if base is str else _number(value, base, rule, key)
    if hint is str:
        return _text(value, key, empty=True)
    if not isinstance(value, hint):
        raise ScenarioError(f"given {shown(value)}, allowed: a {hint.__name__}", key)
    return value


def _number(value: Any, base: type, rule: Range, key: str) -> Any:
    wanted = f"{'a whole' if base is int else 'a finite'} number {rule}".strip()
    kind = numbers.Integral if base is int else numbers.Real
    try:
        if not isinstance(value, bool) and isinstance(value, kind) and rule.holds(float(value)):
            return base(value)
    except OverflowError:  # a whole number beyond any float
        pass
    raise ScenarioError(f"given {shown(value)}, allowed: {wanted}", key)


def _text(value: Any, key: str, empty: bool) -> str:
    if not isinstance(value, str) or not (value or empty):
        raise ScenarioError(f"given {shown(value)}, allowed: a {'' if empty else 'non-empty '}string", key)
    return value


def _choice(value: Any, allowed: tuple[str, ...], key: str) -> str:
    if not isinstance(value, str) or value not in allowed:
        words = [word or '""' for word in allowed]
        raise ScenarioError(f"given {shown(value)}; {nearest(value if isinstance(value, str) else '', words)}", key)
    return value


def _parts(value: Any, part: type[Part], key: str, empty: bool) -> tuple[Part, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, part) for item in value):
        raise ScenarioError(f"given {shown(value)}, allowed: a tuple of {part.__name__}", key)
    if not (value or empty):
        raise ScenarioError(f"given an empty list, allowed: at least one {part.__name__}", key)
    return tuple(value)
