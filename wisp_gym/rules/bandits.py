"""Lengths learned by trial: each device tries lengths and keeps those that bring it the most tokens per second.

A device's memory (MEMORY float64, zero at first) holds for the bandits [chosen length, pulls in all, then for each length
k its pulls and two sums]. A round that the end of the output cut short teaches nothing.

Legend: `parameters` (8,) and `memory` (MEMORY,) float64 of rule and device; `o` (SIZE,) float32 observation; `x` a
row of memory that features are written into; `k` length in tokens, from `k_min` to `k_max`; `c` weight of the
uncertainty; `drafted`, `committed` tokens of the round; `ratio_of_means` whether specstop's score is used, else
banditspec's.
"""

import math

from wisp_gym.contract.device import BOUNDARY_LEFT, DRAFT_TIME, JITTER, ONE_WAY_DELAY, SERVER_BUSY, UTILISATION
from wisp_gym.jit import jit
from wisp_gym.rules.lengths import acceptance, expected_tokens

CHOSEN, PULLS, ARMS = 0, 1, 2  # places in a device's memory
ARM = 3  # numbers kept for each length: pulls, sum of tokens (specstop) or of tokens/s (banditspec), sum of seconds

FEATURES = 8  # of the contextual bandit
TOKENS_UNIT = 4.0  # scale of the expected tokens among them
LEAST_TIME = 0.1  # floor of a predicted round, in T
TOKENS_AT, SECONDS_AT, SEEN_AT, GAIN_AT, INVERSE_AT = (2 + FEATURES * place for place in range(5))
MEMORY = 104  # at least ARMS + 33·ARM, INVERSE_AT + FEATURES² and the server's KNOWLEDGE


@jit
def untried(memory, k_min, k_max):
    """The shortest length that has never been tried, or −1."""
    for k in range(k_min, k_max + 1):
        if memory[ARMS + ARM * k] == 0.0:
            return k
    return -1


@jit
def specstop_score(memory, k, c):
    """`(mean tokens + c·k·√(2 ln t / n_k)) / mean time`, in tokens/s: optimistic tokens, in [1, k + 1], over the mean time."""
    n = memory[ARMS + ARM * k]
    radius = c * k * math.sqrt(2.0 * math.log(memory[PULLS]) / n)
    return (memory[ARMS + ARM * k + 1] / n + radius) / (memory[ARMS + ARM * k + 2] / n)


@jit
def banditspec_score(memory, k, c, mean_rate):
    """`mean rate of k + c·mean_rate·√(2 ln t / n_k)`, in tokens/s: UCB1, with the rewards' scale learned as well."""
    n = memory[ARMS + ARM * k]
    return memory[ARMS + ARM * k + 1] / n + c * mean_rate * math.sqrt(2.0 * math.log(memory[PULLS]) / n)


@jit
def rate_of_all(memory, k_min, k_max):
    """Mean tokens/s over all rounds of a banditspec device."""
    total = 0.0
    for k in range(k_min, k_max + 1):
        total += memory[ARMS + ARM * k + 1]
    return total / memory[PULLS]


@jit
def bandit_length(parameters, memory, max_draft_tokens, ratio_of_means):
    """The next length to try, in tokens. Parameters: c, k_min, k_max; every length once, then the largest score."""
    k_max = int(min(parameters[2], max_draft_tokens))
    k_min = min(int(parameters[1]), k_max)
    best = untried(memory, k_min, k_max)
    if best < 0:
        mean_rate, best_score = rate_of_all(memory, k_min, k_max), -math.inf
        for k in range(k_min, k_max + 1):
            if ratio_of_means:
                score = specstop_score(memory, k, parameters[0])
            else:
                score = banditspec_score(memory, k, parameters[0], mean_rate)
            if score > best_score:
                best, best_score = k, score
    memory[CHOSEN] = best
    return best


@jit
def bandit_learns(memory, drafted, committed, round_s, ratio_of_means):
    """Add a round to its length's pulls and sums."""
    if drafted != memory[CHOSEN]:
        return
    arm = ARMS + ARM * drafted
    memory[PULLS] += 1.0
    memory[arm] += 1.0
    memory[arm + 1] += committed if ratio_of_means else committed / round_s
    memory[arm + 2] += round_s


