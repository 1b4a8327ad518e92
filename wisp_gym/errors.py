"""What is wrong with what a user gave, in one line: what was given, what is allowed, and the nearest valid choice."""

import difflib
import importlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

KindT = TypeVar("KindT")


class InputError(ValueError):
    """Something the user gave is wrong; the message is one line that says what, and what is allowed.

    Every error of this kind in the package is a subclass, so that a command ends with one line and a library's user catches
    one class.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(one_line(message))  # whatever names and texts it quotes


def near(given: str, allowed: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The allowed word that is most like the given one, or None where none is."""
    return next(iter(difflib.get_close_matches(str(given), list(allowed), 1, cutoff)), None)


def did_you_mean(given: str, allowed: Iterable[str], cutoff: float = 0.6) -> str:
    """`did you mean 'x'? allowed: a, b, x`, without the question where nothing is near.

    Args:
        given: the unknown word. allowed: all valid ones.
        cutoff: likeness from 0 to 1 that a hint needs, as in `difflib.get_close_matches`.
    """
    allowed = list(allowed)
    nearest = near(given, allowed, cutoff)
    return (f"did you mean '{nearest}'? " if nearest else "") + f"allowed: {', '.join(allowed)}"


def one_of(place: str, given: str, allowed: Iterable[str], error: type[InputError] = InputError) -> str:
    """`given`, which must be one of `allowed`.

    Raises:
        InputError, or the class of it that is given: it is not; the line names the place, what was given, the nearest valid choice and all of them.
    """
    allowed = list(allowed)
    if given not in allowed:
        raise error(f"{place}: given {shown(given)}; {did_you_mean(given if isinstance(given, str) else '', allowed)}")
    return given


def require(package: str, extra: str) -> None:
    """Refuse, in one line that says what to install, where a package of an extra is missing.

    Raises:
        InputError: `package` cannot be imported.
    """
    try:
        importlib.import_module(package)
    except ImportError:
        raise InputError(f"needs {package}, which is not installed: pip install 'wisp-gym[{extra}]'") from None


def shown(value: Any) -> str:
    """What was given, on one line and not too long; of an array its type and shape."""
    if hasattr(value, "dtype") and getattr(value, "shape", None):
        return f"an array of {value.dtype} of shape {value.shape}"
    try:
        text = repr(value)  # a table's or a string's line breaks come out escaped
    except Exception as error:  # whole numbers beyond what Python spells, objects of other people
        text = f"a {type(value).__name__} that cannot be shown ({type(error).__name__})"
    text = one_line(text)
    return text if len(text) <= 60 else text[:57] + "..."


def of_kind(place: str, value: KindT, kinds: type | tuple[type, ...], error: type[InputError] = InputError) -> KindT:
    """`value`, which must be an object of one of these classes.

    Raises:
        InputError, or the class of it that is given: it is none; one line.
    """
    if isinstance(value, kinds):
        return value
    names = " or ".join(kind.__name__ for kind in (kinds if isinstance(kinds, tuple) else (kinds,)))
    raise error(f"{place}: given {shown(value)}, allowed is a {names}")


def path_of(place: str, value: Any, error: type[InputError] = InputError) -> Path:
    """The path that a string or an object of `pathlib` names.

    Raises:
        InputError, or the class of it that is given: something else, or characters that no system takes; one line.
    """
    text = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    if isinstance(text, str) and "\0" not in text:
        return Path(text)
    raise error(f"{place}: given {shown(value)}, allowed is a path")


def one_line(message: str) -> str:
    """The message with every run of white space as one blank."""
    return " ".join(message.split())
