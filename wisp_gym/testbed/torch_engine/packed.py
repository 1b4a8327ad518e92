"""A batch packed into one row: the new tokens of all sessions one after another, attention by session, no padding.

Everything but attention treats each token by itself, so its cost is that of the tokens there are, however their numbers differ
between the sessions; a prompt joins the short rounds of others in the same pass. Attention is computed for each session on its own
cache, without a copy of it. For a processor; on a GPU a pass over padded rows starts fewer kernels (`target`).

A model that packs (`let_pack`) stays what it was for everyone else: whoever calls it without pieces gets plain attention.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from wisp_gym.testbed.torch_engine.kv_cache import SessionCache

NAME = "wisp_gym_packed"


class Piece(NamedTuple):
    """A session's part of the row.

    Attributes:
        start, end: its places in the row. cache: keys and values of what comes before; the pass writes the new ones behind them.
        mask: (n, cached + n) true where a token sees one; None for a single token, which sees all.
    """

    start: int
    end: int
    cache: SessionCache
    mask: torch.Tensor | None


def pieces(caches: Sequence[SessionCache], lengths: Sequence[int], device: Any) -> list[Piece]:
    """The parts of a row in which `lengths` new tokens of each session follow each other."""
    found, start = [], 0
    for cache, n in zip(caches, lengths, strict=True):
        seen = torch.ones(n, cache.length + n, dtype=torch.bool, device=device).tril(cache.length) if n > 1 else None
        found.append(Piece(start, start + n, cache, seen))
        start += n
    return found


def attend(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any = None,
    scaling: float | None = None, packed: Sequence[Piece] = (), sliding_window: int | None = None, **rest: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Attention in the signature of transformers' `AttentionInterface`: of a packed row by session, without pieces the plain one.

    Args:
        query: (B, H, T, D). key, value: (B, H', T, D) of the new tokens, H a multiple of H'. packed: a single row's pieces.

    Returns:
        (B, T, H, D), and no weights.

    Raises:
        ValueError: a packed row in a layer that sees a window alone.
    """
    if not packed:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **rest)
    if sliding_window is not None:
        raise ValueError("a layer with a sliding window")
    out = query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])
    shared = query.shape[1] // key.shape[1]  # query heads of one key head: they are laid out as further tokens
    for start, end, cache, mask in packed:
        n, length = end - start, cache.length + end - start
        cache.append(module.layer_idx, key[0, :, start:end], value[0, :, start:end])
        keys, values = (side[:, :length] for side in cache.layers[module.layer_idx])
        q = query[0, :, start:end].reshape(key.shape[1], shared * n, query.shape[3])
        seen = mask.repeat(shared, 1) if mask is not None and shared > 1 else mask
        got = scaled_dot_product_attention(q, keys, values, seen, scale=scaling)
        out[0, start:end] = got.reshape(query.shape[1], n, value.shape[3]).transpose(0, 1)
    return out, None


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)  # for those who call the model without pieces


def takes_packed_rows(model: Any) -> bool:
    """Whether a model leaves its attention to a function of ours, every layer of it over the whole context."""
    kinds, window = getattr(model.config, "layer_types", None), getattr(model.config, "sliding_window", None)
    whole = set(kinds) == {"full_attention"} if kinds else window is None
    return bool(getattr(model, "_supports_attention_backend", False)) and whole


def let_pack(model: Any) -> None:
    """From now on the model's attention is `attend`, in layers with a configuration of their own too."""
    for module in model.modules():
        if hasattr(getattr(module, "config", None), "_attn_implementation"):
            module.config._attn_implementation = NAME


def packed_logits(
    model: Any, caches: Sequence[SessionCache], new: Sequence[Sequence[int]], kept: Sequence[int]
) -> list[torch.Tensor]:
    """(kept, V) logits of each session's last new tokens, of a model that may pack; the caches grow by all new ones."""
    parts = pieces(caches, [len(tokens) for tokens in new], model.device)
    ids = torch.tensor([[token for tokens in new for token in tokens]], device=model.device)
    positions = torch.cat([torch.arange(p.cache.length, p.cache.length + p.end - p.start) for p in parts])
    places = torch.cat([torch.arange(p.end - k, p.end) for p, k in zip(parts, kept, strict=True)])
    # A mask of four dimensions: transformers builds none of its own. The pieces have theirs.
    no_mask = ids.new_zeros(1, 1, 1, 1)
    logits = model(
        ids, attention_mask=no_mask, position_ids=positions[None].to(model.device), use_cache=False,
        logits_to_keep=places.to(model.device), packed=parts,
    ).logits[0]  # fmt: skip
    for part in parts:
        part.cache.grown(part.end - part.start)
    return list(logits.split(list(kept)))
