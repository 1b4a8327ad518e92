"""Rules that follow a moving average: AdaEDL's threshold, SGLang's ladder of lengths, DSD's window.

A device's memory is zero at first, so it holds offsets from where a rule starts.

Legend: `n` steps of a ladder; `parameters` (8,) float64 of the rule; `memory` (MEMORY,) float64 of the device; `o`
(SIZE,) float32 observation; `drafted`, `accepted` tokens of the round.
"""

import math

from wisp_gym.contract.device import DRAFT_TIME, ENTROPY, ONE_WAY_DELAY, QUEUE_WORK
from wisp_gym.jit import jit
from wisp_gym.rules.lengths import acceptance, best_length

ROUNDS, AVERAGE, OFFSET = 0, 1, 2  # places in a device's memory

SHARE_KEEP, THRESHOLD_KEEP = 0.5, 0.9  # AdaEDL's β₁ and β₂ (second-hand)


@jit
def adaedl_continues(parameters, memory, drafted, o):
    """AdaEDL (arXiv 2410.18351): stop if `1 − √(γ·H) < λ`. Parameters: γ, λ₀, target, step, k_max.

    `1 − √(γ·H)` is a lower bound on the acceptance of a token drawn from a distribution of entropy H. γ = 0.2 is the
    paper's; the other constants were read second-hand (they are those of Draft & Verify, arXiv 2309.08168).
    """
    threshold = parameters[1] + memory[OFFSET]
    return drafted < parameters[4] and (drafted == 0 or 1.0 - math.sqrt(parameters[0] * o[ENTROPY]) >= threshold)


@jit
def adaedl_learns(parameters, memory, drafted, accepted):
    """Move λ by a step towards the target share of accepted tokens.

    `r ← ½·r + ½·accepted/drafted`; λ' = λ + step where r ≤ target, else λ − step; `λ ← 0.9·λ + 0.1·λ'`, within [0, 1].
    """
    if drafted == 0:
        return
    share = accepted / drafted
    memory[AVERAGE] = share if memory[ROUNDS] == 0.0 else SHARE_KEEP * memory[AVERAGE] + (1.0 - SHARE_KEEP) * share
    memory[ROUNDS] += 1.0
    move = parameters[3] if memory[AVERAGE] <= parameters[2] else -parameters[3]
    moved = parameters[1] + memory[OFFSET] + (1.0 - THRESHOLD_KEEP) * move
    memory[OFFSET] = min(max(moved, 0.0), 1.0) - parameters[1]


@jit
def ladder_index(ladder, n, index, average, down, up):
    """SGLang's walk: down while `average ≤ step below − ½ + down`, else up while `average > step − ½ + up`.

    `ladder`: (≥ n,) float64 lengths; returns the new `index` in it. `average`: of the tokens accepted in a round.
    A step of 0 counts as 1 in the first bound; from it one step up is probed.
    Source: sglang/srt/speculative/adaptive_spec_params.py (down −0.25, up 0, as there).
    """
    if ladder[index] == 0.0:
        return min(index + 1, n - 1)
    start = index
    while index > 0 and average <= max(ladder[index - 1], 1.0) - 0.5 + down:
        index -= 1
    while start <= index < n - 1 and average > ladder[index] - 0.5 + up:
        index += 1
    return index


LADDER = 3  # lengths of the device's own ladder


@jit
def sglang_length(parameters, memory):
    """The length, in tokens, at which the device's ladder stands, at first the middle one. Parameters: low, middle, high, keep …"""
    return int(parameters[LADDER // 2 + int(memory[OFFSET])])


@jit
def sglang_learns(parameters, memory, accepted):
    """SGLang's adaptive steps: `ema ← (1 − a)·ema + a·accepted`, a walk on the ladder every few rounds after a warm-up.

    Parameters: the three steps (1, 3, 7), a (0.2), down (−0.25), up (0), interval (5), warm-up (10): SGLang's defaults for
    small batches, kept here by each device for its own rounds instead of by the server for its batches.
    """
    index = LADDER // 2 + int(memory[OFFSET])
    if parameters[index] > 0.0:
        start = parameters[LADDER // 2] - 1.0
        memory[AVERAGE] = (1.0 - parameters[3]) * (memory[AVERAGE] + start) + parameters[3] * accepted - start
    memory[ROUNDS] += 1.0
    beyond = memory[ROUNDS] - parameters[7]
    if beyond > 0.0 and beyond % parameters[6] == 0.0:
        average = memory[AVERAGE] + parameters[LADDER // 2] - 1.0
        memory[OFFSET] = ladder_index(parameters, LADDER, index, average, parameters[4], parameters[5]) - LADDER // 2


@jit
def awc_length(parameters, memory, max_draft_tokens, o):
    """DSD's adaptive window control (arXiv 2511.21669), reconstructed. Parameters: smoothing, k_max.

    DSD predicts a window from the target's queue, its trend, the round-trip time, drafting speed, acceptance and the last
    window, and smooths it (0.4, second-hand). Its map is a small network whose weights were not found; in its place stands
    the closed form of `best_length`, with queue and trend in the fixed time of a round. Returns a length in tokens.
    """
    queue = float(o[QUEUE_WORK])
    trend = queue - memory[OFFSET] if memory[ROUNDS] > 0.0 else 0.0
    fixed = 1.0 + 2.0 * o[ONE_WAY_DELAY] + max(queue + trend, 0.0)
    window = best_length(acceptance(o), float(o[DRAFT_TIME]), fixed, min(parameters[1], max_draft_tokens))
    keep = 1.0 - parameters[0] if memory[ROUNDS] > 0.0 else 0.0
    memory[AVERAGE] = keep * memory[AVERAGE] + (1.0 - keep) * window
    memory[OFFSET], memory[ROUNDS] = queue, memory[ROUNDS] + 1.0
    return int(round(memory[AVERAGE]))
