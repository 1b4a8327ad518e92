"""What training takes for the loss of others (`agents.training.fleet`), before its factor, where a world stands."""

import numpy as np

from wisp_gym.engine.state import World
from wisp_gym.engine.verification import marginal_s


def token_s(arrays: World, context: float) -> float:
    """Time, in s, that one more drafted token adds to the batch that runs, or to the last one where none does.

    The engine itself keeps it only for a learner's log, so it is reckoned anew. `context`: tokens before it.
    """
    c, s = arrays.config[0, 0], arrays.server[0, 0]
    batch_s = marginal_s(float(c["weights_s"]), float(c["token_s"]), float(c["sharpness"]), float(s["sum_new"]))
    return float(batch_s) + float(c["host_token_s"]) + float(c["pair_s"]) * context


def tokens_per_s(arrays: World) -> float:
    """Tokens that the others lose with each second of the server's time."""
    c, s = arrays.config[0, 0], arrays.server[0, 0]
    return float(s["token_rate"]) * float(s["utilisation"]) * waiting_share(arrays.totals[0, 0], c, s)


def waiting_share(totals: np.void, c: np.void, s: np.void) -> float:
    """Share of their rounds' time in which devices do not draft, in the window so far."""
    elapsed_s = float(s["now_s"] - c["warmup_s"]) * float(c["n_devices"])
    rounds_s = min(float(totals["round_latency_s"]), elapsed_s)
    return 1.0 - min(float(totals["draft_s"]) / rounds_s, 1.0) if rounds_s > 0.0 else 0.0
