"""Time on the network: one-way delay with jitter, loss with retransmission, outages, waking from idle.

Legend: `d` DEVICE row; `message` number of the message in its request, from 0.
"""

import math

from wisp_gym.engine.draws import exponential, normal, uniform
from wisp_gym.jit import jit

OUTAGE_SLOT_S = 10.0  # at most one outage begins in each slot of this length
MESSAGE_BYTES = 256.0  # headers, ids and server state of one message (assumption)
TOKEN_BYTES = 4.0  # a token id
DRAFT_TOKEN_BYTES = 24.0  # a token id and its statistics


@jit
def outage_wait_s(d, now_s):
    """Seconds until the outage that covers `now_s` is over, else 0."""
    slot = int(now_s // OUTAGE_SLOT_S)
    wait = 0.0
    for index in range(max(slot - 1, 0), slot + 1):
        if uniform(d.outage_key, 3 * index) < d.outages_per_s * OUTAGE_SLOT_S:
            start = (index + uniform(d.outage_key, 3 * index + 1)) * OUTAGE_SLOT_S
            end = start + min(d.outage_s * exponential(d.outage_key, 3 * index + 2), OUTAGE_SLOT_S)
            if start <= now_s < end:
                wait = max(wait, end - now_s)
    return wait


@jit
def retransmissions(d, message):
    """How many times a message is lost before it arrives (geometric)."""
    u = uniform(d.loss_key, message)
    return int(math.log(u) / math.log(d.loss)) if u < d.loss else 0


@jit
def transfer_s(d, now_s, payload_bytes, bytes_per_s):
    """Seconds from sending one message at `now_s` until it is received; advances the link's state."""
    message = d.messages
    d.messages += 1
    delay = d.one_way_s
    if d.jitter > 0.0:
        d.link_state = d.jitter_keep * d.link_state + d.jitter_fresh * normal(d.network_key, message)
        delay *= math.exp(d.jitter * d.link_state)
    delay += (MESSAGE_BYTES + payload_bytes) / bytes_per_s
    if d.wake_s > 0.0 and now_s - d.link_used_s > d.idle_after_s:
        delay += d.wake_s
    if d.loss > 0.0:
        delay += d.timeout_s * retransmissions(d, message)
    if d.outages_per_s > 0.0:
        delay += outage_wait_s(d, now_s)
    d.link_used_s = now_s + delay
    return delay
