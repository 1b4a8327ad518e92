"""WISP's heuristics in plain Python: what decides when a policy's inputs cannot be used (arXiv 2601.11652)."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

NO_LIMIT = 1e6  # mean batch times
Column = NDArray[np.floating]


class Order(NamedTuple):
    """How requests join a batch, each (Q,).

    Attributes:
        key: smaller ones are asked first, among those that lead and then among the others.
        leads: joins in any case; the others join while no limit is passed.
        limit: longest predicted batch that the request allows, in mean batch times (NO_LIMIT: any).
    """

    key: Column
    leads: NDArray[np.bool_]
    limit: Column


def drafts_on(drafted: int, accept_probability: float | None, threshold: float) -> bool:
    """WISP's device rule: draft on until the predictor takes the last token for rejected.

    Args:
        drafted: tokens of this round. accept_probability: of the last token, None where nothing is known of it.
        threshold: acceptance probability below which it stops, 0 to 1.
    """
    return drafted == 0 or (accept_probability is not None and accept_probability >= threshold)


def order(slack: Column, solo: Column, expected: Column, margin: float, window: float) -> Order:
    """WISP's scheduler: urgent requests by deadline, then by goodput density what makes nobody late.

    Args:
        slack, solo: (Q,) mean batch times to the deadline, and of a batch of the request alone. expected: (Q,) tokens, in any unit.
        margin: on predictions. window: mean batch times before the latest start from which a request is urgent.
    """
    latest = solo * (1.0 + margin)
    leads = slack - latest <= window
    limit = np.where(latest > slack, NO_LIMIT, slack / (1.0 + margin))
    return Order(np.where(leads, slack, -expected / solo), leads, limit)
