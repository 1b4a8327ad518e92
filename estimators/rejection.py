"""The rejection predictor: closed forms of its operating point, and a classifier trained on sampled statistics.

After each drafted token WISP asks whether it is the first one that the target will reject (arXiv 2601.11652). Its
published operating point, a recall of .801 on accepted tokens at .425 of the rejected ones passed, says in the binormal
model how much the draft model's own output tells:

    evidence x ~ N(+d'/2, 1) if the token is accepted, N(-d'/2, 1) if rejected;  pass where x > t
    recall = Phi(d'/2 - t)    false acceptance = Phi(-d'/2 - t)    d' = z(recall) - z(false)    AUC = Phi(d' / sqrt 2)

(Green and Swets 1966, Signal Detection Theory). The likelihood ratio is exp(d' x): P(accepted | x) = sigmoid(prior +
d' x). The engine shows four statistics, independent views y_k ~ N(+-d_k/2, 1) with d_k^2 = share_k d'^2, whose best sum
is x: the classifiers here must get that much out of them, and no more.

    python -m estimators.rejection --auc 0.768
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from estimators.cli import InputError, Parser, check_writable, run, table, write_json
from wisp_gym.engine.acceptance import VIEW_SHARES

PUBLISHED_RECALL, PUBLISHED_FALSE = 0.801, 0.425  # WISP's MLP: accepted tokens passed, rejected tokens passed
VIEWS = ("confidence", "entropy", "margin", "spread")
PRIOR = 0.7  # accepted share of the samples; ROC figures do not depend on it


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


def sample(tokens: int, d_prime: float, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return statistics, shape (tokens, 4), in the order of `VIEWS`, and fates, shape (tokens,), 1 = accepted.

    The engine bends each view to the usual range of its statistic by an increasing or decreasing function; that changes
    no information, and the classifiers scale their input, so the views themselves serve here.
    """
    accepted = (rng.random(tokens) < PRIOR).astype(np.int64)
    mean = (accepted[:, None] - 0.5) * d_prime * np.sqrt(VIEW_SHARES)
    return mean + rng.standard_normal((tokens, len(VIEWS))), accepted


def classifiers(seed: int) -> dict[str, Pipeline]:
    """Return the classifiers to train, by name: the linear one is already the best possible for normal views."""
    return {
        "logistic": make_pipeline(StandardScaler(), LogisticRegression()),
        "MLP": make_pipeline(
            StandardScaler(),
            MLPClassifier((16, 16), early_stopping=True, max_iter=60, random_state=seed),  # three layers, as WISP's
        ),
    }


def score(model: Pipeline, views: NDArray[np.float64], accepted: NDArray[np.int64], recall: float) -> dict[str, float]:
    """Return AUC and the operating point whose recall on accepted tokens is `recall`, on tokens not trained on."""
    passed = model.predict_proba(views)[:, 1]
    at = np.quantile(passed[accepted == 1], 1.0 - recall)
    return {
        "auc": float(roc_auc_score(accepted, passed)),
        "recall": float((passed[accepted == 1] >= at).mean()),
        "false_acceptance": float((passed[accepted == 0] >= at).mean()),
    }


def closed_form(d_prime: float, recall: float) -> dict[str, float]:
    """Return what no predictor can beat: the binormal figures at this separation and recall."""
    point = point_at(d_prime, threshold(d_prime, recall))
    return {"auc": auc_of(d_prime), "recall": point.recall, "false_acceptance": point.false_acceptance}


def published() -> dict[str, float]:
    """Return WISP's MLP; its AUC is derived by the binormal model."""
    point = OperatingPoint(PUBLISHED_RECALL, PUBLISHED_FALSE)
    return {"auc": point.auc, "recall": point.recall, "false_acceptance": point.false_acceptance}


def parse(arguments: Sequence[str] | None) -> Namespace:
    """Return the flags, checked."""
    derived = OperatingPoint(PUBLISHED_RECALL, PUBLISHED_FALSE).auc
    parser = Parser(
        allow_abbrev=False,
        prog="python -m estimators.rejection",
        description="Rejection predictors against their closed form.",
    )
    parser.add_argument("--auc", type=float, default=derived, help=f"of the statistics (default {derived:.3f}, WISP's)")
    parser.add_argument(
        "--recall", type=float, default=PUBLISHED_RECALL, help="on accepted tokens (default WISP's .801)"
    )
    parser.add_argument("--tokens", type=int, default=40_000, help="to train on, and as many to score (default 40000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE", help="write the scores as a list of rows")
    given = parser.parse_args(arguments)
    if not 0.5 < given.auc < 1.0:
        raise InputError(f"--auc {given.auc:g}: above 0.5 and below 1 is needed")
    if not 0.0 < given.recall < 1.0:
        raise InputError(f"--recall {given.recall:g}: above 0 and below 1 is needed")
    if given.tokens < 1000 or given.seed < 0:
        raise InputError(
            f"--tokens {given.tokens} --seed {given.seed}: at least 1000 tokens and a seed of at least 0 are needed"
        )
    return given


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, score and print beside the published and the best possible figures."""
    given = parse(arguments)
    if given.json:
        check_writable(given.json)
    d_prime, rng = d_prime_of(given.auc), np.random.default_rng(given.seed)
    train, test = sample(given.tokens, d_prime, rng), sample(given.tokens, d_prime, rng)
    rows: list[dict[str, Any]] = [
        {"predictor": "WISP's MLP (published; AUC derived)", **published()},
        {"predictor": "best possible (closed form)", **closed_form(d_prime, given.recall)},
        *(
            {"predictor": name, **score(model.fit(*train), *test, given.recall)}
            for name, model in classifiers(given.seed).items()
        ),
    ]
    for row in rows:
        row["wasted_tokens"] = wasted_tokens(row["false_acceptance"])
    print(f"d' = {d_prime:.3f}, threshold on the evidence {threshold(d_prime, given.recall):+.3f}")
    print(
        table(
            ["predictor", "AUC", "recall", "false acceptance", "wasted tokens"],
            [[row["predictor"], *(f"{row[key]:.3f}" for key in list(row)[1:])] for row in rows],
        )
    )
    if given.json:
        write_json(given.json, rows)


if __name__ == "__main__":
    raise SystemExit(run(main, "python -m estimators.rejection"))
