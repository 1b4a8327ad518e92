"""Tuning with one budget for all: random search, then the cross-entropy method, in the ranges that the catalogue names.

Three equal shares of the budget, every setting tried in the same training worlds:

1. Latin-hypercube samples of the ranges (McKay, Beckman and Conover, 1979), the settings that are given among them, in all
   training cells.
2. The cross-entropy method (Rubinstein, 1999) on the mean goodput over all training cells: a normal distribution is fitted
   to the best settings so far, and the next ones are drawn from it. The best of 1 and 2 is the *tuned* setting.
3. The same on the goodput of one cell. The best of 1, 2 and 3 there is the setting *tuned per cell*.
"""

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from wisp_gym.controllers.lookup import Part, parts_of
from wisp_gym.rules.catalogue import Setting

POPULATION = 6  # settings drawn from one normal distribution
ELITES = 4  # best settings that it is fitted to
SMALLEST_STD = 0.02  # of the range, so that the search does not stand still
DIGITS = 4  # of a setting, so that the printed one is the one that ran

Scores = dict[tuple[str, str], float]  # (controller, cell) → mean goodput over the training worlds, tokens/s


class Cell(Protocol):
    """A case that worlds run in, known by its name."""

    @property
    def name(self) -> str:
        """Its name, of no other cell."""


CellT = TypeVar("CellT", bound=Cell)
Evaluate = Callable[[Sequence[tuple[str, CellT]]], Scores]


class Piece(Part):
    """One rule of a controller: its name, its settings and their values."""

    @property
    def tuned(self) -> list[int]:
        """Which settings have a range to search."""
        return [i for i, setting in enumerate(self.rule.settings) if setting.tune]

    def spelled(self, chosen: Sequence[float]) -> str:
        """The rule with the searched settings replaced."""
        values = list(self.values)
        for i, value in zip(self.tuned, chosen, strict=True):
            values[i] = value
        length = max([self.given, *(i + 1 for i in self.tuned)])
        return self.name + ":" * (length > 0) + ",".join(map(shown, values[:length]))

    @property
    def family(self) -> str:
        """The rule with its searched settings left open; others appear where they were given."""
        shown = ["*" if i in self.tuned else f"{self.values[i]:g}" for i in range(self.given)]
        return self.name + (":" + ",".join(shown) if any(word != "*" for word in shown) else "")


@dataclass(frozen=True)
class Family:
    """Controllers that differ in searched settings alone.

    Attributes:
        name: their rules, such as `wisp+fcfs`. starts: those that were given.
    """

    name: str
    pieces: tuple[Piece, ...]
    starts: tuple[str, ...]

    @property
    def settings(self) -> list[Setting]:
        """The searched settings, in order."""
        return [piece.rule.settings[i] for piece in self.pieces for i in piece.tuned]

    def spelled(self, position: NDArray[np.float64]) -> str:
        """The controller at a position of the unit cube."""
        chosen = [value_at(setting, x) for setting, x in zip(self.settings, position, strict=True)]
        words = []
        for piece in self.pieces:
            words.append(piece.spelled(chosen[: len(piece.tuned)]))
            chosen = chosen[len(piece.tuned) :]
        return "+".join(words)

    def position(self, controller: str) -> NDArray[np.float64]:
        """Where a controller of the family stands in the unit cube; NaN beyond it and for defaults of the scenario's."""
        values = [piece.values[i] for piece in pieces(controller) for i in piece.tuned]
        return np.array([position_of(setting, x) for setting, x in zip(self.settings, values, strict=True)])


def shown(value: float) -> str:
    """A value as controllers' names spell it; a plus sign would begin the next rule."""
    return f"{value:.{DIGITS}g}".replace("e+", "e")


def value_at(setting: Setting, x: float) -> float:
    """The value at a share `x` of a setting's range, on the scale and the grid that it asks for."""
    low, high = setting.tune or (setting.default, setting.default)
    value = low * (high / low) ** x if setting.log else low + (high - low) * x
    return float(min(max(round(value) if setting.whole else value, low), high))


def position_of(setting: Setting, value: float) -> float:
    """The share of a setting's range at which a value lies; NaN outside of it, where 0 may mean that there is no limit."""
    low, high = setting.tune or (setting.default, setting.default)
    if not low <= value <= high:
        return math.nan
    if setting.log:
        value, low, high = (math.log(number) for number in (value, low, high))
    return (value - low) / (high - low)


# --- families --------------------------------------------------------------------------------------------------------


def pieces(controller: str) -> tuple[Piece, ...]:
    """The rules of a controller; none where a learned policy is among them.

    Raises:
        ControllerError: an unknown name or an impossible setting.
    """
    parts = parts_of(controller)
    return () if any(part.is_policy for part in parts) else tuple(Piece(**vars(part)) for part in parts)


