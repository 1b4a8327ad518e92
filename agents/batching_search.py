"""Evolution strategies on a scorer's weights, in worlds that the engine runs to their end.

What a batch takes in now shows in memory and queues tens of seconds and thousands of decisions later; whole worlds tell that,
and the engine runs them at full speed. OpenAI-ES (arXiv 1703.03864): antithetic pairs in common worlds, ranks, one step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from wisp_gym.controllers.catalogue import Controller, resolve
from wisp_gym.controllers.scorer_policy import ScorerPolicy, make_scorer
from wisp_gym.engine.worlds import Worlds
from wisp_gym.metrics import Metrics, measure
from wisp_gym.scenario import Scenario

STARVED_WEIGHT = 5.0  # a share of starved devices above what is allowed costs five times as much of the goodput


@dataclass(frozen=True)
class Cell:
    """A place to train or measure in: a scenario with its population, and the goodput that counts as 1 there."""

    name: str
    scenario: Scenario
    devices: int
    goodput_tokens_per_s: float = 1.0
    starved_share: float = 0.0


class Arena:
    """Worlds of several cells under one learned batching policy.

    Args:
        cells: where. speculation: first half of the controllers' name. admit_share: limit of admission beside a policy.
        worlds: of each cell. threads: to run on.
    """

    def __init__(
        self, cells: Sequence[Cell], speculation: str, worlds: int, threads: int | None = None, admit_share: float = 0.95
    ):  # fmt: skip
        self.cells, self.speculation, self.each, self.admit_share = list(cells), speculation, worlds, admit_share
        room = max(cell.devices for cell in self.cells)
        self.worlds = Worlds(len(self.cells) * worlds, room, threads=threads)

    def run(self, batching: ScorerPolicy | str, seeds: Sequence[int]) -> list[list[Metrics]]:
        """Metrics of the worlds of each cell, under a policy or a rule (with its additions, by name)."""
        rule = batching if isinstance(batching, str) else f"fcfs+admit:{self.admit_share}"
        for k, cell in enumerate(self.cells):
            controller = resolve(f"{self.speculation}+{rule}", cell.scenario)
            if not isinstance(batching, str):
                controller = learned(controller, batching)
            for j, seed in enumerate(seeds):
                self.worlds.fill(k * self.each + j, cell.scenario, seed, controller, cell.devices)
        self.worlds.run(early=True)
        count = range(self.each)
        return [
            [measure(self.worlds.arrays, k * self.each + j, c.scenario) for j in count]
            for k, c in enumerate(self.cells)
        ]

    def score(self, batching: ScorerPolicy | str, seeds: Sequence[int]) -> float:
        """Mean over cells of goodput over the cell's own, less what too many starved devices cost."""
        total = 0.0
        for cell, metrics in zip(self.cells, self.run(batching, seeds), strict=True):
            goodput = np.mean([m.goodput_tokens_per_s for m in metrics]) / cell.goodput_tokens_per_s
            starved = float(np.mean([m.starved_share for m in metrics]))
            total += float(goodput - STARVED_WEIGHT * max(starved - cell.starved_share, 0.0))
        return total / len(self.cells)


def learned(controller: Controller, policy: ScorerPolicy) -> Controller:
    """A controller whose batching half is a policy."""
    from wisp_gym.controllers.batching import LEARNED

    return replace(controller, batching=LEARNED, batching_parameters=(), scorer=policy.weights)


def calibrated(cells: Sequence[Cell], speculation: str, rule: str, seeds: Sequence[int], allowed: float) -> list[Cell]:
    """The cells with a rule's goodput as their unit, and its share of starved devices, or `allowed`, as what may starve."""
    outcomes = Arena(cells, speculation, len(seeds)).run(rule, seeds)
    return [
        replace(
            cell, goodput_tokens_per_s=float(np.mean([m.goodput_tokens_per_s for m in metrics])),
            starved_share=max(float(np.mean([m.starved_share for m in metrics])), allowed),
        )
        for cell, metrics in zip(cells, outcomes, strict=True)
    ]  # fmt: skip


def flat(policy: ScorerPolicy) -> np.ndarray:
    """All weights of a policy."""
    return np.concatenate([part.ravel() for layer in policy.layers for part in layer]).astype(np.float64)


def shaped(policy: ScorerPolicy, values: np.ndarray) -> ScorerPolicy:
    """A policy of the same form with these weights."""
    layers, place = [], 0
    for w, b in policy.layers:
        parts = []
        for part in (w, b):
            parts.append(values[place : place + part.size].reshape(part.shape).astype(np.float32))
            place += part.size
        layers.append((parts[0], parts[1]))
    return make_scorer(layers, policy.decision, **policy.about)


def scales(policy: ScorerPolicy) -> np.ndarray:
    """Size of a weight's perturbation: that of its layer's weights; embeddings and context stay as they are."""
    parts = []
    for index, (w, b) in enumerate(policy.layers):
        size = 0.0 if index < 3 else float(w.std())
        parts += [np.full(w.size, size), np.full(b.size, size)]
    return np.concatenate(parts)


def evolve(
    start: ScorerPolicy, arena: Arena, seed: int, generations: int = 30, pairs: int = 6, sigma: float = 0.1, step: float = 0.3,
    say: Callable[[str], None] = lambda text: None,
) -> ScorerPolicy:  # fmt: skip
    """The policy after so many steps of evolution strategies.

    Args:
        pairs: antithetic pairs in a generation, in the same worlds. sigma: perturbation, in scales of each layer.
        step: length of a step along the estimated gradient, in the same scales.
    """
    rng = np.random.default_rng(seed)
    theta, scale = flat(start), scales(start)
    for generation in range(generations):
        seeds = [int(s) for s in rng.integers(10**9, 2 * 10**9, arena.each)]
        noise = rng.normal(size=(pairs, len(theta)))
        found = [
            [arena.score(shaped(start, theta + sign * sigma * scale * n), seeds) for sign in (1, -1)] for n in noise
        ]
        ranks = np.argsort(np.argsort(np.ravel(found))).reshape(pairs, 2) / (2 * pairs - 1) - 0.5
        theta = theta + step * sigma * scale * ((ranks[:, 0] - ranks[:, 1]) @ noise)
        say(f"generation {generation + 1}: mean {np.mean(found):.4f}, best {np.max(found):.4f}")
    return shaped(start, theta)
