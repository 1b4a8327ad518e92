"""Lossless speculative sampling with chance that is counted, not drawn in turn.

Accept and replace: Leviathan, Kalman and Matias, "Fast inference from transformers via speculative decoding", ICML 2023
(arXiv 2211.17192), algorithm 1. The rule is lossless for whatever distribution q the draft was really drawn from. A
device therefore may cut its distribution to the likeliest tokens and round its weights, as long as it draws from what is
left and sends just that: `Law` is what both sides compute q from.

Every uniform number is a function of (seed, purpose, position in the answer). A round that is verified again, after a lost
reply or by a restarted server, meets the same chance; no number is used for two tokens that are delivered.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# Purposes: the draft's token, the target's acceptance of it, the target's own token.
DRAFT, ACCEPT, REPLACE = range(3)
MASK = (1 << 64) - 1

Row = NDArray[np.float64]


def uniform(seed: int, purpose: int, position: int) -> float:
    """A number in [0, 1), independent between purposes and positions: Philox with (seed, purpose) as its key."""
    key = np.array([seed & MASK, purpose], np.uint64)  # numpy casts a list of large numbers by way of floats
    return float(np.random.Generator(np.random.Philox(key=key, counter=position)).random())


class Law(NamedTuple):
    """The distribution of one drafted token.

    Attributes:
        tokens: (S,) int64, strictly rising; where it is empty, token i has weights[i], and tokens beyond them have none.
        weights: (S,) float32, not negative, with a sum above 0.
    """

    tokens: NDArray[np.int64]
    weights: NDArray[np.float32]

    def row(self, size: int) -> Row:
        """(size,) probabilities, the same on both sides."""
        weights, row = self.weights.astype(np.float64), np.zeros(size)
        row[self.tokens if len(self.tokens) else slice(len(weights))] = weights / weights.sum()
        return row

    def weight(self, token: int) -> float:
        """The weight of one token."""
        place = int(np.searchsorted(self.tokens, token)) if len(self.tokens) else token
        listed = place < len(self.weights) and (not len(self.tokens) or self.tokens[place] == token)
        return float(self.weights[place]) if listed else 0.0


def law_of(probabilities: Row, support: int) -> Law:
    """The law of the `support` likeliest tokens (0: all) of (V,) probabilities."""
    if not 0 < support < len(probabilities):
        return Law(np.zeros(0, np.int64), probabilities.astype(np.float32))
    tokens = np.sort(np.argpartition(-probabilities, support - 1)[:support])
    return Law(tokens, probabilities[tokens].astype(np.float32))


def draw(weights: Row, chance: float) -> int:
    """The token of a uniform number, by the inverse of the sums of (V,) weights; never one of weight 0."""
    sums = np.cumsum(weights)
    place = int(np.searchsorted(sums, chance * sums[-1], "right"))
    return min(place, int(np.flatnonzero(weights)[-1]))


def softmax(logits: NDArray[np.floating], temperature: float) -> Row:
    """(…, V) probabilities in double precision; at temperature 0 those of temperature 1, whose largest is the greedy token."""
    scaled = logits.astype(np.float64) / (temperature or 1.0)
    weights = np.exp(scaled - scaled.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def verify_greedy(best: Sequence[int], drafted: Sequence[int]) -> list[int]:
    """The tokens that a round commits at temperature 0: the agreeing ones, then the target's own.

    Args:
        best: k + 1 likeliest tokens of the target, after each of 0 … k drafted tokens.
        drafted: k tokens.
    """
    agreed = next((j for j, token in enumerate(drafted) if token != best[j]), len(drafted))
    return list(best[: agreed + 1])


def verify_sampled(p: Row, laws: Sequence[Law], drafted: Sequence[int], seed: int, position: int) -> list[int]:
    """The tokens that a round commits above temperature 0: those accepted, then the target's own.

    Token x of place j is accepted with probability min(1, p_j(x)/q_j(x)); the first that is not is replaced by a draw from
    max(0, p_j − q_j), normalised; after the last one stands a draw from p_k.

    Args:
        p: (k + 1, V) probabilities of the target, after each of 0 … k drafted tokens.
        laws: k laws that the drafted tokens were drawn from.
        drafted: k tokens.
        seed: of the request. position: tokens of the answer before this round.
    """
    committed: list[int] = []
    for j, token in enumerate(drafted):
        q = laws[j].row(p.shape[1])
        if uniform(seed, ACCEPT, position + j) * q[token] >= p[j, token]:
            rest = np.maximum(p[j] - q, 0.0)
            # Rounding can leave nothing of a rejection whose probability is rounding itself.
            weights = rest if rest.any() else p[j]
            return [*committed, draw(weights, uniform(seed, REPLACE, position + j))]
        committed.append(token)
    return [*committed, draw(p[len(drafted)], uniform(seed, REPLACE, position + len(drafted)))]
