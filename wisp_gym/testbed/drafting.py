"""What a device drafts: tokens, what they were drawn from, and what they tell of themselves. Needs no torch."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from wisp_gym.testbed.sampling import DRAFT, Law, draw, law_of, softmax, uniform


class Drafted(NamedTuple):
    """A drafted token.

    Attributes:
        token: its id. law: what it was drawn from; None at temperature 0.
        statistics: (4,) float64 in the order of `wisp_gym.rules.rejection_predictor.INPUTS`: the draft's probability of the token, entropy
            of its distribution (nats), difference of its two highest probabilities, standard deviation of the logits.
    """

    token: int
    law: Law | None
    statistics: NDArray[np.float64]


class Drafting(ABC):
    """A language model that drafts for one session at a time, by its logits.

    Attributes:
        support: above temperature 0, tokens are drawn from this many likeliest ones (0: all), and so many are sent.
    """

    support: int

    @abstractmethod
    def _next_logits(self, context: Sequence[int]) -> NDArray[np.float64]:
        """(V,) logits of the token after a context; only what differs from the last context is computed."""

    def draft(self, context: Sequence[int], position: int, temperature: float, seed: int) -> Drafted:
        """The next token after a context, of which the answer's first `position` tokens are the last."""
        logits = self._next_logits(context)
        probabilities = softmax(logits, temperature)
        if temperature == 0:
            token, law = int(probabilities.argmax()), None
        else:
            law = law_of(probabilities, self.support)
            token = draw(law.row(len(probabilities)), uniform(seed, DRAFT, position))
        return Drafted(token, law, statistics(logits, probabilities, token))


def statistics(logits: NDArray[np.float64], probabilities: NDArray[np.float64], token: int) -> NDArray[np.float64]:
    """(4,) statistics of a token, given (V,) logits and probabilities; as the recorder of traces has them."""
    positive = probabilities[probabilities > 0]
    second, first = np.partition(probabilities, -2)[-2:]
    entropy = max(-float(positive @ np.log(positive)), 0.0)
    return np.array([probabilities[token], entropy, first - second, logits.std(ddof=1)])


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many first tokens two contexts share."""
    least = min(len(a), len(b))
    if list(a[:least]) == list(b[:least]):  # the usual case, compared at once
        return least
    return next(i for i in range(least) if a[i] != b[i])
