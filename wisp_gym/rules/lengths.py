"""Lengths in closed form: how many tokens to draft in a round, decided before the first, from running averages.

All take the acceptances as independent with the device's running share α, as their papers do, and times in units of the
mean batch time T, in which verification itself takes 1.

Legend: `parameters` (8,) float64 of the rule; `o` (SIZE,) float32 observation; `alpha` acceptance in (0, 1); `k`
length in tokens, at most `k_max`; `draft` time of one drafted token and `fixed` time of a round besides, in T.
"""

from wisp_gym.contract.device import ACCEPTANCE_AVERAGE, DRAFT_TIME, ONE_WAY_DELAY, UTILISATION
from wisp_gym.jit import jit

ALPHA_LOW, ALPHA_HIGH = 0.01, 0.999  # keeps powers and quotients finite


@jit
def acceptance(o):
    """The device's running share of accepted tokens, within (0, 1)."""
    return min(max(float(o[ACCEPTANCE_AVERAGE]), ALPHA_LOW), ALPHA_HIGH)


@jit
def expected_tokens(alpha, k):
    """Tokens that a round of k drafts commits: `(1 − α^(k+1))/(1 − α)` (arXiv 2211.17192)."""
    return (1.0 - alpha ** (k + 1)) / (1.0 - alpha)


@jit
def best_length(alpha, draft, fixed, k_max):
    """The k ≤ k_max that maximises `E[N(k)] / (k·draft + fixed)`; the smallest of equals."""
    best, best_rate = 0, 0.0
    for k in range(int(k_max) + 1):
        rate = expected_tokens(alpha, k) / (k * draft + fixed)
        if rate > best_rate:
            best, best_rate = k, rate
    return best


@jit
def leviathan_length(parameters, max_draft_tokens, o):
    """Length in tokens. Leviathan et al. (arXiv 2211.17192) at the edge: `argmax E[N(k)] / (k/v + RTT + wait + verification)`.

    Parameters: w, k_max. The wait for the running batch is w·utilisation of a mean batch (1/2: its mean remaining time on
    a random arrival). What the device's own tokens add to a batch is left out: it is not told the server's coefficients.
    """
    fixed = 1.0 + 2.0 * o[ONE_WAY_DELAY] + parameters[0] * o[UTILISATION]
    return best_length(acceptance(o), float(o[DRAFT_TIME]), fixed, min(parameters[1], max_draft_tokens))


@jit
def ratio_optimal(alpha, draft, fixed, k_max):
    """`min{k : td·[(α^−(k+1) − 1)/(1 − α) − k] ≥ tv + D}` (arXiv 2606.20591), at most k_max."""
    k = 0
    while k < k_max and draft * ((alpha ** -(k + 1) - 1.0) / (1.0 - alpha) - k) < fixed:
        k += 1
    return k


@jit
def ratio_length(parameters, max_draft_tokens, o):
    """Length in tokens. Ratio-optimal stopping of UCB-SpecStop's paper (arXiv 2606.20591), with one user's costs: no wait for a batch.

    Parameters: k_max. td is the drafting time of a token, tv a mean batch, D the round trip. Where the cost is linear in k it
    is Leviathan's maximum found without a search.
    """
    fixed = 1.0 + 2.0 * o[ONE_WAY_DELAY]
    return ratio_optimal(acceptance(o), float(o[DRAFT_TIME]), fixed, min(parameters[0], max_draft_tokens))
