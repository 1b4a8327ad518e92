"""Rejection predictors as JSON: a small network from a drafted token's statistics to its chance of being accepted.

WISP's device rule asks such a network after every drafted token (arXiv 2601.11652). A file holds numbers alone; loading
one runs no code of its author.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from wisp_gym.errors import InputError, of_kind, path_of, shown
from wisp_gym.files import write_bytes
from wisp_gym.rules.mlp import pack
from wisp_gym.rules.weights_json import layers_as_json, parse_layers, read_document

WHAT = "rejection predictor"
VERSION = 1
# What a predictor sees of the token just drafted, in this order: the draft's probability of it (0–1), entropy of the
# draft's distribution (nats), difference of its two highest probabilities (0–1), standard deviation of the logits.
INPUTS = ("confidence", "entropy", "margin", "logit_spread")
SHIPPED = Path(__file__).resolve().parents[1] / "data" / "predictors"


class PredictorError(InputError):
    """A predictor file that cannot be used; the message is one line."""


@dataclass(frozen=True, eq=False)
class Predictor:
    """A network whose one output is the log odds that a token is accepted, given that all before it are.

    Attributes:
        weights: float32 vector of `wisp_gym.rules.mlp.pack`, which the engine runs.
        layers: (W, b) of each layer, from which `weights` was packed; scaling of the inputs and calibration are in them.
        threshold: acceptance probability, 0 to 1, below which WISP's rule stops.
        activation: "tanh" or "relu", after every layer but the last.
        about: free text fields, such as what it was trained on and how it scores.
    """

    weights: np.ndarray = field(repr=False)
    layers: list[tuple[np.ndarray, np.ndarray]] = field(repr=False)
    threshold: float
    activation: str = "tanh"
    about: dict[str, Any] = field(default_factory=dict)

    def probability(self, statistics: np.ndarray) -> np.ndarray:
        """Chance of being accepted, (…), of tokens with `statistics` (…, 4) in the order of `INPUTS`."""
        x = np.asarray(statistics, dtype=np.float32)
        for w, b in self.layers[:-1]:
            x = x @ w.T + b
            x = np.maximum(x, 0.0) if self.activation == "relu" else np.tanh(x)
        w, b = self.layers[-1]
        log_odds = (x @ w.T + b)[..., 0].astype(np.float64)
        return 0.5 + 0.5 * np.tanh(0.5 * log_odds)  # the logistic function, without overflow


def make_predictor(
    layers: list[tuple[np.ndarray, np.ndarray]], threshold: float, activation: str = "tanh", **about: Any
) -> Predictor:
    """Predictor of float32 weights.

    Raises:
        PredictorError: weights that are not four inputs and one output, or a threshold outside 0 to 1.
    """
    try:
        weights = pack(layers, activation)
    except (ValueError, IndexError, AttributeError) as error:
        raise PredictorError(str(error)) from None
    inputs, outputs = layers[0][0].shape[1], layers[-1][0].shape[0]
    if (inputs, outputs) != (len(INPUTS), 1):
        wanted = f"{len(INPUTS)} ({', '.join(INPUTS)}) and 1"
        raise PredictorError(f"inputs and outputs: given {inputs} and {outputs}, allowed are {wanted}")
    if isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or not 0.0 <= threshold <= 1.0:
        raise PredictorError(f"threshold: given {shown(threshold)}, allowed is a probability from 0 to 1")
    return Predictor(weights, layers, float(threshold), activation, about)


def save_predictor(predictor: Predictor, path: str | Path) -> None:
    """Write a predictor as JSON, wholly or not at all; equal predictors give equal bytes.

    Raises:
        PredictorError: the place cannot be written, or `about` holds what JSON cannot.
    """
    of_kind("predictor", predictor, Predictor, PredictorError)
    place = path_of("predictor", path, PredictorError)
    document = {
        "format": f"wisp-gym {WHAT}", "version": VERSION, "inputs": list(INPUTS), "activation": predictor.activation,
        "threshold": predictor.threshold, "layers": layers_as_json(predictor.layers), "about": predictor.about,
    }  # fmt: skip
    try:
        write_bytes(place, (json.dumps(document, allow_nan=False) + "\n").encode())
    except OSError as error:
        raise PredictorError(f"{path}: cannot be written ({error.strerror})") from None
    except (TypeError, ValueError) as error:
        raise PredictorError(f"{path}: about: {error}") from None


def load_predictor(name: str | Path) -> Predictor:
    """Read a predictor from its JSON file, or a shipped one by its bare file name.

    Raises:
        PredictorError: missing or damaged file, other version, other inputs; one line.
    """
    path = find(name)
    document = read_document(path, WHAT, VERSION, PredictorError)
    if document.get("inputs") != list(INPUTS):
        raise PredictorError(f"{path}: inputs: given {document.get('inputs')!r}, allowed are {list(INPUTS)}")
    layers, threshold = parse_layers(path, document, PredictorError), document.get("threshold")
    try:
        made = make_predictor(layers, math.nan if threshold is None else threshold, str(document.get("activation")))
    except PredictorError as error:
        raise PredictorError(f"{path}: {error}") from None
    made.about.update(document["about"])
    return made


def shipped() -> dict[str, Path]:
    """Predictors that come with wisp-gym by file name, sorted."""
    return {path.name: path for path in sorted(SHIPPED.glob("*.json"))}


def find(name: str | Path) -> Path:
    """The shipped predictor of this bare name, or else the file of this path; `./NAME` is always a file."""
    path, known = path_of("predictor", name, PredictorError), shipped()
    if str(name) in known:
        return known[str(name)]
    if path.name == str(name) and not path.is_file():
        names = ", ".join(known) or "none yet"
        raise PredictorError(f"{name}: no such file; allowed: a predictor file, or one that is shipped ({names})")
    return path
