"""A command's flags from a frozen dataclass: a field is a flag, its default the default, the text beside it the help.

@dataclass(frozen=True)
class Arguments:
    seed: int = flag(0, "seed of everything", of=whole(0, 9))
    progress: bool = flag(False, "progress bar", "-P")

args, given = parse(Arguments, "python mine.py", __doc__, ["--seed", "3"])  # Arguments(3, False), {"seed"}
"""

import argparse
from collections.abc import Sequence
from dataclasses import field, fields
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from wisp_gym.cli import Parser

T = TypeVar("T")


def flag(default: Any, text: str, short: str = "", *, of: Any = None, **more: Any) -> Any:
    """A field that `parse` reads from the command line.

    Args:
        default: without the flag; the help names it unless it is None, False, "" or a tuple, which the text must
            explain. text: the help. short: a second name of one letter, such as "-n". of: type of a value, as argparse
            has it; by default that of the annotation. more: for argparse, such as `metavar`.
    """
    untold = default is None or default is False or default == "" or isinstance(default, tuple)
    told = text if untold else f"{text} (default {default})"
    return field(default=default, metadata={"short": short, "type": of, "more": {"help": told, **more}})


def parse(
    kind: type[T], program: str, description: str | None, arguments: Sequence[str] | None
) -> tuple[T, frozenset[str]]:
    """The dataclass `kind` as the command line has it, and the names of the fields that were given there.

    Args:
        kind: its fields are made by `flag` (others are no flags) and annotated as bool (a switch), str, int, Path, one
            of them or None, or tuple[str, ...] (one word or more, where no type is given that reads them from one).
        program, description: for the help. arguments: None for the process's own.

    Raises:
        SystemExit: 2 after a wrong flag, which one line on stderr names; 0 after --help.
    """
    parser = Parser(prog=program, description=description, argument_default=argparse.SUPPRESS)
    annotations = get_type_hints(kind)
    for one in filter(lambda one: one.metadata, fields(kind)):  # type: ignore[arg-type]
        names, annotation = [one.metadata["short"], "--" + one.name.replace("_", "-")], annotations[one.name]
        how: dict[str, Any] = {"action": "store_true"}
        if annotation is not bool:
            how = {"type": one.metadata["type"] or (*get_args(annotation), annotation)[0]}
        if get_origin(annotation) is tuple and not one.metadata["type"]:
            how["nargs"] = "+"
        parser.add_argument(*filter(None, names), **how, **one.metadata["more"])
    given = vars(parser.parse_args(arguments))
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    return kind(**values), frozenset(given)
