"""Two scikit-learn regressions of batch time: WISP's four terms, and a convex one with a safety margin."""

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import nnls
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.model_selection import GroupKFold
from sklearn.utils import Tags
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

METHODS = ("nnls", "ols")
COLUMNS = ("new_tokens", "pairs", "cached_tokens")  # the order of X's columns


class BatchTimeRegressor(RegressorMixin, BaseEstimator):
    """What regressions of batch time share: how they check what they are given."""

    def _checked(self, X: ArrayLike, y: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return X, shape (n, columns), and y, shape (n,), as finite floats; scikit-learn's errors where they are not."""
        batches, seconds = validate_data(self, X, y, y_numeric=True, dtype=np.float64)
        return batches, np.asarray(seconds, dtype=np.float64)

    def _batches(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return X, shape (n, columns), of a fitted model, as finite floats; scikit-learn's errors where it is not."""
        check_is_fitted(self)
        batches: NDArray[np.float64] = validate_data(self, X, reset=False, dtype=np.float64)
        return batches

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.regressor_tags.poor_score = True  # data that fall with a column, or cross zero, cannot be fitted
        return tags


def row_weights(y: NDArray[np.float64], sample_weight: ArrayLike | None, relative: bool) -> NDArray[np.float64]:
    """Return the weight of each row in a sum of squares, shape (n,): relative errors divide by the time squared."""
    weights = _check_sample_weight(sample_weight, y, dtype=np.float64, ensure_non_negative=True)
    if relative:
        typical = np.average(np.abs(y), weights=weights) if weights.any() else 1.0
        weights = weights / np.maximum(np.abs(y), 0.01 * max(typical, 1e-12)) ** 2  # a floor, for times near zero
    return weights


def solve(
    design: NDArray[np.float64], y: NDArray[np.float64], weights: NDArray[np.float64], method: str
) -> NDArray[np.float64]:
    """Return the weighted least-squares coefficients, shape (columns,), with columns scaled to unit size on the way.

    Raises:
        ValueError: `method` is not one of `METHODS`.
    """
    if method not in METHODS:
        raise ValueError(f"method {method!r} is unknown (one of: {', '.join(METHODS)})")
    root = np.sqrt(weights / max(weights.max(), 1e-300))
    rows = design * root[:, None]
    size = np.linalg.norm(rows, axis=0)  # pairs are a thousand times the tokens: unscaled, the solve loses digits
    scale = np.where(size > 0, size, 1.0)
    if method == "nnls":
        return nnls(rows / scale, y * root)[0] / scale
    return np.linalg.lstsq(rows / scale, y * root, rcond=None)[0] / scale


class WispRegressor(BatchTimeRegressor):
    """Batch time in WISP's four terms: T(B) = α Σ n_i + β Σ n_i·L_i + γ Σ c_i + δ (arXiv 2601.11652).

    X has the columns of `COLUMNS`, shape (batches, 3): Σ n_i new tokens; Σ n_i·L_i pairs, L_i = cached + new tokens of
    request i; Σ c_i cached tokens. y is seconds, shape (batches,). Any other number of columns is fitted alike.

    Args:
        method: "nnls": no coefficient below zero (no term makes a batch faster), or "ols": ordinary least squares.
        relative: minimise relative errors rather than seconds; a deadline of 40 ms cares for 4 ms, one of 400 does not.

    Attributes:
        coef_: seconds per unit of each column, shape (3,).
        intercept_: launch, seconds.
    """

    def __init__(self, method: str = "nnls", relative: bool = True) -> None:
        self.method = method
        self.relative = relative

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Fit to batches X, shape (n, columns), and times y, shape (n,), seconds."""
        batches, seconds = self._checked(X, y)
        design = np.column_stack([batches, np.ones(len(batches))])
        solved = solve(design, seconds, row_weights(seconds, sample_weight, self.relative), self.method)
        self.coef_, self.intercept_ = solved[:-1], float(solved[-1])
        return self

    def predict(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return seconds, shape (n,)."""
        return self._batches(X) @ self.coef_ + self.intercept_

    def coefficients(self) -> dict[str, float]:
        """Return the four terms under the names of `wisp_gym`'s `Estimator`, seconds per unit."""
        check_is_fitted(self)
        terms = ("new_token_s", "pair_s", "cached_token_s")
        return {"launch_s": self.intercept_} | dict(zip(terms, self.coef_.tolist(), strict=True))


class ConvexRegressor(BatchTimeRegressor):
    """Batch time that is convex in the new tokens, with an upper prediction that holds with a stated probability.

    WISP's terms plus hinges max(0, Σ n_i − knot): with coefficients of at least zero the time is flat while the weights
    are being read and rises where arithmetic takes over, as a roofline does, and it goes on straight beyond the data
    (trees would go flat there: an under-prediction just where it hurts). The margin is split-conformal over folds
    (Vovk 2015, cross-conformal predictors): a quantile of measured / predicted on batches left out. Batches with the
    same X stay in one fold, else repeats of a configuration would vouch for themselves.

    Args:
        quantile: probability that a batch takes at most `predict_upper`, in (0, 1).
        n_knots: hinges at quantiles of the distinct values of X's first column, >= 1.
        relative: as in `WispRegressor`.

    Attributes:
        knots_: tokens, shape (n_knots,).
        coef_: seconds per unit of X's columns, then of the hinges.
        intercept_: seconds.
        margin_: factor on the prediction, >= 1.
    """

    def __init__(self, quantile: float = 0.95, n_knots: int = 8, relative: bool = True) -> None:
        self.quantile = quantile
        self.n_knots = n_knots
        self.relative = relative

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Fit to batches X, shape (n, columns), and times y, shape (n,), seconds."""
        if not 0.0 < self.quantile < 1.0:
            raise ValueError(f"quantile {self.quantile}: it must lie between 0 and 1, both excluded")
        batches, seconds = self._checked(X, y)
        weights = row_weights(seconds, sample_weight, self.relative)
        levels = np.linspace(0.0, 1.0, self.n_knots + 2)[1:-1]
        counted = batches[weights > 0] if weights.any() else batches
        self.knots_ = np.quantile(np.unique(counted[:, 0]), levels)
        solved = solve(self._design(batches), seconds, weights, "nnls")
        self.coef_, self.intercept_ = solved[:-1], float(solved[-1])
        self.margin_ = self._conformal_margin(batches, seconds, weights)
        return self

    def predict(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the expected seconds, shape (n,)."""
        return self._design(self._batches(X)) @ np.append(self.coef_, self.intercept_)

    def predict_upper(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return seconds that a batch stays under with probability `quantile`, shape (n,)."""
        return self.predict(X) * self.margin_

    def _design(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return X with its hinges and a constant, shape (n, columns + n_knots + 1)."""
        hinges = np.maximum(0.0, X[:, :1] - self.knots_)
        return np.column_stack([X, hinges, np.ones(len(X))])

    def _conformal_margin(self, X: NDArray[np.float64], y: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
        """Return the conformal quantile of measured / predicted over folds, at least 1."""
        configuration = np.unique(X, axis=0, return_inverse=True)[1]
        folds = min(10, int(configuration.max()) + 1)
        if folds < 2:
            return 1.0
        ratios = []
        for kept, left in GroupKFold(folds).split(X, y, configuration):
            solved = solve(self._design(X[kept]), y[kept], weights[kept], "nnls")
            predicted = self._design(X[left]) @ solved
            ratios.append(y[left] / np.where(predicted > 0, predicted, np.inf))
        return max(1.0, upper_quantile(np.concatenate(ratios), self.quantile))


def upper_quantile(values: NDArray[np.float64], quantile: float) -> float:
    """Return the conformal quantile: the ceil((n + 1)·quantile)-th smallest of n values, or the largest."""
    rank = int(np.ceil((len(values) + 1) * quantile))
    return float(np.sort(values)[min(rank, len(values)) - 1])


def scores(measured: NDArray[np.float64], predicted: NDArray[np.float64]) -> dict[str, Any]:
    """Return R², mean absolute error (ms) and mean absolute percentage error of two (n,) arrays in seconds."""
    error = predicted - measured
    return {
        "r2": float(1.0 - (error**2).sum() / ((measured - measured.mean()) ** 2).sum()),
        "mae_ms": float(1e3 * np.abs(error).mean()),
        "mape_percent": float(100.0 * np.abs(error / measured).mean()),
    }
