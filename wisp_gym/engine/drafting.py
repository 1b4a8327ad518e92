"""Time on the device: drafting speed and thermal throttling.

Legend: `d` DEVICE row; `uses_predictor` 1 where the controller asks the rejection predictor.
"""

import math

from wisp_gym.jit import jit


@jit
def cool(d, now_s):
    """Let the device cool down (one pole) since its last drafting."""
    if d.throttle_ratio < 1.0:
        d.heat *= math.exp(-(now_s - d.heat_at_s) / d.throttle_s)
        d.heat_at_s = now_s


@jit
def heat_up(d, busy_s):
    """Heat of the device after `busy_s` of drafting: 1 is fully throttled."""
    if d.throttle_ratio < 1.0:
        d.heat = 1.0 - (1.0 - d.heat) * math.exp(-busy_s / d.throttle_s)
        d.heat_at_s += busy_s


@jit
def seconds_per_token(d, uses_predictor):
    """Drafting time of one token in this round, in s, with the rejection predictor's share where the controller asks it."""
    speed_factor = 1.0 - (1.0 - d.throttle_ratio) * d.heat
    seconds = d.token_s / speed_factor
    return seconds + d.predictor_s if uses_predictor else seconds
