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


class Standardise(BaseFeaturesExtractor):
    """(observation − mean) / std with constants measured before training; they are part of the weights.

    Args:
        observation_space: of n entries. hidden: entries that the network must do without (they read as their mean).
    """

    def __init__(self, observation_space: gym.spaces.Box, hidden: Sequence[int] = ()):
        super().__init__(observation_space, observation_space.shape[0])
        self.mean: torch.Tensor
        self.std: torch.Tensor
        self.shown: torch.Tensor
        self.register_buffer("mean", torch.zeros(self.features_dim))
        self.register_buffer("std", torch.ones(self.features_dim))
        self.register_buffer(
            "shown", torch.ones(self.features_dim).index_fill(0, torch.tensor(list(hidden), dtype=torch.long), 0.0)
        )

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        """(B, n) → (B, n)."""
        return (observations - self.mean) / self.std * self.shown

    def fit(self, observations: np.ndarray) -> None:
        """Take mean and standard deviation of (N, n) observations; entries that hardly vary keep the scale 1."""
        std = observations.std(axis=0)
        self.mean.copy_(torch.from_numpy(observations.mean(axis=0)))
        self.std.copy_(torch.from_numpy(np.where(std < 1e-3, 1.0, std)))


def layers_of(policy: ActorCriticPolicy) -> list[tuple[np.ndarray, np.ndarray]]:
    """(W, b) of each layer of the actor, the standardisation folded into the first."""
    actor: Any = policy
    linear = [m for m in actor.mlp_extractor.policy_net if isinstance(m, torch.nn.Linear)] + [actor.action_net]
    layers = [(np.array(m.weight.tolist()), np.array(m.bias.tolist())) for m in linear]
    extractor = policy.features_extractor
    if isinstance(extractor, Standardise):
        mean, std = np.array(extractor.mean.tolist()), np.array(extractor.std.tolist())
        w, b = layers[0]
        w = w * np.array(extractor.shown.tolist())
        layers[0] = (w / std, b - (w / std) @ mean)
    return [(w.astype(np.float32), b.astype(np.float32)) for w, b in layers]


def uniform_policy(actions: int, decision: str) -> Policy:
    """The engine's policy that takes every action with the same probability."""
    return make_policy([(np.zeros((actions, SIZE), np.float32), np.zeros(actions, np.float32))], decision)


def engine_policy(policy: ActorCriticPolicy, decision: str, **about: Any) -> Policy:
    """The actor as the engine runs it."""
    activation = "relu" if policy.activation_fn is torch.nn.ReLU else "tanh"
    return make_policy(layers_of(policy), decision, activation, **about)
