"""Checkpoints of a training: all that decides the numbers to come, as plain tensors and text (no pickled objects).

A training that goes on from a checkpoint ends with the same weights as one that was never interrupted.
"""

import io
import json
import zipfile
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from agents.training.fleet import Decisions, joined
from agents.training.fleet_ppo import FleetPPO
from wisp_gym.errors import InputError
from wisp_gym.files import write_bytes
from wisp_gym.sb3 import DecisionVecEnv

VERSION = 5
TASK_ARRAYS = ("kinds", "observations", "masks", "outcomes", "device")


def arrays_of(model: OnPolicyAlgorithm, env: DecisionVecEnv) -> dict[str, np.ndarray]:
    """All that decides the experience to come but the generators, by name: the arrays themselves."""
    if isinstance(model, FleetPPO) and model.fleet is not None:
        return model.fleet.saved()
    task = env.envs.task
    arrays = task.episodes.arrays.own() | {f"task_{name}": getattr(task, name) for name in TASK_ARRAYS}
    return arrays | {"returns": env.returns, "lengths": env.lengths, "policy": task.episodes.arrays.policy}


def generators_of(model: OnPolicyAlgorithm, env: DecisionVecEnv) -> list[np.random.Generator]:
    """The random generators of all worlds."""
    return model.fleet.generators() if isinstance(model, FleetPPO) and model.fleet is not None else env.envs.rngs


def worlds_state(model: OnPolicyAlgorithm, env: DecisionVecEnv) -> dict[str, Any]:
    """State of every world and its generator, and the decisions that a fleet had left over."""
    left = joined(model.left)._asdict() if isinstance(model, FleetPPO) and model.left else {}
    raw = {name: np.frombuffer(array.tobytes(), np.uint8) for name, array in arrays_of(model, env).items()}
    return {
        "arrays": {name: torch.from_numpy(each.copy()) for name, each in raw.items()},
        "left": {name: torch.from_numpy(array.copy()) for name, array in left.items()},
        "generators": json.dumps([rng.bit_generator.state for rng in generators_of(model, env)]),
    }


def save_checkpoint(path: Path, model: OnPolicyAlgorithm, env: DecisionVecEnv, validation: dict[str, Any]) -> None:
    """Write a checkpoint, whole or not at all. To be taken between an update and the next rollout.

    Args:
        validation: scores so far and the best policy, as plain JSON values.
    """
    legacy: Any = np.random.get_state(legacy=False)
    legacy["state"]["key"] = legacy["state"]["key"].tolist()
    state = {
        "version": VERSION, "timesteps": model.num_timesteps, "updates": model._n_updates,
        "policy": model.policy.state_dict(), "optimizer": model.policy.optimizer.state_dict(),
        "torch_random": torch.get_rng_state(), "numpy_random": json.dumps(legacy),
        "last_observations": torch.from_numpy(np.asarray(model._last_obs)),
        "last_starts": torch.from_numpy(np.asarray(model._last_episode_starts)),
        "worlds": worlds_state(model, env), "episodes": json.dumps(list(model.ep_info_buffer or [])), "validation": json.dumps(validation),
    }  # fmt: skip
    content = io.BytesIO()
    torch.save(state, content)
    write_bytes(path, content.getvalue())


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint; torch's restricted reader runs no code of its author.

    Raises:
        InputError: not a checkpoint, damaged, or of another version.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch does not compare the sums that it writes
            if damaged := archive.testzip():
                raise ValueError(f"its part {damaged} is damaged")
        state = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # torch raises many kinds for damaged files
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"argument --trained-agent: '{path}' is no checkpoint: {reason}") from None
    if not isinstance(state, dict) or state.get("version") != VERSION:
        raise InputError(f"argument --trained-agent: '{path}' is no checkpoint of version {VERSION}")
    return state


def load_checkpoint(path: Path, state: dict[str, Any], model: OnPolicyAlgorithm, env: DecisionVecEnv) -> dict[str, Any]:
    """Put a model and its worlds back to where the checkpoint was taken; returns the validation's record.

    Raises:
        InputError: the checkpoint is of another network or of other worlds.
    """
    try:
        load_learner(state, model)
        load_worlds(state["worlds"], model, env)
        record = json.loads(state["validation"])
        scores = [(n, goodput, drafted) for n, goodput, drafted in record["scores"]]
        return {"scores": scores, "policy": str(record["policy"])}
    except (KeyError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0]
        words = f"'{path}' does not fit the settings of its run ({reason}); allowed is a checkpoint of that run"
        raise InputError(f"argument --trained-agent: {words}") from None


def load_learner(state: dict[str, Any], model: OnPolicyAlgorithm) -> None:
    """Weights, optimiser, counters, what the next rollout begins with, and the generators that torch and SB3 draw from."""
    model.policy.load_state_dict(state["policy"])
    model.policy.optimizer.load_state_dict(state["optimizer"])
    model.num_timesteps, model._n_updates = state["timesteps"], state["updates"]
    model._last_obs = state["last_observations"].numpy().copy()
    model._last_episode_starts = state["last_starts"].numpy().copy()
    model.ep_info_buffer = deque(json.loads(state["episodes"]), maxlen=model._stats_window_size)
    model.ep_success_buffer = deque(maxlen=model._stats_window_size)  # SB3 makes neither of them where one exists
    torch.set_rng_state(state["torch_random"])  # of the actions
    legacy = json.loads(state["numpy_random"])  # of the minibatches' order
    legacy["state"]["key"] = np.array(legacy["state"]["key"], np.uint32)
    np.random.set_state(legacy)


def load_worlds(state: dict[str, Any], model: OnPolicyAlgorithm, env: DecisionVecEnv) -> None:
    """Every world and its generator, and the decisions that a fleet had left over."""
    for name, array in arrays_of(model, env).items():
        stored = state["arrays"][name].numpy().tobytes()
        array[...] = np.frombuffer(stored, array.dtype).reshape(array.shape)
    for rng, saved in zip(generators_of(model, env), json.loads(state["generators"]), strict=True):
        rng.bit_generator.state = saved
    if isinstance(model, FleetPPO) and state["left"]:
        model.left = [Decisions(**{name: part.numpy() for name, part in state["left"].items()})]
    env.began = True
