"""Networks of one's own as layers that run inside the engine."""

import sys
from typing import Any, NamedTuple

import numpy as np

from wisp_gym.errors import InputError


class Network(NamedTuple):
    """(W, b) float32 of each layer, the output layer last, and what comes after every layer but the last."""

    layers: list[tuple[np.ndarray, np.ndarray]]
    activation: str


def network_layers(given: Any) -> Network | None:
    """The layers of a list of (W, b), with tanh between them, or of a `torch.nn.Sequential`; None where it is neither.

    Raises:
        InputError: a Sequential of other modules than linear layers with one activation between them, tanh or ReLU.
    """
    if isinstance(given, list):
        return Network(given, "tanh")
    torch = sys.modules.get("torch")  # who gives a network has imported it
    if torch is None or not isinstance(given, torch.nn.Sequential):
        return None
    return of_modules(list(given), "devices")


def of_modules(modules: list[Any], place: str) -> Network:
    """The layers of torch modules in a row; raises InputError as `network_layers`."""
    kinds = {"Linear", "Tanh", "ReLU"}
    names = [type(module).__name__ for module in modules if type(module).__name__ != "Flatten"]
    between = set(names) - {"Linear"}
    wanted = ["Linear", *(name for _ in range(names.count("Linear") - 1) for name in (*between, "Linear"))]
    if set(names) - kinds or len(between) > 1 or names != wanted:
        allowed = "Linear layers with Tanh, or ReLU, between them; others decide by `predict`"
        raise InputError(f"{place}: given a network of {', '.join(names) or 'nothing'}, allowed are {allowed}")
    linear = [module for module in modules if type(module).__name__ == "Linear"]
    layers = [(values(module.weight), bias_of(module)) for module in linear]
    return Network(layers, "relu" if "ReLU" in between else "tanh")


def values(tensor: Any) -> np.ndarray:
    """A tensor's numbers, float32."""
    return np.asarray(tensor.detach().cpu().numpy(), np.float32)


def bias_of(module: Any) -> np.ndarray:
    """(out,) bias of a linear layer, zeros where it has none."""
    return np.zeros(module.out_features, np.float32) if module.bias is None else values(module.bias)
