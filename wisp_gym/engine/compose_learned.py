"""Composing a batch by a learned scorer, decision by decision, exactly as an agent of `wisp_gym/Batching-v1` would.

Responses in memory join by themselves; the scorer embeds and picks only requests that lack context in memory.

Legend: `w` World; `c` CONFIG and `s` SERVER row; `devices` (n,) DEVICE; `sessions` (n,) SESSION; `queue` (n,) int64 devices; `features` (n,
FEATURES) float64, a row for each device; `scorer` float32 vector of `rules.scorer.pack`, H its width of an
embedding; `row` (REQUEST,) float32 entries of a request; `places` (m,) int64 places in the queue; `embeddings` (H,
m) and `scores` (m,) float32.
"""

import numpy as np

from wisp_gym.contract import request, server
from wisp_gym.contract.ladders import PRICES
from wisp_gym.engine.arguments import world_at
from wisp_gym.engine.compose import add, choose_chunk, chunk_is_open, fits, join_responses
from wisp_gym.engine.observe_request import observe_request, observe_session
from wisp_gym.engine.observe_server import observe_batch
from wisp_gym.jit import INTEGER, VOID, jit_allocating, on_demand
from wisp_gym.rules.batching import FCFS, UNCACHED_TOKENS, binding_deadline_s
from wisp_gym.rules.drafters import is_mixed
from wisp_gym.rules.scorer import best_head, embed, keep_still, pool, score_context, score_requests, shape_of


@jit_allocating
def places_to_score(c, s, queue, features):
    """(m,) int64 visible places in the queue whose request lacks context in memory."""
    places = np.empty(min(s.n_queue, c.visible_requests), np.int64)
    n = 0
    for q in range(len(places)):
        if features[queue[q], UNCACHED_TOKENS] > 0.0:
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
def best_pick(c, s, devices, queue, places, scores):
    """Place and score of the best request that fits; −1 where none does."""
    best, best_score = -1, np.float32(-np.inf)
    for k in range(len(scores)):
        d = devices[queue[places[k]]]
        if scores[k] > best_score and d.in_batch == 0 and fits(c, s, d):
            best, best_score = places[k], scores[k]
    return best, best_score


@on_demand(lambda: VOID(INTEGER, INTEGER), allocating=True)
def compose_learned(home, place):
    """Take the best action until it is to launch, or to wait (then the batch is empty)."""
    w = world_at(home, place)
    c, s, devices, queue, features, scorer = w.config[0], w.server[0], w.device, w.queue, w.features, w.scorer
    join_responses(w)
    shape = shape_of(scorer)
    launches, width = shape.launches, shape.embedding
    places = places_to_score(c, s, queue, features)
    n = len(places)
    embeddings, scores = np.empty((width, n), np.float32), np.empty(n, np.float32)
    embed_queue(c, s, devices, w.sessions, queue, features, scorer, places, embeddings)
    row, inputs = np.zeros(server.SIZE, np.float32), np.empty(server.SIZE + width, np.float32)
    context = np.empty(shape.context, np.float32)
    query, heads = np.empty(width + 1, np.float32), np.empty(launches + 1 + shape.chunks, np.float32)
    pool(embeddings, n, inputs, server.SIZE)
    while True:
        observe_batch(c, s, row)
        score_context(scorer, row, inputs, context, query, heads)
        other = best_head(heads, launches, s.n_batch == 0, chunk_is_open(s))
        score_requests(query, embeddings, n, scores)
        q, score = best_pick(c, s, devices, queue, places, scores)
        if q >= 0 and score >= heads[other]:
            add(c, s, devices, queue[q], w.batch, binding_deadline_s(FCFS, s.now_s, features[queue[q]], 0.0))
        elif other > launches:
            choose_chunk(s, other - launches - 1)
        else:
            if other < launches and launches > 1:
                s.price = PRICES[other]
            return
