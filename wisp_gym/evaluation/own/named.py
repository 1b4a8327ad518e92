"""Controllers of one's own by name, for command lines: `package.module:Name` and ONNX files in place of a rule.

    mypkg.rules:MyRule+wisp     mine.onnx+fcfs     wisp+mypkg.rules:MyScheduler+admit

Such a name imports the module, which runs its code: it is taken where the caller compares controllers, never from a file.
"""

import importlib
import os
import re
import sys
from typing import Any

from wisp_gym.controllers.names import RULES, outside
from wisp_gym.errors import InputError
from wisp_gym.evaluation.own.controller import Own, own

OBJECT = re.compile(r"(?P<module>[A-Za-z_][\w.]*):(?P<name>[A-Za-z_]\w*)")


def own_of_name(text: str) -> Own | None:
    """The controller of a name with an object or an ONNX file in it; None for any other name.

    Raises:
        InputError: a module or a name in it that there is not; one line.
    """
    halves = outside(text, "+")
    devices, server = halves[0], halves[1] if len(halves) > 1 else "fcfs"
    if not any(is_own(half) for half in (devices, server)):
        return None
    return own(half_of(devices), half_of(server), additions="+".join(halves[2:]), name=text)


def is_own(half: str) -> bool:
    """Whether half of a name is an object's or a file's."""
    found = OBJECT.fullmatch(half)
    return half.endswith(".onnx") or (found is not None and found["module"] not in RULES)


def half_of(text: str) -> Any:
    """The object of a half, or the half's own text."""
    found = OBJECT.fullmatch(text)
    if found is None or not is_own(text):
        return text
    if os.getcwd() not in sys.path:  # as `python -m` would
        sys.path.insert(0, os.getcwd())
    try:
        return getattr(importlib.import_module(found["module"]), found["name"])
    except ImportError as error:
        raise InputError(f"controller '{text}': {error}") from None
    except AttributeError:
        raise InputError(f"controller '{text}': module '{found['module']}' has no '{found['name']}'") from None
