"""What an outside decision maker is handed after each step, gathered in compiled code.

Legend: `w` World; `c` CONFIG, `s` SERVER and `d` DEVICE row; `kind` what the world waits for; `observation` (size,) float32;
`outcome` (SIZE,) float64.
"""

from wisp_gym.engine.compose import begin_batch
from wisp_gym.engine.loop import BATCHING, DONE
from wisp_gym.engine.observe_server import observe_server
from wisp_gym.engine.source import fate_here
from wisp_gym.jit import jit

# Columns of the (W, SIZE) float64 outcome of a step.
(
    COMMITTED, ON_TIME, WASTED, ROUND_S, WORK_S, OWN_TOKENS_PER_S, SERVER_TOKENS_PER_S, CLOCK_S, CAP, DRAFTED, INVALID, TOKENS, TOKENS_ON_TIME,
    LAST_FATE, NEXT_FATE, STARVED_S,
) = range(16)  # fmt: skip
SIZE = 16


@jit
def decision_time_s(c, s, d, kind):
    """Clock of a decision: the server's, or the device's (which may be ahead of it), at most the horizon."""
    if kind == DONE:
        return c.end_s
    return min(s.now_s if kind == BATCHING else d.clock_s, c.end_s)


@jit
def gather(w, kind, observation, outcome):
    """Write the deciding device's observation and what happened since the last decision; starts to count anew."""
    c, s = w.config[0], w.server[0]
    d = w.device[max(c.external_device, 0)]
    if c.external_batching:
        if kind == DONE:  # the feature rows are still those of the last batch composed
            begin_batch(w)
        observe_server(w, observation)
    else:
        seen = w.observation[max(c.external_device, 0)]
        for k in range(seen.shape[0]):  # copying a slice would need an allocation, in case the two overlap
            observation[k] = seen[k]
    outcome[COMMITTED] = s.step_committed
    outcome[ON_TIME] = s.step_on_time
    outcome[WASTED] = s.step_wasted
    outcome[ROUND_S] = s.step_round_s
    outcome[WORK_S] = s.step_work_s
    outcome[OWN_TOKENS_PER_S] = d.token_sum / d.time_sum_s
    outcome[SERVER_TOKENS_PER_S] = s.token_rate
    outcome[CLOCK_S] = decision_time_s(c, s, d, kind)
    outcome[CAP] = d.cap
    outcome[DRAFTED] = d.drafted
    outcome[INVALID] = s.invalid_actions
    outcome[TOKENS] = w.totals[0].tokens
    outcome[TOKENS_ON_TIME] = w.totals[0].tokens_on_time
    outcome[LAST_FATE] = d.fate
    outcome[NEXT_FATE] = fate_here(c, d, w.source) if d.on_path else 0
    outcome[STARVED_S] = s.step_starved_s
    s.step_starved_s = 0.0
    s.step_committed, s.step_on_time, s.step_wasted, s.step_round_s, s.step_work_s = 0.0, 0.0, 0.0, 0.0, 0.0
