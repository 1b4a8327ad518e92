"""What becomes of tokens drafted by a server draft that is not the devices'.

The process of `acceptance` with numbers of its own. It takes the devices' draws to the degree of its correlation ρ: a normal is
`ρ·device's + √(1 − ρ²)·own`, a uniform the device's with probability ρ. Loops are of the text and have the same draws in any case.

Legend: `c` CONFIG and `d` DEVICE row; `r` SESSION row; `i` number of a device; `position` in the output, in tokens; `block` of
eight positions; fates are 1 accepted, 0 rejected.
"""

from wisp_gym.engine import draws
from wisp_gym.engine.acceptance import DRIFT_BLOCK_TOKENS, OFF_PATH_INDEX, sigmoid
from wisp_gym.engine.draws import normal, stream_key, uniform
from wisp_gym.engine.loops import loop_fate, next_loop
from wisp_gym.jit import jit


@jit
def mixed(c, device, own):
    """A normal that is correlated with the `device`'s, by a share of its `own`."""
    return c.server_correlation * device + c.server_own * own


@jit
def innovation(c, d, i, block):
    """Normal that moves the drift at a block."""
    return mixed(c, normal(d.drift_key, block), normal(stream_key(c.seed, draws.SERVER_DRIFT, i, d.request), block))


@jit
def begin(c, d, r, i):
    """Place the device's request at position 0 of the target's output."""
    device = normal(stream_key(c.seed, draws.REQUEST_EFFECT, i, d.request), 0)
    own = normal(stream_key(c.seed, draws.SERVER_EFFECT, i, d.request), 0)
    r.request = d.request
    r.logit = c.server_logit_mean + c.server_request_std * mixed(c, device, own)
    r.drift, r.block, r.position, r.after_rejection = innovation(c, d, i, 0), 0, 0, 0
    r.loop_period, r.loop_place = 0, 0
    turn(c, d, r)


@jit
def turn(c, d, r):
    """Whether the current position lies in a loop, and where."""
    if c.server_loop_enter > 0.0:
        r.loop_period, r.loop_place = next_loop(
            d.loop_key, r.position, c.server_loop_enter, c.server_loop_leave, c.server_loop_whole, c.server_loop_period_tokens,
            c.server_loop_longer, r.loop_period, r.loop_place,
        )  # fmt: skip


@jit
def fate_here(c, d, r, i):
    """Whether the token at the current position is accepted."""
    if r.loop_period != 0:
        return loop_fate(r.loop_period, r.loop_place)
    logit = r.logit + c.server_drift_std * r.drift
    p = sigmoid(logit - c.server_after_rejection_logit if r.after_rejection else logit)
    key = d.acceptance_key
    if uniform(stream_key(c.seed, draws.SERVER_SHARED, i, d.request), r.position) >= c.server_correlation:
        key = stream_key(c.seed, draws.SERVER_ACCEPTANCE, i, d.request)
    return 1 if uniform(key, r.position) < p else 0


@jit
def walk(c, d, r, i):
    """Fate of the token at the current position; moves on to the next."""
    fate = fate_here(c, d, r, i)
    r.after_rejection = 1 - fate
    r.position += 1
    turn(c, d, r)
    block = r.position // DRIFT_BLOCK_TOKENS
    if block != r.block:
        r.drift = c.server_drift_keep * r.drift + c.server_drift_fresh * innovation(c, d, i, block)
        r.block = block
    return fate


@jit
def follow(c, d, r, i):
    """Walk to where the response stands, back to the start of the last round first where its end was left out."""
    if r.request != d.request:
        begin(c, d, r, i)
    elif r.position > d.committed:
        r.drift, r.block, r.position, r.after_rejection = (
            r.mark_drift,
            r.mark_block,
            r.mark_position,
            r.mark_after_rejection,
        )
        r.loop_period, r.loop_place = r.mark_loop_period, r.mark_loop_place
    while r.position < d.committed:
        walk(c, d, r, i)
    r.mark_drift, r.mark_block, r.mark_position, r.mark_after_rejection = (
        r.drift,
        r.block,
        r.position,
        r.after_rejection,
    )
    r.mark_loop_period, r.mark_loop_place = r.loop_period, r.loop_place


@jit
def offers(c, d, r, i):
    """Whether the source drafts at all from here: always where its first token is right, else sometimes."""
    if c.server_offer >= 1.0 or fate_here(c, d, r, i):
        return True
    return uniform(stream_key(c.seed, draws.SERVER_OFFER, i, d.request), r.position) < c.server_offer


@jit
def draft_token(c, d, r, i):
    """Draft one more token: its fate given all before it, its evidence, its predicted acceptance."""
    if d.on_path:
        place = r.position
        d.fate = walk(c, d, r, i)
        d.accepted += d.fate
        d.on_path = d.fate
    else:
        place = OFF_PATH_INDEX + r.position * 64 + d.drafted
        d.fate = 0
    noise = normal(stream_key(c.seed, draws.SERVER_EVIDENCE, i, d.request), place)
    d.p_token = sigmoid(c.server_base_logit + c.separation * ((d.fate - 0.5) * c.separation + noise))
    d.drafted += 1
    d.survival *= d.p_token
    d.expected_tokens += d.survival
