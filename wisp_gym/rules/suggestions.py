"""Lengths that the server suggests: computed when a batch ends, carried by its replies, followed by the devices.

The server knows its own four-term estimator, the sizes of its batches and what became of the rounds it verified, and from
each message how long the round was drafted. What it knows of all is one row of KNOWLEDGE float64 (zero at first, sums that
forget); what it keeps of one session is that session's row of memory.

Legend: `knowledge` (MEMORY,) float64 of the server; `memory` (MEMORY,) float64 of one session, or (n + 1, MEMORY)
of all; `parameters` (8,) float64 of the rule; `n` rounds in the batch; `k` length in tokens, at most `k_max`;
`context` tokens; `expected` acceptance beforehand, 0 to 1; `drafted`, `accepted` tokens of a round; `launch_s`,
`new_token_s`, `pair_s` the estimator's coefficients.
"""

import math

import numpy as np

from wisp_gym.jit import jit
from wisp_gym.rules.adaptation import ladder_index
from wisp_gym.rules.lengths import ALPHA_HIGH, ALPHA_LOW, expected_tokens

LENGTHS = 33  # lengths 0 to 32
(ROUNDS, DRAFT_S, AWAY_S, CONTEXT, EXAMINED, ACCEPTED) = range(6)  # places in the server's knowledge
REACHED_AT = 6  # for each position, rounds that drafted so far …
HELD_AT = REACHED_AT + LENGTHS  # … and rounds in which everything up to it was accepted
SLOTS_AT = HELD_AT + LENGTHS  # SGLang's slots: batches, average less its start, place on the ladder less the middle
KNOWLEDGE = SLOTS_AT + 3 * 4

KEEP = 0.98  # what a batch leaves of earlier sums (assumption: about fifty batches)
PRIOR = 4.0  # weight, in tokens, of the acceptance expected beforehand: as for the devices' own average

(S_ACCEPTED, S_EXAMINED, S_GOODPUT, S_LENGTH) = range(4)  # places in a session's memory
FRESH = 0.1  # GoodSpeed's step for its two moving averages (assumption)

