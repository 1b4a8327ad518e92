"""What a server that suggests lengths knows when a batch ends, and how its replies carry the lengths.

Legend: `w` World; `c` CONFIG, `s` SERVER and `d` DEVICE row; `devices` (n,) DEVICE; `replies` (n,) int64 members of
the batch that ended; `memory` (n + 1, MEMORY) float64; `knowledge` (MEMORY,) its last row, the server's;
`parameters` (8,) float64 of the rule; `rounds` verified and `mean_accepted` tokens of each.
"""

from wisp_gym.engine.arguments import world_at
from wisp_gym.jit import INTEGER, VOID, jit, on_demand
from wisp_gym.rules.speculation import GOODSPEED, SGLANG_LOAD, TURBOSPEC
from wisp_gym.rules.suggestions import (
    S_LENGTH,
    forget,
    note_round,
    note_session,
    sglang_load_length,
    share_budget,
    turbospec_length,
    vllm_length,
)


@jit
def note_batch(c, s, devices, replies, memory, knowledge):
    """Take in the verified rounds (not the prompts) of the batch; returns how many, and their mean of accepted tokens."""
    rounds, accepted = 0, 0
    forget(knowledge)
    for k in range(s.n_replies):
        d = devices[replies[k]]
        if d.committed > 0 and d.at_server == 0:
            draft_s = d.sent_s - d.round_start_s
            context = d.prompt_tokens + d.committed
            note_round(knowledge, d.verified, d.accepted, draft_s, d.arrived_s - d.info_s - draft_s, context)
            rounds += 1
            accepted += d.accepted
            if c.speculation == GOODSPEED:
                note_session(memory[replies[k]], d.verified, d.accepted)
    return rounds, accepted / max(rounds, 1)


@jit
def length_for_all(c, parameters, knowledge, rounds, mean_accepted):
    """The length, in tokens, that a rule suggests to a whole batch (one of prompts alone counts as one round)."""
    if c.speculation == SGLANG_LOAD:
        return sglang_load_length(knowledge, rounds, mean_accepted)
    launch_s = c.est_launch_s + c.est_request_s * max(rounds, 1)
    expected, costs = c.accept_prior, (launch_s, c.est_new_token_s, c.est_pair_s)
    if c.speculation == TURBOSPEC:
        return turbospec_length(parameters, knowledge, max(rounds, 1), c.max_draft_tokens, expected, *costs)
    return vllm_length(knowledge, max(rounds, 1), c.max_draft_tokens, expected, *costs)


@on_demand(lambda: VOID(INTEGER, INTEGER))
def suggest_lengths(home, place):
    """Compute lengths for the members of the batch that has just ended; their replies carry them."""
    w = world_at(home, place)
    c, s, devices, replies, memory = w.config[0], w.server[0], w.device, w.replies, w.memory
    knowledge = memory[memory.shape[0] - 1]
    rounds, mean_accepted = note_batch(c, s, devices, replies, memory, knowledge)
    if c.speculation == GOODSPEED:
        share_budget(w.speculation_parameters[0], memory, replies, s.n_replies, c.max_draft_tokens, c.accept_prior)
        for k in range(s.n_replies):
            devices[replies[k]].suggested_tokens = int(memory[replies[k], S_LENGTH])
    elif s.n_replies > 0:
        length = length_for_all(c, w.speculation_parameters, knowledge, rounds, mean_accepted)
        for k in range(s.n_replies):
            devices[replies[k]].suggested_tokens = min(length, c.max_draft_tokens)
