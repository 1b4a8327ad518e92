"""A policy's margin at a decision: what it puts on drafting less what it puts on sending."""

import numpy as np

from agents.branching.place import DRAFT, SEND
from wisp_gym.controllers.policy import Policy


def margins_of(policy: Policy, observations: np.ndarray) -> np.ndarray:
    """(N,) output for drafting less that for sending, of (N, SIZE) observations."""
    values = observations.astype(np.float64)
    for index, (w, b) in enumerate(policy.layers):
        values = values @ w.T + b
        if index < len(policy.layers) - 1:
            values = np.maximum(values, 0.0) if policy.activation == "relu" else np.tanh(values)
    found: np.ndarray = values[:, DRAFT] - values[:, SEND]
    return found
