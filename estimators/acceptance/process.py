"""The engine's acceptance process: its parameters, the search for them, and answers drawn by the engine's own code."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numba
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from tqdm import tqdm

from wisp_gym.controllers.resolve import resolve
from wisp_gym.engine import draws
from wisp_gym.engine.acceptance import DRIFT_BLOCK_TOKENS, begin_walk, draft_token
from wisp_gym.engine.worlds import Worlds
from wisp_gym.scenario import load, with_

BLOCK_TOKENS = DRIFT_BLOCK_TOKENS
SCENARIO = "wisp-a100-qwen3-32b"  # lends the engine's records; acceptance and statistics are replaced


@dataclass(frozen=True)
class Process:
    """Parameters of the acceptance process; the defaults are where the fit starts.

    Attributes:
        logit_mean: logit of acceptance of an average token after an accepted one.
        request_std: standard deviation of the response's effect, in logits, >= 0.
        drift_std: standard deviation of the slow drift along a response, in logits, >= 0.
        drift_tokens: correlation length of the drift in tokens, > 0.
        after_rejection_logit: how much harder the token after a rejected one is, in logits, >= 0.
    """

    logit_mean: float = 1.0
    request_std: float = 0.5
    drift_std: float = 0.7
    drift_tokens: float = 40.0
    after_rejection_logit: float = 0.3


START = Process()
# Nelder-Mead finds the nearest valley: start in three, where responses, drift or rejections carry the differences.
STARTS = (START, Process(1.5, 1.0, 0.4, 100.0, 0.05), Process(1.2, 0.2, 1.2, 25.0, 0.02))
# A source that seldom begins right and then goes on for long, such as a search in the text, lies in a valley of its own.
RARE = Process(0.3, 0.2, 0.3, 30.0, 2.8)
FIRST_STEP = np.array([0.4, 0.7, 0.7, 0.7, 1.0])  # of the free parameters


def to_free(process: Process) -> NDArray[np.float64]:
    """Return the parameters on the whole real line: logarithms of all but the mean, shape (5,)."""
    return np.array([process.logit_mean, *np.log([max(value, 1e-3) for value in list(asdict(process).values())[1:]])])


def from_free(free: NDArray[np.float64]) -> Process:
    """Return the process of `to_free`'s vector: spreads at most 5 logits, drift lengths within 8..500 tokens."""
    request_std, drift_std, drift_tokens, after = (float(value) for value in np.exp(np.clip(free[1:], -6.9, 6.3)))
    length = min(max(drift_tokens, float(BLOCK_TOKENS)), 500.0)
    return Process(float(free[0]), min(request_std, 5.0), min(drift_std, 5.0), length, min(after, 5.0))


def search(cost: Callable[[Process], float], start: Process, iterations: int, free: int = 5) -> tuple[float, Process]:
    """Return cost and process at the end of one Nelder-Mead from `start`; the first `free` parameters move."""
    origin = to_free(start)
    steps = np.vstack([np.zeros(free), np.diag(FIRST_STEP[:free])])

    def process(values: NDArray[np.float64]) -> Process:
        return from_free(np.concatenate([values, origin[free:]]))

    options = {"maxiter": iterations, "xatol": 5e-3, "fatol": 5e-3, "initial_simplex": origin[:free] + steps}
    found = minimize(lambda values: cost(process(values)), origin[:free], method="Nelder-Mead", options=options)
    return float(found.fun), process(found.x)


def search_from_all(
    cost: Callable[[Process], float], what: str, iterations: int = 150, starts: Sequence[Process] = STARTS
) -> Process:
    """Return the process with the least cost: searches from `starts`, then once more from the best of them."""
    bar = tqdm(starts, desc=what, unit="start", leave=False, disable=None)
    ends = [search(cost, start, iterations) for start in bar]
    return search(cost, min(ends, key=lambda end: end[0])[1], iterations)[1]


def answers(
    process: Process, auc: float, requests: int, positions: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return fates (1 = accepted) of the token at each position, and the evidence about it, shape (requests, positions).

    The engine draws both. Equal seeds give equal luck, whatever the parameters.
    """
    changes = {f"draft.acceptance.{name}": value for name, value in asdict(process).items()}
    scenario = with_(load(SCENARIO), n_devices=1, **changes, **{"draft.statistics.auc": auc})
    worlds = Worlds(1, 1, threads=1)
    worlds.fill(0, scenario, seed, resolve("fixed:1+fcfs", scenario))
    return _drafted(worlds.arrays.config[0], worlds.arrays.device[0], requests, positions)


@numba.njit
def _drafted(config, device, n_requests, n_positions):
    """One token drafted at each position of each request."""
    c, d = config[0], device[0]
    fates = np.empty((n_requests, n_positions), np.int64)
    evidence = np.empty((n_requests, n_positions))
    for request in range(n_requests):
        d.acceptance_key = draws.stream_key(c.seed, draws.ACCEPTANCE, 0, request)
        d.evidence_key = draws.stream_key(c.seed, draws.EVIDENCE, 0, request)
        d.drift_key = draws.stream_key(c.seed, draws.DRIFT, 0, request)
        d.loop_key = draws.stream_key(c.seed, draws.LOOPS, 0, request)
        begin_walk(c, d, draws.stream_key(c.seed, draws.REQUEST_EFFECT, 0, request))
        for n in range(n_positions):
            d.drafted, d.on_path = 0, 1
            draft_token(c, d)
            fates[request, n], evidence[request, n] = d.fate, d.evidence
    return fates, evidence
