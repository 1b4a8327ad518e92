"""What a world whose device is decided for outside is told in."""

from __future__ import annotations

import numpy as np

from wisp_gym.contract import device
from wisp_gym.engine import gather
from wisp_gym.engine.rewards import MOST_TERMS


def arrays_for_one() -> dict[str, np.ndarray]:
    """By name, arrays that `Worlds.spread` writes for one world: kinds (1,), observations, masks, outcomes and pay (1, …)."""
    return {
        "kinds": np.zeros(1, np.int64), "observations": np.zeros((1, device.SIZE), np.float32), "masks": np.zeros((1, 2), np.int8),
        "outcomes": np.zeros((1, gather.SIZE)), "pay": np.zeros((1, 1 + MOST_TERMS)),
    }  # fmt: skip
