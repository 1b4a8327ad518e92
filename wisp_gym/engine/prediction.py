"""What the server predicts of a batch's time: WISP's four terms, a term per request, and levels by size.

Legend: `c` CONFIG row; `requests` of the batch; `pairs` sum of new tokens × total length.
"""

from wisp_gym.jit import jit


@jit
def size_s(c, new_tokens):
    """Time, in s, that the estimator adds at a size: straight lines between its levels, the first below, in proportion above."""
    n = c.est_sizes
    if n == 0:
        return 0.0
    tokens, add_s = c.est_size_tokens, c.est_size_s
    if new_tokens <= tokens[0]:
        return add_s[0]
    if new_tokens >= tokens[n - 1]:
        return add_s[n - 1] * new_tokens / tokens[n - 1]
    low, high = 0, n - 1
    while high - low > 1:
        middle = (low + high) // 2
        if tokens[middle] <= new_tokens:
            low = middle
        else:
            high = middle
    share = (new_tokens - tokens[low]) / (tokens[high] - tokens[low])
    return add_s[low] + share * (add_s[high] - add_s[low])


@jit
def predict_s(c, requests, new_tokens, pairs, cached_tokens):
    """Prediction of a batch's time, in s: `δ + α·Σn + β·Σn·L + γ·Σc`, and what a profile tells beyond these terms."""
    terms_s = (
        c.est_launch_s + c.est_new_token_s * new_tokens + c.est_pair_s * pairs + c.est_cached_token_s * cached_tokens
    )
    return terms_s + c.est_request_s * requests + size_s(c, new_tokens)
