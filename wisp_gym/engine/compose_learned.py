"""Composing a batch by a learned scorer, decision by decision, exactly as an agent of `wisp_gym/Batching-v1` would.

Responses in memory join by themselves; the scorer picks only requests that lack context in memory, and embeds no others unless it
says for whom the server drafts.

Legend: `w` World; `c` CONFIG and `s` SERVER row; `devices` (n,) DEVICE; `sessions` (n,) SESSION; `queue` (n,) int64 devices; `features` (n,
FEATURES) float64, a row for each device; `scorer` float32 vector of `rules.scorer.pack`, H its width of an
embedding; `row` (REQUEST,) float32 entries of a request; `places` (m,) int64 places in the queue; `embeddings` (H,
m) and `scores` (m,) float32; `least` score.
"""

import numpy as np

from wisp_gym.contract import request, server
from wisp_gym.contract.ladders import PRICES, SERVER_TOKENS
from wisp_gym.engine.arguments import world_at
from wisp_gym.engine.compose import add, choose_chunk, chunk_is_open, fits, join_responses
from wisp_gym.engine.hosting import choose_tokens, is_movable, length_is_open, longest_draft, move_session, open_choices
from wisp_gym.engine.observe_request import observe_request, observe_session
from wisp_gym.engine.observe_server import observe_batch
from wisp_gym.jit import INTEGER, VOID, jit, jit_allocating, on_demand
from wisp_gym.rules.batching import FCFS, UNCACHED_TOKENS, binding_deadline_s
from wisp_gym.rules.drafters import is_mixed
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


@jit_allocating
def places_to_score(c, s, queue, features):
    """(m,) int64 visible places in the queue whose request is embedded: it lacks context in memory, or its session may be moved."""
    places = np.empty(min(s.n_queue, c.visible_requests), np.int64)
    n = 0
    for q in range(len(places)):
        if c.chooses_hosting or features[queue[q], UNCACHED_TOKENS] > 0.0:
            places[n] = q
            n += 1
    return places[:n]


@jit_allocating
def embed_queue(c, s, devices, sessions, queue, features, scorer, places, embeddings):
    """Write the embedding of the request in each of the places."""
    row, seen = np.zeros(request.SIZE, np.float32), np.empty(request.SIZE, np.float32)
    hidden, embedding = np.empty(shape_of(scorer).hidden, np.float32), np.empty(embeddings.shape[0], np.float32)
    for k in range(len(places)):
        q = places[k]
        observe_request(c, s, devices[queue[q]], features[queue[q]], row)
        if is_mixed(c.drafter):
            observe_session(c, s, devices[queue[q]], sessions[queue[q]], row)
        keep_still(row)
        embed(scorer, row, seen, hidden, embedding)
        for h in range(len(embedding)):
            embeddings[h, k] = embedding[h]


@jit_allocating
def best_pick(c, s, devices, queue, features, places, scores):
    """Place and score of the best request that lacks context in memory and fits; −1 where none does."""
    best, best_score = -1, np.float32(-np.inf)
    for k in range(len(scores)):
        i = queue[places[k]]
        lacks = features[i, UNCACHED_TOKENS] > 0.0
        if scores[k] > best_score and lacks and devices[i].in_batch == 0 and fits(c, s, devices[i]):
            best, best_score = places[k], scores[k]
    return best, best_score


@jit
def move_sessions(c, sessions, queue, places, scores, least):
    """Move the sessions whose score of moving is above `least`. None of them changes what the scorer sees of the others."""
    for k in range(len(scores)):
        r = sessions[queue[places[k]]]
        if is_movable(c, r) and (-scores[k] if r.stays else scores[k]) > least:
            move_session(r)


@on_demand(lambda: VOID(INTEGER, INTEGER), allocating=True)
def compose_learned(home, place):
    """Take the best action until it is to launch, or to wait (then the batch is empty)."""
    w = world_at(home, place)
    c, s, devices, queue, features, scorer = w.config[0], w.server[0], w.device, w.queue, w.features, w.scorer
    open_choices(w)
    join_responses(w)
    shape = shape_of(scorer)
    launches, lengths = shape.launches, shape.launches + 1 + shape.chunks
    places = places_to_score(c, s, queue, features)
    n = len(places)
    row = np.zeros(server.SIZE, np.float32)
    embeddings, scores, inputs, context, query, heads = working_memory(scorer, n)
    embed_queue(c, s, devices, w.sessions, queue, features, scorer, places, embeddings)
    pool(embeddings, n, inputs, server.SIZE)
    while True:
        observe_batch(c, s, row)
        score_context(scorer, row, inputs, context, query, heads)
        longest = longest_draft(c) if length_is_open(c, s) else -1
        other = best_head(shape, heads, s.n_batch == 0, chunk_is_open(s), longest)
        score_requests(query, 0, embeddings, n, scores)
        q, score = best_pick(c, s, devices, queue, features, places, scores)
        if shape.lengths > 0 and is_mixed(c.drafter):
            score_requests(query, 1, embeddings, n, scores)
            move_sessions(c, w.sessions, queue, places, scores, max(score, heads[other]))
        if q >= 0 and score >= heads[other]:
            add(c, s, devices, queue[q], w.batch, binding_deadline_s(FCFS, s.now_s, features[queue[q]], 0.0))
        elif other >= lengths:
            choose_tokens(s, SERVER_TOKENS[other - lengths])
        elif other > launches:
            choose_chunk(s, other - launches - 1)
        else:
            if other < launches and launches > 1:
                s.price = PRICES[other]
            return
