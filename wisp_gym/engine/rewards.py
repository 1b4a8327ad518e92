"""Rewards of those who decide outside: named terms since the last decision, and their weighted sum.

Legend: `s` SERVER and `d` DEVICE row; `pay` (1 + MOST_TERMS,) float64: a rate in tokens/s, negative for the device's own, then a
weight of each term; `terms` (MOST_TERMS,) float64.
"""

from wisp_gym.jit import jit

SPECULATION_TERMS = ("committed_tokens", "on_time_tokens", "time", "externality", "wasted_tokens")
BATCHING_TERMS = ("on_time_tokens", "late_tokens", "time", "starvation")
MOST_TERMS = 5
OWN_RATE = -1.0


@jit
def speculation_terms(s, d, pay, terms):
    """Write SPECULATION_TERMS: see Rewards in `envs.SpeculationEnv`."""
    rate = pay[0] if pay[0] >= 0.0 else d.token_sum / d.time_sum_s
    terms[0] = s.step_committed
    terms[1] = s.step_on_time
    terms[2] = -rate * s.step_round_s
    terms[3] = -s.step_work_s * s.token_rate
    terms[4] = -s.step_wasted


@jit
def batching_terms(s, tokens, on_time, elapsed_s, pay, terms):
    """Write BATCHING_TERMS: see Rewards in `envs.BatchingEnv`; of the `tokens` so many were `on_time`."""
    terms[0] = on_time
    terms[1] = -(tokens - on_time)
    terms[2] = -pay[0] * elapsed_s
    terms[3] = -s.step_starved_s


@jit
def weighted(terms, pay):
    """Reward: the sum of weight × term (terms of weight 0 are left out)."""
    total = 0.0
    for k in range(MOST_TERMS):
        if pay[1 + k] != 0.0:
            total += pay[1 + k] * terms[k]
    return total
