"""Flags from a dataclass: its types, defaults and help are those of the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from agents.training.arguments import flag, parse
from wisp_gym.cli import whole


@dataclass(frozen=True)
class Arguments:
    """Flags of every kind."""

    name: str = flag("a", "which one")
    count_of: int = flag(0, "how many", "-n", of=whole(0, 9), metavar="N")
    total: int | None = flag(None, "in all (default twice as many)", of=whole(0, 99))
    out: Path = flag(Path("runs"), "where")
    log: Path | None = flag(None, "there too")
    pairs: tuple[str, ...] = flag((), "more", metavar="KEY:VALUE")
    place: str | None = flag(None, "elsewhere", nargs="?", const="here")
    loud: bool = flag(False, "say more", "-l")


def test_without_flags_it_is_the_dataclass() -> None:
    assert parse(Arguments, "mine", None, []) == (Arguments(), frozenset())


def test_flags_have_the_types_of_the_fields_and_are_known_as_given() -> None:
    words = [
        "-n",
        "3",
        "--total",
        "4",
        "--out",
        "a",
        "--log",
        "b",
        "--pairs",
        "c:1",
        "d:2",
        "--place",
        "-l",
        "--name",
        "a",
    ]
    args, given = parse(Arguments, "mine", None, words)
    assert args == Arguments("a", 3, 4, Path("a"), Path("b"), ("c:1", "d:2"), "here", True)
    assert given == {"count_of", "total", "out", "log", "pairs", "place", "loud", "name"}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--count-of", "10"], "mine: argument -n/--count-of: given '10', allowed is a whole number from 0 to 9\n"),
        (["--count_of", "1"], "mine: unknown flag '--count_of'; did you mean '--count-of'?"),
        (["--pairs"], "mine: argument --pairs: expected at least one argument\n"),
    ],
)
def test_a_wrong_flag_is_one_line(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse(Arguments, "mine", None, words)
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith(line)


def test_the_help_tells_each_default_once(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(Arguments, "mine", "What it does.", ["--help"])
    out = " ".join(capsys.readouterr().out.split())
    for words in (
        "What it does.", "which one (default a)", "-n N, --count-of N how many (default 0)", "in all (default twice as many)",
        "where (default runs)", "there too --pairs KEY:VALUE [KEY:VALUE ...] more --place [PLACE] elsewhere -l, --loud say more",
    ):  # fmt: skip
        assert words in out
