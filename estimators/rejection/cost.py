"""How long one prediction for one token takes: in scikit-learn, in the engine's compiled network, in onnxruntime."""

import time
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from wisp_gym.rules.mlp import logits
from wisp_gym.rules.rejection_predictor import Predictor

ENGINE_TOKENS = 1000  # predictions of one timed call of compiled code, so that the call itself does not count


def median_s(call: Callable[[], Any], seconds: float = 0.1) -> float:
    """Return the median time of a call, repeated for about `seconds` and at least five times, after one that warms up."""
    call()
    times: list[float] = []
    while len(times) < 5 or sum(times) < seconds:
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return float(np.median(times))


@numba.njit
def predict_all(weights: NDArray[np.float32], statistics: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the log odds of each row, one at a time as the engine does, shape (n,)."""
    found, out = np.empty(len(statistics), np.float32), np.empty(1, np.float32)
    for n in range(len(statistics)):
        logits(weights, statistics[n], out)
        found[n] = out[0]
    return found


def exported_s(predictor: Predictor, onnx_bytes: bytes, row: NDArray[np.float64]) -> dict[str, float]:
    """Return the times of the exported network: in the engine, and in onnxruntime on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(onnx_bytes, options, providers=["CPUExecutionProvider"])
    one = row.astype(np.float32)
    many = np.repeat(one, ENGINE_TOKENS, axis=0)
    return {
        "engine": median_s(lambda: predict_all(predictor.weights, many)) / ENGINE_TOKENS,
        "onnxruntime": median_s(lambda: session.run(None, {"statistics": one})),
    }
