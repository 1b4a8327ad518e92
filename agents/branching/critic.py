"""A critic of the fleet's value: what the fleet gets after a moment, from what it is like then (`agents.branching.features`).

A level of the value is of no use here and full of noise: requests alone make it go up and down by hundreds of tokens, where a decision
is worth tenths. So what is fitted is the *difference* of two copies of a world that went apart at one decision, under the same draws:

    V(x₁) − V(x₀) = (w + u·n/64 + network(x̄))·(x₁ − x₀),    x̄ = (x₀ + x₁)/2

by least squares on what the one gets more than the other from the moment on until a late one. Then

    tokens on time until the moment + V

is the value of a branch that was run on only until the moment.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from agents.branching.features import SIZE, UNDER_WAY
from wisp_gym.errors import InputError

USUAL_DEVICES = 64.0
RIDGE = 1e-3  # of the spread of a feature's differences
WIDTH = 32
BATCH, EPOCHS, LEARNING_RATE = 4096, 10, 1e-3
Layer = tuple[np.ndarray, np.ndarray]


class Moments(NamedTuple):
    """Pairs of branches at a moment: 0 sent, 1 drafted one more token.

    Attributes:
        features: (N, 2, SIZE). devices: (N,) population. later: (N, 2) tokens from the moment on.
    """

    features: np.ndarray
    devices: np.ndarray
    later: np.ndarray

    @property
    def later_apart(self) -> np.ndarray:
        """(N,) tokens of copy 1 less those of copy 0."""
        return np.asarray(self.later[:, 1] - self.later[:, 0])


@dataclass(frozen=True)
class Critic:
    """Differences of V in tokens.

    Attributes:
        weights: (2·SIZE,) w and u. layers: (W, b) of the network, ReLU between; none where V is linear.
    """

    weights: np.ndarray
    layers: list[Layer] = field(default_factory=list)

    def difference(self, features: np.ndarray, devices: np.ndarray) -> np.ndarray:
        """(N,) V of copy 1 less that of copy 0, of (N, 2, SIZE) features of fleets of (N,) devices."""
        apart = features[:, 1] - features[:, 0]
        found = expanded(apart, devices) @ self.weights
        if self.layers:
            found = found + (forward(self.layers, context_of(features, devices)) * apart).sum(axis=1)
        return np.asarray(found)


def reckoned_critic() -> Critic:
    """What rounds under way are worth (`wisp_gym.engine.under_way`), as a critic."""
    weights = np.zeros(2 * SIZE)
    weights[UNDER_WAY] = 1.0
    return Critic(weights)


def expanded(apart: np.ndarray, devices: np.ndarray) -> np.ndarray:
    """(N, 2·SIZE): the features, and the features times the population in `USUAL_DEVICES`."""
    return np.concatenate([apart, apart * (devices[:, None] / USUAL_DEVICES).astype(apart.dtype)], axis=1)


def context_of(features: np.ndarray, devices: np.ndarray) -> np.ndarray:
    """(N, SIZE + 1): the mean of both copies' features, and the population."""
    share = (devices[:, None] / USUAL_DEVICES).astype(features.dtype)
    return np.concatenate([features.mean(axis=1), share], axis=1)


def forward(layers: list[Layer], x: np.ndarray) -> np.ndarray:
    """(N, SIZE) outputs of a network."""
    for index, (w, b) in enumerate(layers):
        x = x @ w.T + b
        x = np.maximum(x, 0.0) if index < len(layers) - 1 else x
    return x


def fit_linear(moments: Moments) -> Critic:
    """The linear critic, by ridge regression."""
    apart, later = expanded(moments.features[:, 1] - moments.features[:, 0], moments.devices), moments.later_apart
    scale = np.maximum(apart.std(axis=0), 1e-9)
    z = apart / scale
    return Critic(np.linalg.solve(z.T @ z + RIDGE * len(z) * np.eye(z.shape[1]), z.T @ later) / scale)


def fit_network(moments: Moments, seed: int = 0) -> Critic:
    """The linear critic, and a network whose outputs are added to its weights, fitted to what it leaves."""
    linear = fit_linear(moments)
    torch.manual_seed(seed)
    context, apart = context_of(moments.features, moments.devices), moments.features[:, 1] - moments.features[:, 0]
    mean, std, scale = context.mean(axis=0), np.maximum(context.std(axis=0), 1e-3), np.maximum(apart.std(axis=0), 1e-6)
    left = moments.later_apart - linear.difference(moments.features, moments.devices)
    network = torch.nn.Sequential(
        torch.nn.Linear(SIZE + 1, WIDTH), torch.nn.ReLU(), torch.nn.Linear(WIDTH, WIDTH), torch.nn.ReLU(),
        torch.nn.Linear(WIDTH, SIZE),
    )  # fmt: skip
    torch.nn.init.zeros_(network[-1].weight)  # type: ignore[arg-type]
    descend(network, *(torch.from_numpy(a).float() for a in ((context - mean) / std, apart / scale, left)))
    layers = [
        (m.weight.detach().double().numpy(), m.bias.detach().double().numpy())
        for m in network
        if isinstance(m, torch.nn.Linear)
    ]
    (first, b), middle, (last, c) = layers
    return Critic(linear.weights, [(first / std, b - (first / std) @ mean), middle, (last / scale[:, None], c / scale)])


def descend(network: torch.nn.Module, context: torch.Tensor, apart: torch.Tensor, left: torch.Tensor) -> None:
    """Fit the differences that a network's outputs make, by least squares."""
    steps = EPOCHS * max(len(left) // BATCH, 1)
    optimiser = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        chosen = torch.randint(len(left), (min(BATCH, len(left)),))
        optimiser.zero_grad()
        (((network(context[chosen]) * apart[chosen]).sum(dim=1) - left[chosen]) ** 2).mean().backward()
        optimiser.step()
        schedule.step()


def save_critic(critic: Critic, file: Path) -> None:
    """Write it as plain arrays."""
    arrays = {
        f"layer_{k}_{name}": a for k, pair in enumerate(critic.layers) for name, a in zip("wb", pair, strict=True)
    }
    np.savez(file, weights=critic.weights, **arrays)  # type: ignore[arg-type]


def load_critic(file: Path) -> Critic:
    """Read it.

    Raises:
        InputError: it is not a critic of these features.
    """
    try:
        with np.load(file, allow_pickle=False) as arrays:
            layers = [(arrays[f"layer_{k}_w"], arrays[f"layer_{k}_b"]) for k in range((len(arrays.files) - 1) // 2)]
            critic = Critic(arrays["weights"], layers)
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"critic '{file}': cannot be read ({error}), allowed is a file of `critic --out`") from None
    if critic.weights.shape != (2 * SIZE,):
        raise InputError(f"critic '{file}': given {critic.weights.shape} weights, allowed are {2 * SIZE}: fit it again")
    return critic
