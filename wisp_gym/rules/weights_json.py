"""Networks as JSON, which loading runs no code of: reading the document and its layers, for policies and predictors."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from wisp_gym.files import read_text

MAX_BYTES = 64 * 2**20


def refuse_constant(text: str) -> float:
    """JSON's NaN and infinities are not numbers."""
    raise ValueError(f"{text} is not a number")


def read_document(path: Path, what: str, version: int, error: type[ValueError]) -> dict[str, Any]:
    """The JSON object of a file of the format `wisp-gym <what>`, its "about" a table; raises `error` with one line."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise error(f"{path}: {path.stat().st_size} bytes, allowed are {MAX_BYTES}")
        document = json.loads(read_text(path), parse_constant=refuse_constant)
    except OSError as fault:
        raise error(f"{path}: {fault.strerror or fault}") from None
    except error:
        raise
    except (ValueError, RecursionError) as fault:
        raise error(f"{path}: not a {what}: {fault}") from None
    if not isinstance(document, dict) or document.get("format") != f"wisp-gym {what}":
        raise error(f"{path}: not a {what} file: 'format' must be 'wisp-gym {what}'")
    if document.get("version") != version:
        raise error(f"{path}: version given {document.get('version')!r}, allowed is {version}")
    return {**document, "about": document["about"] if isinstance(document.get("about"), dict) else {}}


def parse_layers(path: Path, document: dict[str, Any], error: type[ValueError]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Weights and biases of every layer, float32; raises `error` with one line."""
    try:
        with np.errstate(over="raise"):
            layers = [
                (np.array(x["weight"], dtype=np.float32), np.array(x["bias"], dtype=np.float32))
                for x in document["layers"]
            ]
    except (KeyError, TypeError, ValueError, ArithmeticError) as fault:
        raise error(f"{path}: layers: not lists of numbers: {fault}") from None
    if not all(np.isfinite(w).all() and np.isfinite(b).all() for w, b in layers):
        raise error(f"{path}: layers: weights must be finite numbers")
    return layers


def shortest(values: np.ndarray) -> Any:
    """Nested lists of the shortest decimal numbers that read back as the same float32."""
    if values.ndim > 1:
        return [shortest(row) for row in values]
    return [float(str(value)) for value in values.astype(np.float32)]


def layers_as_json(layers: list[tuple[np.ndarray, np.ndarray]]) -> list[dict[str, Any]]:
    """What `parse_layers` reads."""
    return [{"weight": shortest(w), "bias": shortest(b)} for w, b in layers]
