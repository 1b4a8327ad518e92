"""Rewards: what the named terms of `wisp_gym.engine.rewards` weigh."""

from collections.abc import Iterable

from wisp_gym.engine.rewards import BATCHING_TERMS, SPECULATION_TERMS
from wisp_gym.values import Kind, number, table

SPECULATION_WEIGHTS = dict(zip(SPECULATION_TERMS, (1.0, 0.0, 1.0, 1.0, 0.0), strict=True))
BATCHING_WEIGHTS = dict(zip(BATCHING_TERMS, (1.0, 0.0, 1.0, 1.0), strict=True))
WEIGHT = number(lambda value: True, "a finite number")


def weights_of(terms: Iterable[str]) -> Kind:
    """Weights of some of these terms."""
    return table(dict.fromkeys(terms, WEIGHT), "numbers by name such as {'time': 0.5}")
