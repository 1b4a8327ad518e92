"""How fast the machine is just now: a fixed piece of work, timed again and again beside the batches.

The speed of a virtual machine drifts by tens of percent within minutes (other tenants use the memory's bandwidth and the processor's
power), so a batch that takes longer than in the profile may be the machine's doing or the controller's. The yardstick tells them apart: it
is the same work whatever is verified, of the kind that a pass consists of.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # torch takes seconds to import
    from torch import Tensor

EVERY_S = 0.25  # pause between two measurements: under one percent of the server's time
SHARE = 1.0 / 12.0  # of the target's weights that one reads
ROWS = 5  # multiplied with them, as a round of four drafted tokens is


class Yardstick:
    """Products with the target's own first matrices, `SHARE` of its weights, each timed after a pass, when they are not in a cache.

    On a processor the thread's own time counts, so that the server's other threads do not; on a GPU the time until it has finished.

    Args:
        model: the target. every_s: pause between two measurements.
    """

    def __init__(self, model: Any, every_s: float = EVERY_S) -> None:
        self.matrices = first_matrices(model, SHARE)
        self.rows = [matrix.new_ones(ROWS, matrix.shape[1]) for matrix in self.matrices]
        self.on_gpu = self.matrices[0].device.type == "cuda"
        self.every_s, self.due_s = every_s, 0.0

    def seconds(self) -> float:
        """Of the work, where it is due; else 0."""
        if time.monotonic() < self.due_s:
            return 0.0
        begun_s = self._clock()
        for rows, matrix in zip(self.rows, self.matrices, strict=True):
            rows @ matrix.T
        found = self._clock() - begun_s
        self.due_s = time.monotonic() + self.every_s
        return found

    def _clock(self) -> float:
        if not self.on_gpu:
            return time.thread_time()
        import torch

        torch.cuda.synchronize()
        return time.perf_counter()


def first_matrices(model: Any, share: float) -> list[Tensor]:
    """The first matrices of a model's layers that together hold a share of all its weights."""
    matrices = [weight.detach() for weight in model.parameters() if weight.ndim == 2]
    wanted, found = share * sum(weight.numel() for weight in matrices), list[Any]()
    for weight in matrices[1:] or matrices:  # the first one is the table of embeddings, which no pass reads whole
        found.append(weight)
        if sum(each.numel() for each in found) >= wanted:
            break
    return found


def pace_s(seconds: Sequence[float]) -> float:
    """Mean of the measurements among them, 0 standing for none.

    Raises:
        ValueError: there is none.
    """
    taken = [value for value in seconds if value > 0.0]
    if not taken:
        raise ValueError("no batch ran, so the machine's speed is not known")
    return float(np.mean(taken))
