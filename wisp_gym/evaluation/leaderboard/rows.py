"""Rows of a board: a line of JSON for each controller, every figure with all its digits."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from wisp_gym.errors import InputError, shown
from wisp_gym.evaluation.leaderboard.suite import FOLDER
from wisp_gym.files import read_text, write_text

Figures = dict[str, dict[str, list[float | None]]]


@dataclass(frozen=True)
class BoardRow:
    """What one controller made of a suite.

    Attributes:
        suite, suite_digest: where it ran. controller: its name.
        digests: module, file or policy in the name → SHA-256 of its bytes. versions: of what ran it. seeds: of the worlds.
        figures: cell → measure → a value for each seed, None where a world has none.
    """

    suite: str
    suite_digest: str
    controller: str
    digests: dict[str, str]
    versions: dict[str, str]
    seeds: str
    figures: Figures

    def line(self) -> str:
        """One line of JSON; numbers as Python writes them, so that the same figures are the same bytes."""
        return json.dumps(asdict(self), allow_nan=False, ensure_ascii=False)

    @property
    def identity(self) -> tuple[Any, ...]:
        """What a later row of the same takes the place of."""
        return self.suite, self.suite_digest, self.controller, tuple(self.digests.items())


@dataclass(frozen=True)
class Written:
    """A row as it stands in a file."""

    row: BoardRow
    line: str
    place: str


def shipped_rows(suite: str) -> Path:
    """The file of the rows that come with the package."""
    return FOLDER / f"{suite}.jsonl"


def read_rows(path: Path) -> list[Written]:
    """The rows of a file, in its order.

    Raises:
        InputError: a line that is no row; one line that says which. OSError: no such file.
    """
    lines = enumerate(read_text(path).splitlines(), 1)
    return [
        Written(parsed(line, f"{path}:{number}"), line, f"{path}:{number}") for number, line in lines if line.strip()
    ]


def parsed(line: str, place: str) -> BoardRow:
    """The row of a line."""
    try:
        told = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}: no JSON: {error}") from None
    names = [field.name for field in fields(BoardRow)]
    if not isinstance(told, dict) or list(told) != names:
        given = list(told) if isinstance(told, dict) else told
        raise InputError(f"{place}: given {shown(given)}, allowed is an object of {', '.join(names)}, in this order")
    for name, value in told.items():
        kind: type = dict if name in ("digests", "versions", "figures") else str
        if not isinstance(value, kind):
            raise InputError(
                f"{place}: {name} given {shown(value)}, allowed is {'an object' if kind is dict else 'text'}"
            )
    if not all(is_cell(cell) for cell in told["figures"].values()):
        raise InputError(
            f"{place}: figures given {shown(told['figures'])}, allowed is cell → measure → a list of numbers"
        )
    return BoardRow(**told)


def is_cell(told: Any) -> bool:
    """Whether something is a table of lists of numbers."""
    return isinstance(told, dict) and all(
        isinstance(values, list) and all(value is None or type(value) in (int, float) for value in values)
        for values in told.values()
    )


def put(path: Path, row: BoardRow) -> str:
    """Write a row into a file, in place of the one of the same controller, suite and digests, else at its end.

    Returns:
        What happened, as a word: "added", "replaced" or "unchanged".
    """
    before = read_rows(path) if path.is_file() else []
    place = next((k for k, one in enumerate(before) if one.row.identity == row.identity), None)
    lines = [one.line for one in before]
    if place is None:
        lines.append(row.line())
    elif lines[place] == row.line():
        return "unchanged"
    else:
        lines[place] = row.line()
    write_text(path, "".join(f"{line}\n" for line in lines))
    return "added" if place is None else "replaced"
