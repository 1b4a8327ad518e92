"""How many tokens the server drafts for the sessions of a batch, once it is known who is in it.

Rules of serving engines, on the server's own drafts. One length holds for all that it drafts for, but for `SURVIVAL`, which
stops each by itself. Times are the server's own predictions: with k drafts for each of B sessions a batch takes

    base + k·(step + verify) + overhead·[k > 0]

where `base` is its verification without them, `step` a step of the draft model for the B sessions, and `verify` what one more
token of each adds to the verification.

Legend: `kind` id of the rule; `parameters` (8,) float64 of it; `memory` (MEMORY,) float64 of the server, zero at first; `k`
length in tokens, at most `k_max`; `drafting` sessions that the server drafts for, B; `others` further members of the batch;
`expected` acceptance beforehand, 0 to 1; `drafted`, `accepted`
tokens of a round; `survival` probability that all drafted so far are accepted; `scheduled` requests of the batch.
"""

from wisp_gym.jit import INTEGER, NUMBER, NUMBERS, VOID, jit, on_demand
from wisp_gym.rules.adaptation import sglang_learns, sglang_length
from wisp_gym.rules.lengths import expected_tokens
from wisp_gym.rules.suggestions import HELD_AT, PRIOR, REACHED_AT, SLOTS_AT, acceptance_rate, forget, note_round

(NONE, FIXED, TABLE, TURBOSPEC, EMA, THROUGHPUT, SURVIVAL) = range(7)
TABLE_LENGTHS = 6  # longest length that a table of thresholds holds
CHOSEN = SLOTS_AT  # place in the server's memory: candidate that was chosen last, counted from the first


@jit
def batch_s(k, base_s, step_s, verify_s, overhead_s):
    """Predicted time, in s, of the batch with k drafts for each session."""
    return base_s + k * (step_s + verify_s) + (overhead_s if k > 0 else 0.0)


@jit
def table_length(parameters, scheduled, k_max):
    """vLLM's length by batch size: the longest k whose threshold is not below the `scheduled` requests, prefills counted.

    Parameters: k_max, stretch, then the largest batches in which 1, 2 … 6 tokens are drafted.
    Source: `num_speculative_tokens_per_batch_size` of vLLM (pull request 32374); it counts all that is scheduled (issue 49548).
    """
    length = 0
    for k in range(1, int(min(parameters[0], k_max, TABLE_LENGTHS)) + 1):
        if scheduled <= parameters[1] * parameters[1 + k]:
            length = k
    return length


@jit
def turbospec_length(parameters, memory, drafting, others, k_max, expected, base_s, step_s, verify_s, overhead_s):
    """TurboSpec / SmartSpec (arXiv 2406.14066): the k with the most expected tokens a second of the batch. Parameters: favour of k = 0."""
    alpha, best, best_rate = acceptance_rate(memory, expected), 0, 0.0
    for k in range(k_max + 1):
        rate = (others + drafting * expected_tokens(alpha, k)) / batch_s(k, base_s, step_s, verify_s, overhead_s)
        if k == 0:
            rate *= parameters[0]
        if rate > best_rate:
            best, best_rate = k, rate
    return best


@jit
def mean_tokens(memory, k, expected):
    """Expected tokens of a round of k drafts by the acceptance of each position, guessed from the one before where few reached it."""
    alpha, share, tokens = acceptance_rate(memory, expected), 1.0, 1.0
    for j in range(1, k + 1):
        share = (memory[HELD_AT + j] + PRIOR * share * alpha) / (memory[REACHED_AT + j] + PRIOR)
        tokens += share
    return tokens


@jit
def throughput_length(parameters, memory, drafting, others, k_max, expected, base_s, step_s, verify_s, overhead_s):
    """SGLang's throughput-aware steps: of three lengths the one with the most tokens per profiled second, if it gains enough.

    Parameters: low, middle, high, margin: the gain, as a share, from which on the length changes.
    Source: sglang pull request 28045 (strategy `throughput_aware`); its margin was not read.
    """
    best, best_rate, chosen = int(memory[CHOSEN]), 0.0, int(memory[CHOSEN])
    for place in range(3):
        k = int(min(parameters[place], k_max))
        rate = others + drafting * mean_tokens(memory, k, expected)
        rate /= batch_s(k, base_s, step_s, verify_s, overhead_s)
        rate *= 1.0 + parameters[3] if place == chosen else 1.0
        if rate > best_rate:
            best, best_rate = place, rate
    memory[CHOSEN] = best
    return int(min(parameters[best], k_max))


@on_demand(
    lambda: INTEGER(INTEGER, NUMBERS, NUMBERS, INTEGER, INTEGER, INTEGER, NUMBER, NUMBER, NUMBER, NUMBER, NUMBER)
)
def server_length(
    kind, parameters, memory, drafting, others, k_max, expected, base_s, step_s, verify_s, overhead_s
):  # fmt: skip
    """Tokens to draft for each session of the batch, 0 to k_max (`SURVIVAL`: at most)."""
    if kind == FIXED:
        return int(min(parameters[0], k_max))
    if kind == TABLE:
        return table_length(parameters, drafting + others, k_max)
    if kind == TURBOSPEC:
        return turbospec_length(
            parameters, memory, drafting, others, k_max, expected, base_s, step_s, verify_s, overhead_s
        )
    if kind == EMA:
        return min(sglang_length(parameters, memory), k_max)
    if kind == THROUGHPUT:
        return throughput_length(
            parameters, memory, drafting, others, k_max, expected, base_s, step_s, verify_s, overhead_s
        )
    return int(min(parameters[1], k_max))


@jit
def goes_on(kind, parameters, survival):
    """Whether the server drafts one more token for a session, given that the batch's length allows it."""
    return kind != SURVIVAL or 1.0 - survival <= parameters[0]


@jit
def note_server_round(kind, memory, drafted, accepted):
    """Take in a round that the server drafted."""
    if kind in (TURBOSPEC, THROUGHPUT) and drafted > 0:
        note_round(memory, drafted, accepted, 0.0, 0.0, 0.0)


@on_demand(lambda: VOID(INTEGER, NUMBERS, NUMBERS, INTEGER, NUMBER))
def server_learns(kind, parameters, memory, drafting, mean_accepted):
    """A batch has ended in which the server drafted for so many sessions, with a mean of accepted tokens."""
    if kind == EMA and drafting > 0:
        sglang_learns(parameters, memory, mean_accepted)
    elif kind in (TURBOSPEC, THROUGHPUT):
        forget(memory)
