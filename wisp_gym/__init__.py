"""wisp-gym: edge-cloud speculative decoding as Gymnasium environments over one calibrated model.

Importing this package registers `wisp_gym/Speculation-v0`, `wisp_gym/SpeculationLength-v0`, `wisp_gym/Batching-v0` and
`wisp_gym/Joint-v0`.
"""

from __future__ import annotations

import gymnasium

__version__ = "0.1.0"

ENVIRONMENTS = {
    "wisp_gym/Speculation-v0": ("speculation", "Speculation"),
    "wisp_gym/SpeculationLength-v0": ("speculation", "SpeculationLength"),
    "wisp_gym/Batching-v0": ("batching", "Batching"),
    "wisp_gym/Joint-v0": ("joint", "Joint"),
}


def register_environments() -> None:
    """Register every environment with Gymnasium; a second call changes nothing."""
    for name, (module, cls) in ENVIRONMENTS.items():
        if name not in gymnasium.registry:
            gymnasium.register(
                id=name,
                entry_point=f"wisp_gym.envs.{module}:{cls}Env",
                vector_entry_point=f"wisp_gym.envs.{module}:{cls}VectorEnv",
            )


register_environments()
