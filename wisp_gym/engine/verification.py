"""Time of one verification batch: a soft roofline, and what the serving engine around it adds."""

import math
from dataclasses import asdict

from wisp_gym.jit import jit
from wisp_gym.scenario import Scenario

FEW_STEP, MANY_TOKENS, MANY_STEP = (
    8,
    256,
    16,
)  # sizes that vLLM captures: 1, 2, 4, every 8th below 256, every 16th from there


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


@jit
def padded_tokens(graph_tokens, new_tokens):
    """New tokens with which a batch runs: the next size that is captured as a CUDA graph, its own where it is beyond them all.

    vLLM's sizes (`VllmConfig._set_cudagraph_sizes`): 1, 2, 4, 8, 16 … 248, 256, 272 … and `graph_tokens` itself, the largest; 0: none.
    """
    if new_tokens <= 2 or new_tokens > graph_tokens:
        return new_tokens
    step = 4.0 if new_tokens <= 4 else FEW_STEP if new_tokens <= MANY_TOKENS - FEW_STEP else MANY_STEP
    return min(math.ceil(new_tokens / step) * step, graph_tokens)


@jit
def engine_s(host_request_s, host_token_s, graph_tokens, eager_s, requests, new_tokens):
    """Seconds that the host adds to a batch for its requests and tokens, and for running it without a graph where graphs end."""
    eager = eager_s if 0 < graph_tokens < new_tokens else 0.0
    return host_request_s * requests + host_token_s * new_tokens + eager


def clean_batch_s(scenario: Scenario, requests: int, new_tokens: float, pairs: float, cached_tokens: float) -> float:
    """Seconds that a batch takes on a scenario's server, without noise and drafting; sums as in `batch_time_s`.

    In plain Python: a few calls are not worth compiling.
    """
    s = scenario.server
    formula, pad, around = (getattr(f, "py_func", f) for f in (batch_time_s, padded_tokens, engine_s))
    model_s = formula(
        s.host_s, **asdict(scenario.verification), new_tokens=pad(s.graph_tokens, new_tokens), pairs=pairs, cached_tokens=cached_tokens
    )  # fmt: skip
    return float(model_s + around(s.host_request_s, s.host_token_s, s.graph_tokens, s.eager_s, requests, new_tokens))
