"""Rules and scorers asked with rows of observations, as policies outside the engine are.

Legend: `o` float32 observation of the server, its own entries (`wisp_gym.contract.server`) and then those of each
place in the queue (`wisp_gym.contract.request`); `f` (FEATURES,) float64 of one request in physical units
(`wisp_gym.rules.batching`), at a clock that reads 0; `t` the mean batch time T; `q` a place in the queue, `chosen`
(Q,) int64 places; `kind` id, `parameters` (8,) float64 and `memory` (MEMORY,) float64 of a rule; `policy` and
`scorer` float32 vectors of `mlp.pack` and `scorer.pack`; `launches` number of launch actions; `embeddings` (H, Q)
float32; `fates` (n,) int64 and `chances` (n,) float64 of a draw in (0, 1), one for each observation.
"""

import numpy as np

from wisp_gym.contract import request as seen
from wisp_gym.contract import server
from wisp_gym.contract.actions import DRAFT, SEND
from wisp_gym.jit import jit, jit_allocating
from wisp_gym.rules import batching as rules
from wisp_gym.rules.scorer import (
    best_head,
    embed,
    keep_still,
    pool,
    score_context,
    score_requests,
    shape_of,
    working_memory,
)
from wisp_gym.rules.speculation import POLICY_LENGTH, choose_length, continue_drafting
from wisp_gym.rules.ways import allows, best_allowed, may_end_otherwise


@jit
def decide_drafting(
    kind, parameters, policy, memory, chooses_way, max_draft_tokens, observations, fates, chances, actions
):
    """Write a speculation rule's action for each of (n, device.SIZE) observations into (n,) `actions`.

    `chooses_way`: of a policy that says how rounds end. Rules draft or send: where ways are open a round that holds no more tokens
    is asked about too, and they send it.
    """
    for row in range(len(observations)):
        o = observations[row]
        if chooses_way:
            n = max_draft_tokens + 1 if kind == POLICY_LENGTH else 0
            actions[row] = best_allowed(policy, o, n, max_draft_tokens)
        elif kind >= POLICY_LENGTH:
            actions[row] = choose_length(kind, parameters, policy, memory, max_draft_tokens, o)
        elif may_end_otherwise(o) and not allows(DRAFT, 0, max_draft_tokens, o):
            actions[row] = SEND
        else:
            actions[row] = continue_drafting(
                kind, parameters, policy, memory, max_draft_tokens, o, fates[row], fates[row], chances[row]
            )


@jit_allocating
def place(o, q):
    """The entries of the request in place q, (request.SIZE,)."""
    return o[server.SIZE + q * seen.SIZE : server.SIZE + (q + 1) * seen.SIZE]


@jit_allocating
def places(o):
    """Number of places in the queue."""
    return (o.shape[0] - server.SIZE) // seen.SIZE


@jit_allocating
def features_of(o, batch_s, max_draft_tokens, f):
    """Write a request's features from its entries o: (request.SIZE,)."""
    f[rules.WAITING_S] = o[seen.WAITING] * batch_s
    f[rules.SLACK_S] = o[seen.SLACK] * batch_s
    f[rules.NEW_TOKENS] = o[seen.NEW_TOKENS] * seen.SCALE[seen.NEW_TOKENS]
    f[rules.UNCACHED_TOKENS] = o[seen.UNCACHED_TOKENS] * seen.SCALE[seen.UNCACHED_TOKENS]
    f[rules.CACHED_TOKENS] = o[seen.CACHED_TOKENS] * seen.SCALE[seen.CACHED_TOKENS]
    f[rules.EXPECTED_TOKENS] = o[seen.EXPECTED_TOKENS] * max_draft_tokens
    f[rules.SLO_TOKENS_PER_S] = o[seen.SLO] * seen.SCALE[seen.SLO]
    f[rules.MARGINAL_S] = o[seen.MARGINAL] * batch_s
    f[rules.SOLO_S] = o[seen.SOLO] * batch_s
    f[rules.DRAFT_TOKENS] = o[seen.DRAFT_TOKENS] * max_draft_tokens
    f[rules.ARRIVED_S] = -f[rules.WAITING_S]
    f[rules.DEADLINE_S] = f[rules.SLACK_S]
    f[rules.RUNNING] = o[seen.RUNNING]
    f[rules.AGE_S] = o[seen.AGE] * seen.SCALE[seen.AGE]
    f[rules.COMMITTED_TOKENS] = o[seen.COMMITTED] * seen.SCALE[seen.COMMITTED]
    f[rules.DUE_S] = o[seen.DUE] * batch_s


@jit_allocating
def mean_batch_s(o):
    """Mean batch time T."""
    return o[server.MEAN_BATCH_TIME] * server.SCALE[server.MEAN_BATCH_TIME]


@jit_allocating
def earliest_met_s(kind, parameters, max_draft_tokens, o, f):
    """Earliest deadline among the requests picked so far that the batch so far still meets."""
    t, earliest_s = mean_batch_s(o), np.inf
    end_s = o[server.BATCH_TIME] * t * (1.0 + rules.margin_of(kind, parameters))
    for q in range(places(o)):
        request = place(o, q)
        if request[seen.PICKED] > 0.5:
            features_of(request, t, max_draft_tokens, f)
            if f[rules.DEADLINE_S] >= end_s:
                earliest_s = min(earliest_s, f[rules.DEADLINE_S])
    return earliest_s


