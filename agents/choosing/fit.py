"""Fitting a choice: a few controllers that between them are near the best in every case, and a network that tells which.

The network is the mean of several that saw different draws of the cases (bagging; Breiman, 1996): with a few hundred cases one alone
hangs on which it saw.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from agents.choosing.candidates import ATTAINMENT, GOODPUT
from agents.choosing.outcomes import Outcomes
from wisp_gym.controllers.choice import FAR, Choice, forward, make_choice, needs

# What a share of starved devices above what is allowed costs of the goodput: five times as much; of the attainment, its own.
STARVED_WEIGHT = {GOODPUT: 5.0, ATTAINMENT: 1.0}
ALLOWED = 0.002  # or what the first candidate, whose devices draft, leaves starving
LEAST = 1e-3  # in place of nothing
WORST = 0.5  # what is worse than this share of the best is not told apart
Layers = list[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Hyperparameters:
    """Of the fit.

    Attributes:
        controllers: that are chosen from. members, hidden: networks that are averaged, and the width of each. decay: of weights.
        steps, learning_rate: of Adam, on all cases at once.
    """

    controllers: int = 10
    members: int = 16
    hidden: int = 12
    decay: float = 0.3
    steps: int = 1500
    learning_rate: float = 2e-2


DEFAULT = Hyperparameters()


def shares(outcomes: Outcomes, goal: str = GOODPUT) -> np.ndarray:
    """(n, candidates): goodput, or attainment, over the best in the case, less what starvation costs; 0 where it is not allowed.

    Where nobody delivers anything all are alike.
    """
    reached = outcomes.goodput if goal == GOODPUT else outcomes.attained
    allowed = np.maximum(outcomes.starved[:, :1], ALLOWED)
    kept = np.maximum(1.0 - STARVED_WEIGHT[goal] * np.maximum(outcomes.starved - allowed, 0.0), LEAST)
    value = np.maximum(reached, LEAST) * kept
    value = np.nan_to_num(value, nan=0.0)
    return value / value.max(1, keepdims=True)


def portfolio(value: np.ndarray, candidates: Sequence[str], size: int) -> list[int]:
    """Candidates that between them reach most: each next one adds most to the mean of the best. One needs no server's draft, and is first."""
    plain = [j for j, name in enumerate(candidates) if not needs(name)]
    chosen = [max(plain, key=lambda j: value[:, j].mean())]
    while len(chosen) < min(size, len(candidates)):
        reached = value[:, chosen].max(1)
        chosen.append(max(range(value.shape[1]), key=lambda j: float(np.maximum(reached, value[:, j]).mean())))
    return list(dict.fromkeys(chosen))


def fit_networks(
    seen: np.ndarray, target: np.ndarray, weight: np.ndarray, settings: Hyperparameters, seed: int
) -> Layers:
    """Perceptrons with one hidden layer of tanh, trained at once, as one whose outputs are the mean of theirs.

    Args:
        seen: (n, numbers). target: (n, controllers). weight: (members, n, controllers) of each error.
    """
    torch.manual_seed(seed)
    x, y, w = (torch.from_numpy(part).float() for part in (seen, target, weight))
    members, inputs, hidden, outputs = len(weight), seen.shape[1], settings.hidden, target.shape[1]
    first = torch.nn.Parameter(torch.randn(members, inputs, hidden) / inputs**0.5)
    last = torch.nn.Parameter(torch.randn(members, hidden, outputs) / hidden**0.5)
    biases = [torch.nn.Parameter(torch.zeros(members, 1, n)) for n in (hidden, outputs)]
    groups = [{"params": [first, last], "weight_decay": settings.decay}, {"params": biases, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, settings.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    for _ in range(settings.steps):
        optimizer.zero_grad()
        error = torch.tanh(x @ first + biases[0]) @ last + biases[1] - y
        (w * error**2).sum().div(w.sum() / members).backward()
        optimizer.step()
        schedule.step()
    return side_by_side(*(part.detach().numpy() for part in (first, biases[0], last, biases[1])))


def side_by_side(first: np.ndarray, b: np.ndarray, last: np.ndarray, c: np.ndarray) -> Layers:
    """One network whose outputs are the mean of those of networks stacked along the first axis; weights are (members, in, out)."""
    members, inputs, hidden = first.shape
    wide = first.transpose(0, 2, 1).reshape(members * hidden, inputs)
    outputs = last.reshape(members * hidden, -1).T / members
    return [(wide, b.reshape(-1)), (outputs, c.mean((0, 1)))]


def fit(
    numbers: np.ndarray, value: np.ndarray, candidates: Sequence[str], seed: int = 0, settings: Hyperparameters = DEFAULT, **about: Any
) -> Choice:  # fmt: skip
    """A choice for cases of which (n, NAMES) numbers and (n, candidates) `shares` are known."""
    chosen = portfolio(value, candidates, settings.controllers)
    mean, std = numbers.mean(0), np.maximum(numbers.std(0), 1e-3)
    seen, target = (numbers - mean) / std, np.log(np.maximum(value[:, chosen], WORST))
    allowed, rng = (value[:, chosen] > 0.0).astype(np.float64), np.random.default_rng(seed)
    equal = np.full(len(seen), 1.0 / len(seen))
    drawn = rng.multinomial(len(seen), equal, size=settings.members)[:, :, None]  # how often each network sees a case
    layers = [
        (w.astype(np.float32), b.astype(np.float32))
        for w, b in fit_networks(seen, target, drawn * allowed, settings, seed)
    ]
    return make_choice([candidates[j] for j in chosen], mean, std, layers, seed=seed, **about)


def reached(choice: Choice, numbers: np.ndarray, value: np.ndarray, candidates: Sequence[str]) -> np.ndarray:
    """(n,) share of the best that a choice takes in cases."""
    places = [candidates.index(name) for name in choice.controllers]
    seen = np.clip((numbers - choice.mean) / choice.std, -FAR, FAR)
    scores = np.array([forward(choice.layers, row) for row in seen])
    scores[value[:, places] == 0.0] = -np.inf
    return value[np.arange(len(value)), np.array(places)[scores.argmax(1)]]


def held_out(
    numbers: np.ndarray, value: np.ndarray, candidates: Sequence[str], folds: int = 8, seed: int = 0, settings: Hyperparameters = DEFAULT
) -> np.ndarray:  # fmt: skip
    """(n,) share of the best that choices take in the cases which they did not see, and (n,) that of the candidate best in the others."""
    fold = np.random.default_rng(seed).permutation(len(value)) % folds
    found, single = np.zeros(len(value)), np.zeros(len(value))
    for k in range(folds):
        out = fold == k
        choice = fit(numbers[~out], value[~out], candidates, seed, settings)
        found[out] = reached(choice, numbers[out], value[out], candidates)
        single[out] = value[out][:, value[~out].mean(0).argmax()]
    return np.stack([found, single])
