"""A learned speculation policy on a device: numpy alone, no torch.

runtime = SpeculationRuntime.load("policy.json")
while drafted < cap and runtime.wants_more(observation):
    draft one more token
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wisp_gym.controllers.policy import Policy, load_policy
from wisp_gym.engine import observation as observed


class SpeculationRuntime:
    """Runs a policy on observations of `wisp_gym.engine.observation.ENTRIES`.

    An observation that is not a number, or out of its documented range, is brought back into it and counted in `corrected`:
    a serving loop must not stop because a sensor failed.

    Args:
        policy: a policy that decides after every token ("token") or once a round ("length").
    """

    def __init__(self, policy: Policy):
        self.decision = policy.decision
        self.layers = [(w.astype(np.float32), b.astype(np.float32)) for w, b in policy.layers]
        self.relu = policy.activation == "relu"
        self.corrected = 0

    @classmethod
    def load(cls, path: str | Path) -> SpeculationRuntime:
        """Read a policy file; loading runs no code of its author.

        Raises:
            PolicyError: missing or damaged file, other version, other observation; one line.
        """
        return cls(load_policy(path))

    def admit(self, observation: NDArray[np.float32]) -> NDArray[np.float32]:
        """The (30,) observation within its documented ranges."""
        o = np.asarray(observation, dtype=np.float32)
        if o.shape != (observed.SIZE,):
            raise ValueError(f"observation: given shape {o.shape}, allowed is ({observed.SIZE},)")
        inside = np.clip(np.nan_to_num(o, nan=0.0), observed.LOW, observed.HIGH)
        self.corrected += int((inside != o).any())
        return inside

    def scores(self, observation: NDArray[np.float32]) -> NDArray[np.float32]:
        """(actions,) outputs of the policy's network."""
        x = self.admit(observation)
        for w, b in self.layers[:-1]:
            x = w @ x + b
            x = np.maximum(x, 0.0) if self.relu else np.tanh(x)
        w, b = self.layers[-1]
        return w @ x + b

    def wants_more(self, observation: NDArray[np.float32]) -> bool:
        """Draft one more token (True) or send (False); for a policy that decides after every token."""
        if self.decision != "token":
            raise ValueError(f"wants_more: the policy decides '{self.decision}', allowed is 'token'; use round_length")
        return bool(self.scores(observation).argmax() == 1)

    def round_length(self, observation: NDArray[np.float32]) -> int:
        """Tokens to draft in this round; for a policy that decides once a round."""
        if self.decision != "length":
            raise ValueError(f"round_length: the policy decides '{self.decision}', allowed is 'length'; use wants_more")
        return int(self.scores(observation).argmax())
