"""Saved batching policies as JSON: a scorer's weights with the schema of what it sees and may do. Loading runs no code."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from wisp_gym.contract import request, server
from wisp_gym.contract.decisions import OF_SERVERS
from wisp_gym.contract.ladders import CHUNK_TOKENS, PRICES, SERVER_TOKENS
from wisp_gym.controllers.policy import VERSION, WHAT, PolicyError, documented, read_policy
from wisp_gym.errors import shown
from wisp_gym.files import write_text
from wisp_gym.rules.mlp import layers_of
from wisp_gym.rules.scorer import PARTS, Shape, pack
from wisp_gym.rules.weights_json import layers_as_json, parse_layers


@dataclass(frozen=True)
class ScorerPolicy:
    """A learned batching policy.

    Attributes:
        decision: "batching", or "joint", which sets the price in the replies too; "batching-hosting" and "joint-hosting" say for
            whom the server drafts, and how long, too.
        weights: float32 vector of `wisp_gym.rules.scorer.pack`.
        layers: (W, b) of each of its parts, from which `weights` was packed.
        about: free text fields, such as the training command.
    """

    decision: str
    weights: np.ndarray = field(repr=False)
    layers: list[tuple[np.ndarray, np.ndarray]] = field(repr=False)
    about: dict[str, Any] = field(default_factory=dict)


def shape_for(decision: str, hidden: int, embedding: int, context: int) -> Shape:
    """Shape of a scorer of the documented observation."""
    if not isinstance(decision, str) or decision not in OF_SERVERS:
        raise PolicyError(f"decision: given {shown(decision)}, allowed are {', '.join(OF_SERVERS)}")
    launches, lengths = OF_SERVERS[decision]
    return Shape(request.SIZE, server.SIZE, hidden, embedding, context, launches, len(CHUNK_TOKENS), lengths)


def make_scorer(layers: list[tuple[np.ndarray, np.ndarray]], decision: str = "batching", **about: Any) -> ScorerPolicy:
    """Policy of weights; raises PolicyError when they do not fit the documented observation and actions."""
    try:
        layers = layers_of(layers)
    except ValueError as error:
        raise PolicyError(str(error)) from None
    if len(layers) != len(PARTS) or any(w.ndim != 2 or b.ndim != 1 for w, b in layers):
        allowed = f"those of {', '.join(PARTS)}: a matrix and a bias each"
        raise PolicyError(f"layers: given {len(layers)}, allowed are {allowed}")
    widths = [len(b) for _, b in layers[:3]]
    try:
        return ScorerPolicy(decision, pack(shape_for(decision, *widths), layers), layers, about)
    except ValueError as error:
        raise PolicyError(str(error)) from None


def save_scorer(policy: ScorerPolicy, path: str | Path) -> None:
    """Write a policy as JSON, atomically."""
    document = {
        "format": f"wisp-gym {WHAT}", "version": VERSION, "decision": policy.decision,
        "globals": [e.row for e in server.ENTRIES], "requests": [e.row for e in request.ENTRIES],
        **ladders_of(policy.decision), "parts": list(PARTS), "layers": layers_as_json(policy.layers), "about": policy.about,
    }  # fmt: skip
    write_text(path, json.dumps(document))


def ladders_of(decision: str) -> dict[str, list[Any]]:
    """What a decision's actions choose from, by its key in the JSON file."""
    launches, lengths = OF_SERVERS[decision]
    ladders: dict[str, list[Any]] = {"chunk_tokens": list(CHUNK_TOKENS), "prices": list(PRICES[:launches])}
    return ladders | ({"server_tokens": list(SERVER_TOKENS)} if lengths else {})


def check_schema(path: Path, document: dict[str, Any], decision: str) -> None:
    """The policy must have been trained on today's actions."""
    for key, ladder in (ladders_of(decision) | {"parts": list(PARTS)}).items():
        if document.get(key) != ladder:
            raise PolicyError(f"{path}: {key} given {document.get(key)!r}, allowed are {ladder}")


def load_scorer(name: str | Path) -> ScorerPolicy:
    """Read a batching policy from its JSON file, from a run folder that holds `policy.json`, or a shipped one by its name.

    Raises:
        PolicyError: missing or damaged file, another decision, version, observation or ladder; one line.
    """
    path, document = read_policy(name)
    decision = document.get("decision")
    if not isinstance(decision, str) or decision not in OF_SERVERS:
        allowed = f"allowed in place of a batching rule are {', '.join(OF_SERVERS)}"
        raise PolicyError(f"{path}: decision given {decision!r}, {allowed}")
    check_schema(path, document, decision)
    layers = parse_layers(path, document, PolicyError)
    for part, table in (("hidden", "requests"), ("context", "globals")):
        layers = documented(path, table, document.get(table), layers, PARTS.index(part))
    try:
        return make_scorer(layers, decision, **document["about"])
    except (PolicyError, TypeError) as error:
        raise PolicyError(f"{path}: {error}") from None
