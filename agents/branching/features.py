"""What a fleet at a moment is like, in numbers that its value depends on: for a critic (`agents.branching.critic`).

Only what is known at the moment: of a round under way how many tokens are expected of it, and not which are accepted. A device's
weight ρ is its own rate in tokens/s, 0 where it is thinking or its next token would be late. Times are in s.

Legend: `s` SERVER, `d` DEVICE row; `time_s` the moment; `x` (SIZE,) float64 features of one world, written; `busy_s` left of the running
batch; `begin` place of a phase's features.
"""

import numpy as np

from wisp_gym.engine.slo import token_deadline_s
from wisp_gym.engine.state import QUEUED, VERIFYING
from wisp_gym.engine.under_way import begun_s, rate_on_time
from wisp_gym.jit import jit

SOON_TOKENS = 4.0  # of its service class: a device that is no further ahead may soon be late
OF_PHASE = (
    "devices", "rate", "since_tokens", "drafted", "expected", "rate_busy", "prefill", "context",
)  # fmt: skip
PHASES = ("drafting", "queued", "verifying")  # drafting: until the round arrives at the server
OF_ARRIVALS = ("rate_arrival", "rate_aligned", "next_devices", "next_drafted", "next_rate", "next_crossed")
OF_FLEET = (
    "thinking", "thinking_s", "late", "soon_late", "slack", "tokens_left", "finishing", "first_tokens",
    "busy", "busy_s", "busy_s2", "waiting_s", "batch_s", "under_way",
)  # fmt: skip
NAMES = (*(f"{phase}_{name}" for phase in PHASES for name in OF_PHASE), *OF_ARRIVALS, *OF_FLEET)
SIZE = len(NAMES)
(RATE_ARRIVAL, RATE_ALIGNED, NEXT_DEVICES, NEXT_DRAFTED, NEXT_RATE, NEXT_CROSSED,
 THINKING, THINKING_S, LATE, SOON_LATE, SLACK, TOKENS_LEFT, FINISHING, FIRST_TOKENS,
 BUSY, BUSY_S, BUSY_S2, WAITING_S, BATCH_S, UNDER_WAY) = range(len(PHASES) * len(OF_PHASE), SIZE)  # fmt: skip


@jit
def write_features(device, server, time_s, features):
    """Write the features of each of n worlds.

    Args:
        device: (n, devices) DEVICE. server: (n, 1) SERVER. time_s: their clock. features: (n, SIZE) float64, written.
    """
    for k in range(len(features)):
        x, s = features[k], server[k, 0]
        x[:] = 0.0
        busy_s = max(s.batch_end_s - time_s, 0.0) if s.busy else 0.0
        for i in range(device.shape[1]):
            of_device(device[k, i], time_s, busy_s, x)
        x[BUSY], x[BUSY_S], x[BUSY_S2], x[BATCH_S] = s.busy, busy_s, busy_s**2, s.mean_batch_s
        x[NEXT_CROSSED] = x[NEXT_DRAFTED] * x[NEXT_RATE]


@jit
def of_device(d, time_s, busy_s, x):
    """Add one device's part."""
    if d.arrival_s > time_s or d.committed >= d.output_tokens:
        x[THINKING] += 1.0
        x[THINKING_S] += max(d.arrival_s - time_s, 0.0)
        return
    rate = rate_on_time(d, time_s)
    waiting_s = busy_s
    if d.phase == QUEUED or d.phase == VERIFYING:
        begin = 8 if d.phase == QUEUED else 16
    else:
        begin, away_s = 0, max(d.arrived_s - time_s, 0.0)
        waiting_s = max(busy_s - away_s, 0.0)
        x[RATE_ARRIVAL] += rate * away_s
        x[RATE_ALIGNED] += rate * waiting_s
    of_round(d, rate, time_s, busy_s, x[begin : begin + 8])
    if d.phase != VERIFYING and (waiting_s > 0.0 or d.phase == QUEUED):
        x[NEXT_DEVICES] += 1.0
        x[NEXT_DRAFTED] += d.drafted
        x[NEXT_RATE] += rate
    x[WAITING_S] += waiting_s
    x[UNDER_WAY] += rate * (time_s - begun_s(d) - (busy_s if begin > 0 else 0.0))
    of_deadline(d, rate, time_s, x)


@jit
def of_round(d, rate, time_s, busy_s, x):
    """Add what a round under way is like to (8,) features of its phase."""
    x[0] += 1.0
    x[1] += rate
    x[2] += rate * (time_s - begun_s(d))
    x[3] += d.drafted
    x[4] += d.expected_tokens if rate > 0.0 else 0.0
    x[5] += rate * busy_s
    x[6] += max(d.prompt_tokens + d.committed - d.cached_tokens, 0) * 1e-3
    x[7] += (d.prompt_tokens + d.committed) * 1e-3


@jit
def of_deadline(d, rate, time_s, x):
    """Add how far a device is ahead of its deadlines, and of its answer's end."""
    due_s = d.arrival_s + d.ttft_s if d.committed == 0 else token_deadline_s(d, d.committed)
    ahead = (due_s - time_s) * d.slo_tokens_per_s
    x[LATE] += 1.0 if rate <= 0.0 else 0.0
    x[SOON_LATE] += 1.0 if 0.0 < ahead < SOON_TOKENS else 0.0
    x[SLACK] += min(max(ahead, -20.0), 20.0)
    left = d.output_tokens - d.committed
    x[TOKENS_LEFT] += min(left, 64.0)
    x[FINISHING] += 1.0 if left <= d.drafted + 1 else 0.0
    x[FIRST_TOKENS] += 1.0 if d.committed == 0 else 0.0


def features_of(worlds, time_s: float) -> np.ndarray:
    """(n, SIZE) features of n worlds at their clock."""
    found = np.empty((len(worlds), SIZE))
    write_features(worlds.arrays.device, worlds.arrays.server, float(time_s), found)
    return found
