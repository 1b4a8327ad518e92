"""The door to stable-baselines3: its VecEnv over a vector environment of this package.

SB3 has no adapter for Gymnasium's VectorEnv. Nothing else of this package imports this module, which needs SB3 (extra `train`).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv

from wisp_gym.envs.shells import DecisionVectorEnv
from wisp_gym.errors import InputError, shown


class DecisionVecEnv(VecEnv):
    """SB3's interface; the infos that SB3 reads are made only where it reads them.

    Each info dict holds `terminal_observation` and `TimeLimit.truncated` when an episode ends, and `episode` (return, length,
    seconds) as SB3's Monitor would write it. All worlds have one and the same attributes: those of the vector environment.

    Args:
        envs: what `gym.make_vec` makes of an id of this package. seed: of the first reset; world i has seed + i.

    Raises:
        InputError: another `autoreset_mode` than "SameStep".
    """

    def __init__(self, envs: DecisionVectorEnv, seed: int = 0):
        if (mode := envs.metadata["autoreset_mode"]) is not AutoresetMode.SAME_STEP:
            raise InputError(
                f"autoreset_mode: given {mode.value!r}, allowed is 'SameStep', as stable-baselines3 has it"
            )
        self.envs, self.first_seed = envs, seed  # before the base class, which asks for the render mode
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)
        self.actions = np.zeros(envs.num_envs, np.int64)
        self.returns, self.lengths = np.zeros(envs.num_envs), np.zeros(envs.num_envs, np.int64)
        self.began = False

    def reset(self) -> np.ndarray:
        """Seeded once; later resets go on with the same generators. Options of `set_options` hold for one reset."""
        if any(options != self._options[0] for options in self._options):
            raise InputError("options: given different ones for some worlds, allowed are the same for all")
        observations, _ = self.envs.reset(seed=None if self.began else self.first_seed, options=self._options[0])
        self._reset_options()
        self.began = True
        self.returns[:], self.lengths[:] = 0.0, 0
        return observations

    def step_async(self, actions: np.ndarray) -> None:
        """Remember the actions."""
        self.actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Carry them out."""
        observations, rewards, _, over, infos = self.envs.step(self.actions)
        self.returns += rewards
        self.lengths += 1
        each: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for index in np.flatnonzero(over):
            last, end_s = infos["final_obs"][index], float(infos["final_info"]["time_s"][index])
            episode = {"r": float(self.returns[index]), "l": int(self.lengths[index]), "t": end_s}
            each[index] = {"terminal_observation": last, "TimeLimit.truncated": True, "episode": episode}
            self.returns[index], self.lengths[index] = 0.0, 0
        return observations, rewards.astype(np.float32), over, each

    def close(self) -> None:
        """Close the vector environment."""
        self.envs.close()

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seed of the next reset."""
        self.first_seed, self.began = seed or 0, False
        return [None if seed is None else seed + i for i in range(self.num_envs)]

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """The vector environment's attribute, once for each environment. Raises AttributeError where there is none."""
        value = getattr(self.envs, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set an attribute of the vector environment. Raises InputError for some of the worlds alone."""
        if set(self._get_indices(indices)) != set(range(self.num_envs)):
            raise InputError(f"indices: given {shown(indices)}, allowed is None: all worlds share their attributes")
        setattr(self.envs, attr_name, value)

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        """Call a method of the vector environment; one result for each environment asked."""
        result = getattr(self.envs, method_name)(*method_args, **method_kwargs)
        if method_name == "action_masks":
            return [result[index] for index in self._get_indices(indices)]
        return [result for _ in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        """Whether SB3's wrapper has its work done here: that of Monitor is, no other's."""
        return [issubclass(wrapper_class, Monitor) for _ in self._get_indices(indices)]
