"""The algorithms that train.py offers: their settings with reasons, and a model with its experience from settings."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from agents.training.fleet import Fleet
from agents.training.fleet_ppo import FleetPPO
from agents.training.networks import Standardise, uniform_policy
from wisp_gym.contract.device import NAMES
from wisp_gym.envs.sb3 import DecisionVecEnv
from wisp_gym.envs.shells import DecisionVectorEnv
from wisp_gym.errors import InputError

ALGORITHMS = {"fleet": FleetPPO, "ppo": PPO, "a2c": A2C}
ENVIRONMENTS = {"wisp_gym/Speculation-v0": "token", "wisp_gym/SpeculationLength-v0": "length"}
N_ENVS = {"fleet": 1, "ppo": 64, "a2c": 64}  # environments side by side; a fleet's gives the spaces alone

DECISIONS = {"fleet": 2_500_000, "ppo": 600_000, "a2c": 600_000}  # to train on, unless told otherwise

# With ppo and a2c one device of each world learns; the others follow WISP's rule, so that what it learns does not depend on its
# own past.
DEFAULT_ENV_KWARGS = {
    "fleet": {"scenario": "wisp-a100-qwen3-32b"},
    "ppo": {"scenario": "wisp-a100-qwen3-32b", "controller": "wisp+fcfs"},
    "a2c": {"scenario": "wisp-a100-qwen3-32b", "controller": "wisp+fcfs"},
}

# fleet: a trajectory is a round, undiscounted; large batches keep the two cores busy with arithmetic instead of calls.
# ppo, a2c: steps are tokens. Within a round reward comes at its end, and rounds hardly influence each other, so the discount only
# has to reach over a round. A discount nearer to 1 lets the agent lower its own average rate, against which time is charged,
# and learning collapses (seen at 0.995).
HYPERPARAMETERS: dict[str, dict[str, Any]] = {
    "fleet": {"decisions": 65_536, "batch_size": 8192, "n_epochs": 4, "gamma": 1.0, "gae_lambda": 0.95, "ent_coef": 0.01},
    "ppo": {"n_steps": 64, "batch_size": 1024, "n_epochs": 4, "gamma": 0.97, "gae_lambda": 0.95, "ent_coef": 0.003},
    "a2c": {"n_steps": 16, "gamma": 0.97, "gae_lambda": 0.95, "ent_coef": 0.003},
}  # fmt: skip
LEARNING_RATE = {"fleet": 2e-3, "ppo": 1e-3, "a2c": 1e-3}  # falls linearly to a twentieth
ACTIVATION = {"fleet": "relu", "ppo": "tanh", "a2c": "tanh"}  # tanh takes most of a decision's time in the engine
WIDTHS = [64, 64]

# What a fleet's episodes draw unless told otherwise: loads from idle to overload, prefill chunks of any size.
# No scenarios: that of the environment's arguments.
FLEET: dict[str, Any] = {
    "scenarios": [], "worlds": 16, "batching": "fcfs", "horizon_s": 60.0, "weights": {"on_time": 0.3, "externality": 1.5},
    "randomise": {"devices": [8, 130], "prefill_chunk": [0.15, 1.2]}, "varied": {},
}  # fmt: skip
FLEET_ARGUMENTS = ("scenario", "devices", "horizon_s", "randomise", "slo", "threads")


def default_settings(seed: int = 0, n_timesteps: int = DECISIONS["fleet"], **fleet: Any) -> dict[str, Any]:
    """Settings of the default training of a fleet, `fleet` over those of FLEET."""
    return {
        "algo": "fleet", "env": next(iter(ENVIRONMENTS)), "n_timesteps": n_timesteps, "seed": seed, "n_envs": N_ENVS["fleet"],
        "env_kwargs": dict(DEFAULT_ENV_KWARGS["fleet"]), "hyperparameters": HYPERPARAMETERS["fleet"], "learning_rate": LEARNING_RATE["fleet"],
        "widths": WIDTHS, "activation": ACTIVATION["fleet"], "fleet": FLEET | fleet,
    }  # fmt: skip


def fleet_settings(given: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """Settings of a fleet from the environment's arguments, over those of `base`.

    Raises:
        InputError: an argument that a fleet has no use for.
    """
    for name in given:
        if name not in FLEET_ARGUMENTS:
            raise InputError(
                f"argument --env-kwargs: {name} is not for --algo fleet, whose devices all learn; allowed: {', '.join(FLEET_ARGUMENTS)}"
            )
    randomise = dict(given.get("randomise", base["randomise"]))
    if "devices" in given:
        randomise["devices"] = [given["devices"]] * 2
    scenarios = [] if "scenario" in given else base["scenarios"]
    return {
        **base,
        "scenarios": scenarios,
        "randomise": randomise,
        "horizon_s": given.get("horizon_s", base["horizon_s"]),
    }


def make_env(settings: dict[str, Any]) -> DecisionVecEnv:
    """The worlds to learn in, at the beginning of their first episodes."""
    try:
        envs = gym.make_vec(
            settings["env"], num_envs=settings["n_envs"], vectorization_mode="vector_entry_point", **settings["env_kwargs"]
        )  # fmt: skip
        assert isinstance(envs, DecisionVectorEnv)
        env = DecisionVecEnv(envs, settings["seed"])
        env.reset()
        return env
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"argument --env-kwargs: {error}") from None


def falling(start: float) -> Any:
    """Learning rate that falls linearly with the share of the training that is left."""
    return lambda left: start * max(left, 0.05)


def make_fleet(settings: dict[str, Any], env: DecisionVecEnv) -> Fleet:
    """The fleet's worlds, at the beginning of their first episodes, under a policy that acts at random."""
    fleet = settings["fleet"]
    policy = uniform_policy(int(env.action_space.n), ENVIRONMENTS[settings["env"]])  # type: ignore[attr-defined]
    kwargs = settings["env_kwargs"]
    try:
        return Fleet(
            fleet["scenarios"] or [kwargs["scenario"]], policy, fleet["worlds"], settings["hyperparameters"]["decisions"], fleet["batching"],
            fleet["horizon_s"], fleet["randomise"], fleet["varied"], fleet["weights"], settings["seed"], kwargs.get("threads"), kwargs.get("slo"),
        )  # fmt: skip
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"argument --env-kwargs: {error}") from None


