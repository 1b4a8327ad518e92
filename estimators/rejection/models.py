"""Rejection predictors: WISP's kinds of classifier, calibrated, and the MLP as plain layers.

WISP compares a 3-layer MLP with XGBoost, LightGBM and a random forest (arXiv 2601.11652). Here gradient boosting is
scikit-learn's histogram-based one, which stands in for XGBoost and LightGBM, and a logistic regression shows what a
straight line does.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from estimators.rejection.tokens import Tokens

MLP = "MLP (16, 16)"
WIDTHS = (16, 16)  # three layers of weights as WISP's, whose widths are not published; 64 scored no better, 4x the cost
EPOCHS = 100
SMALLEST_LEAF = 20  # tokens; neighbouring rows repeat each other, so a leaf of few rows would learn one token by heart
MAX_SEED = 2**32 - 1  # scikit-learn's
SURE = 1e-6  # a classifier's probability is never nearer to 0 or 1, so that its log odds are finite

Layers = list[tuple[NDArray[Any], NDArray[Any]]]


def classifiers(seed: int) -> dict[str, Any]:
    """Return the classifiers to train, by name."""
    return {
        MLP: make_pipeline(StandardScaler(), MLPClassifier(WIDTHS, max_iter=EPOCHS, random_state=seed)),
        "random forest": RandomForestClassifier(100, min_samples_leaf=SMALLEST_LEAF, random_state=seed),
        # Stopping early would hold out rows, not prompts.
        "gradient boosting": HistGradientBoostingClassifier(
            min_samples_leaf=SMALLEST_LEAF, early_stopping=False, random_state=seed
        ),
        "logistic": make_pipeline(StandardScaler(), LogisticRegression()),
    }


@dataclass(frozen=True)
class Trained:
    """A trained classifier with its Platt scaling: log odds of acceptance = slope · its log odds + offset."""

    model: Any
    slope: float
    offset: float

    def probability(self, statistics: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the calibrated probability of acceptance, shape (n,)."""
        return 1.0 / (1.0 + np.exp(-(self.slope * log_odds(self.model, statistics) + self.offset)))


def train(model: Any, rows: Tokens, check: Tokens) -> Trained:
    """Fit a classifier on `rows` and its scaling on `check` (Platt 1999), on one thread, so that the sums repeat."""
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the epochs are a budget
        model.fit(rows.statistics, rows.accepted)
        scaling = LogisticRegression(C=np.inf).fit(log_odds(model, check.statistics)[:, None], check.accepted)
    return Trained(model, float(scaling.coef_[0, 0]), float(scaling.intercept_[0]))


def log_odds(model: Any, statistics: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the classifier's own log odds of acceptance, shape (n,)."""
    p = np.clip(model.predict_proba(statistics)[:, 1], SURE, 1.0 - SURE)
    return np.log(p / (1.0 - p))


def isotonic(model: Any, check: Tokens) -> IsotonicRegression:
    """Return the increasing step function from the classifier's log odds to acceptance: Platt's rival."""
    return IsotonicRegression(out_of_bounds="clip").fit(log_odds(model, check.statistics), check.accepted)


def layers(trained: Trained) -> Layers:
    """Return the MLP as float32 (W, b) of each layer, W (out, in), from raw statistics to calibrated log odds.

    Standardisation goes into the first layer, W (x − m)/s + b = (W/s) x + (b − W m/s), Platt's scaling into the last.
    """
    pipeline: Pipeline = trained.model
    scaler, network = pipeline[0], pipeline[-1]
    found: Layers = [(w.T, b) for w, b in zip(network.coefs_, network.intercepts_, strict=True)]
    w, b = found[0]
    found[0] = (w / scaler.scale_, b - w @ (scaler.mean_ / scaler.scale_))
    w, b = found[-1]
    found[-1] = (trained.slope * w, trained.slope * b + trained.offset)
    return [(w.astype(np.float32), b.astype(np.float32)) for w, b in found]
