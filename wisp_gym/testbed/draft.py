"""The draft model of a device: tokens, what they were drawn from, and what they tell of themselves."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache

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


class DraftModel:
    """A causal language model that drafts for one session at a time, with the keys and values of what it has read.

    Args:
        model: of transformers, in evaluation mode.
        vocabulary: logits that count, those that the target has too (None: the model's own).
        support: above temperature 0, tokens are drawn from this many likeliest ones (0: all), and so many are sent.
    """

    def __init__(self, model: Any, vocabulary: int | None = None, support: int = 64) -> None:
        self.model = model
        self.vocabulary = vocabulary or int(model.config.vocab_size)
        self.support = support
        self._cache, self._read = DynamicCache(), list[int]()

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

    @torch.inference_mode()
    def _next_logits(self, context: Sequence[int]) -> NDArray[np.float64]:
        """(V,) logits; only what differs from the last context is computed."""
        same = _common_prefix(self._read, context)
        known = min(same, len(context) - 1)
        if known < len(self._read):
            self._cache.crop(known - len(self._read))  # a negative number: so many tokens less
        ids = torch.tensor([list(context[known:])], device=self.model.device)
        out = self.model(ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self._read = list(context)
        return out.logits[0, -1, : self.vocabulary].double().cpu().numpy()


def statistics(logits: NDArray[np.float64], probabilities: NDArray[np.float64], token: int) -> NDArray[np.float64]:
    """(4,) statistics of a token, given (V,) logits and probabilities; as the recorder of traces has them."""
    positive = probabilities[probabilities > 0]
    second, first = np.partition(probabilities, -2)[-2:]
    entropy = max(-float(positive @ np.log(positive)), 0.0)
    return np.array([probabilities[token], entropy, first - second, logits.std(ddof=1)])


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    least = min(len(a), len(b))
    if list(a[:least]) == list(b[:least]):  # the usual case, compared at once
        return least
    return next(i for i in range(least) if a[i] != b[i])