# --- contextual ------------------------------------------------------------------------------------------------------


@jit
def wait_after(o, k):
    """Time, in T, from the arrival of a message of k drafts to the next batch boundary that is foreseen."""
    if o[SERVER_BUSY] == 0.0:
        return 0.0
    left = o[BOUNDARY_LEFT] - k * o[DRAFT_TIME]
    return left if left >= 0.0 else left + math.ceil(-left)


@jit
def write_features(o, k, max_draft_tokens, x):
    """Features of drafting k tokens now, into x[SEEN_AT:]: what a round's tokens and its time may depend on."""
    x[SEEN_AT] = 1.0
    x[SEEN_AT + 1] = k / max_draft_tokens
    x[SEEN_AT + 2] = expected_tokens(acceptance(o), k) / TOKENS_UNIT
    x[SEEN_AT + 3] = k * o[DRAFT_TIME]
    x[SEEN_AT + 4] = wait_after(o, k)
    x[SEEN_AT + 5] = 2.0 * o[ONE_WAY_DELAY]
    x[SEEN_AT + 6] = o[JITTER]
    x[SEEN_AT + 7] = o[UTILISATION]


@jit
def predicted(memory, weights_at):
    """The linear prediction, by the weights from place `weights_at` on, for the features in memory."""
    total = 0.0
    for a in range(FEATURES):
        total += memory[weights_at + a] * memory[SEEN_AT + a]
    return total


@jit
def write_gain(memory):
    """Write P·x for the features in memory, P the inverse of the regression's matrix; returns `xᵀ·P·x`."""
    spread = 0.0
    for a in range(FEATURES):
        total = 0.0
        for b in range(FEATURES):
            total += memory[INVERSE_AT + FEATURES * a + b] * memory[SEEN_AT + b]
        memory[GAIN_AT + a] = total
        spread += total * memory[SEEN_AT + a]
    return spread


@jit
def begin_regression(memory, ridge):
    """Before the first round, with P = 1/ridge: the geometric formula for the tokens, T and drafting and wait and round trip for the time."""
    for a in range(FEATURES):
        memory[INVERSE_AT + (FEATURES + 1) * a] = 1.0 / ridge
    memory[TOKENS_AT + 2] = TOKENS_UNIT
    for a in (0, 3, 4, 5):
        memory[SECONDS_AT + a] = 1.0
    memory[PULLS] = 1.0


@jit
def contextual_length(parameters, memory, max_draft_tokens, o):
    """The length with the largest `(N̂ + c·√(xᵀPx)) / T̂` (LinUCB of arXiv 1003.0146, on a ratio). Parameters: c, ridge, k_max.

    N̂ and T̂ (in T) are ridge regressions of a round's tokens and time on its features, kept up recursively.
    """
    if memory[PULLS] == 0.0:
        begin_regression(memory, parameters[1])
    best, best_score = 0, -math.inf
    for k in range(int(min(parameters[2], max_draft_tokens)) + 1):
        write_features(o, k, max_draft_tokens, memory)
        optimistic = predicted(memory, TOKENS_AT) + parameters[0] * math.sqrt(max(write_gain(memory), 0.0))
        score = optimistic / max(predicted(memory, SECONDS_AT), LEAST_TIME)
        if score > best_score:
            best, best_score = k, score
    write_features(o, best, max_draft_tokens, memory)
    memory[CHOSEN] = best
    return best


@jit
def contextual_learns(memory, drafted, committed, round_batches):
    """One step of recursive least squares (Sherman–Morrison) on the features of the round's start; `round_batches`: its time in T."""
    if drafted != memory[CHOSEN]:
        return
    memory[PULLS] += 1.0
    scale = 1.0 + write_gain(memory)
    tokens_off = (committed - predicted(memory, TOKENS_AT)) / scale
    time_off = (round_batches - predicted(memory, SECONDS_AT)) / scale
    for a in range(FEATURES):
        gain = memory[GAIN_AT + a]
        memory[TOKENS_AT + a] += gain * tokens_off
        memory[SECONDS_AT + a] += gain * time_off
        for b in range(FEATURES):
            memory[INVERSE_AT + FEATURES * a + b] -= gain * memory[GAIN_AT + b] / scale
