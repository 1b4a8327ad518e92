"""The flags of a command from a frozen dataclass: a field is a flag, its default the default, the text beside it the help.

@dataclass(frozen=True)
class Arguments:
    seed: int = flag(0, "seed of everything", of=whole(0, 9))
    progress: bool = flag(False, "progress bar", "-P")

arguments, given = parse(Arguments, "python mine.py", __doc__, ["--seed", "3"])  # Arguments(3, False), {"seed"}
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import field, fields
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from wisp_gym.cli import Parser

T = TypeVar("T")


def flag(
    default: Any, text: str, short: str = "", *, of: Callable[[str], Any] | None = None, metavar: str | None = None,
    const: Any = None,
) -> Any:  # fmt: skip
    """A field that `parse` reads from the command line.

    Args:
        default: without the flag. The help names it unless it is None, False or empty, which the text must explain.
        text: the help. short: a second name of one letter, such as "-n". metavar: the value's name in the help.
        of: type of a value, as argparse has it; by default that of the annotation.
        const: the value of the flag without one; None where a value must follow.
    """
    told = isinstance(default, (int, str, Path)) and not isinstance(default, bool) and default != ""
    keywords = {"help": f"{text} (default {default})" if told else text, "type": of, "metavar": metavar}
    if const is not None:
        keywords |= {"nargs": "?", "const": const}
    return field(default=default, metadata={"short": short, "keywords": keywords})


def parse(
    kind: type[T], program: str, description: str | None, arguments: Sequence[str] | None
) -> tuple[T, frozenset[str]]:
    """The dataclass `kind` as the command line has it, and the names of the fields that were given there.

    Args:
        kind: a dataclass whose fields are made by `flag`; annotated bool (a switch), str, int, Path, any of them or None, or
            tuple[str, ...] (one word or more). program, description: for the help. arguments: None for the process's own.

    Raises:
        SystemExit: 2 after a wrong flag, which one line on stderr names; 0 after --help.
    """
    parser = Parser(prog=program, description=description, argument_default=argparse.SUPPRESS)
    annotations = get_type_hints(kind)
    for one in fields(kind):  # type: ignore[arg-type]
        names = [*filter(None, [one.metadata["short"]]), "--" + one.name.replace("_", "-")]
        parser.add_argument(*names, **options(annotations[one.name], dict(one.metadata["keywords"])))
    given = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in vars(parser.parse_args(arguments)).items()
    }
    return kind(**given), frozenset(given)


def options(annotation: Any, keywords: dict[str, Any]) -> dict[str, Any]:
    """What argparse is told of a field."""
    if annotation is bool:
        return {"action": "store_true", "help": keywords["help"]}
    parts = [part for part in get_args(annotation) if part not in (type(None), Ellipsis)] or [annotation]
    if get_origin(annotation) is tuple:
        keywords["nargs"] = "+"
    return keywords | {"type": keywords["type"] or parts[0]}