def families(controllers: Sequence[str]) -> list[Family]:
    """The families of controllers that have something to tune, in the order of the first of each."""
    found: dict[str, Family] = {}
    for controller in controllers:
        name = family_name(controller)
        known = found.get(name)
        starts = (*known.starts, controller) if known else (controller,)
        found[name] = Family(name, pieces(controller), starts)
    return [family for family in found.values() if family.settings]


def family_name(controller: str) -> str:
    """The rules of a controller without their searched settings; a learned policy's own name."""
    return "+".join(piece.family for piece in pieces(controller)) or controller


# --- search ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tuned:
    """What tuning found for a family: the controller for all cells, and the one of each training cell."""

    everywhere: str
    per_cell: dict[str, str]


def tune(
    chosen: Sequence[Family], cells: Sequence[CellT], candidates: int, evaluate: Evaluate[CellT]
) -> dict[str, Tuned]:
    """Settings of every family, by name.

    Args:
        chosen: what is tuned. cells: the training cells.
        candidates: settings of each family that are tried in each cell, in three equal shares.
        evaluate: mean goodput over the training worlds of controllers in cells.
    """
    share = candidates // 3
    first = candidates - 2 * share
    tried: dict[str, list[str]] = {family.name: first_settings(family, first) for family in chosen}
    scores = evaluate([(name, cell) for family in chosen for name in tried[family.name] for cell in cells])
    for drawn in generations(share):
        for family in chosen:
            tried[family.name] += refined(family, tried[family.name], scores, cells, drawn)
        jobs = [(name, cell) for family in chosen for name in tried[family.name][-drawn:] for cell in cells]
        scores |= evaluate(jobs)
    everywhere = {family.name: ranked(tried[family.name], scores, cells)[0] for family in chosen}
    local = {(family.name, cell.name): list(tried[family.name]) for family in chosen for cell in cells}
    for drawn in generations(share):
        jobs = []
        for family in chosen:
            for cell in cells:
                own = local[family.name, cell.name]
                own += refined(family, own, scores, [cell], drawn)
                jobs += [(name, cell) for name in own[-drawn:]]
        scores |= evaluate(jobs)
    return {
        f.name: Tuned(everywhere[f.name], {c.name: ranked(local[f.name, c.name], scores, [c])[0] for c in cells})
        for f in chosen
    }


def generations(total: int) -> list[int]:
    """Sizes of the populations that make up `total` settings."""
    return [min(POPULATION, total - done) for done in range(0, total, POPULATION)]


def first_settings(family: Family, count: int) -> list[str]:
    """The settings that were given and Latin-hypercube samples, `count` in all."""
    samples = latin_hypercube(generator(family.name), count, len(family.settings))
    return [*family.starts, *(family.spelled(x) for x in samples)][:count]


def latin_hypercube(draws: np.random.Generator, count: int, dimensions: int) -> NDArray[np.float64]:
    """(count, dimensions) points of the unit cube, in each dimension one in each of `count` equal slices.

    The same points as those of scipy's `qmc.LatinHypercube(dimensions, rng=draws).random(count)`.
    """
    own = draws.spawn(1)[0]
    inside = own.uniform(size=(count, dimensions))
    slices = np.array([own.permutation(np.arange(1, count + 1)) for _ in range(dimensions)]).T
    return np.asarray((slices - inside) / count)


def ranked(tried: Sequence[str], scores: Scores, cells: Sequence[Cell]) -> list[str]:
    """Settings by falling mean score over cells, each once; of equal ones the first tried leads."""
    return sorted(dict.fromkeys(tried), key=lambda name: -math.fsum(scores[name, cell.name] for cell in cells))


def refined(family: Family, tried: Sequence[str], scores: Scores, cells: Sequence[Cell], count: int) -> list[str]:
    """Settings drawn from the normal distribution of the best ones so far (no correlations)."""
    positions = [family.position(name) for name in ranked(tried, scores, cells)]
    best = np.array([x for x in positions if not np.isnan(x).any()][:ELITES]).reshape(-1, len(family.settings))
    middle, spread = (best.mean(axis=0), best.std(axis=0)) if len(best) else (0.5, 0.5)
    draws = generator(family.name, str(len(tried)), *(cell.name for cell in cells)).normal(size=(count, best.shape[1]))
    return [family.spelled(x) for x in np.clip(middle + np.maximum(spread, SMALLEST_STD) * draws, 0.0, 1.0)]


def generator(*words: str) -> np.random.Generator:
    """Random numbers that depend on these words alone."""
    return np.random.default_rng(zlib.crc32("\n".join(words).encode()))
