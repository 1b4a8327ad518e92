"""Batching policies with random weights."""

from __future__ import annotations

import numpy as np

from wisp_gym.controllers.scorer_policy import ScorerPolicy, make_scorer, shape_for


def random_scorer(decision: str, seed: int, eager: bool = True) -> ScorerPolicy:
    """Random weights; an eager one rather picks than launches or waits, so that its batches are large."""
    rng = np.random.default_rng(seed)
    shape = shape_for(decision, 16, 12, 16)
    sizes = shape.layers()
    layers = [(rng.normal(0, 0.5, s).astype(np.float32), rng.normal(0, 0.5, s[0]).astype(np.float32)) for s in sizes]
    layers[3][1][shape.embedding] += 3.0 if eager else 0.0
    layers[4][1][: shape.launches] += 1.0  # and rather launches than waits
    if shape.lengths and eager:  # and rather lets the server draft
        layers[3][1][-1] += 5.0
        layers[4][1][1 - shape.lengths :] += 4.0
    return make_scorer(layers, decision, seed=seed)
