"""Pairs of branches at many decisions, looked at again and again as they are run on: what a critic is fitted to and measured with."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from agents.branching.critic import Moments
from agents.branching.features import SIZE, UNDER_WAY, features_of
from agents.branching.place import DRAFT, SEND, decisions_of
from wisp_gym.engine.branch import Branches
from wisp_gym.engine.in_turn import InTurn
from wisp_gym.rules.controller import Controller
from wisp_gym.scenario import Scenario

SEEDS_PER_WORLD = 10**9


class Pairs(NamedTuple):
    """Of N decisions, with `draws` pairs each, at some moments after them: copy 0 sent, copy 1 drafted one more token.

    Attributes:
        devices: (N,) population. tokens: (N, draws, 2, moments) on time until each. features: (N, draws, 2, moments, SIZE) float32.
    """

    devices: np.ndarray
    tokens: np.ndarray
    features: np.ndarray

    def later(self) -> np.ndarray:
        """(N, draws, 2, moments) tokens from each moment to the last one, and what is under way then."""
        last = self.tokens[..., -1] + self.features[..., -1, UNDER_WAY]
        return np.asarray(last[..., None] - self.tokens)

    def moments(self, until: int) -> Moments:
        """The first `until` moments of all pairs, one after another."""
        rows = len(self.devices) * self.tokens.shape[1] * until
        features = np.moveaxis(self.features[:, :, :, :until], 3, 2).reshape(rows, 2, SIZE)
        later = np.moveaxis(self.later()[..., :until], 3, 2).reshape(rows, 2)
        return Moments(features, np.repeat(self.devices, rows // len(self.devices)), later)


def pairs_at(
    world: InTurn, copies: Branches, seeds: np.ndarray, moments_s: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens (draws, 2, moments) and features (draws, 2, moments, SIZE) at one decision."""
    copies.take(0, world.kind)
    copies.afresh(np.repeat(seeds, 2))
    copies.act(np.tile([SEND, DRAFT], len(seeds)))
    tokens, features = list[np.ndarray](), list[np.ndarray]()
    for moment_s, _ in zip(moments_s, copies.run_on(moments_s), strict=True):
        tokens.append(copies.worlds.arrays.totals["tokens_on_time"][:, 0].astype(float))
        features.append(features_of(copies.worlds, copies.begun_s + moment_s).astype(np.float32))
    shape = (len(seeds), 2, len(moments_s))
    return np.stack(tokens, axis=1).reshape(shape), np.stack(features, axis=1).reshape(*shape, SIZE)


def pairs_of_world(
    scenario: Scenario,
    controller: Controller,
    seed: int,
    seconds: float,
    share: float,
    draws: int,
    moments_s: Sequence[float],
) -> Pairs:
    """Pairs at a share of one world's decisions, a twentieth of which are drawn."""
    tokens, features, copies = list[np.ndarray](), list[np.ndarray](), None
    for world, number in decisions_of(scenario, controller, seed, seconds, share, 0.05):
        copies = copies or Branches(world.worlds, 2 * draws, threads=1)
        found = pairs_at(world, copies, SEEDS_PER_WORLD * seed + draws * number + np.arange(draws), moments_s)
        tokens.append(found[0])
        features.append(found[1])
    shape = (len(tokens), draws, 2, len(moments_s))
    devices = np.full(len(tokens), float(scenario.n_devices))
    return Pairs(devices, np.array(tokens).reshape(shape), np.array(features, np.float32).reshape(*shape, SIZE))


def joined(parts: Sequence[Pairs]) -> Pairs:
    """Pairs of several worlds together."""
    return Pairs(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
