"""What the server sees of a waiting request: writes the entries of `wisp_gym.contract.request`.

Legend: `c` CONFIG, `s` SERVER, `d` DEVICE and `r` SESSION row; `f` (FEATURES,) float64 of the request in physical units
(`wisp_gym.rules.batching`); `o` (SIZE,) float32 entries; `t` the mean batch time T; `entry` place of an entry,
written in units of `scale`.
"""

from wisp_gym.contract import request
from wisp_gym.contract.ladders import PATIENCE_S
from wisp_gym.engine.compose import fits, predicted_with_s
from wisp_gym.engine.handover import gain_and_use
from wisp_gym.engine.hosting import is_movable
from wisp_gym.engine.waiting import uncached_tokens
from wisp_gym.jit import jit
from wisp_gym.rules import batching as rules


@jit
def put(o, entry, quantity):
    """Write a quantity as an entry, in the entry's own unit and within its ends."""
    put_in(o, entry, quantity, request.SCALE[entry])


@jit
def put_in(o, entry, quantity, scale):
    """Write a quantity in units of `scale`, the mean batch time T, the cap K or the memory."""
    o[entry] = min(max(quantity / scale, request.LOW[entry]), request.HIGH[entry])


@jit
def observe_request(c, s, d, f, o):
    """Write the entries of one waiting request."""
    t = s.mean_batch_s
    put_in(o, request.WAITING, f[rules.WAITING_S], t)
    put_in(o, request.SLACK, f[rules.SLACK_S], t)
    put(o, request.NEW_TOKENS, f[rules.NEW_TOKENS])
    put(o, request.UNCACHED_TOKENS, f[rules.UNCACHED_TOKENS])
    put(o, request.CACHED_TOKENS, f[rules.CACHED_TOKENS])
    put_in(o, request.EXPECTED_TOKENS, f[rules.EXPECTED_TOKENS], c.max_draft_tokens)
    put(o, request.SLO, f[rules.SLO_TOKENS_PER_S])
    put_in(o, request.MARGINAL, f[rules.MARGINAL_S], t)
    put_in(o, request.SOLO, f[rules.SOLO_S], t)
    put_in(o, request.DRAFT_TOKENS, f[rules.DRAFT_TOKENS], c.max_draft_tokens)
    put(o, request.RUNNING, f[rules.RUNNING])
    put_in(o, request.BATCH_TIME_WITH, predicted_with_s(c, s, d), t)
    put(o, request.PRESENT, 1.0)
    put(o, request.ADMISSIBLE, 1.0 if fits(c, s, d) else 0.0)
    put(o, request.PICKED, d.in_batch)
    observe_response(c, s, d, f, o)


@jit
def observe_response(c, s, d, f, o):
    """Write how the response stands that the request belongs to, and what it needs of memory."""
    age_s, committed = f[rules.AGE_S], f[rules.COMMITTED_TOKENS]
    put_in(o, request.DUE, f[rules.DUE_S] - s.now_s, s.mean_batch_s)
    put(o, request.AGE, age_s)
    put(o, request.COMMITTED, committed)
    put(o, request.RATE, committed / age_s if age_s > 0.0 else 0.0)
    put_in(o, request.MEMORY_WITH, s.kv_tokens + uncached_tokens(d) + 1 + d.drafted, c.kv_capacity_tokens)
    put(o, request.BEGUN, 1.0 if d.cached_tokens > 0 else 0.0)
    put(o, request.EVICTED, 1.0 if committed > 0.0 and d.cached_tokens == 0 else 0.0)
    put(o, request.STARVING, 1.0 if rules.starving(f, PATIENCE_S) else 0.0)


@jit
def observe_session(c, s, d, r, o):
    """Write who drafts for the session of a waiting request, and what it would gain and cost at the server."""
    sharing = max(s.n_at_server + 1 - d.at_server, 1)
    gain_tokens_per_s, use = gain_and_use(c, s, d, r, sharing, d.prompt_tokens + d.committed)
    put(o, request.AT_SERVER, d.at_server)
    put(o, request.STAYS, r.stays)
    put(o, request.MOVABLE, 1.0 if is_movable(c, r) else 0.0)
    put(o, request.GAIN, gain_tokens_per_s * s.mean_batch_s)
    put(o, request.USE, use)
