"""Arguments of the environments as text from a command line: KEY:VALUE pairs, read as literals and never evaluated."""

import ast
from collections.abc import Sequence
from typing import Any

from wisp_gym.envs.speculation import SpeculationSettings
from wisp_gym.errors import InputError, did_you_mean
from wisp_gym.values import THREADS, kinds_of

# Arguments that training leaves open, with the kinds that the environment itself checks. Fates are for the bounds alone.
ARGUMENTS = {name: kind for name, kind in kinds_of(SpeculationSettings).items() if name != "reveal_fates"} | {
    "threads": THREADS
}
TEXTS = ("scenario", "controller", "others")  # whatever such a text looks like


def parse_argument(name: str, text: str) -> Any:
    """A value as Python's literal, or else (and wherever only text is allowed) as it stands. Nothing is evaluated."""
    try:
        return text if name in TEXTS else ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def check_argument(place: str, name: str, value: Any) -> None:
    """Refuse an unknown argument of the environment, or a value of the wrong kind.

    Raises:
        InputError: one line with the place, what was given and what is allowed.
    """
    if name not in ARGUMENTS:
        raise InputError(f"{place}: unknown '{name}'; {did_you_mean(name, list(ARGUMENTS))}")
    ARGUMENTS[name].checked(f"{place}: {name}", value)


def env_kwargs(pieces: Sequence[str]) -> dict[str, Any]:
    """Arguments of the environment from KEY:VALUE pairs.

    Raises:
        InputError: not such a pair, a key given twice, an unknown key, a value of the wrong kind.
    """
    place = "argument --env-kwargs"
    kwargs: dict[str, Any] = {}
    for piece in pieces:
        name, colon, text = piece.partition(":")
        if not colon or not name.isidentifier():
            raise InputError(f"{place}: given '{piece}', allowed is KEY:VALUE such as devices:32")
        if name in kwargs:
            raise InputError(f"{place}: {name} is given twice, allowed is every key once")
        kwargs[name] = parse_argument(name, text)
        check_argument(place, name, kwargs[name])
    return kwargs
