"""Saved policies as JSON: weights with the schema of what they see. Loading one runs no code of its author."""

import json
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from wisp_gym.contract import device
from wisp_gym.contract.actions import WAYS
from wisp_gym.contract.tables import TABLES
from wisp_gym.controllers.shipped import policy_path, shipped_names
from wisp_gym.errors import InputError, did_you_mean, one_of, shown
from wisp_gym.files import write_text
from wisp_gym.rules import speculation
from wisp_gym.rules.controller import PLAIN, WITH_WAYS
from wisp_gym.rules.mlp import layers_of, pack
from wisp_gym.rules.weights_json import layers_as_json, parse_layers, read_document
from wisp_gym.values import texts

WHAT = "policy"
POLICY = texts("a policy.json, its run folder, or a shipped policy's name")
VERSION = 1
Layer = tuple[np.ndarray, np.ndarray]  # (out, in) weights and (out,) bias
KINDS = {
    "token": speculation.POLICY, "length": speculation.POLICY_LENGTH,
    "token-way": speculation.POLICY, "length-way": speculation.POLICY_LENGTH,
}  # fmt: skip
OUTPUTS = {name: (WITH_WAYS if name.endswith("-way") else PLAIN)[kind] for name, kind in KINDS.items()}  # fewest, most


class PolicyError(InputError):
    """A policy file that cannot be used; the message is one line."""


@dataclass(frozen=True)
class Policy:
    """A learned speculation policy.

    Attributes:
        decision: "token" (send, draft one more), "length" (action k: draft k tokens), or with the way that a round ends as well
            "token-way" and "length-way" (`wisp_gym.contract.actions`).
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

    @property
    def chooses_way(self) -> bool:
        """Whether it says how a round ends too."""
        return self.decision.endswith("-way")

    @property
    def outputs(self) -> int:
        """Number of its actions."""
        return int(self.layers[-1][0].shape[0])

    def refuse_other_cap(self, max_draft_tokens: int) -> None:
        """Refuse a scenario in which its actions would mean other lengths.

        Raises:
            PolicyError: a "length-way" policy for another cap K than the scenario's.
        """
        allowed = len(WAYS) * (max_draft_tokens + 1)
        if self.decision == "length-way" and self.outputs != allowed:
            given = f"given {self.outputs} actions, allowed are {allowed}"
            raise PolicyError(
                f"policy: {given}: {len(WAYS)} ways with 0 to {max_draft_tokens} tokens, the scenario's cap"
            )


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
    if layers[0][0].shape[1] != device.SIZE:
        allowed = f"{device.SIZE}, the documented observation"
        raise PolicyError(f"inputs: given {layers[0][0].shape[1]}, allowed is {allowed}")
    low, high = OUTPUTS[decision]
    outputs = layers[-1][0].shape[0]
    if not low <= outputs <= high:
        allowed = ", ".join(
            f"{a} for '{name}'" if a == b else f"{a} to {b} for '{name}'" for name, (a, b) in OUTPUTS.items()
        )
        raise PolicyError(f"outputs: given {outputs}, allowed are {allowed}")
    return Policy(decision, weights, layers, activation, about)


def save_policy(policy: Policy, path: str | Path) -> None:
    """Write a policy as JSON, atomically."""
    document = {
        "format": f"wisp-gym {WHAT}", "version": VERSION, "decision": policy.decision, "activation": policy.activation,
        "observation": [e.row for e in device.ENTRIES],
        "layers": layers_as_json(policy.layers), "about": policy.about,
    }  # fmt: skip
    write_text(path, json.dumps(document))


def _places_of(path: Path, table: str, rows: Any, known: list[list[str | float]]) -> list[int]:
    """Places of a policy's own entries among the `known` rows of a table."""
    found = rows if isinstance(rows, list) else []
    for given in found:
        if given not in known or found.count(given) > 1:
            name, names = given[0] if isinstance(given, list) and given else given, [str(row[0]) for row in known]
            reason = "twice, or of another unit or other ends" if name in names else did_you_mean(str(name), names)
            raise PolicyError(f"{path}: {table}: {shown(name)}: {reason}")
    if not found:
        raise PolicyError(f"{path}: {table}: given {shown(rows)}, allowed are rows of [name, unit, low, high]")
    return [known.index(given) for given in found]


def documented(path: Path, table: str, rows: Any, layers: list[Layer], k: int = 0) -> list[Layer]:
    """The layers, of which number k reads the documented table in place of the policy's own entries of it.

    The table may have grown since the policy was saved: entries of which it was told nothing weigh nothing. What the layer reads
    besides comes after them.

    Args:
        path: what messages call the policy. table: of `wisp_gym.contract.tables`. rows: its own entries, [name, unit, low, high] each.
        layers: (W, b) each.

    Raises:
        PolicyError: says the first entry that is no entry of the table, or of another unit or other ends.
        InputError: no such table, or no such layers.
    """
    entries = list(TABLES[one_of("table", table, TABLES)].values())
    places, found = _places_of(path, table, rows, [e.row for e in entries]), layers_of(layers)
    if not 0 <= k < len(found):
        return found  # too few, for which it is refused
    weights, bias = found[k]
    others = weights.shape[1] - len(places) if weights.ndim == 2 else -1
    if others < 0:
        return found  # which is refused for its shape
    wide = np.zeros((len(weights), len(entries) + others), np.float32)
    wide[:, places], wide[:, len(entries) :] = weights[:, : len(places)], weights[:, len(places) :]
    return [*found[:k], (wide, bias), *found[k + 1 :]]


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
    """What a saved policy decides ("token", "length", "batching", "joint", …); empty where it cannot be told."""
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
    layers = documented(path, "observation", document.get("observation"), parse_layers(path, document, PolicyError))
    try:
        return make_policy(layers, str(document.get("decision")), str(document.get("activation")), **document["about"])
    except (PolicyError, TypeError) as error:
        raise PolicyError(f"{path}: {error}") from None
