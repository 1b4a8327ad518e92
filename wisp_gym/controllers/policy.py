"""Saved policies as JSON: weights with the schema of what they see. Loading one runs no code of its author."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from wisp_gym.contract import device
from wisp_gym.controllers.shipped import policy_path, shipped_names
from wisp_gym.errors import InputError, shown
from wisp_gym.files import write_text
from wisp_gym.rules import speculation
from wisp_gym.rules.mlp import pack
from wisp_gym.rules.weights_json import layers_as_json, parse_layers, read_document
from wisp_gym.values import texts

WHAT = "policy"
POLICY = texts("a policy.json, its run folder, or a shipped policy's name")
VERSION = 1
KINDS = {"token": speculation.POLICY, "length": speculation.POLICY_LENGTH}


class PolicyError(InputError):
    """A policy file that cannot be used; the message is one line."""


@dataclass(frozen=True)
class Policy:
    """A learned speculation policy.

    Attributes:
        decision: "token" (2 actions: send, continue) or "length" (action k: draft k tokens).
        weights: float32 vector of `wisp_gym.rules.mlp.pack`.
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
    if not isinstance(decision, str) or decision not in KINDS:
        raise PolicyError(f"decision: given {shown(decision)}, allowed are {', '.join(KINDS)}")
    try:
        weights = pack(layers, activation)
    except (ValueError, IndexError, AttributeError) as error:
        raise PolicyError(str(error)) from None
    outputs = layers[-1][0].shape[0]
    if layers[0][0].shape[1] != device.SIZE:
        allowed = f"{device.SIZE}, the documented observation"
        raise PolicyError(f"inputs: given {layers[0][0].shape[1]}, allowed is {allowed}")
    if (decision == "token" and outputs != 2) or not 2 <= outputs <= 33:
        raise PolicyError(f"outputs: given {outputs}, allowed are 2 for 'token' and 2 to 33 for 'length'")
    return Policy(decision, weights, layers, activation, about)


def save_policy(policy: Policy, path: str | Path) -> None:
    """Write a policy as JSON, atomically."""
    document = {
        "format": f"wisp-gym {WHAT}", "version": VERSION, "decision": policy.decision, "activation": policy.activation,
        "observation": [e.row for e in device.ENTRIES],
        "layers": layers_as_json(policy.layers), "about": policy.about,
    }  # fmt: skip
    write_text(path, json.dumps(document))


def refuse_others(path: Path, what: str, rows: Any, allowed: Sequence[str]) -> None:
    """Refuse a policy whose rows of an observation have other names than the documented ones.

    Raises:
        PolicyError: says `what`, and the first difference.
    """
    given = rows if isinstance(rows, list) else []
    names = [row[0] if isinstance(row, list) and row else row for row in given]
    if names != list(allowed):
        pairs = zip(names, allowed, strict=False)
        count = f"{len(names)} entries, not {len(allowed)}"
        raise PolicyError(f"{path}: {what}: {next((f'{a!r} where {b!r} stands' for a, b in pairs if a != b), count)}")


def read_policy(name: str | PathLike[str]) -> tuple[Path, dict[str, Any]]:
    """File and document of a saved policy by its file, its run folder or, if it is shipped, its name.

    Raises:
        PolicyError: missing or damaged file, or another version; one line.
    """
    path = policy_path(POLICY.checked("policy", name))
    if path.suffix != ".json":
        given = f"given a '{path.suffix}' file" if path.suffix else "no such folder"
        shipped = ", ".join(shipped_names())
        raise PolicyError(f"{path}: {given}, allowed is a policy.json, its run folder, or a shipped policy ({shipped})")
    return path, read_document(path, WHAT, VERSION, PolicyError)


def saved_decision(name: str | Path) -> str:
    """What a saved policy decides ("token", "length", "batching", "joint"); empty where it cannot be told."""
    try:
        return str(read_policy(name)[1].get("decision"))
    except PolicyError:
        return ""


def load_policy(name: str | PathLike[str]) -> Policy:
    """Read a policy from its JSON file, from a run folder that holds `policy.json`, or a shipped one by its name.

    Raises:
        PolicyError: missing or damaged file, other version, other observation; one line.
    """
    path, document = read_policy(name)
    refuse_others(path, "observation differs from the documented one", document.get("observation"), device.NAMES)
    layers = parse_layers(path, document, PolicyError)
    try:
        return make_policy(layers, str(document.get("decision")), str(document.get("activation")), **document["about"])
    except (PolicyError, TypeError) as error:
        raise PolicyError(f"{path}: {error}") from None
