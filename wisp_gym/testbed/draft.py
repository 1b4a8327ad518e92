"""A draft model in torch, of transformers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache

from wisp_gym.testbed.drafting import Drafting, common_prefix


class DraftModel(Drafting):
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

    @torch.inference_mode()
    def _next_logits(self, context: Sequence[int]) -> NDArray[np.float64]:
        """(V,) logits; only what differs from the last context is computed."""
        same = common_prefix(self._read, context)
        known = min(same, len(context) - 1)
        if known < len(self._read):
            self._cache.crop(known - len(self._read))  # a negative number: so many tokens less
        ids = torch.tensor([list(context[known:])], device=self.model.device)
        out = self.model(ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self._read = list(context)
        return out.logits[0, -1, : self.vocabulary].double().cpu().numpy()
