"""Rewards: named terms, weighted in one line."""

from collections.abc import Mapping

import numpy as np

from wisp_gym.errors import did_you_mean

SPECULATION_WEIGHTS = {
    "committed_tokens": 1.0,
    "on_time_tokens": 0.0,
    "time": 1.0,
    "externality": 1.0,
    "wasted_tokens": 0.0,
}
BATCHING_WEIGHTS = {"on_time_tokens": 1.0, "late_tokens": 0.0, "time": 1.0, "starvation": 1.0}


def checked_weights(weights: Mapping[str, float] | None, defaults: Mapping[str, float]) -> dict[str, float]:
    """The default weights with those given in their place."""
    for name, value in (weights or {}).items():
        if name not in defaults:
            raise ValueError(f"reward_weights: unknown term '{name}'; {did_you_mean(name, list(defaults))}")
        if not np.isfinite(value):
            raise ValueError(f"reward_weights: {name} given {value}, allowed is a finite number")
    return {**defaults, **(weights or {})}


def weighted(terms: Mapping[str, np.ndarray], weights: Mapping[str, float]) -> np.ndarray:
    """Reward: the sum of weight × term (terms of weight 0 are left out)."""
    total = np.zeros(())
    for name, term in terms.items():
        if weights[name]:
            total = total + weights[name] * term
    return np.broadcast_to(total, next(iter(terms.values())).shape)
