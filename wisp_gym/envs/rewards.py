"""Rewards: named terms, weighted in one line."""

from collections.abc import Iterable, Mapping

import numpy as np

from wisp_gym.values import Kind, number, table

SPECULATION_WEIGHTS = {
    "committed_tokens": 1.0,
    "on_time_tokens": 0.0,
    "time": 1.0,
    "externality": 1.0,
    "wasted_tokens": 0.0,
}
BATCHING_WEIGHTS = {"on_time_tokens": 1.0, "late_tokens": 0.0, "time": 1.0, "starvation": 1.0}
WEIGHT = number(lambda value: True, "a finite number")


def weights_of(terms: Iterable[str]) -> Kind:
    """Weights of some of these terms."""
    return table(dict.fromkeys(terms, WEIGHT), "numbers by name such as {'time': 0.5}")


def weighted(terms: Mapping[str, np.ndarray], weights: Mapping[str, float]) -> np.ndarray:
    """Reward: the sum of weight × term (terms of weight 0 are left out)."""
    total = np.zeros(next(iter(terms.values())).shape)
    for name, term in terms.items():
        if weights[name]:
            total += weights[name] * term
    return total
