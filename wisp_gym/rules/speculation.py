"""Speculation controllers: how many tokens to draft, by one dispatch over the rules of this folder.

Token rules are asked after each drafted token, length rules once a round before the first. Each is a pure function of the
documented observation (`wisp_gym.contract.device`), up to eight parameters and, for rules that learn, the device's own
memory. The two bounds also see what no device can see, the fate of the last and of the next token.

Legend: `kind` id of the rule; `parameters` (8,) float64 of it; `policy` float32 vector of `mlp.pack`; `memory`
(MEMORY,) float64 of the device; `o` (SIZE,) float32 observation; `drafted`, `accepted`, `committed` tokens of the
round.
"""

from wisp_gym.contract import device
from wisp_gym.jit import INTEGER, NUMBER, NUMBERS, SINGLES, TRUTH, VOID, jit_inline, on_demand
from wisp_gym.rules.adaptation import adaedl_continues, adaedl_learns, awc_length, sglang_learns, sglang_length
from wisp_gym.rules.bandits import bandit_learns, bandit_length, contextual_learns, contextual_length
from wisp_gym.rules.lengths import leviathan_length, ratio_length
from wisp_gym.rules.mlp import argmax_action
from wisp_gym.rules.stopping import aligned_continues, margin_continues, price_continues, svip_continues

# Token rules, then length rules (from POLICY_LENGTH on), then those that follow the server (from SUGGESTED_LENGTH on).
(
    FIXED, CONFIDENCE_RULE, WISP, SURVIVAL_RULE, PERFECT, ORACLE, POLICY, RANDOM, MARGIN_RULE, SVIP, PRICE_RULE, ALIGNED, ADAEDL,
    POLICY_LENGTH, LEVIATHAN, RATIO, SPECSTOP, BANDITSPEC, CONTEXTUAL, SGLANG, AWC,
    SUGGESTED_LENGTH, TURBOSPEC, VLLM_DYNAMIC, SGLANG_LOAD, GOODSPEED,
) = range(26)  # fmt: skip


@jit_inline
def continue_drafting(kind, parameters, policy, memory, max_draft_tokens, o, last_fate, next_fate, chance=0.5):
    """1 to draft one more token, 0 to send what is drafted; for token rules.

    Args:
        kind: id of the rule. parameters: (8,) float64 of the rule. policy: float32 weights of a learned policy.
        memory: (MEMORY,) float64 of the device, read by rules that learn.
        max_draft_tokens: cap K, unit of the observation's token counts.
        o: (SIZE,) float32 observation.
        last_fate, next_fate: fate of the last drafted and of the next token, read by the bounds alone.
        chance: uniform draw in (0, 1), read by the random rule alone.
    """
    drafted = int(o[device.DRAFTED_TOKENS] * max_draft_tokens + 0.5)
    if kind == FIXED:
        return 1 if drafted < parameters[0] else 0
    if kind == CONFIDENCE_RULE:
        return 1 if drafted < parameters[1] and (drafted == 0 or o[device.CONFIDENCE] >= parameters[0]) else 0
    if kind == WISP:
        return 1 if drafted < parameters[1] and (drafted == 0 or o[device.ACCEPT_PROBABILITY] >= parameters[0]) else 0
    if kind == SURVIVAL_RULE:
        return (
            1
            if drafted < parameters[1] and (drafted < parameters[2] or 1.0 - o[device.SURVIVAL] <= parameters[0])
            else 0
        )
    if kind == PERFECT:
        return 1 if drafted == 0 or last_fate == 1 else 0
    if kind == ORACLE:
        return next_fate
    if kind == RANDOM:
        return 1 if chance < parameters[0] else 0
    if kind == POLICY:
        return argmax_action(policy, o)
    return 1 if rule_continues(kind, parameters, memory, max_draft_tokens, drafted, o) else 0


@on_demand(lambda: TRUTH(INTEGER, NUMBERS, NUMBERS, INTEGER, INTEGER, SINGLES))
def rule_continues(kind, parameters, memory, max_draft_tokens, drafted, o):
    """Whether one of the other stopping rules drafts one more token."""
    if kind == PRICE_RULE:
        return price_continues(parameters, drafted, o)
    if kind == ALIGNED:
        return aligned_continues(parameters, drafted, max_draft_tokens, o)
    if kind == MARGIN_RULE:
        return margin_continues(parameters, drafted, o)
    if kind == SVIP:
        return svip_continues(parameters, drafted, o)
    return adaedl_continues(parameters, memory, drafted, o)


@on_demand(lambda: INTEGER(INTEGER, NUMBERS, SINGLES, NUMBERS, INTEGER, SINGLES))
def choose_length(kind, parameters, policy, memory, max_draft_tokens, o):
    """Tokens to draft in the round that begins; for length rules. Arguments as of `continue_drafting`."""
    if kind == POLICY_LENGTH:
        return argmax_action(policy, o)
    if kind == LEVIATHAN:
        return leviathan_length(parameters, max_draft_tokens, o)
    if kind == RATIO:
        return ratio_length(parameters, max_draft_tokens, o)
    if kind in (SPECSTOP, BANDITSPEC):
        return bandit_length(parameters, memory, max_draft_tokens, kind == SPECSTOP)
    if kind == CONTEXTUAL:
        return contextual_length(parameters, memory, max_draft_tokens, o)
    if kind == SGLANG:
        return sglang_length(parameters, memory)
    if kind == AWC:
        return awc_length(parameters, memory, max_draft_tokens, o)
    return int(o[device.SUGGESTED_TOKENS] * max_draft_tokens + 0.5)


@on_demand(lambda: VOID(INTEGER, NUMBERS, NUMBERS, SINGLES, INTEGER, INTEGER, INTEGER, NUMBER))
def learn(kind, parameters, memory, o, drafted, accepted, committed, round_s):
    """A round's reply has arrived: write what it teaches into the device's memory; for rules that learn.

    Args:
        kind, parameters, memory: as of `continue_drafting`. o: (SIZE,) observation of the round's last decision.
        drafted, accepted, committed: tokens of the round. round_s: seconds from its start to its reply.
    """
    if kind == ADAEDL:
        adaedl_learns(parameters, memory, drafted, accepted)
    elif kind in (SPECSTOP, BANDITSPEC):
        bandit_learns(memory, drafted, committed, round_s, kind == SPECSTOP)
    elif kind == CONTEXTUAL:
        contextual_learns(
            memory, drafted, committed, round_s / (o[device.BATCH_TIME] * device.SCALE[device.BATCH_TIME])
        )
    elif kind == SGLANG:
        sglang_learns(parameters, memory, accepted)
