"""Arguments of the environments as text from a command line: KEY:VALUE pairs, read as literals and never evaluated."""

import ast
import math
from collections.abc import Sequence
from typing import Any

from wisp_gym.errors import InputError, did_you_mean

# Arguments that training leaves open, with the kinds of their values and these in words; ranges are checked by the environment.
NUMBER = (int, float)
ARGUMENTS: dict[str, tuple[tuple[type, ...], str]] = {
    "scenario": ((str,), "a preset or a TOML file"),
    "devices": ((int,), "a whole number"),
    "controller": ((str,), "a controller's name such as wisp+fcfs"),
    "others": ((str,), "a policy file"),
    "horizon_s": (NUMBER, "a number of seconds"),
    "average_reward": ((*NUMBER, str), "'own' or a number of tokens/s"),
    "reward_weights": ((dict,), "numbers by name such as {'wasted_tokens':0.5}"),
    "randomise": ((dict,), "ranges by name such as {'jitter':[0.5,2]}"),
    "slo": (NUMBER, "a number of tokens/s"),
    "threads": ((int,), "a whole number"),
}


def parse_argument(name: str, text: str) -> Any:
    """A value as Python's literal, or else (and wherever only text is allowed) as it stands. Nothing is evaluated."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    return text if ARGUMENTS.get(name, ((),))[0] == (str,) and not isinstance(value, str) else value


def finite(value: Any) -> bool:
    """Whether a value is text or a finite number, or a table or list of finite numbers; JSON keeps all of these."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and not isinstance(part, str) and finite(part) for key, part in value.items())
    if isinstance(value, (list, tuple)):
        return all(not isinstance(part, str) and finite(part) for part in value)
    return isinstance(value, str) or (isinstance(value, NUMBER) and math.isfinite(value))


def check_argument(place: str, name: str, value: Any) -> None:
    """Refuse an unknown argument of the environment, or a value of the wrong kind.

    Raises:
        InputError: one line with the place, what was given and what is allowed.
    """
    if name not in ARGUMENTS:
        raise InputError(f"{place}: unknown '{name}'; {did_you_mean(name, list(ARGUMENTS))}")
    kinds, words = ARGUMENTS[name]
    if not isinstance(value, kinds) or isinstance(value, bool) or not finite(value):
        raise InputError(f"{place}: {name} given {value!r}, allowed is {words}")


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
