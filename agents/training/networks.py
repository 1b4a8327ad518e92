"""The policy network of stable-baselines3 and its copy for the engine."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from wisp_gym.contract.device import SIZE
from wisp_gym.controllers.policy import Policy, make_policy
from wisp_gym.errors import InputError


class Standardise(BaseFeaturesExtractor):
    """(observation − mean) / std with constants measured before training; they are part of the weights.

    Args:
        observation_space: of n entries. hidden: entries that the network must do without (they read as their mean).
    """

    def __init__(self, observation_space: gym.spaces.Box, hidden: Sequence[int] = ()):
        super().__init__(observation_space, observation_space.shape[0])
        self.mean = torch.nn.Buffer(torch.zeros(self.features_dim))
        self.std = torch.nn.Buffer(torch.ones(self.features_dim))
        self.shown = torch.nn.Buffer(torch.ones(self.features_dim))
        self.shown[list(hidden)] = 0.0

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        """(B, n) → (B, n)."""
        return (observations - self.mean) / self.std * self.shown

    def fit(self, observations: np.ndarray) -> None:
        """Take mean and standard deviation of (N, n) observations; entries that hardly vary keep the scale 1."""
        std = observations.std(axis=0)
        self.mean.copy_(torch.from_numpy(observations.mean(axis=0)))
        self.std.copy_(torch.from_numpy(np.where(std < 1e-3, 1.0, std)))


def uniform_policy(actions: int, decision: str) -> Policy:
    """The engine's policy that takes every action with the same probability."""
    return make_policy([(np.zeros((actions, SIZE), np.float32), np.zeros(actions, np.float32))], decision)


def engine_policy(policy: ActorCriticPolicy, decision: str, **about: Any) -> Policy:
    """The actor as the engine runs it, the standardisation folded into its first layer."""
    actor: Any = policy
    linear = [m for m in actor.mlp_extractor.policy_net if isinstance(m, torch.nn.Linear)] + [actor.action_net]
    layers = [(np.array(m.weight.tolist()), np.array(m.bias.tolist())) for m in linear]
    if isinstance(extractor := policy.features_extractor, Standardise):
        mean, std, shown = (np.array(each.tolist()) for each in (extractor.mean, extractor.std, extractor.shown))
        w, b = layers[0]
        w = w * shown / std
        layers[0] = w, b - w @ mean
    activation = "relu" if policy.activation_fn is torch.nn.ReLU else "tanh"
    return make_policy([(w.astype(np.float32), b.astype(np.float32)) for w, b in layers], decision, activation, **about)


def begin_with(policy: ActorCriticPolicy, start: Policy, temperature: float = 1.0) -> None:
    """Give the actor the weights of a policy of its shape, whose outputs are divided by `temperature`: the reverse of `engine_policy`.

    Raises:
        InputError: a policy of another shape.
    """
    actor: Any = policy
    linear = [m for m in actor.mlp_extractor.policy_net if isinstance(m, torch.nn.Linear)] + [actor.action_net]
    mean, std = np.zeros(SIZE), np.ones(SIZE)
    if isinstance(extractor := policy.features_extractor, Standardise):
        mean, std = (np.array(each.tolist()) for each in (extractor.mean, extractor.std))
    put_layers(linear, start, mean, std, temperature)


def put_layers(
    linear: Sequence[torch.nn.Linear], start: Policy, mean: np.ndarray, std: np.ndarray, temperature: float
) -> None:
    """Put a policy's weights into layers whose input is standardised by (SIZE,) `mean` and `std`; outputs are divided by `temperature`.

    Raises:
        InputError: a policy of another shape.
    """
    shapes, given = [tuple(m.weight.shape) for m in linear], [w.shape for w, _ in start.layers]
    if given != shapes:
        raise InputError(f"policy to begin with: given layers {given}, allowed are {shapes}")
    layers = [(w.astype(float), b.astype(float)) for w, b in start.layers]
    layers[0] = layers[0][0] * std, layers[0][1] + layers[0][0] @ mean
    layers[-1] = layers[-1][0] / temperature, layers[-1][1] / temperature
    with torch.no_grad():
        for m, (w, b) in zip(linear, layers, strict=True):
            m.weight.copy_(torch.from_numpy(w))
            m.bias.copy_(torch.from_numpy(b))
