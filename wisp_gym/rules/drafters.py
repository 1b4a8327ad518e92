"""Who drafts a session's next round: its device or the server, chosen at the end of each of its rounds.

A pure function of what the server knows of a session and of itself. The server may keep a session, so that its tokens stream
from there, or hand it to its device, which then drafts until it is taken back.

Legend: `kind` id of the rule; `parameters` (8,) float64 of it; `alpha` acceptance of a drafted token, 0 to 1; `k` drafted
tokens of a round at the server, `length` of one at the device; times in s.
"""

from wisp_gym.jit import jit
from wisp_gym.rules.lengths import ALPHA_HIGH, ALPHA_LOW, expected_tokens

(DEVICE, SERVER, BY_LOAD, BY_CLASS, BY_SPEED, BY_PRICE, BY_DEVICE) = range(7)
FIRST_LENGTH = 4  # tokens that a device is taken to draft in a round before it has drafted any (assumption)


@jit
def is_mixed(kind):
    """Whether the rule chooses between both."""
    return kind > SERVER


@jit
def place_left(kind, parameters, others):
    """Whether the server has a place for one more session beside `others` that it drafts for."""
    return others < parameters[0 if kind in (BY_LOAD, BY_DEVICE) else 1]


@jit
def server_drafts(
    kind, parameters, others, slo_tokens_per_s, draft_tokens_per_s, gain_tokens_per_s, price_tokens_per_s
):
    """Whether the server drafts for a session in its next round.

    Parameters: by load and by device the most sessions n; by class the least speed v, by speed the fastest device, by price the
    factor A, each followed by n.

    Args:
        others: further sessions that the server drafts for. slo_tokens_per_s: speed of the session's class.
        draft_tokens_per_s: of its device, before throttling.
        gain_tokens_per_s: what the session is expected to get at the server beyond what it gets at its device.
        price_tokens_per_s: what the server's time for it is worth, beyond its time for the device's rounds.
    """
    if kind <= SERVER:
        return kind == SERVER
    if not place_left(kind, parameters, others):
        return False
    if kind == BY_CLASS:
        return slo_tokens_per_s >= parameters[0]
    if kind == BY_SPEED:
        return draft_tokens_per_s <= parameters[0]
    if kind == BY_PRICE:
        return gain_tokens_per_s > parameters[0] * price_tokens_per_s
    return True


@jit
def tokens_per_s(alpha, k, round_s):
    """Expected tokens a second of a session whose rounds of k drafts take `round_s`."""
    return expected_tokens(min(max(alpha, ALPHA_LOW), ALPHA_HIGH), k) / round_s


@jit
def device_round_s(length, overhead_s, token_s, delay_s, batch_s):
    """Time of a device's round: drafting, both ways, half a mean batch of waiting and one of verification."""
    return overhead_s + length * token_s + 2.0 * delay_s + 1.5 * batch_s
