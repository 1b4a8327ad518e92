"""Attention over a preallocated cache of keys and values, for batches of requests of unequal lengths.

Every request owns a slice of the cache. Its new tokens attend to its cached ones and causally to each other. Two ways,
chosen for each request by what it costs on a GPU:

- *whole*, for prompts: one causal pass over cached and new keys.
- *packed*, for the few new tokens of a decode or verification step: the query heads that share a head of keys and
  values become further queries of it, so that these keys are read once, not `group` times, and a tile of the matrix
  unit is filled. The cached part, to which no mask applies, is cut into pieces that run side by side (flash-decoding,
  Dao et al. 2023); pieces and the causal part among the new tokens are joined by their log-sum-exp.

Both rest on one primitive, `ragged`: FlashAttention as torch ships it on CUDA, plain matrix products elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from estimators.profiling.shapes import Shape

PACKED_TOKENS = 16  # new tokens of a request up to which heads are packed: 16 · 8 heads fill a tile of 128 rows
PIECE_TOKENS = 256  # shortest piece of a cached context: a shorter one costs more to join than it saves
PIECES_WANTED = (
    264  # pieces · key-value heads of a batch: two thread blocks for each of 132 multiprocessors (H100, H200)
)


@dataclass(frozen=True)
class Pass:
    """One call of `ragged`: sequences of queries, each with a stretch of the cache.

    Attributes:
        query_starts: (N + 1,) int32, rows of the queries of each sequence.
        key_starts: (N + 1,) int32, first cache row of each sequence; the last entry is the end of the cache used.
        key_counts: (N,) int32, cache rows that each sequence sees.
        longest_query, longest_key: tokens.
    """

    query_starts: Tensor
    key_starts: Tensor
    key_counts: Tensor
    longest_query: int
    longest_key: int

    @classmethod
    def of(cls, sequences: Sequence[tuple[int, int, int]], device: Any) -> Pass | None:
        """Return the pass over sequences of (query rows, first cache row, cache rows); None without any."""
        if not sequences:
            return None
        queries, starts, counts = zip(*sequences, strict=True)
        ends = [*starts, max(start + count for _, start, count in sequences)]
        lists = ([0, *accumulate(queries)], ends, counts)
        rows, firsts, seen = (torch.tensor(values, dtype=torch.int32, device=device) for values in lists)
        return cls(rows, firsts, seen, max(queries), max(counts))


@dataclass(frozen=True)
class Layout:
    """Where everything of one batch lies: made once, on the host, for all layers and repeats.

    Tokens are in the order of `order`: those of packed requests first.

    Attributes:
        order: requests in the order in which their tokens stand in the batch.
        positions: (T,) int64, place of each new token in its own sequence.
        slots: (T,) int64, cache row that takes its keys and values.
        logit_rows: (L,) int64, tokens of which logits are asked for: all of packed requests, the last of others.
        packed_tokens: new tokens of packed requests.
        pieces: packed query rows, `group` for each token, over pieces of the cached context, or None.
        piece_rows: (R,) int64, token of each query row of `pieces`, before packing.
        piece_of: (packed_tokens, S) int64, rows of `pieces` of each token; -1 where it has fewer than S.
        fresh: packed requests among their own new tokens, or None.
        whole: all other requests, or None.
    """

    order: tuple[int, ...]
    positions: Tensor
    slots: Tensor
    logit_rows: Tensor
    packed_tokens: int
    pieces: Pass | None
    piece_rows: Tensor
    piece_of: Tensor
    fresh: Pass | None
    whole: Pass | None


def cut(cached: Sequence[int], kv_heads: int) -> int:
    """Return the length of a piece, tokens: enough pieces to fill the device, none shorter than `PIECE_TOKENS`."""
    wanted = max(len(cached), math.ceil(PIECES_WANTED / kv_heads))
    return max(PIECE_TOKENS, -(-sum(cached) // wanted))


def lay_out(
    new: Sequence[int], cached: Sequence[int], shape: Shape, device: Any, starts: Sequence[int] | None = None
) -> Layout:
    """Return the layout of a batch.

    Args:
        new: new tokens of each request, >= 1.
        cached: tokens of each request that are in the cache, >= 0.
        shape: of the model.
        device: of the tensors.
        starts: first cache row of each request; by default requests stand one after another without a gap.
    """
    if starts is None:
        starts = [0, *accumulate(n + c for n, c in zip(new, cached, strict=True))][:-1]
    packed = [i for i in range(len(new)) if new[i] <= PACKED_TOKENS and cached[i] > 0]
    others = [i for i in range(len(new)) if i not in set(packed)]
    order = (*packed, *others)
    piece = cut([cached[i] for i in packed], shape.kv_heads) if packed else PIECE_TOKENS
    pieces: list[tuple[int, int, int]] = []  # query rows, first cache row and cache rows of each
    rows: list[int] = []
    parts: list[list[int]] = []
    token = 0
    for i in packed:
        first = len(rows)
        for at in range(0, cached[i], piece):
            pieces.append((new[i] * shape.group, starts[i] + at, min(piece, cached[i] - at)))
            rows += range(token, token + new[i])
        parts += [list(range(first + j, len(rows), new[i])) for j in range(new[i])]
        token += new[i]
    most = max((len(part) for part in parts), default=0)
    places = [range(cached[i], cached[i] + new[i]) for i in order]
    ends = [0, *accumulate(new[i] for i in order)]
    logit_rows = [*range(token), *(end - 1 for end in ends[len(packed) + 1 :])]
    return Layout(
        order=order,
        positions=torch.tensor([place for span in places for place in span], device=device),
        slots=torch.tensor([starts[i] + p for i, span in zip(order, places, strict=True) for p in span], device=device),
        logit_rows=torch.tensor(logit_rows, device=device),
        packed_tokens=token,
        pieces=Pass.of(pieces, device),
        piece_rows=torch.tensor(rows, dtype=torch.int64, device=device),
        piece_of=torch.tensor([part + [-1] * (most - len(part)) for part in parts], dtype=torch.int64, device=device),
        fresh=Pass.of([(new[i], starts[i] + cached[i], new[i]) for i in packed], device),
        whole=Pass.of([(new[i], starts[i], cached[i] + new[i]) for i in others], device),
    )


def ragged(q: Tensor, keys: Tensor, values: Tensor, over: Pass, causal: bool) -> tuple[Tensor, Tensor]:
    """Return attention of (R, H, D) queries over (C, Hkv, D) keys and values: output (R, H, D), log-sum-exp (H, R).

    Args:
        q, keys, values: heads of the queries are a multiple of those of keys and values.
        over: which queries see which cache rows.
        causal: the last query of a sequence sees all its keys, the one before it one fewer, and so on.
    """
    if q.device.type == "cuda":
        out, lse, *_ = torch.ops.aten._flash_attention_forward(  # what torch.nn.attention.varlen calls
            q, keys, values, over.query_starts, over.key_starts, over.longest_query, over.longest_key,
            0.0, causal, False, seqused_k=over.key_counts,
        )  # fmt: skip
        return out, lse
    return plain(q, keys, values, over, causal)


def plain(q: Tensor, keys: Tensor, values: Tensor, over: Pass, causal: bool) -> tuple[Tensor, Tensor]:
    """Return the same as `ragged`, sequence by sequence in float32: the reference, and all there is on a CPU."""
    out = torch.empty_like(q)
    lse = q.new_empty(q.shape[1], q.shape[0], dtype=torch.float32)
    rows, firsts = over.query_starts.tolist(), over.key_starts.tolist()
    for i, count in enumerate(over.key_counts.tolist()):
        at = slice(rows[i], rows[i + 1])
        k, v = (x[firsts[i] : firsts[i] + count].float() for x in (keys, values))
        group = q.shape[1] // k.shape[1]
        scores = torch.einsum("rhd,chd->hrc", q[at].float(), k.repeat_interleave(group, 1)) / math.sqrt(q.shape[2])
        if causal:
            seen = torch.arange(count - scores.shape[1], count, device=q.device)[:, None]
            scores = scores.masked_fill(torch.arange(count, device=q.device)[None] > seen, -math.inf)
        out[at] = torch.einsum("hrc,chd->rhd", scores.softmax(-1), v.repeat_interleave(group, 1)).to(q.dtype)
        lse[:, at] = scores.logsumexp(-1)
    return out, lse


def join(pieces: Tensor, pieces_lse: Tensor, piece_of: Tensor, fresh: Tensor, fresh_lse: Tensor, group: int) -> Tensor:
    """Return (T, H, D) attention of packed requests from its parts, weighted by their shares of the softmax's sum.

    Args:
        pieces, pieces_lse: of packed rows, (R·group, Hkv, D) and (Hkv, R·group).
        piece_of: (T, S) rows of each token, -1 = none.
        fresh, fresh_lse: among the new tokens, (T, H, D) and (H, T).
        group: query heads of a head of keys and values.
    """
    tokens, heads, dim = fresh.shape
    by_row = pieces.view(-1, group, heads // group, dim)[piece_of.clamp(min=0)]  # (T, S, group, Hkv, D)
    lse = pieces_lse.view(heads // group, -1, group).permute(1, 2, 0)[piece_of.clamp(min=0)]  # (T, S, group, Hkv)
    lse = lse.masked_fill((piece_of < 0)[:, :, None, None], -math.inf)
    own = fresh_lse.view(heads // group, group, tokens).permute(2, 1, 0)  # (T, group, Hkv)
    top = torch.maximum(lse.amax(1), own)
    weights, own_weight = (lse - top[:, None]).exp(), (own - top).exp()
    mixed = (weights[..., None] * by_row.float()).sum(1)
    mixed = mixed + own_weight[..., None] * fresh.view(tokens, heads // group, group, dim).transpose(1, 2).float()
    mixed = mixed / (weights.sum(1) + own_weight)[..., None]
    return mixed.transpose(1, 2).reshape(tokens, heads, dim).to(fresh.dtype)


def pack(q: Tensor, rows: Tensor, group: int) -> Tensor:
    """Return (R·group, Hkv, D) packed rows of (T, H, D) queries: the heads of a group one below the other."""
    _, heads, dim = q.shape
    picked = q[rows].view(-1, heads // group, group, dim)
    return picked.transpose(1, 2).reshape(-1, heads // group, dim)


PLAIN = SimpleNamespace(pack=pack, join=join)


def attend(q: Tensor, keys: Tensor, values: Tensor, layout: Layout, do: Any = PLAIN) -> Tensor:
    """Return (T, H, D) attention of a whole batch; new keys and values stand in the cache already.

    Args:
        q: (T, H, D) queries in the layout's order.
        keys, values: (C, Hkv, D) cache of one layer.
        layout: of the batch.
        do: has `pack` and `join`, as they stand here or compiled.
    """
    group = q.shape[1] // keys.shape[1]
    parts = []
    if layout.fresh is not None and layout.pieces is not None:
        short = q[: layout.packed_tokens]
        fresh = ragged(short, keys, values, layout.fresh, causal=True)
        pieces = ragged(do.pack(short, layout.piece_rows, group), keys, values, layout.pieces, causal=False)
        parts.append(do.join(*pieces, layout.piece_of, *fresh, group))
    if layout.whole is not None:
        parts.append(ragged(q[layout.packed_tokens :], keys, values, layout.whole, causal=True)[0])
    return parts[0] if len(parts) == 1 else torch.cat(parts)
