"""A learned choice of the whole controller: who drafts with what, how long, and by which rules of the server.

What a server loads beside its target, and how much memory that leaves, is fixed when it starts. So this is decided once, from what is
known of the deployment (`wisp_gym.controllers.deployment`): a small network predicts for each of a few controllers how much of the
best goodput it reaches, and the best of those that the deployment allows is taken. The controller's own policies and rules decide the
rest while it runs. Choosing an algorithm by features of the case: Rice, "The algorithm selection problem", 1976.

A choice is a JSON file; reading one runs no code of its author, and it names rules and shipped policies alone.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from wisp_gym.controllers.deployment import HEAD, NAMES, OWN, draft_places, numbers_of
from wisp_gym.controllers.lookup import parts_of
from wisp_gym.controllers.names import parse
from wisp_gym.controllers.shipped import is_choice, policy_path, shipped_names
from wisp_gym.errors import InputError, of_kind, shown
from wisp_gym.files import write_text
from wisp_gym.rules.weights_json import layers_as_json, parse_layers, read_document, shortest
from wisp_gym.scenario import Scenario
from wisp_gym.values import texts

WHAT, VERSION = "choice", 1
CHOICE = texts("a choice.json, its run folder, or a shipped choice's name")
FAR = 3.0  # standard deviations at which a number is cut: beyond what was trained on, the nearest that was
Layer = tuple[np.ndarray, np.ndarray]


class ChoiceError(InputError):
    """A choice that cannot be used; the message is one line."""


@dataclass(frozen=True)
class Choice:
    """A network over a deployment's numbers, and the controllers that it chooses from.

    Attributes:
        controllers: names in which {own} and {head} stand for places among the scenario's server drafts. The first needs neither.
        mean, std: (NAMES,) of the numbers in training. layers: (W, b) float32 each, tanh between them.
        about: free text fields, such as the training command.
    """

    controllers: tuple[str, ...]
    mean: np.ndarray = field(repr=False)
    std: np.ndarray = field(repr=False)
    layers: Sequence[Layer] = field(repr=False)
    about: Mapping[str, Any] = field(default_factory=dict)

    def scores(self, scenario: Scenario) -> dict[str, float]:
        """Predicted log of the share of the best goodput, for each controller that the scenario allows, the best first.

        Raises:
            InputError: no scenario.
        """
        seen = np.clip((numbers_of(scenario) - self.mean) / self.std, -FAR, FAR)
        scores, places = forward(self.layers, seen), draft_places(scenario)
        found = {
            filled(name, places): float(score)
            for name, score in zip(self.controllers, scores, strict=True)
            if needs(name) <= places.keys()
        }
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def choose(self, scenario: Scenario) -> str:
        """The name of the controller with the highest score."""
        return next(iter(self.scores(scenario)))


def needs(name: str) -> set[str]:
    """The drafts that a controller of a choice needs at the server."""
    return {kind for kind in (OWN, HEAD) if f"{{{kind}}}" in name}


def filled(name: str, places: Mapping[str, int]) -> str:
    """The controller's name with the places of the drafts that it needs. No other braces mean anything: a file is not to format."""
    for kind in needs(name):
        name = name.replace(f"{{{kind}}}", str(places[kind]))
    return name


def forward(layers: Sequence[Layer], values: np.ndarray) -> np.ndarray:
    """Outputs (n,) of a perceptron with tanh between its layers."""
    for k, (w, b) in enumerate(layers):
        values = w @ values + b
        values = np.tanh(values) if k + 1 < len(layers) else values
    return values


def make_choice(controllers: Sequence[str], mean: Any, std: Any, layers: Sequence[Layer], **about: Any) -> Choice:
    """A checked choice.

    Raises:
        ChoiceError: controllers that cannot be, or shapes that do not fit them and the numbers.
    """
    for name in controllers:
        check_controller(name)
    if not controllers or needs(controllers[0]):
        raise ChoiceError("controllers: the first must need no draft at the server, so that there is always one")
    sizes = [len(NAMES), *(len(b) for _, b in layers)]
    found = [w.shape for w, _ in layers]
    allowed = [(n_out, n_in) for n_in, n_out in pairwise(sizes)]
    if not layers or found != allowed or sizes[-1] != len(controllers):
        raise ChoiceError(f"layers: given {found} for {len(NAMES)} numbers and {len(controllers)} controllers")
    middle, spread = np.asarray(mean, np.float64), np.asarray(std, np.float64)
    if (
        any(part.shape != (len(NAMES),) or not np.isfinite(part).all() for part in (middle, spread))
        or (spread <= 0.0).any()
    ):
        raise ChoiceError(f"mean, std: allowed are {len(NAMES)} finite numbers each, std above 0")
    return Choice(tuple(controllers), middle, spread, layers, about)


def check_controller(name: Any) -> None:
    """Refuse a controller that names a file, or what is no name: a choice from elsewhere must not make anybody open files.

    Raises:
        ChoiceError: says which.
    """
    of_kind("controllers", name, str, ChoiceError)
    plain = filled(name, {OWN: 0, HEAD: 1})
    try:
        for piece in parse(plain):
            if piece.is_policy and piece.name not in shipped_names():
                raise ChoiceError(f"given {shown(piece.name)}, allowed are rules and {', '.join(shipped_names())}")
        parts_of(plain)  # rules that there are, with settings that can be
    except InputError as error:
        raise ChoiceError(f"controllers: {error}") from None


def load_choice(name: str | PathLike[str]) -> Choice:
    """Read a choice from its file, from a run folder that holds `choice.json`, or a shipped one by its name.

    Raises:
        ChoiceError: missing or damaged file, other version, other numbers; one line.
    """
    path = policy_path(CHOICE.checked("choice", name))
    document = read_document(path, WHAT, VERSION, ChoiceError)
    if document.get("numbers") != list(NAMES):
        raise ChoiceError(f"{path}: numbers: given {shown(document.get('numbers'))}, allowed are those of this version")
    controllers: Any = document.get("controllers")
    of_kind(f"{path}: controllers", controllers, list, ChoiceError)
    layers = parse_layers(path, document, ChoiceError)
    try:
        return make_choice(controllers, document.get("mean"), document.get("std"), layers, **document["about"])
    except (ChoiceError, TypeError, ValueError) as error:
        raise ChoiceError(f"{path}: {error}") from None


def save_choice(choice: Choice, path: str | Path) -> None:
    """Write a choice as JSON, atomically."""
    document = {
        "format": f"wisp-gym {WHAT}", "version": VERSION, "numbers": list(NAMES),
        "mean": shortest(choice.mean), "std": shortest(choice.std), "controllers": list(choice.controllers),
        "layers": layers_as_json(list(choice.layers)), "about": dict(choice.about),
    }  # fmt: skip
    write_text(path, json.dumps(document))


def names_choice(name: str) -> bool:
    """Whether a controller's name is that of a choice, alone.

    Raises:
        ControllerError: it follows no rule of the grammar.
    """
    first, *more = parse(name)
    return first.is_policy and not more and is_choice(first.name)


def chosen(name: str, scenario: Scenario) -> str:
    """The name of the controller that a choice takes; a name that is no choice's is returned as it is."""
    return load_choice(name).choose(scenario) if names_choice(name) else name
