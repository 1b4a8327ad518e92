"""The engine's soft roofline as a scikit-learn regression: it is linear but for its knee and its sharpness."""

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from sklearn.utils.validation import check_is_fitted

from estimators.batch_time.regression import BatchTimeRegressor, row_weights, solve

SHARPNESS = (1.0, 16.0)  # 1 adds reading and arithmetic, 16 is a corner: beyond it no batch tells the difference
KNEES = (0.5, 2.0)  # the knee lies between these shares of the fewest and the most new tokens
STARTS = (0.1, 0.3, 0.6)  # of the knee on a logarithmic scale from end to end; the search finds the nearest valley


class SoftRooflineRegressor(BatchTimeRegressor):
    """Batch time as the engine has it: t = launch + (weights^p + (token·Σn)^p)^(1/p) + cached_token·Σc.

    `wisp_gym.engine.verification.batch_time_s` with neither host time nor pairs: both stay in the other terms. Given
    the knee weights/token and the sharpness p, the rest is linear, so a search over those two with a non-negative
    least squares inside finds all five (variable projection, Golub and Pereyra 1973).

    X has the columns of `regression.COLUMNS`: Σn new tokens, Σn·L pairs (not used), Σc cached tokens; further columns
    are linear terms, with coefficients >= 0. y is seconds.

    Args:
        relative: minimise relative errors rather than seconds.
        least_sharpness: of p; below 1 the time may be concave in the new tokens, as on a processor.

    Attributes:
        launch_s_, weights_s_: seconds, >= 0.
        token_s_: seconds per new token, >= 0.
        sharpness_: p, from `least_sharpness` to the upper end of `SHARPNESS`.
        linear_s_: seconds per unit of the third and later columns of X, shape (columns - 2,).
    """

    def __init__(self, relative: bool = True, least_sharpness: float = SHARPNESS[0]) -> None:
        self.relative = relative
        self.least_sharpness = least_sharpness

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Fit to batches X, shape (n, columns), and times y, shape (n,), seconds."""
        batches, seconds = self._checked(X, y)
        weights = row_weights(seconds, sample_weight, self.relative)
        knee_tokens, self.sharpness_ = search(batches, seconds, weights, self.least_sharpness)
        solved = solve(design(batches, knee_tokens, self.sharpness_), seconds, weights, "nnls")
        self.weights_s_, self.linear_s_, self.launch_s_ = float(solved[0]), solved[1:-1], float(solved[-1])
        self.token_s_ = self.weights_s_ / knee_tokens
        return self

    def predict(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return seconds, shape (n,)."""
        batches, p = self._batches(X), self.sharpness_
        new_s = self.token_s_ * np.maximum(batches[:, 0], 0.0)
        longer_s = np.maximum(np.maximum(new_s, self.weights_s_), 1e-300)  # taken out: no power overflows
        roofline_s = longer_s * ((self.weights_s_ / longer_s) ** p + (new_s / longer_s) ** p) ** (1.0 / p)
        return self.launch_s_ + roofline_s + batches[:, 2:] @ self.linear_s_

    def coefficients(self) -> dict[str, float]:
        """Return the five coefficients under the names of `wisp_gym`'s `VerificationTime`, seconds per unit."""
        check_is_fitted(self)
        fitted = {name: getattr(self, f"{name}_") for name in ("launch_s", "weights_s", "token_s", "sharpness")}
        return fitted | {"cached_token_s": float(self.linear_s_[0])}


def design(X: NDArray[np.float64], knee_tokens: float, sharpness: float) -> NDArray[np.float64]:
    """Return (1 + (Σn / knee)^p)^(1/p), X's third and later columns, and a constant, shape (n, columns)."""
    ratio = np.maximum(X[:, 0], 0.0) / knee_tokens
    longer = np.maximum(ratio, 1.0)
    roofline = longer * (longer**-sharpness + (ratio / longer) ** sharpness) ** (1.0 / sharpness)
    return np.column_stack([roofline, X[:, 2:], np.ones(len(X))])


def search(
    X: NDArray[np.float64], y: NDArray[np.float64], weights: NDArray[np.float64], least_sharpness: float
) -> tuple[float, float]:
    """Return knee (tokens) and sharpness with the least weighted squares, by Nelder-Mead on their logarithms."""
    counted = np.maximum(X[weights > 0, 0] if weights.any() else X[:, 0], 1.0)
    ends = np.log([KNEES[0] * counted.min(), KNEES[1] * counted.max()])
    bounds = [tuple(ends), tuple(np.log((least_sharpness, SHARPNESS[1])))]
    scale = max(float(weights @ y**2), 1e-300)

    def misfit(logs: NDArray[np.float64]) -> float:
        columns = design(X, *np.exp(logs))
        return float(weights @ (y - columns @ solve(columns, y, weights, "nnls")) ** 2) / scale

    def descend(first_sharpness: float) -> Any:
        starts = [[ends[0] + share * (ends[1] - ends[0]), np.log(first_sharpness)] for share in STARTS]
        best = min(starts, key=lambda start: misfit(np.array(start)))
        options = {"xatol": 1e-4, "fatol": 1e-10}
        return minimize(misfit, best, method="Nelder-Mead", bounds=bounds, options=options)

    # No way leads from one side of 1 to the other.
    sides = [2.0] if least_sharpness >= 1.0 else [2.0, least_sharpness**0.5]
    found = min((descend(side) for side in sides), key=lambda result: float(result.fun))
    knee_tokens, sharpness = np.exp(found.x)
    return float(knee_tokens), float(sharpness)
