"""What is wrong with what a user gave, in one line: what was given, what is allowed, and the nearest valid choice."""

import difflib
import importlib
from collections.abc import Iterable


class InputError(ValueError):
    """Something the user gave is wrong; the message is one line that says what, and what is allowed.

    Every error of this kind in the package is a subclass, so that a command ends with one line and a library's user catches
    one class.
    """


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


def one_of(place: str, given: str, allowed: Iterable[str]) -> str:
    """`given`, which must be one of `allowed`.

    Raises:
        InputError: it is not; the line names the place, what was given, the nearest valid choice and all of them.
    """
    allowed = list(allowed)
    if given not in allowed:
        raise InputError(f"{place}: given {given!r}; {did_you_mean(str(given), allowed)}")
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


def one_line(message: str) -> str:
    """The message with every run of white space as one blank."""
    return " ".join(message.split())
