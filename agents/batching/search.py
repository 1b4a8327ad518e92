"""Evolution strategies on a scorer's weights, in worlds that the engine runs to their end.

What a batch takes in now shows in memory and queues tens of seconds and thousands of decisions later; whole worlds tell
that, and the engine runs them at full speed. OpenAI-ES (arXiv 1703.03864): antithetic pairs in common worlds, ranks,
one step.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from wisp_gym.contract.decisions import sets_prices
from wisp_gym.contract.ladders import PRICES
from wisp_gym.controllers.resolve import resolve
from wisp_gym.controllers.scorer_policy import ScorerPolicy, make_scorer
from wisp_gym.engine.worlds import Worlds
from wisp_gym.evaluation.metrics import Metrics, measure
from wisp_gym.rules.batching import LEARNED
from wisp_gym.scenario import Scenario

PRICE_SHARPNESS = 0.2  # of prices' scores: the next one in the ladder comes so far behind
STEPS = 10.0  # of the ladder of prices, that a perturbation of size 1 moves the wanted price
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
        hosted: rules of who drafts beside a policy, the end of the name.
        worlds: of each cell. threads: to run on.
    """

    def __init__(
        self, cells: Sequence[Cell], speculation: str, worlds: int, threads: int | None = None,
        admit_share: float = 0.95, hosted: str = "",
    ):  # fmt: skip
        self.cells, self.speculation, self.each = list(cells), speculation, worlds
        self.beside = f"fcfs+admit:{admit_share}{hosted}"
        room = max(cell.devices for cell in self.cells)
        self.worlds = Worlds(len(self.cells) * worlds, room, threads=threads)

    def run(self, batching: ScorerPolicy | str, seeds: Sequence[int]) -> list[list[Metrics]]:
        """Metrics of the worlds of each cell, under a policy or a rule (with its additions, by name)."""
        rule = batching if isinstance(batching, str) else self.beside
        for k, cell in enumerate(self.cells):
            controller = resolve(f"{self.speculation}+{rule}", cell.scenario)
            if not isinstance(batching, str):
                controller = replace(controller, batching=LEARNED, batching_parameters=(), scorer=batching.weights)
            for j, seed in enumerate(seeds):
                self.worlds.fill(k * self.each + j, cell.scenario, seed, controller, cell.devices)
        self.worlds.run(early=True)
        arrays, n = self.worlds.arrays, self.each
        return [[measure(arrays, k * n + j, c.scenario) for j in range(n)] for k, c in enumerate(self.cells)]

    def score(self, batching: ScorerPolicy | str, seeds: Sequence[int]) -> float:
        """Mean over cells of goodput over the cell's own, less what too many starved devices cost."""
        total = 0.0
        for cell, metrics in zip(self.cells, self.run(batching, seeds), strict=True):
            goodput = np.mean([m.goodput_tokens_per_s for m in metrics]) / cell.goodput_tokens_per_s
            starved = float(np.mean([m.starved_share for m in metrics]))
            total += float(goodput - STARVED_WEIGHT * max(starved - cell.starved_share, 0.0))
        return total / len(self.cells)


def calibrated(cells: Sequence[Cell], speculation: str, rule: str, seeds: Sequence[int], allowed: float) -> list[Cell]:
    """The cells with a rule's goodput as their unit; its share of starved devices, or `allowed`, may starve."""
    outcomes = Arena(cells, speculation, len(seeds)).run(rule, seeds)
    return [
        replace(
            cell, goodput_tokens_per_s=float(np.mean([m.goodput_tokens_per_s for m in metrics])),
            starved_share=max(float(np.mean([m.starved_share for m in metrics])), allowed),
        )
        for cell, metrics in zip(cells, outcomes, strict=True)
    ]  # fmt: skip


def flat(policy: ScorerPolicy) -> np.ndarray:
    """(weights,) float64: all weights of a policy."""
    return np.concatenate([part.ravel() for layer in policy.layers for part in layer]).astype(np.float64)


def shaped(policy: ScorerPolicy, values: np.ndarray) -> ScorerPolicy:
    """A policy of the same form with these (weights,)."""
    parts = [part for layer in policy.layers for part in layer]
    pieces = np.split(values, np.cumsum([part.size for part in parts])[:-1])
    own = [piece.reshape(part.shape).astype(np.float32) for piece, part in zip(pieces, parts, strict=True)]
    return make_scorer(list(zip(own[::2], own[1::2], strict=True)), policy.decision, **policy.about)


def perturbation(policy: ScorerPolicy, rng: np.random.Generator) -> np.ndarray:
    """(weights,) one direction to try; embeddings and context stay as they are.

    Of a batching policy each weight of the last layers moves for itself, by the size of its layer's weights. Of a joint
    one the price alone: with scores `−s·(j − t)²` of price j, the wanted price t moves, in steps of the ladder,
    linearly with the context.
    """
    parts = [np.zeros(part.shape) for layer in policy.layers for part in layer]
    if sets_prices(policy.decision):
        n, width = len(PRICES), policy.layers[-1][0].shape[1]
        # About 0, so that launching itself hardly gains.
        levels = STEPS * PRICE_SHARPNESS * (2.0 * np.arange(n) - (n - 1))
        parts[-2][:n] = np.outer(levels, rng.normal(size=width) / np.sqrt(width))
        parts[-1][:n] = levels * rng.normal()
    else:
        for k in range(-4, 0):
            size = policy.layers[-2 if k < -2 else -1][0].std()
            parts[k] = size * rng.normal(size=parts[k].shape)
    return np.concatenate([part.ravel() for part in parts])


def evolve(
    start: ScorerPolicy, arena: Arena, seed: int, generations: int = 30, pairs: int = 6, sigma: float = 0.1,
    step: float = 0.3, say: Callable[[str], None] = lambda text: None,
) -> Iterator[ScorerPolicy]:  # fmt: skip
    """The policy after each of so many steps of evolution strategies.

    Args:
        pairs: antithetic pairs in a generation, in the same worlds. sigma: size of a perturbation.
        step: length of a step along the estimated gradient, in perturbations.
    """
    rng = np.random.default_rng(seed)
    theta = flat(start)
    for generation in range(generations):
        seeds = [int(s) for s in rng.integers(10**9, 2 * 10**9, arena.each)]
        noise = np.stack([sigma * perturbation(start, rng) for _ in range(pairs)])
        found = [[arena.score(shaped(start, theta + sign * n), seeds) for sign in (1, -1)] for n in noise]
        ranks = np.argsort(np.argsort(np.ravel(found))).reshape(pairs, 2) / (2 * pairs - 1) - 0.5
        theta = theta + step * ((ranks[:, 0] - ranks[:, 1]) @ noise)
        say(f"generation {generation + 1}: mean {np.mean(found):.4f}, best {np.max(found):.4f}")
        yield shaped(start, theta)
