"""Speculation controllers: after each drafted token, continue or send.

Each is a pure function of the documented observation (`wisp_gym.engine.observation`) and up to eight parameters. The
two oracles also see what no device can see, the fate of the last and of the next token, and are bounds, not rivals.
"""

from __future__ import annotations

from wisp_gym.controllers.mlp import argmax_action
from wisp_gym.engine.jit import jit
from wisp_gym.engine.observation import ACCEPT_PROBABILITY, CONFIDENCE, DRAFTED, SURVIVAL

FIXED, CONFIDENCE_RULE, WISP, SURVIVAL_RULE, PERFECT, ORACLE, POLICY, POLICY_LENGTH, RANDOM = range(9)


@jit
def continue_drafting(kind, parameters, policy, max_draft_tokens, o, last_fate, next_fate, chance=0.5):
    """1 to draft one more token, 0 to send what is drafted.

    Args:
        kind: id of the rule. parameters: (8,) float64 of the rule. policy: float32 weights of a learned policy.
        max_draft_tokens: cap K, unit of the observation's token counts.
        o: (SIZE,) float32 observation.
        last_fate, next_fate: fate of the last drafted and of the next token, read by the oracles alone.
        chance: uniform draw in (0, 1), read by the random rule alone.
    """
    drafted = int(o[DRAFTED] * max_draft_tokens + 0.5)
    if kind == FIXED:
        return 1 if drafted < parameters[0] else 0
    if kind == CONFIDENCE_RULE:
        return 1 if drafted < parameters[1] and (drafted == 0 or o[CONFIDENCE] >= parameters[0]) else 0
    if kind == WISP:
        return 1 if drafted < parameters[1] and (drafted == 0 or o[ACCEPT_PROBABILITY] >= parameters[0]) else 0
    if kind == SURVIVAL_RULE:
        return 1 if drafted < parameters[1] and (drafted < parameters[2] or 1.0 - o[SURVIVAL] <= parameters[0]) else 0
    if kind == PERFECT:
        return 1 if drafted == 0 or last_fate == 1 else 0
    if kind == ORACLE:
        return next_fate
    if kind == RANDOM:
        return 1 if chance < parameters[0] else 0
    if kind == POLICY:
        return argmax_action(policy, o)
    return 1 if drafted < parameters[0] else 0
