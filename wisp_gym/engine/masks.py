"""Which actions an outside decision maker may take.

Legend: `c` CONFIG, `s` SERVER and `d` DEVICE row; `observation` (size,) float32, `o` that of a device; `mask` (actions,) int8, 1 =
valid; `action` int64; `q` a place in the queue, `entry` of `contract.request`.
"""

import numpy as np

from wisp_gym.contract import request, server
from wisp_gym.contract.actions import PLAIN_TOKEN_ACTIONS, SEND, TOKEN_ACTIONS, WAYS
from wisp_gym.contract.ladders import CHUNK_TOKENS, PRICES, SERVER_TOKENS
from wisp_gym.engine.session import EXTERNAL_LENGTH
from wisp_gym.jit import jit
from wisp_gym.rules.ways import allows


def actions_of(c: np.void) -> int:
    """Number of actions in a world of this CONFIG row."""
    if c["external_batching"]:
        plain = int(c["visible_requests"]) + (len(PRICES) if c["sets_prices"] else 1) + 1 + len(CHUNK_TOKENS)
        return plain + (len(SERVER_TOKENS) + int(c["visible_requests"]) if c["external_hosting"] else 0)
    return int(device_actions_of(c))


@jit
def device_actions_of(c):
    """Number of actions of a device that is decided for outside."""
    n = lengths_of(c)
    if n > 0:
        return n * len(WAYS) if c.external_ways else n
    return len(TOKEN_ACTIONS) if c.external_ways else PLAIN_TOKEN_ACTIONS


@jit
def write_mask(c, observation, mask):
    """Write what is valid now: of a device what `rules.ways` allows, of batches see `write_batching`."""
    if c.external_batching:
        write_batching(c, observation, mask)
    else:
        write_device_mask(c, observation, mask)


@jit
def write_device_mask(c, observation, mask):
    """Write what a device that is decided for outside may do now."""
    n = lengths_of(c)
    for k in range(mask.shape[0]):
        mask[k] = 1 if allows(k, n, c.max_draft_tokens, observation) else 0


@jit
def write_device_masks(c, observations, masks):
    """The same for (m, SIZE) `observations`, into (m, actions) `masks`."""
    for row in range(observations.shape[0]):
        write_device_mask(c, observations[row], masks[row])


@jit
def lengths_of(c):
    """Lengths that a device chooses from once a round, 0 where it decides after each token."""
    return c.max_draft_tokens + 1 if c.external_speculation == EXTERNAL_LENGTH else 0


@jit
def write_batching(c, observation, mask):
    """Write what may be done with a batch.

    Pick requests; launch, or wait while it is empty; choose a chunk before one has been used, a draft length once, up to the longest;
    move each session once.
    """
    empty = observation[server.BATCH_REQUESTS] == 0.0
    wait = c.visible_requests + launches_of(c)
    chunks, moves = wait + 1 + len(CHUNK_TOKENS), wait + 1 + len(CHUNK_TOKENS) + len(SERVER_TOKENS)
    longest = observation[server.LONGEST] * c.max_draft_tokens + 0.5 if observation[server.LENGTH_OPEN] > 0.5 else -1.0
    for k in range(mask.shape[0]):
        if k < c.visible_requests:
            valid = place(observation, k, request.ADMISSIBLE) > 0.5
        elif k <= wait:
            valid = empty if k == wait else not empty
        elif k < chunks:
            valid = observation[server.CHUNK_OPEN] > 0.5
        elif k < moves:
            valid = SERVER_TOKENS[k - chunks] <= longest
        else:
            valid = place(observation, k - moves, request.MOVABLE) > 0.5
        mask[k] = 1 if valid else 0


@jit
def place(observation, q, entry):
    """An entry of the request in place q."""
    return observation[server.SIZE + q * request.SIZE + entry]


@jit
def launches_of(c):
    """Number of actions that launch a batch: one, or one for each price."""
    return len(PRICES) if c.sets_prices else 1


@jit
def nearest_valid(c, s, d, mask, action):
    """The action, or what is done instead of one that is not valid, which is counted: sending, the longest draft; a launch, or a wait."""
    if mask[action]:
        return action
    s.invalid_actions += 1
    if not c.external_batching:
        return instead(c, d)
    return c.visible_requests if mask[c.visible_requests] else c.visible_requests + launches_of(c)


@jit
def instead(c, d):
    """What a device does in place of an action that is not valid: its longest draft, or sending."""
    return d.cap if c.external_speculation == EXTERNAL_LENGTH else SEND


@jit
def nearest_of_device(c, s, d, o, action):
    """A device's action, or what is done instead of one that its observation does not allow, which is counted."""
    if 0 <= action < device_actions_of(c) and allows(action, lengths_of(c), c.max_draft_tokens, o):
        return action
    s.invalid_actions += 1
    return instead(c, d)