# SGLang's table: from which batch size on (the nearest counts) which lengths, the number of them, and `down`.
SLOT_SIZES = np.array([1.0, 8.0, 32.0, 64.0])
SLOT_LADDERS = np.array([[1.0, 3.0, 7.0], [0.0, 1.0, 3.0], [0.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
SLOT_STEPS = np.array([3, 3, 2, 1])
SLOT_DOWN = np.array([-0.25, 0.0, 0.0, 0.0])
SLOT_FRESH, SLOT_WARMUP, SLOT_INTERVAL = 0.2, 10.0, 5.0


@jit
def forget(knowledge):
    """A batch has ended: earlier rounds weigh less."""
    for a in range(SLOTS_AT):
        knowledge[a] *= KEEP


@jit
def note_round(knowledge, drafted, accepted, draft_s, away_s, context):
    """Add a verified round: its fate, the time it was drafted, the time it was under way, its context."""
    knowledge[ROUNDS] += 1.0
    knowledge[DRAFT_S] += draft_s
    knowledge[AWAY_S] += away_s
    knowledge[CONTEXT] += context
    knowledge[EXAMINED] += min(accepted + 1, drafted)
    knowledge[ACCEPTED] += accepted
    for j in range(1, drafted + 1):
        knowledge[REACHED_AT + j] += 1.0
        knowledge[HELD_AT + j] += 1.0 if j <= accepted else 0.0


@jit
def drafted_tokens(knowledge):
    """Sum of drafted tokens: every position that was reached."""
    total = 0.0
    for j in range(1, LENGTHS):
        total += knowledge[REACHED_AT + j]
    return total


@jit
def acceptance_rate(knowledge, expected):
    """Share of examined tokens that were accepted, `expected` before there are any."""
    share = (knowledge[ACCEPTED] + PRIOR * expected) / (knowledge[EXAMINED] + PRIOR)
    return min(max(share, ALPHA_LOW), ALPHA_HIGH)


@jit
def batch_s(k, n, context, launch_s, new_token_s, pair_s):
    """Predicted time, in s, of a batch of n rounds of k drafts each, with a mean context."""
    new = (k + 1.0) * n
    return launch_s + new_token_s * new + pair_s * new * (context + k + 1.0)


@jit
def turbospec_length(parameters, knowledge, n, k_max, expected, launch_s, new_token_s, pair_s):
    """Length in tokens. TurboSpec / SmartSpec (arXiv 2406.14066): one k for the batch, `argmax B·E[N(k)] / (k·t_draft + overhead + t((k+1)·B))`.

    Parameters: how much k = 0 is favoured (1.1). t_draft and overhead (the network) are means over the rounds verified.
    """
    alpha, rounds = acceptance_rate(knowledge, expected), max(knowledge[ROUNDS], 1e-9)
    draft_s = knowledge[DRAFT_S] / max(drafted_tokens(knowledge), 1e-9)
    away_s, context = knowledge[AWAY_S] / rounds, knowledge[CONTEXT] / rounds
    best, best_rate = 0, 0.0
    for k in range(k_max + 1):
        rate = n * expected_tokens(alpha, k)
        rate /= k * draft_s + away_s + batch_s(k, n, context, launch_s, new_token_s, pair_s)
        if k == 0:
            rate *= parameters[0]
        if rate > best_rate:
            best, best_rate = k, rate
    return best


@jit
def vllm_length(knowledge, n, k_max, expected, launch_s, new_token_s, pair_s):
    """Length in tokens. vLLM's dynamic length: `K(B) = argmax AL(K)/t(B, K)`, `AL(K) = 1 + Σ share of rounds accepted up to each position`.

    A position is judged by the rounds that reached it and, with the weight of four rounds, by the one before it times the mean
    acceptance: so positions that are never drafted keep a guess. The times are the estimator's instead of a measured table.
    """
    alpha, context = acceptance_rate(knowledge, expected), knowledge[CONTEXT] / max(knowledge[ROUNDS], 1e-9)
    length, share, best, best_rate = 1.0, 1.0, 0, 0.0
    for k in range(k_max + 1):
        if k > 0:
            share = (knowledge[HELD_AT + k] + PRIOR * share * alpha) / (knowledge[REACHED_AT + k] + PRIOR)
            length += share
        rate = length / batch_s(k, n, context, launch_s, new_token_s, pair_s)
        if rate > best_rate:
            best, best_rate = k, rate
    return best


@jit
def nearest_slot(n):
    """The slot whose batch size is nearest (the smaller one of equals)."""
    best = 0
    for slot in range(1, len(SLOT_SIZES)):
        if abs(SLOT_SIZES[slot] - n) < abs(SLOT_SIZES[best] - n):
            best = slot
    return best


@jit
def sglang_load_length(knowledge, n, mean_accepted):
    """Length in tokens. SGLang's adaptive steps with its table by batch size: the larger the batch, the shorter the ladder.

    The batch's mean of accepted tokens, `mean_accepted`, enters the average of its size's slot, which walks its ladder as in
    `adaptation.ladder_index`. Table and constants: DEFAULT_ADAPTIVE_CONFIG of sglang/srt/speculative/adaptive_spec_params.py.
    """
    slot = nearest_slot(n)
    ladder, steps, at = SLOT_LADDERS[slot], SLOT_STEPS[slot], SLOTS_AT + 3 * slot
    index = steps // 2 + int(knowledge[at + 2])
    start = ladder[steps // 2] - 1.0
    if n == 0:  # prompts alone teach nothing
        return int(ladder[index])
    if ladder[index] > 0.0:
        knowledge[at + 1] = (1.0 - SLOT_FRESH) * (knowledge[at + 1] + start) + SLOT_FRESH * mean_accepted - start
    knowledge[at] += 1.0
    beyond = knowledge[at] - SLOT_WARMUP
    if beyond > 0.0 and beyond % SLOT_INTERVAL == 0.0:
        index = ladder_index(ladder, steps, index, knowledge[at + 1] + start, SLOT_DOWN[slot], 0.0)
        knowledge[at + 2] = index - steps // 2
    return int(ladder[index])


@jit
def note_session(memory, drafted, accepted):
    """GoodSpeed's two moving averages of one session: share of accepted tokens, tokens a round."""
    memory[S_EXAMINED] = (1.0 - FRESH) * memory[S_EXAMINED] + min(accepted + 1, drafted)
    memory[S_ACCEPTED] = (1.0 - FRESH) * memory[S_ACCEPTED] + accepted
    before = memory[S_GOODPUT] if memory[S_GOODPUT] > 0.0 else accepted + 1.0
    memory[S_GOODPUT] = (1.0 - FRESH) * before + FRESH * (accepted + 1.0)


@jit
def session_rate(memory, expected):
    """Running share of a session's examined tokens that were accepted, α; `expected` before there are any."""
    return (memory[S_ACCEPTED] + PRIOR * expected) / (memory[S_EXAMINED] + PRIOR)


@jit
def marginal_utility(memory, expected):
    """What one more draft of a session adds to `Σ log goodput`: `α^(S+1)/X`."""
    return session_rate(memory, expected) ** (memory[S_LENGTH] + 1.0) / max(memory[S_GOODPUT], 1.0)


@jit
def share_budget(budget, memory, members, n, k_max, expected):
    """GoodSpeed (arXiv 2512.09963): give each of the budget's drafts to the member with the largest `α^(S+1)/X`.

    Writes the lengths into the rows of `memory` of the n `members`, (≥ n,) int64. Budget and averages: the paper's constants were not read.
    """
    for m in range(n):
        memory[members[m], S_LENGTH] = 0.0
    for _ in range(int(min(budget, n * k_max))):
        best, best_gain = -1, -math.inf
        for m in range(n):
            row = memory[members[m]]
            gain = marginal_utility(row, expected)
            if row[S_LENGTH] < k_max and gain > best_gain:
                best, best_gain = m, gain
        memory[members[best], S_LENGTH] += 1.0
