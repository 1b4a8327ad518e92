"""What an outside decision maker is handed after each step, gathered in compiled code.

Legend: `w` World; `c` CONFIG, `s` SERVER and `d` DEVICE row; `kind` what the world waits for; `observation` (size,) float32;
`mask` (actions,) int8; `outcome` (SIZE,) float64; `pay` see `rewards`.
"""

from wisp_gym.engine.compose import begin_batch
from wisp_gym.engine.loop import BATCHING, DONE
from wisp_gym.engine.masks import write_mask
from wisp_gym.engine.observe_server import observe_server
from wisp_gym.engine.rewards import MOST_TERMS, batching_terms, speculation_terms, weighted
from wisp_gym.engine.rows import row_of
from wisp_gym.engine.source import fate_here
from wisp_gym.jit import jit

# Columns of the (W, SIZE) float64 outcome of a step. From EARNED on it is what the step itself brought: the seconds that it
# took, its reward, and the reward's terms from TERMS on.
CLOCK_S, DRAFTED, INVALID, LAST_FATE, NEXT_FATE, TOKENS, TOKENS_ON_TIME, ELAPSED_S, REWARD, TERMS = range(10)
EARNED, SIZE = ELAPSED_S, TERMS + MOST_TERMS


@jit
def decision_time_s(c, s, d, kind):
    """Clock of a decision: the server's, or the device's (which may be ahead of it), at most the horizon."""
    if kind == DONE:
        return c.end_s
    return min(s.now_s if kind == BATCHING else d.clock_s, c.end_s)


@jit
def gather(w, kind, observation, mask, outcome, pay):
    """Write what the deciding device sees and may do, and what happened since the last decision; starts to count anew."""
    c, s = w.config[0], w.server[0]
    d = w.device[max(c.external_device, 0)]
    observe(w, kind, observation)
    write_mask(c, observation, mask)
    clock_s = decision_time_s(c, s, d, kind)
    outcome[ELAPSED_S] = clock_s - outcome[CLOCK_S]
    write_terms(w, d, outcome, pay)
    outcome[CLOCK_S] = clock_s
    outcome[DRAFTED] = d.drafted
    outcome[INVALID] = s.invalid_actions
    outcome[LAST_FATE] = d.fate
    outcome[NEXT_FATE] = fate_here(c, d, w.source) if d.on_path else 0
    outcome[TOKENS] = w.totals[0].tokens
    outcome[TOKENS_ON_TIME] = w.totals[0].tokens_on_time
    s.step_starved_s = 0.0
    s.step_committed, s.step_on_time, s.step_wasted, s.step_round_s, s.step_work_s = 0.0, 0.0, 0.0, 0.0, 0.0


@jit
def observe(w, kind, observation):
    """Write what whoever decides outside sees."""
    c = w.config[0]
    if c.external_batching:
        if kind == DONE:  # the feature rows are still those of the last batch composed
            begin_batch(w)
        observe_server(w.home, w.place, observation)
    else:
        seen = w.observation[row_of(w.observation, max(c.external_device, 0))]
        for k in range(seen.shape[0]):  # copying a slice would need an allocation, in case the two overlap
            observation[k] = seen[k]


@jit
def write_terms(w, d, outcome, pay):
    """Write the reward and its terms; TOKENS and the like are still those of the last decision."""
    c, s = w.config[0], w.server[0]
    if c.external_batching:
        tokens = w.totals[0].tokens - outcome[TOKENS]
        on_time = w.totals[0].tokens_on_time - outcome[TOKENS_ON_TIME]
        batching_terms(s, tokens, on_time, outcome[ELAPSED_S], pay, outcome[TERMS:])
    else:
        speculation_terms(s, d, pay, outcome[TERMS:])
    outcome[REWARD] = weighted(outcome[TERMS:], pay)
