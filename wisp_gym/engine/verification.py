"""Time of one verification batch: a soft roofline."""

from wisp_gym.jit import jit


@jit
def batch_time_s(
    host_s, launch_s, weights_s, token_s, sharpness, cached_token_s, pair_s, new_tokens, pairs, cached_tokens
):
    """Seconds that a batch takes on the server, without noise.

    `t = host + launch + (weights^p + (token·new)^p)^(1/p) + cached_token·cached + pair·pairs`: reading the weights
    (memory bound) against arithmetic (compute bound), joined by a soft maximum of sharpness p, plus reading the cached
    keys and values, plus attention arithmetic. Below p = 1 it is no maximum: the time grows fastest with the first tokens, as
    on a processor, whose matrix products become more efficient with every row.

    Args:
        host_s, launch_s, weights_s, token_s, sharpness, cached_token_s, pair_s: coefficients of `VerificationTime`.
        new_tokens: tokens run through the model in this batch (drafts, the token before them, uncached prompt tokens).
        pairs: sum over requests of new tokens × total length (cached + new).
        cached_tokens: tokens whose keys and values are read from the cache.
    """
    roofline_s = (weights_s**sharpness + (token_s * new_tokens) ** sharpness) ** (1.0 / sharpness)
    return host_s + launch_s + roofline_s + cached_token_s * cached_tokens + pair_s * pairs


@jit
def with_roofline_s(host_s, launch_s, roofline_s, cached_token_s, pair_s, pairs, cached_tokens):
    """`batch_time_s` where `roofline_s` is known, for which it takes three powers; `pairs` and the rest as there."""
    return host_s + launch_s + roofline_s + cached_token_s * cached_tokens + pair_s * pairs


@jit
def marginal_s(weights_s, token_s, sharpness, new_tokens):
    """Time, in s, that one more token adds to a batch of T new ones: `b·(b·T)^(p−1)·(W^p + (b·T)^p)^(1/p−1)`.

    The derivative of the soft roofline, with b = token_s, W = weights_s and p = sharpness.
    """
    if new_tokens <= 0.0 or token_s <= 0.0:
        return 0.0
    work = token_s * new_tokens
    return token_s * (1.0 + (weights_s / work) ** sharpness) ** (1.0 / sharpness - 1.0)
