"""The acceptance process with its loops, fitted to a recorded trace: one state more than published figures can tell.

Eight or nine parameters by Nelder-Mead, and the shortest period of loops by trying 1 and the one with which fates recur: periods
are whole tokens. Where no loops fit better, the process is the one without them.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, logit
from tqdm import tqdm

from estimators.acceptance.process import BLOCK_TOKENS, Process

NEARLY = 0.8  # of the largest correlation: the first lag that reaches it is the period with which fates recur
STAYS = (np.inf, 32.0)  # tokens in a loop where the search starts: a model that repeats itself, a copy
LEAST, MOST = 1e-5, 0.5  # chances of entering and leaving
RESTARTS, GAIN = 4, 0.01
NO_LOOPS = -9.0  # log odds of entering at which nothing enters
FIRST_STEP = np.array([0.4, 0.7, 0.7, 0.7, 0.5, 1.0, 1.0, 0.7, 1.0])


@dataclass(frozen=True)
class LoopProcess(Process):
    """`Process` and its loops, under the names of `wisp_gym`'s `Acceptance`; the token after a rejected one may be easier."""

    loop_enter: float = 0.01
    loop_leave: float = 0.0
    loop_whole: float = 0.5
    loop_period_tokens: int = 1
    loop_more_tokens: float = 0.5


def to_free(process: LoopProcess) -> NDArray[np.float64]:
    """Return the parameters but the period on the whole real line, shape (9,)."""
    spreads = [process.request_std, process.drift_std, process.drift_tokens]
    chances = [process.loop_enter, process.loop_whole, process.loop_leave]
    enter, whole, leave = logit(np.clip(chances, LEAST, 1.0 - LEAST))
    more = np.log(max(process.loop_more_tokens, 1e-3))
    return np.array(
        [
            process.logit_mean,
            *np.log(np.maximum(spreads, 1e-3)),
            process.after_rejection_logit,
            enter,
            whole,
            more,
            leave,
        ]
    )


def from_free(free: NDArray[np.float64], period_tokens: int) -> LoopProcess:
    """Return the process of `to_free`'s vector: spreads at most 5 logits, drift lengths within 8..500 tokens."""
    request_std, drift_std, drift_tokens, more = (
        float(value) for value in np.exp(np.clip(free[[1, 2, 3, 7]], -6.9, 6.3))
    )
    enter, whole, leave = (float(value) for value in expit(free[[5, 6, 8]]))
    return LoopProcess(
        float(np.clip(free[0], -8.0, 8.0)), min(request_std, 5.0), min(drift_std, 5.0), min(max(drift_tokens, float(BLOCK_TOKENS)), 500.0),
        float(np.clip(free[4], -5.0, 5.0)), 0.0 if free[5] < NO_LOOPS else min(enter, MOST), 0.0 if leave <= LEAST else min(leave, MOST),
        whole, period_tokens, min(more, 20.0),
    )  # fmt: skip


def search(
    cost: Callable[[LoopProcess], float], start: LoopProcess, iterations: int, leaves: bool
) -> tuple[float, LoopProcess]:
    """Return cost and process at the end of one Nelder-Mead; loops without an end keep none unless they `leave`."""
    origin, period = to_free(start), start.loop_period_tokens
    n = len(origin) - (0 if leaves else 1)
    steps = np.vstack([np.zeros(n), np.diag(FIRST_STEP[:n])])

    def process(values: NDArray[np.float64]) -> LoopProcess:
        return from_free(np.concatenate([values, origin[n:]]), period)

    options = {"maxiter": iterations, "xatol": 5e-3, "fatol": 5e-3, "initial_simplex": origin[:n] + steps}
    found = minimize(lambda values: cost(process(values)), origin[:n], method="Nelder-Mead", options=options)
    return float(found.fun), process(found.x)


def recurrence_tokens(correlations: NDArray[np.float64]) -> int:
    """Return the first lag, from 1, whose correlation nearly reaches the largest."""
    return int(np.argmax(correlations >= NEARLY * correlations.max())) + 1


def search_from(
    cost: Callable[[LoopProcess], float], plain: Process, period_tokens: int, iterations: int
) -> LoopProcess:
    """Return the process with the least cost: of the fit without loops, and of loops with a period of 1 and of `period_tokens`.

    Each period is begun with and without an end of loops.
    """
    begun = LoopProcess(**vars(plain))
    none = replace(begun, loop_enter=0.0)
    easier = replace(
        begun, logit_mean=begun.logit_mean - 0.4, request_std=0.4, drift_std=0.3, after_rejection_logit=-0.3
    )
    periods = sorted({1, period_tokens})
    starts = [replace(easier, loop_period_tokens=period, loop_leave=1.0 / stay) for period in periods for stay in STAYS]
    ends = [(cost(none), none, False)]
    for start in tqdm(starts, desc="loops", unit="start", leave=False, disable=None):
        ends.append((*search(cost, start, iterations // 3, leaves := start.loop_leave > 0.0), leaves))
    _, best, leaves = min(ends, key=lambda end: end[0])
    if best.loop_enter == 0.0:
        return best
    return restarted(cost, search(cost, best, iterations, leaves), iterations)


def restarted(cost: Callable[[LoopProcess], float], found: tuple[float, LoopProcess], iterations: int) -> LoopProcess:
    """Return the end of searches begun again where the last one stopped, until one gains less than `GAIN` of the cost.

    A simplex that has shrunk in a valley stops short of its end; a new one, now with an end of loops, goes on.
    """
    least, best = found
    for _ in range(RESTARTS):
        reached, there = search(cost, best, iterations, True)
        if reached > (1.0 - GAIN) * least:
            break
        least, best = reached, there
    return best
