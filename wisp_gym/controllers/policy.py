"""Saved policies as JSON: weights with the schema of what they see. Loading one runs no code of its author."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from wisp_gym.controllers import speculation
from wisp_gym.controllers.mlp import pack
from wisp_gym.engine import observation

FORMAT = "wisp-gym policy"
VERSION = 1
MAX_BYTES = 64 * 2**20
KINDS = {"token": speculation.POLICY, "length": speculation.POLICY_LENGTH}


class PolicyError(ValueError):
    """A policy file that cannot be used; the message is one line."""


@dataclass(frozen=True)
class Policy:
    """A learned speculation policy.

    Attributes:
        decision: "token" (2 actions: send, continue) or "length" (action k: draft k tokens).
        weights: float32 vector of `wisp_gym.controllers.mlp.pack`.
        layers: (W, b) of each layer, from which `weights` was packed.
        about: free text fields, such as the training command.
    """

    decision: str
    weights: np.ndarray = field(repr=False)
    layers: list[tuple[np.ndarray, np.ndarray]] = field(repr=False)
    activation: str = "tanh"
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> int:
        """Id of the engine's rule that runs it."""
        return KINDS[self.decision]


def make_policy(
    layers: list[tuple[np.ndarray, np.ndarray]], decision: str = "token", activation: str = "tanh", **about: Any
) -> Policy:
    """Policy of weights; raises PolicyError when they do not fit the documented observation."""
    if decision not in KINDS:
        raise PolicyError(f"decision: given {decision!r}, allowed are {', '.join(KINDS)}")
    try:
        weights = pack(layers, activation)
    except (ValueError, IndexError, AttributeError) as error:
        raise PolicyError(str(error)) from None
    outputs = layers[-1][0].shape[0]
    if layers[0][0].shape[1] != observation.SIZE:
        raise PolicyError(
            f"inputs: given {layers[0][0].shape[1]}, allowed is {observation.SIZE}, the documented observation"
        )
    if (decision == "token" and outputs != 2) or not 2 <= outputs <= 33:
        raise PolicyError(f"outputs: given {outputs}, allowed are 2 for 'token' and 2 to 33 for 'length'")
    return Policy(decision, weights, layers, activation, about)


def save_policy(policy: Policy, path: str | Path) -> None:
    """Write a policy as JSON, atomically."""
    document = {
        "format": FORMAT, "version": VERSION, "decision": policy.decision, "activation": policy.activation,
        "observation": [[e.name, e.unit, e.low, e.high] for e in observation.ENTRIES],
        "layers": [{"weight": w.tolist(), "bias": b.tolist()} for w, b in policy.layers], "about": policy.about,
    }  # fmt: skip
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(document), encoding="utf-8")
    os.replace(partial, path)


def refuse_constant(text: str) -> float:
    """JSON's NaN and infinities are not numbers."""
    raise ValueError(f"{text} is not a number")


def read_document(path: Path) -> dict[str, Any]:
    """The JSON object of a policy file."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise PolicyError(f"{path}: {path.stat().st_size} bytes, allowed are {MAX_BYTES}")
        document = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse_constant)
    except OSError as error:
        raise PolicyError(f"{path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise PolicyError(f"{path}: not a policy: {error}") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise PolicyError(f"{path}: not a policy file: 'format' must be {FORMAT!r}")
    if document.get("version") != VERSION:
        raise PolicyError(f"{path}: version given {document.get('version')!r}, allowed is {VERSION}")
    return document


def check_schema(path: Path, document: dict[str, Any]) -> None:
    """The policy must have been trained on today's observation."""
    entries = document.get("observation")
    names = (
        [entry[0] if isinstance(entry, list) and entry else entry for entry in entries]
        if isinstance(entries, list)
        else []
    )
    if names != list(observation.NAMES):
        other = next(
            (f"'{a}' where '{b}' stands" for a, b in zip(names, observation.NAMES, strict=False) if a != b),
            f"{len(names)} entries",
        )
        raise PolicyError(f"{path}: observation differs from the documented one: {other}")


def parse_layers(path: Path, document: dict[str, Any]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Weights and biases of every layer."""
    try:
        with np.errstate(over="raise"):
            layers = [
                (np.array(x["weight"], dtype=np.float32), np.array(x["bias"], dtype=np.float32))
                for x in document["layers"]
            ]
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise PolicyError(f"{path}: layers: not lists of numbers: {error}") from None
    if not all(np.isfinite(w).all() and np.isfinite(b).all() for w, b in layers):
        raise PolicyError(f"{path}: layers: weights must be finite numbers")
    return layers


def load_policy(name: str | Path) -> Policy:
    """Read a policy from its JSON file or from a run folder that holds `policy.json`.

    Raises:
        PolicyError: missing or damaged file, other version, other observation; one line.
    """
    path = Path(name)
    path = path / "policy.json" if path.is_dir() else path
    if path.suffix != ".json":
        raise PolicyError(f"{path}: given a '{path.suffix}' file, allowed is a policy.json or its run folder")
    document = read_document(path)
    check_schema(path, document)
    about = document.get("about")
    try:
        return make_policy(
            parse_layers(path, document),
            str(document.get("decision")),
            str(document.get("activation")),
            **(about if isinstance(about, dict) else {}),
        )
    except (PolicyError, TypeError) as error:
        raise PolicyError(f"{path}: {error}") from None
