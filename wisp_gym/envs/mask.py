"""The mask of valid actions as a part of the observation, where RLlib, TorchRL and Tianshou look for it."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict
from gymnasium.vector.utils import batch_space

MASK = "action_mask"
Masked = dict[str, np.ndarray]


def masked_space(name: str, mask: str, seen: gym.Space, actions: gym.Space) -> Dict:
    """The space of an observation with its mask, by their names."""
    return Dict({name: seen, mask: Box(0, 1, (int(actions.n),), np.int8)})  # type: ignore[attr-defined, arg-type]


class MaskInObservation(gym.Wrapper[Masked, np.int64, np.ndarray, np.int64], gym.utils.RecordConstructorArgs):
    """Observations become `{"observation": …, "action_mask": (actions,) int8, 1 = valid}`.

    Args:
        env: any environment of this package. name, mask: keys; RLlib's examples call them "observations" and "action_mask",
            Tianshou "obs" and "mask".
    """

    def __init__(self, env: gym.Env[np.ndarray, np.int64], name: str = "observation", mask: str = MASK):
        gym.utils.RecordConstructorArgs.__init__(self, name=name, mask=mask)
        super().__init__(env)  # type: ignore[misc, arg-type]
        self.name, self.mask = name, mask
        self.observation_space = masked_space(name, mask, env.observation_space, env.action_space)  # type: ignore[assignment]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Masked, dict[str, Any]]:
        """Begin an episode."""
        seen, info = self.env.reset(seed=seed, options=options)
        return {self.name: seen, self.mask: info[MASK]}, info

    def step(self, action: np.int64) -> tuple[Masked, Any, bool, bool, dict[str, Any]]:
        """Carry out one decision."""
        seen, reward, terminated, truncated, info = self.env.step(action)
        return {self.name: seen, self.mask: info[MASK]}, reward, terminated, truncated, info


class MaskInVectorObservation(gym.vector.VectorWrapper):
    """The same of a vector environment in any autoreset mode, `infos["final_obs"]` included.

    Args:
        envs: any vector environment of this package. name, mask: keys, as of `MaskInObservation`.
    """

    def __init__(self, envs: gym.vector.VectorEnv, name: str = "observation", mask: str = MASK):
        super().__init__(envs)
        self.name, self.mask = name, mask
        self.autoreset_mode = envs.metadata["autoreset_mode"]  # where TorchRL looks for it
        self.single_observation_space = masked_space(
            name, mask, envs.single_observation_space, envs.single_action_space
        )
        self.observation_space = batch_space(self.single_observation_space, envs.num_envs)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Masked, dict[str, Any]]:
        """Begin an episode in every world."""
        seen, infos = self.env.reset(seed=seed, options=options)
        return {self.name: seen, self.mask: infos[MASK]}, infos

    def step(self, actions: np.ndarray) -> tuple[Masked, Any, Any, Any, dict[str, Any]]:
        """Carry out one decision in every world."""
        seen, rewards, terminated, truncated, infos = self.env.step(actions)
        for index in np.flatnonzero(infos.get("_final_obs", False)):  # with SAME_STEP alone
            last, valid = infos["final_obs"][index], infos["final_info"][MASK][index]
            infos["final_obs"][index] = {self.name: last, self.mask: valid}
        return {self.name: seen, self.mask: infos[MASK]}, rewards, terminated, truncated, infos
