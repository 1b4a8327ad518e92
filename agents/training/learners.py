"""From settings to what learns: the worlds, and the algorithm with its network."""

from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from agents.training.fleet import Fleet
from agents.training.fleet_ppo import FleetPPO
from agents.training.networks import Standardise, uniform_policy
from agents.training.settings import Settings
from wisp_gym.contract.device import NAMES
from wisp_gym.envs.shells import DecisionVectorEnv
from wisp_gym.errors import InputError
from wisp_gym.sb3 import DecisionVecEnv

CLASSES: dict[str, type[OnPolicyAlgorithm]] = {"fleet": FleetPPO, "ppo": PPO, "a2c": A2C}


def make_env(settings: Settings) -> DecisionVecEnv:
    """The worlds to learn in, at the beginning of their first episodes.

    Raises:
        InputError: an argument of the environment that cannot be.
    """
    try:
        envs = gym.make_vec(
            settings.env, num_envs=settings.n_envs, vectorization_mode="vector_entry_point", **settings.env_kwargs
        )
        assert isinstance(envs, DecisionVectorEnv)
        env = DecisionVecEnv(envs, settings.seed)
        env.reset()
        return env
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"argument --env-kwargs: {error}") from None


def make_fleet(settings: Settings, env: DecisionVecEnv) -> Fleet:
    """The fleet's worlds, at the beginning of their first episodes, under a policy that acts at random.

    Raises:
        InputError: an argument of the environment that cannot be.
    """
    assert settings.fleet is not None
    policy = uniform_policy(env.envs.task.actions, settings.decision)
    kwargs, decisions = settings.env_kwargs, settings.hyperparameters["decisions"]
    worlds = settings.fleet if settings.fleet.scenarios else replace(settings.fleet, scenarios=[kwargs["scenario"]])
    try:
        return Fleet(worlds, policy, decisions, settings.seed, kwargs.get("threads"), kwargs.get("slo"))
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"argument --env-kwargs: {error}") from None


def make_model(settings: Settings, env: DecisionVecEnv, device: str = "cpu") -> OnPolicyAlgorithm:
    """The algorithm with a small network, whose first layer standardises the observation by what random play meets.

    Args:
        env: of `make_env`; random play takes steps in it. device: of torch.

    Raises:
        InputError: as `make_fleet`.
    """
    model = bare_model(settings, env, device)
    extractor = model.policy.features_extractor
    assert isinstance(extractor, Standardise)
    extractor.fit(seen_at_random(model, env, settings.seed))
    return model


def bare_model(settings: Settings, env: DecisionVecEnv, device: str = "cpu") -> OnPolicyAlgorithm:
    """The algorithm as `make_model`, its first layer not yet measured: for weights that a checkpoint brings."""
    network = {
        "features_extractor_class": Standardise, "net_arch": settings.widths,
        "activation_fn": torch.nn.ReLU if settings.activation == "relu" else torch.nn.Tanh,
        "features_extractor_kwargs": {"hidden": [NAMES.index(name) for name in settings.hidden]},
    }  # fmt: skip
    more, rate = dict[str, Any](settings.hyperparameters), settings.learning_rate
    if settings.fleet is not None:
        more |= {"fleet": make_fleet(settings, env), "decision": settings.decision}
    return CLASSES[settings.algo](
        "MlpPolicy", env, seed=settings.seed, device=device, policy_kwargs=network,
        learning_rate=lambda left: rate * max(left, 0.05), **more,
    )  # fmt: skip


def seen_at_random(model: OnPolicyAlgorithm, env: DecisionVecEnv, seed: int, steps: int = 100) -> np.ndarray:
    """(N, n) observations under random play."""
    actions = env.envs.task.actions
    if isinstance(model, FleetPPO) and model.fleet is not None:
        return model.fleet.collect(uniform_policy(actions, model.decision)).observations
    rng = np.random.default_rng(seed)
    seen = [env.envs.task.observations.copy()]
    for _ in range(steps):
        seen.append(np.asarray(env.step(rng.integers(0, actions, env.num_envs))[0]))
    return np.concatenate(seen)
