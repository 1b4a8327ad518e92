"""Models of stable-baselines3: perceptrons run inside the engine, everything else by `predict`."""

from os import PathLike
from typing import Any

from wisp_gym.contract import device
from wisp_gym.controllers.policy import make_policy
from wisp_gym.errors import InputError, require, shown
from wisp_gym.evaluation.own.networks import of_modules


def from_sb3(model: Any, algorithm: Any = None, decides: str = "token") -> Any:
    """What `own` takes in place of a model: a `Policy` that the engine runs at full speed where it is a perceptron of the
    documented observation, else the model itself, which is asked by `predict`.

    Args:
        model: a model of stable-baselines3 or sb3-contrib, or the zip that its `save` wrote. A zip holds a pickle: give only
            files that you trust.
        algorithm: the class that reads a zip (PPO, MaskablePPO, …); default PPO.
        decides: as `own`'s.

    Raises:
        InputError: what is no model; one line.
    """
    if isinstance(model, (str, PathLike)):
        model = read(model, algorithm)
    if not callable(getattr(model, "predict", None)) or not hasattr(model, "policy"):
        raise InputError(f"model: given {shown(model)}, allowed is one of stable-baselines3, or its zip")
    modules = perceptron(model.policy)
    if not modules or model.observation_space.shape != (device.SIZE,):
        return model
    network = of_modules(modules, "model")
    return make_policy(network.layers, decides, network.activation)


def read(path: str | PathLike[str], algorithm: Any) -> Any:
    """The model of a zip."""
    require("stable_baselines3", "train")
    if algorithm is None:
        from stable_baselines3 import PPO as algorithm
    try:
        return algorithm.load(path, device="cpu")
    except Exception as error:
        words = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"model: '{path}' is no model of {algorithm.__name__}: {words}") from None


def perceptron(policy: Any) -> list[Any]:
    """The torch modules of an actor that is a plain perceptron of the observation; empty where it is none."""
    import torch

    if type(getattr(policy, "features_extractor", None)).__name__ != "FlattenExtractor" or hasattr(
        policy, "lstm_actor"
    ):
        return []
    if hasattr(policy, "mlp_extractor") and isinstance(getattr(policy, "action_net", None), torch.nn.Linear):
        return [*policy.mlp_extractor.policy_net, policy.action_net]
    q_net = getattr(getattr(policy, "q_net", None), "q_net", None)  # of DQN
    return list(q_net) if isinstance(q_net, torch.nn.Sequential) else []
