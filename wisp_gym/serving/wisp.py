"""WISP's heuristics in plain Python: what decides when a policy's inputs cannot be used (arXiv 2601.11652)."""

from __future__ import annotations


def drafts_on(drafted: int, accept_probability: float | None, threshold: float) -> bool:
    """WISP's device rule: draft on until the predictor takes the last token for rejected.

    Args:
        drafted: tokens of this round. accept_probability: of the last token, None where nothing is known of it.
        threshold: acceptance probability below which it stops, 0 to 1.
    """
    if drafted == 0:
        return True
    return accept_probability is not None and accept_probability >= threshold