def make_model(settings: dict[str, Any], env: DecisionVecEnv, device: str) -> OnPolicyAlgorithm:
    """The algorithm with a small network; its first layer standardises the observation."""
    network = {
        "features_extractor_class": Standardise, "net_arch": settings["widths"],
        "activation_fn": torch.nn.ReLU if settings["activation"] == "relu" else torch.nn.Tanh,
        "features_extractor_kwargs": {"hidden": [NAMES.index(name) for name in settings.get("hidden", [])]},
    }  # fmt: skip
    more = dict(settings["hyperparameters"])
    if settings["algo"] == "fleet":
        more |= {"fleet": make_fleet(settings, env), "decision": ENVIRONMENTS[settings["env"]]}
    return ALGORITHMS[settings["algo"]](
        "MlpPolicy",
        env,
        seed=settings["seed"],
        device=device,
        learning_rate=falling(settings["learning_rate"]),
        policy_kwargs=network,
        **more,
    )


def seen_at_random(model: OnPolicyAlgorithm, env: DecisionVecEnv, seed: int, steps: int = 100) -> np.ndarray:
    """(N, n) observations under random play."""
    if isinstance(model, FleetPPO) and model.fleet is not None:
        return model.fleet.collect(uniform_policy(int(env.action_space.n), model.decision)).observations  # type: ignore[attr-defined]
    rng = np.random.default_rng(seed)
    seen = [env.envs.task.observations.copy()]
    for _ in range(steps):
        actions = rng.integers(0, env.envs.task.actions, env.num_envs)
        seen.append(np.asarray(env.step(actions)[0]))
    return np.concatenate(seen)


def standardise(model: OnPolicyAlgorithm, env: DecisionVecEnv, seed: int) -> None:
    """Measure mean and spread of the observations under random play, once, before learning."""
    extractor = model.policy.features_extractor
    assert isinstance(extractor, Standardise)
    extractor.fit(seen_at_random(model, env, seed))
