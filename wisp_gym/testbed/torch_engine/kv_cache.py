"""Keys and values of sessions: one growing buffer for each layer, and a memory that evicts whole sessions."""

from collections.abc import Collection, Hashable, Iterable

import torch

from wisp_gym.testbed.settings import BLOCK_TOKENS


def blocks(tokens: int) -> int:
    """Tokens rounded up to whole blocks: what a cache of this length occupies."""
    return -(-tokens // BLOCK_TOKENS) * BLOCK_TOKENS


class SessionCache:
    """Keys and values of one session's tokens.

    Attributes:
        length: tokens that are cached.
        layers: (keys, values) of each layer, each (H, capacity, D) with capacity ≥ length; empty before the first token.
    """

    def __init__(self) -> None:
        self.length = 0
        self.layers: list[tuple[torch.Tensor, torch.Tensor]] = []

    def append(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Write (H, n, D) keys and values behind `length`; `grown` moves `length` once all layers have them."""
        needed = self.length + keys.shape[1]
        if layer == len(self.layers):
            self.layers.append((_empty_like(keys, needed), _empty_like(values, needed)))
        if self.layers[layer][0].shape[1] < needed:
            self.layers[layer] = (self._copied(keys, layer, 0, needed), self._copied(values, layer, 1, needed))
        for buffer, new in zip(self.layers[layer], (keys, values), strict=True):
            buffer[:, self.length : needed] = new

    def _copied(self, like: torch.Tensor, layer: int, side: int, needed: int) -> torch.Tensor:
        larger = _empty_like(like, needed)
        larger[:, : self.length] = self.layers[layer][side][:, : self.length]
        return larger

    def grown(self, tokens: int) -> None:
        """`tokens` more are cached."""
        self.length += tokens

    def crop(self, length: int) -> None:
        """Forget all tokens beyond `length`, those of rejected drafts."""
        self.length = min(self.length, length)


def _empty_like(rows: torch.Tensor, tokens: int) -> torch.Tensor:
    return rows.new_empty(rows.shape[0], blocks(tokens), rows.shape[2])


class KvMemory:
    """Which sessions' keys and values stay: the least recently verified session leaves first, whole.

    As the model has it (docs/model/model.md, §5), but counted in blocks. An evicted session loses nothing but time: its next
    round computes its context again.

    Args:
        capacity_tokens: of all sessions together.
    """

    def __init__(self, capacity_tokens: int) -> None:
        self.capacity_tokens = capacity_tokens
        self.evictions = 0
        self.caches: dict[Hashable, SessionCache] = {}  # least recently used first

    @property
    def used_tokens(self) -> int:
        """Tokens that are occupied, in whole blocks."""
        return sum(blocks(cache.length) for cache in self.caches.values())

    def cache(self, key: Hashable) -> SessionCache:
        """The session's cache, empty at first or after an eviction; it becomes the most recently used."""
        found = self.caches.pop(key, None) or SessionCache()
        self.caches[key] = found
        return found

    def cached_tokens(self, key: Hashable) -> int:
        """Length of the session's cache."""
        return self.caches[key].length if key in self.caches else 0

    def release(self, key: Hashable) -> None:
        """Forget a session."""
        self.caches.pop(key, None)

    def reserve(self, keys: Collection[Hashable], context_tokens: Iterable[int]) -> None:
        """Evict sessions outside the batch `keys` until its members fit with so many tokens each, cached and new."""
        room = self.capacity_tokens - sum(blocks(tokens) for tokens in context_tokens)
        others = [key for key in self.caches if key not in keys]
        held = sum(blocks(self.caches[key].length) for key in others)
        for key in others:
            if held <= room:
                break
            held -= blocks(self.caches[key].length)
            self.evictions += self.caches.pop(key).length > 0
