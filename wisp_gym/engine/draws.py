"""Counter-based randomness: a draw is a hash of (seed, cause, device, request, index).

No draw depends on the order of events, so two controllers meet exactly the same world (common random numbers), a
feature that is switched on moves no other draw, and any request can be replayed alone.

`stream_key` hashes who asks; `bits(key, index)` is the index-th output of SplitMix64 seeded with that key
(Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, OOPSLA 2014).

Legend: `key` uint64 of a stream; `index` of a draw in it, from 0; `z` uint64; `q` and `probability` probabilities.
"""

import math
from typing import Any

import numpy as np

from wisp_gym.jit import jit, jit_inline
from wisp_gym.jit_lanes import four_at_once

# One cause of randomness each.
(
    ARRIVAL,
    PROMPT,
    OUTPUT,
    NETWORK,
    LOSS,
    OUTAGE,
    REQUEST_EFFECT,
    DRIFT,
    ACCEPTANCE,
    EVIDENCE,
    OFF_PATH,
    VIEWS,
    BATCH_NOISE,
    CONTROLLER,
    ANSWER,
    SERVER_EFFECT,  # of a draft on the server that is not the devices': its request effect …
    SERVER_DRIFT,  # … the innovations of its drift
    SERVER_ACCEPTANCE,  # … its fates
    SERVER_SHARED,  # … whether it takes the devices' draw at a place
    SERVER_OFFER,  # … whether it drafts what is rejected at once
    SERVER_EVIDENCE,  # … the noise of its evidence
    LOOPS,
) = range(22)

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
MIX_2 = np.uint64(0x94D049BB133111EB)
S27, S30, S31, S11 = np.uint64(27), np.uint64(30), np.uint64(31), np.uint64(11)
ONE = np.uint64(1)
TWO_TO_MINUS_53 = 2.0**-53
CENTRE = 0.425  # probabilities this near to a half have a formula without a logarithm


@jit
def mix(z):
    """SplitMix64's output function, uint64."""
    z = (z ^ (z >> S30)) * MIX_1
    z = (z ^ (z >> S27)) * MIX_2
    return z ^ (z >> S31)


@jit
def stream_key(seed, cause, device, request):
    """Key, uint64, of the stream of one cause of one request of one device of the world with this seed."""
    key = mix(np.uint64(seed) + GOLDEN * (np.uint64(cause) + ONE))
    key = mix(key + GOLDEN * (np.uint64(device) + ONE))
    return mix(key + GOLDEN * (np.uint64(request) + ONE))


@jit_inline
def bits(key, index):
    """64 random bits, uint64."""
    return mix(np.uint64(key) + GOLDEN * (np.uint64(index) + ONE))


@jit_inline
def uniform(key, index):
    """Uniform draw in the open interval (0, 1)."""
    return (float(bits(key, index) >> S11) + 0.5) * TWO_TO_MINUS_53


@jit
def exponential(key, index):
    """Exponential draw of mean 1."""
    return -math.log(uniform(key, index))


def central_formula(q):
    """Normal quantile of 0.5 + q for |q| ≤ 0.425 (AS 241), of a number or of `Lanes`."""
    r = 0.180625 - q * q
    top = (((((((r * 2509.0809287301226727 + 33430.575583588128105) * r + 67265.770927008700853) * r + 45921.953931549871457) * r
             + 13731.693765509461125) * r + 1971.5909503065514427) * r + 133.14166789178437745) * r + 3.387132872796366608)  # fmt: skip
    low = (((((((r * 5226.495278852545925 + 28729.085735721942674) * r + 39307.89580009271061) * r + 21213.794301586595867) * r
             + 5394.1960214247511077) * r + 687.1870074920579083) * r + 42.313330701600911252) * r + 1.0)  # fmt: skip
    return q * top / low


central_quantile = jit(central_formula)
central_quantiles: Any = four_at_once(central_formula)


@jit_inline
def tail_quantile(probability):
    """Absolute normal quantile of a small probability (AS 241)."""
    r = math.sqrt(-math.log(probability))
    if r <= 5.0:
        r -= 1.6
        top = ((((((7.7454501427834140764e-4 * r + 0.0227238449892691845833) * r + 0.24178072517745061177) * r + 1.27045825245236838258) * r
                 + 3.64784832476320460504) * r + 5.7694972214606914055) * r + 4.6303378461565452959) * r + 1.42343711074968357734  # fmt: skip
        low = ((((((1.05075007164441684324e-9 * r + 5.475938084995344946e-4) * r + 0.0151986665636164571966) * r + 0.14810397642748007459) * r
                 + 0.68976733498510000455) * r + 1.6763848301838038494) * r + 2.05319162663775882187) * r + 1.0  # fmt: skip
        return top / low
    r -= 5.0
    top = ((((((2.01033439929228813265e-7 * r + 2.71155556874348757815e-5) * r + 0.0012426609473880784386) * r + 0.026532189526576123093) * r
             + 0.29656057182850489123) * r + 1.7848265399172913358) * r + 5.4637849111641143699) * r + 6.6579046435011037772  # fmt: skip
    low = ((((((2.04426310338993978564e-15 * r + 1.4215117583164458887e-7) * r + 1.8463183175100546818e-5) * r + 7.868691311456132591e-4) * r
             + 0.0148753612908506148525) * r + 0.13692988092273580531) * r + 0.59983220655588793769) * r + 1.0  # fmt: skip
    return top / low


@jit_inline
def away_from_centre(probability):
    """Standard normal quantile of a probability outside 0.5 ± 0.425."""
    return -tail_quantile(probability) if probability < 0.5 else tail_quantile(1.0 - probability)


@jit_inline
def normal_quantile(probability):
    """Standard normal quantile, relative error below 1e-15 (Wichura, Algorithm AS 241, PPND16, 1988)."""
    q = probability - 0.5
    return central_quantile(q) if abs(q) <= CENTRE else away_from_centre(probability)


@jit_inline
def normal(key, index):
    """Standard normal draw."""
    return normal_quantile(uniform(key, index))


@jit_inline
def three_normals(key, index):
    """Three standard normal draws, those of `index` and the next two."""
    p0, p1, p2 = uniform(key, index), uniform(key, index + 1), uniform(key, index + 2)
    z0, z1, z2, _ = central_quantiles(p0 - 0.5, p1 - 0.5, p2 - 0.5, 0.0)
    z0 = z0 if abs(p0 - 0.5) <= CENTRE else away_from_centre(p0)
    z1 = z1 if abs(p1 - 0.5) <= CENTRE else away_from_centre(p1)
    z2 = z2 if abs(p2 - 0.5) <= CENTRE else away_from_centre(p2)
    return z0, z1, z2


@jit
def clipped_lognormal(key, index, log_mean, log_std, low, high):
    """Integer log-normal draw of logarithm `log_mean` ± `log_std`, clipped to [low, high]."""
    value = math.exp(log_mean + log_std * normal(key, index))
    return int(min(max(round(value), low), high))
