"""What `reset` and `step` of the environments are given, checked before anything is touched; errors are Gymnasium's too."""

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode

from wisp_gym.errors import InputError
from wisp_gym.values import ArgumentError, Kind, only, shown


class ActionError(InputError, gym.error.InvalidAction):
    """No action of the space."""


class SeedError(InputError, gym.error.Error):
    """A seed that Gymnasium refuses."""


def reset_needed(what: str) -> gym.error.ResetNeeded:
    """The error of what needs an episode that has begun and is not over."""
    return gym.error.ResetNeeded(f"{what}, allowed after reset()")


def take_mode(given: Any) -> AutoresetMode:
    """The mode that is meant by itself, its value or its name."""
    names = {word: mode for mode in AutoresetMode for word in (mode.value, mode.name)}
    return given if isinstance(given, AutoresetMode) else names[only(isinstance(given, str) and given in names, given)]


AUTORESET_MODE = Kind("an AutoresetMode or one of 'NextStep', 'SameStep', 'Disabled'", take_mode)


def checked_seed(given: Any) -> int | None:
    """A seed of one environment: None or any whole number from 0 on, NumPy's too."""
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, (int, np.integer)) or given < 0:
        raise SeedError(f"seed: given {shown(given)}, allowed is None or a whole number from 0 on")
    return int(given)


def checked_seeds(given: Any, n: int) -> list[int | None]:
    """A seed of each of n environments: of one number seed + i; else of a list, tuple or array of n seeds."""
    several = isinstance(given, Sequence) and not isinstance(given, (str, bytes))
    if not several and not (isinstance(given, np.ndarray) and given.ndim):
        first = checked_seed(given)
        return [None if first is None else first + index for index in range(n)]
    if len(given) != n:
        raise SeedError(f"seed: given {shown(given)}, allowed is one seed, or one for each of {n} environments")
    return [checked_seed(seed) for seed in given]


def checked_generators(given: Any, n: int) -> list[np.random.Generator]:
    """A generator of each of n environments."""
    if not isinstance(given, (list, tuple)) or [isinstance(rng, np.random.Generator) for rng in given] != [True] * n:
        raise InputError(f"np_random: given {shown(given)}, allowed is a list of {n} of NumPy's generators")
    return list(given)


def checked_options(given: Any) -> Mapping[str, Any]:
    """Options by name; none where nothing is given."""
    if given is not None and not isinstance(given, Mapping):
        raise ArgumentError(f"options: given {shown(given)}, allowed is None or a dictionary of options by name")
    return given or {}


def checked_mask(given: Any, n: int) -> np.ndarray:
    """The worlds that `options["reset_mask"]` marks, (n,) bool."""
    fine = isinstance(given, np.ndarray) and given.shape == (n,) and given.dtype == np.bool_
    if not fine or not given.any():
        allowed = f"a NumPy array of {n} truth values, at least one of them True"
        raise ArgumentError(f"options: reset_mask given {shown(given)}, allowed is {allowed}")
    return np.array(given)
