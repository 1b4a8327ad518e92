"""A scorer of any architecture: its graph is asked before each decision, with all entries as they stand then."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wisp_gym.contract import request
from wisp_gym.serving.scheduler.factored import MOVING, NEVER, Floats
from wisp_gym.serving.scheduler.features import scaling

if TYPE_CHECKING:
    from wisp_gym.serving.scheduler.picking import Picking


class Asked:
    """The scores of one batch's decisions.

    Args:
        decide: a graph's: `scores` (Q,) of picking each request, `actions` (1, a) of all else, and of one that hosts `moves` (Q,), how
            much rather a session is to be at the server. rows, seen: (Q, request.SIZE) and (server.SIZE,) entries before the first member.
    """

    sees_moves = True

    def __init__(self, decide: Callable[[dict[str, NDArray[Any]]], list[NDArray[Any]]], rows: Floats, seen: Floats):
        self.decide, self.rows, self.seen = decide, rows.copy(), seen[None].copy()
        self.may = np.zeros(len(rows), np.bool_)
        self.with_: NDArray[np.float64] | None = None  # scale and ends of the entry of the batch's time with a request

    def open(self, may: NDArray[np.bool_]) -> None:
        """Say which of the (Q,) requests may be picked from now on."""
        self.may = may.copy()

    def close(self, q: int) -> None:
        """Request q has joined."""
        self.may[q] = False

    def settle(self, places: Any = None) -> None:
        """Sessions at these places of the queue have moved; without places: none can move."""
        moved = np.zeros(len(self.rows), np.bool_)
        if places is not None:
            moved[places] = True
        self.rows[moved, request.STAYS] = 1.0 - self.rows[moved, request.STAYS]
        self.rows[moved | (places is None), request.MOVABLE] = 0.0

    def scores(self, moving: Sequence[float], batch: Picking) -> tuple[Floats, list[float], Floats]:
        """(Q,) scores of the picks, those of the actions of no request, (Q,) of the moves; NEVER of what may not be.

        Raises:
            ValueError: scores that are no finite numbers.
        """
        rows, stays = self.rows, self.rows[:, request.STAYS] > 0.5
        self.seen[0, MOVING] = moving
        rows[:, request.ADMISSIBLE], rows[:, request.PICKED] = batch.fits(), batch.picked
        if self.with_ is None:
            self.with_ = scaling("requests", ["batch_time_with"], batch.state)[:, 0, 0]
        scale, low, high = self.with_
        rows[:, request.BATCH_TIME_WITH] = np.clip(batch.with_s() / scale, low, high)
        picks, actions, *moves = self.decide({"requests": rows, "globals": self.seen})
        if not all(np.isfinite(values).all() for values in (picks, actions, *moves)):
            raise ValueError("the policy's scores are no finite numbers")
        moved = np.where(stays, -moves[0], moves[0]) if moves else np.zeros(0, np.float32)
        if moves:
            moved = np.where(rows[:, request.MOVABLE] > 0.5, moved, NEVER)
        return np.where(self.may, picks, NEVER), actions[0].tolist(), moved
