"""stable-baselines3's VecEnv over a vector environment of this package (SB3 has no adapter for Gymnasium's VectorEnv)."""

from __future__ import annotations

import ast
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from wisp_gym.envs.shells import DecisionVectorEnv
from wisp_gym.errors import InputError, did_you_mean

# Arguments that training leaves open, with the kinds of their values and these in words; ranges are checked by the environment.
NUMBER = (int, float)
ARGUMENTS: dict[str, tuple[tuple[type, ...], str]] = {
    "scenario": ((str,), "a preset or a TOML file"),
    "devices": ((int,), "a whole number"),
    "controller": ((str,), "a controller's name such as wisp+fcfs"),
    "others": ((str,), "a policy file"),
    "horizon_s": (NUMBER, "a number of seconds"),
    "average_reward": ((*NUMBER, str), "'own' or a number of tokens/s"),
    "reward_weights": ((dict,), "numbers by name such as {'wasted_tokens':0.5}"),
    "randomise": ((dict,), "ranges by name such as {'jitter':[0.5,2]}"),
    "slo": (NUMBER, "a number of tokens/s"),
    "threads": ((int,), "a whole number"),
}


def parse_argument(name: str, text: str) -> Any:
    """A value as Python's literal, or else (and wherever only text is allowed) as it stands. Nothing is evaluated."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    return text if ARGUMENTS.get(name, ((),))[0] == (str,) and not isinstance(value, str) else value


def finite(value: Any) -> bool:
    """Whether a value is text or a finite number, or a table or list of finite numbers; JSON keeps all of these."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and not isinstance(part, str) and finite(part) for key, part in value.items())
    if isinstance(value, (list, tuple)):
        return all(not isinstance(part, str) and finite(part) for part in value)
    return isinstance(value, str) or (isinstance(value, NUMBER) and math.isfinite(value))


def check_argument(place: str, name: str, value: Any) -> None:
    """Refuse an unknown argument of the environment, or a value of the wrong kind.

    Raises:
        InputError: one line with the place, what was given and what is allowed.
    """
    if name not in ARGUMENTS:
        raise InputError(f"{place}: unknown '{name}'; {did_you_mean(name, list(ARGUMENTS))}")
    kinds, words = ARGUMENTS[name]
    if not isinstance(value, kinds) or isinstance(value, bool) or not finite(value):
        raise InputError(f"{place}: {name} given {value!r}, allowed is {words}")


def env_kwargs(pieces: Sequence[str]) -> dict[str, Any]:
    """Arguments of the environment from KEY:VALUE pairs.

    Raises:
        InputError: not such a pair, a key given twice, an unknown key, a value of the wrong kind.
    """
    place = "argument --env-kwargs"
    kwargs: dict[str, Any] = {}
    for piece in pieces:
        name, colon, text = piece.partition(":")
        if not colon or not name.isidentifier():
            raise InputError(f"{place}: given '{piece}', allowed is KEY:VALUE such as devices:32")
        if name in kwargs:
            raise InputError(f"{place}: {name} is given twice, allowed is every key once")
        kwargs[name] = parse_argument(name, text)
        check_argument(place, name, kwargs[name])
    return kwargs


class DecisionVecEnv(VecEnv):
    """SB3's interface; the infos that SB3 reads are made only where it reads them.

    Each info dict holds `terminal_observation` and `TimeLimit.truncated` when an episode ends, and `episode` (return, length,
    seconds) as SB3's Monitor would write it.
    """

    def __init__(self, envs: DecisionVectorEnv, seed: int):
        self.envs, self.first_seed = envs, seed  # before the base class, which asks for the render mode
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)
        self.actions = np.zeros(envs.num_envs, np.int64)
        self.returns, self.lengths = np.zeros(envs.num_envs), np.zeros(envs.num_envs, np.int64)
        self.began = False

    def reset(self) -> np.ndarray:
        """Seeded once; later resets go on with the same generators."""
        observations, _ = self.envs.reset(seed=None if self.began else self.first_seed)
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
            episode = {
                "r": float(self.returns[index]),
                "l": int(self.lengths[index]),
                "t": float(infos["final_info"]["time_s"][index]),
            }
            each[index] = {
                "terminal_observation": infos["final_obs"][index],
                "TimeLimit.truncated": True,
                "episode": episode,
            }
            self.returns[index], self.lengths[index] = 0.0, 0
        return observations, rewards.astype(np.float32), over, each

    def close(self) -> None:
        """Nothing to close."""

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seed of the next reset."""
        self.first_seed, self.began = seed or 0, False
        return [None if seed is None else seed + i for i in range(self.num_envs)]

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """The vector environment's attribute, once for each environment."""
        return [getattr(self.envs, attr_name, None) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set an attribute of the vector environment."""
        setattr(self.envs, attr_name, value)

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        """Call a method of the vector environment; one result for each environment asked."""
        result = getattr(self.envs, method_name)(*method_args, **method_kwargs)
        if method_name == "action_masks":
            return [result[index] for index in self._get_indices(indices)]
        return [result for _ in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        """Never wrapped."""
        return [False for _ in self._get_indices(indices)]