@jit_allocating
def choose_one(kind, parameters, max_draft_tokens, launches, o, f):
    """A batching rule's action for one observation."""
    visible, t = places(o), mean_batch_s(o)
    n_batch = int(o[server.BATCH_REQUESTS] * server.SCALE[server.BATCH_REQUESTS] + 0.5)
    waiting = int(o[server.QUEUE] * server.SCALE[server.QUEUE] + 0.5)
    rest = visible + launches if n_batch == 0 else visible  # wait, or launch
    if n_batch == 0 and rules.ready(kind, parameters, waiting, place(o, 0)[seen.WAITING] * t) > 0.0:
        return rest
    due_s = earliest_met_s(kind, parameters, max_draft_tokens, o, f)
    batch_s = o[server.BATCH_TIME] * t
    best, best_key = rest, np.inf
    for q in range(visible):
        request = place(o, q)
        if request[seen.ADMISSIBLE] < 0.5:
            continue
        features_of(request, t, max_draft_tokens, f)
        key = rules.priority(kind, parameters, 0.0, t, f)
        with_it_s = request[seen.BATCH_TIME_WITH] * t
        if key < best_key and rules.admits(kind, parameters, 0.0, t, f, n_batch, n_batch, batch_s, with_it_s, due_s):
            best, best_key = q, key
    return best


@jit_allocating
def decide_batching(kind, parameters, max_draft_tokens, launches, observations, actions):
    """Write a batching rule's action for each of (n, size) observations into (n,) `actions`."""
    f = np.zeros(rules.FEATURES)
    for row in range(len(observations)):
        actions[row] = choose_one(kind, parameters, max_draft_tokens, launches, observations[row], f)


@jit_allocating
def embed_places(scorer, o, chosen, embeddings):
    """Write the places whose request is embedded, and their embeddings; returns how many."""
    every = shape_of(scorer).lengths > 0  # not those alone that lack context in memory
    row, symlogs = np.zeros(seen.SIZE, np.float32), np.empty(seen.SIZE, np.float32)
    hidden, embedding = np.empty(shape_of(scorer).hidden, np.float32), np.empty(embeddings.shape[0], np.float32)
    n = 0
    for q in range(len(chosen)):
        request = place(o, q)
        if request[seen.PRESENT] < 0.5 or not (every or request[seen.UNCACHED_TOKENS] > 0.0):
            continue
        row[:] = request
        keep_still(row)
        embed(scorer, row, symlogs, hidden, embedding)
        for k in range(len(embedding)):
            embeddings[k, n] = embedding[k]
        chosen[n] = q
        n += 1
    return n


@jit_allocating
def best_of_requests(o, moves, chosen, scores):
    """Place and score of the best request to pick, or whose session to move; −1 where there is none.

    `moves`: whether to move. `chosen`: places of the requests that have `scores`.
    """
    best, best_score = -1, np.float32(-np.inf)
    for k in range(len(scores)):
        request = place(o, chosen[k])
        valid = (
            request[seen.MOVABLE] > 0.5
            if moves
            else (request[seen.ADMISSIBLE] > 0.5 and request[seen.UNCACHED_TOKENS] > 0.0)
        )
        score = -scores[k] if moves and request[seen.STAYS] > 0.5 else scores[k]
        if valid and score > best_score:
            best, best_score = chosen[k], score
    return best, best_score


@jit_allocating
def longest_length(max_draft_tokens, o):
    """The longest of the server's drafts that may be chosen now, below 0 where none may."""
    return int(o[server.LONGEST] * max_draft_tokens + 0.5) if o[server.LENGTH_OPEN] > 0.5 else -1


@jit_allocating
def score_one(scorer, max_draft_tokens, launches, o):
    """A scorer's action for one observation."""
    visible, shape = places(o), shape_of(scorer)
    own, chosen = shape.launches, np.empty(visible, np.int64)
    embeddings, scores, inputs, context, query, heads = working_memory(scorer, visible)
    n = embed_places(scorer, o, chosen, embeddings)
    pool(embeddings, n, inputs, server.SIZE)
    score_context(scorer, o[: server.SIZE], inputs, context, query, heads)
    empty, chunk_open = o[server.BATCH_REQUESTS] == 0.0, o[server.CHUNK_OPEN] > 0.5
    other = best_head(shape, heads, empty, chunk_open, longest_length(max_draft_tokens, o))
    score_requests(query, 0, embeddings, n, scores)
    best, best_score = best_of_requests(o, False, chosen, scores[:n])
    if shape.lengths > 0:
        score_requests(query, 1, embeddings, n, scores)
        move, move_score = best_of_requests(o, True, chosen, scores[:n])
        if move >= 0 and move_score > max(best_score, heads[other]):
            return visible + launches + len(heads) - own + move
    if best >= 0 and best_score >= heads[other]:
        return best
    return visible + (other if other < own else other - own + launches)


@jit_allocating
def score_batching(scorer, max_draft_tokens, launches, observations, actions):
    """Write a scorer's action for each of (n, size) observations into (n,) `actions`."""
    for row in range(len(observations)):
        actions[row] = score_one(scorer, max_draft_tokens, launches, observations[row])
