"""What a graph decides before it may serve: what does not fit, or reads what it must not, shows here and not in the serving loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wisp_gym.serving.bundle.schema import OF_DEVICES, BundleError, Schema

TRIED = 2.0  # entries up to this size tell whether a scorer reads the order
QUEUE = 6  # requests of the trial
Decide = Callable[[dict[str, NDArray[Any]]], list[NDArray[Any]]]
Ends = Mapping[str, tuple[int, tuple[int | str, ...]]]


def try_out(decide: Decide, described: Schema, outputs: Ends) -> None:
    """Decide once at the lower and the upper ends of the features.

    Raises:
        BundleError: the graph cannot be run, answers other shapes than its outputs', or decides what there is not.
    """
    n_actions = len(described.actions)
    allowed = [tuple(n if isinstance(n, int) else 1 for n in shape) for _, shape in outputs.values()]
    for end in (2, 3):
        ends = {name: np.array([[row[end] for row in rows]], np.float32) for name, rows in described.inputs.items()}
        try:
            answers = decide(ends)
        except Exception as error:
            raise BundleError(f"the graph cannot be run: {first_line(error)}") from None
        if (shapes := [answer.shape for answer in answers]) != allowed:
            raise BundleError(f"the graph answers shapes {shapes}, allowed are {allowed}")
        if described.decision in OF_DEVICES and not 0 <= answers[0][0] < n_actions:
            raise BundleError(f"the graph decides {answers[0].tolist()}, allowed are actions below {n_actions}")


def check_order(decide: Decide, described: Schema) -> None:
    """A scorer must not read the order of the requests: in another order it must score each as before, and all else too.

    Raises:
        BundleError: it does; one line.
    """
    rng = np.random.default_rng(0)
    inputs = {name: between(described.inputs[name], rng, n) for name, n in (("requests", QUEUE), ("globals", 1))}
    turned = np.roll(rng.permutation(QUEUE), 1)
    scores, actions, *moves = decide(inputs)
    again, others, *moved = decide({**inputs, "requests": inputs["requests"][turned]})
    pairs = [(scores[turned], again), (actions, others), *((a[turned], b) for a, b in zip(moves, moved, strict=True))]
    if not all(np.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in pairs):
        raise BundleError("the graph's scores change with the order of the requests, of which it may know nothing")


def between(features: list[list[Any]], rng: np.random.Generator, n: int) -> NDArray[np.float32]:
    """(n, features) random values within the ranges of the features, in size at most TRIED."""
    low, high = (np.clip([feature[k] for feature in features], -TRIED, TRIED) for k in (2, 3))
    return np.asarray(rng.uniform(low, high, (n, len(features))), np.float32)


def first_line(error: Exception) -> str:
    """One line of a message of many."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
