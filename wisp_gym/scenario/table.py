"""All fields of a scenario as tables: unit, range, default, what the presets hold. `wisp-gym scenario fields` prints them.

A field's unit is in its name, its range in its type, its meaning in the comment beside it (`wisp_gym.scenario.parts`); what is
usual are the lowest and the highest value of the shipped presets.
"""

import ast
import inspect
import io
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin

from wisp_gym.cli import Parser
from wisp_gym.scenario import DEFAULT_SCENARIO, Scenario, load, presets
from wisp_gym.scenario.fields import Part, Range, defaults, dotted, field_types, part_of

PROGRAM = "wisp-gym scenario fields"
# The endings of names that say a unit, the longest first.
UNITS = {
    "_tokens_per_s": "tokens/s", "_bytes_per_s": "bytes/s", "_bytes_per_token": "bytes/token", "requests_per_s": "requests/s",
    "_per_s": "1/s", "dollars_per_hour": "$/hour", "_bytes": "bytes", "_bits": "bits", "tokens": "tokens",
    "requests": "requests", "devices": "devices",
    "_s": "s", "_w": "W", "_j": "J", "_logit": "logits", "logit_mean": "logits", "request_std": "logits", "drift_std": "logits",
    "gpus": "GPUs", "trace_rows": "requests",
}  # fmt: skip
IN_A_FILE = {"description": "", "draft.trace": "", "draft.predictor": ""}  # what `wisp_gym.scenario.toml` fills in
EXACT = "2^53"  # up to which whole numbers are exact as floats
HEADER = ("field", "unit", "range", "left out", f"in `{DEFAULT_SCENARIO}`", "in all presets", "meaning")


@dataclass(frozen=True)
class Field:
    """One field of a scenario.

    Attributes:
        path: dotted, without the places of lists: `devices.link.one_way_s`. part: the class that declares it.
        hint: its declared type. meaning: the comment beside it, "" where its name says all.
    """

    path: str
    part: type[Part]
    hint: Any
    meaning: str

    @property
    def name(self) -> str:
        """The last word of its path."""
        return self.path.rpartition(".")[2]

    @property
    def unit(self) -> str:
        """Its unit as the name says it, "text" of names and words, "" of a pure number."""
        if self.hint is str or get_origin(self.hint) is Literal or get_args(self.hint)[:1] == (str,):
            return "text"
        return next((unit for ending, unit in UNITS.items() if self.name.endswith(ending)), "")

    @property
    def range(self) -> str:
        """What is allowed."""
        if get_origin(self.hint) is Literal:
            return ", ".join(word or '""' for word in get_args(self.hint))
        if get_origin(self.hint) is not Annotated:
            return "any"
        base, rule = get_args(self.hint)
        if not isinstance(rule, Range):
            return "not empty"
        return ("whole, " if base is int else "") + str(rule).replace(f"{2**53:g}", EXACT)

    @property
    def left_out(self) -> str:
        """What it is where a part is written out without it."""
        if self.path in IN_A_FILE:
            return shown(IN_A_FILE[self.path])
        optional = defaults(self.part)
        return shown(optional[self.name]) if self.name in optional else "needed"

    def held(self, scenario: Scenario) -> list[tuple[str, Any]]:
        """Path and value of each that a scenario holds, members of the lists on its path by name or place."""
        found: list[tuple[str, Any]] = [("", scenario)]
        for word in self.path.split("."):
            found = [one for path, part in found for one in members(dotted(path, word), getattr(part, word))]
        return found


def members(path: str, value: Any) -> list[tuple[str, Any]]:
    """The members of a list with their paths, or a value with its own."""
    if not isinstance(value, tuple):
        return [(path, value)]
    return [(f"{path}.{getattr(one, 'name', place)}", one) for place, one in enumerate(value)]


# --- the fields ------------------------------------------------------------------------------------------------------


@cache
def all_fields() -> tuple[Field, ...]:
    """Every field that holds a plain value, in order of declaration."""
    return tuple(field for _, group in groups() for field in group)


def groups(part: type[Part] = Scenario, path: str = "", head: str = "") -> Iterator[tuple[str, list[Field]]]:
    """TOML header of each table, such as `[[devices]]`, with the fields that stand in it; of parts below a part after it."""
    told, own = comments(part), list[Field]()
    below: list[tuple[type[Part], str, str]] = []
    for name, hint in field_types(part).items():
        inner = f"{path}.{name}" if path else name
        if kind := part_of(hint):
            below.append((kind, inner, f"[[{inner}]]" if get_origin(hint) is tuple else f"[{inner}]"))
        else:
            own.append(Field(inner, part, hint, told.get(name, "")))
    yield head, own
    for kind, inner, header in below:
        yield from groups(kind, inner, header)


def comments(part: type[Part]) -> dict[str, str]:
    """Field → the comment beside it, in the source of a part's class."""
    source = inspect.getsource(part)
    said = {token.start[0]: token.string.lstrip("# ") for token in tokens(source) if token.type == tokenize.COMMENT}
    body = ast.parse(source).body[0]
    assert isinstance(body, ast.ClassDef)
    fields = [node for node in body.body if isinstance(node, ast.AnnAssign)]
    lines = {ast.unparse(node.target): range(node.lineno, (node.end_lineno or node.lineno) + 1) for node in fields}
    return {name: " ".join(said[line] for line in each if line in said) for name, each in lines.items()}


def tokens(source: str) -> Iterator[tokenize.TokenInfo]:
    """Tokens of a source."""
    return tokenize.generate_tokens(io.StringIO(source).readline)


@cache
def usual(path: str) -> tuple[float, float] | None:
    """Lowest and highest value of a field in the presets; None of texts, and where no preset has one."""
    field = next(field for field in all_fields() if field.path == path)
    numbers = [value for one in all_presets() for _, value in field.held(one) if isinstance(value, int | float)]
    return (min(numbers), max(numbers)) if numbers else None


@cache
def all_presets() -> tuple[Scenario, ...]:
    """Every preset, read once."""
    return tuple(map(load, presets()))


# --- as text ---------------------------------------------------------------------------------------------------------


def shown(value: Any) -> str:
    """A value as a cell of a table."""
    if isinstance(value, str):
        return value or '""'
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def span(low: float, high: float) -> str:
    """Two ends, or one where they are equal."""
    return shown(low) if low == high else f"{shown(low)} … {shown(high)}"


def cell(values: Sequence[Any]) -> str:
    """Values of a field as a cell: the ends of numbers, texts only where there is one."""
    each = set(values)
    if each and all(isinstance(value, int | float) for value in each):
        return span(min(each), max(each))
    return shown(values[0]) if len(each) == 1 else ""


def row(field: Field) -> str:
    """A field's row."""
    here, everywhere = [value for _, value in field.held(load(DEFAULT_SCENARIO))], usual(field.path)
    long = field.name == "description"
    held = "" if long else cell(here)
    cells = (f"`{field.name}`", field.unit, field.range, field.left_out, held, span(*everywhere) if everywhere else "")
    return f"| {' | '.join((*cells, field.meaning))} |"


def markdown() -> str:
    """The tables of docs/guide/scenario-fields.md, each under its TOML header."""
    found = []
    for head, fields in groups():
        if fields:
            title = f"## `{head}`" if head else "## At the top"
            rows = ["| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER), *map(row, fields)]
            found.append("\n".join([title, "", *rows]))
    return "\n\n".join(found)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    Parser(prog=PROGRAM, description="Every field of a scenario: unit, range, default, what is usual.").parse_args(
        arguments
    )
    print(markdown())
