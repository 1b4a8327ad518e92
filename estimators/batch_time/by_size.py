"""Batch time in WISP's four terms and a level for each size of batch, for engines whose time jumps with the size."""

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted

from estimators.batch_time.regression import BatchTimeRegressor, row_weights, solve
from wisp_gym.scenario.parts import MAX_SIZES


class SizeRegressor(BatchTimeRegressor):
    """WISP's terms, and what batches of each number of new tokens take beyond them: T(B) = α Σn + β Σ n·L + γ Σc + δ + λ(Σn).

    λ >= 0 has a level at each size that the profile holds, straight lines between them, the first level below and λ in proportion
    to the tokens above: beyond the largest batch arithmetic binds. Matrix products are chosen by size and graphs captured by
    size, so the time of a real engine rises and falls from one size to the next; no smooth form follows that. A small penalty on
    the levels leaves to the terms what these can say.

    X has the columns of `regression.COLUMNS`, shape (batches, 3), Σn first; further columns are linear terms. y is seconds.

    Args:
        n_sizes: most levels, at quantiles of the sizes where there are more, >= 2; the engine keeps 64.
        shrink: levels of this share of the mean time cost as much as relative errors of that share, >= 0.
        relative: as in `regression.WispRegressor`.

    Attributes:
        coef_: seconds per unit of each column, shape (columns,), >= 0.
        intercept_: launch, seconds, >= 0.
        sizes_: new tokens of the levels, shape (sizes,), rising.
        levels_s_: λ at each of them, seconds, shape (sizes,), >= 0.
    """

    def __init__(self, n_sizes: int = MAX_SIZES, shrink: float = 0.01, relative: bool = True) -> None:
        self.n_sizes = n_sizes
        self.shrink = shrink
        self.relative = relative

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Fit to batches X, shape (n, columns), and times y, shape (n,), seconds."""
        batches, seconds = self._checked(X, y)
        weights = row_weights(seconds, sample_weight, self.relative)
        counted = batches[weights > 0, 0] if weights.any() else batches[:, 0]
        self.sizes_ = chosen(np.unique(counted), self.n_sizes)
        n, columns = len(self.sizes_), batches.shape[1]
        penalty = np.eye(n, n + columns + 1, columns)
        design = np.vstack([self._design(batches), penalty])
        cost = np.full(n, self.shrink**2 * weights.sum() / n)
        solved = solve(design, np.append(seconds, np.zeros(n)), np.append(weights, cost), "nnls")
        self.coef_, self.levels_s_, self.intercept_ = solved[:columns], solved[columns:-1], float(solved[-1])
        return self

    def predict(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return seconds, shape (n,)."""
        return self._design(self._batches(X)) @ np.concatenate([self.coef_, self.levels_s_, [self.intercept_]])

    def coefficients(self) -> dict[str, Any]:
        """Return the fit under the names of `wisp_gym`'s `Estimator`: seconds per unit, and levels by size."""
        check_is_fitted(self)
        terms = ("new_token_s", "pair_s", "cached_token_s")
        levels = zip(self.sizes_.tolist(), self.levels_s_.tolist(), strict=True)
        sizes = [{"tokens": round(tokens), "add_s": level_s} for tokens, level_s in levels]
        return {"launch_s": self.intercept_, **dict(zip(terms, self.coef_.tolist(), strict=True)), "sizes": sizes}

    def _design(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return X, each level's share of λ, and a constant, shape (n, columns + sizes + 1)."""
        shares = np.column_stack([np.interp(X[:, 0], self.sizes_, one) for one in np.eye(len(self.sizes_))])
        if self.sizes_[-1] > 0:
            shares[:, -1] *= np.maximum(X[:, 0] / self.sizes_[-1], 1.0)
        return np.column_stack([X, shares, np.ones(len(X))])


def chosen(sizes: NDArray[np.float64], most: int) -> NDArray[np.float64]:
    """Return the sizes that get a level, shape (at most `most`,): all, or quantiles with both ends."""
    if len(sizes) <= most:
        return sizes
    return np.unique(np.quantile(sizes, np.linspace(0.0, 1.0, most), method="nearest"))
