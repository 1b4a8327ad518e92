"""The rejection predictor: its published operating point, and closed forms of what any predictor can reach.

After each drafted token WISP asks whether it is the first one that the target will reject (arXiv 2601.11652). Its
published operating point, a recall of .801 on accepted tokens at .425 of the rejected ones passed, says in the binormal
model how much the draft model's own output tells:

    evidence x ~ N(+d'/2, 1) if the token is accepted, N(-d'/2, 1) if rejected;  pass where x > t
    recall = Phi(d'/2 - t)    false acceptance = Phi(-d'/2 - t)    d' = z(recall) - z(false)    AUC = Phi(d' / sqrt 2)

(Green and Swets 1966, Signal Detection Theory). `python -m estimators.rejection` trains predictors on recorded traces.
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

PUBLISHED_RECALL, PUBLISHED_FALSE = 0.801, 0.425  # WISP's MLP: accepted tokens passed, rejected tokens passed
PUBLISHED_TREES = ((0.80, 0.93), (0.86, 0.94))  # ends of WISP's range for its trees: false acceptance, recall


@dataclass(frozen=True)
class OperatingPoint:
    """Where a predictor of separation `d_prime` passes tokens.

    Attributes:
        recall: share of accepted tokens passed, in (0, 1).
        false_acceptance: share of rejected tokens passed ("reject-class FPR"), in (0, 1).
    """

    recall: float
    false_acceptance: float

    @property
    def d_prime(self) -> float:
        """Distance of the two normals in standard deviations: z(recall) - z(false acceptance)."""
        return float(norm.ppf(self.recall) - norm.ppf(self.false_acceptance))

    @property
    def auc(self) -> float:
        """Area under the ROC curve that runs through this point."""
        return auc_of(self.d_prime)


def auc_of(d_prime: float) -> float:
    """Return Phi(d' / sqrt 2), in (0, 1)."""
    return float(norm.cdf(d_prime / np.sqrt(2.0)))


def d_prime_of(auc: float) -> float:
    """Return sqrt 2 · z(AUC) for an AUC in [0.5, 1).

    Raises:
        ValueError: the AUC is out of range.
    """
    if not 0.5 <= auc < 1.0:
        raise ValueError(f"AUC {auc}: at least 0.5 and below 1 is allowed")
    return float(np.sqrt(2.0) * norm.ppf(auc))


def threshold(d_prime: float, recall: float) -> float:
    """Return the evidence above which tokens must be passed to keep `recall` of the accepted ones: d'/2 - z(recall)."""
    return float(d_prime / 2.0 - norm.ppf(recall))


def point_at(d_prime: float, evidence: float) -> OperatingPoint:
    """Return the operating point of passing tokens whose evidence is above `evidence`."""
    return OperatingPoint(float(norm.cdf(d_prime / 2 - evidence)), float(norm.cdf(-d_prime / 2 - evidence)))


def wasted_tokens(false_acceptance: float, cap: int | None = None) -> float:
    """Return expected tokens drafted beyond the first rejected one: f/(1 - f), or f(1 - f^cap)/(1 - f) under a cap.

    The flagged token is the last; token j beyond the rejection is drafted when j tokens in a row were wrongly passed.

    Raises:
        ValueError: `false_acceptance` is not in [0, 1).
    """
    f = false_acceptance
    if not 0.0 <= f < 1.0:
        raise ValueError(f"false acceptance {f}: at least 0 and below 1 is allowed")
    return f / (1.0 - f) * (1.0 if cap is None else 1.0 - f**cap)


def closed_form(d_prime: float, recall: float) -> dict[str, float]:
    """Return what no predictor can beat: the binormal figures at this separation and recall."""
    point = point_at(d_prime, threshold(d_prime, recall))
    return {"auc": auc_of(d_prime), "recall": point.recall, "false_acceptance": point.false_acceptance}


def published() -> dict[str, float]:
    """Return WISP's MLP; its AUC is derived by the binormal model."""
    point = OperatingPoint(PUBLISHED_RECALL, PUBLISHED_FALSE)
    return {"auc": point.auc, "recall": point.recall, "false_acceptance": point.false_acceptance}
