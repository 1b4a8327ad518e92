"""Which actions an outside decision maker may take.

Legend: `c` CONFIG, `s` SERVER and `d` DEVICE row; `observation` (size,) float32; `mask` (actions,) int8, 1 = valid; `action` int64.
"""

import numpy as np

from wisp_gym.contract import request, server
from wisp_gym.contract.ladders import CHUNK_TOKENS, PRICES
from wisp_gym.engine.session import EXTERNAL_LENGTH
from wisp_gym.jit import jit


def actions_of(c: np.void) -> int:
    """Number of actions in a world of this CONFIG row."""
    if c["external_batching"]:
        return int(c["visible_requests"]) + (len(PRICES) if c["sets_prices"] else 1) + 1 + len(CHUNK_TOKENS)
    return int(c["max_draft_tokens"]) + 1 if c["external_speculation"] == EXTERNAL_LENGTH else 2


@jit
def write_mask(c, d, observation, mask):
    """Write what is valid now: of tokens both answers, of lengths those up to the round's cap, of batches see `write_batching`."""
    if c.external_batching:
        write_batching(c, observation, mask)
        return
    longest = d.cap if c.external_speculation == EXTERNAL_LENGTH else 1
    for k in range(mask.shape[0]):
        mask[k] = 1 if k <= longest else 0


@jit
def write_batching(c, observation, mask):
    """Requests that may be picked; launching a batch, or waiting while it is empty; chunks before one has been used."""
    empty, chunk_open = observation[server.BATCH_REQUESTS] == 0.0, observation[server.CHUNK_OPEN] > 0.5
    wait = c.visible_requests + launches_of(c)
    for k in range(mask.shape[0]):
        if k < c.visible_requests:
            valid = observation[server.SIZE + k * request.SIZE + request.ADMISSIBLE] > 0.5
        elif k < wait:
            valid = not empty
        else:
            valid = empty if k == wait else chunk_open
        mask[k] = 1 if valid else 0


@jit
def launches_of(c):
    """Number of actions that launch a batch: one, or one for each price."""
    return len(PRICES) if c.sets_prices else 1


@jit
def nearest_valid(c, s, d, mask, action):
    """The action, or what is done instead of one that is not valid, which is counted: the longest draft; a launch, or else a wait."""
    if mask[action]:
        return action
    s.invalid_actions += 1
    if not c.external_batching:
        return d.cap
    return c.visible_requests if mask[c.visible_requests] else c.visible_requests + launches_of(c)
