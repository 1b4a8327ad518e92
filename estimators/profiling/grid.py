"""The batches that are profiled: equal requests on a grid, prompts, and mixed ones as a scheduler would form them.

A batch's name holds what it is, so a grid drawn for another memory shares the rows that both have. The grid:

- *equal*: 1 to 256 requests of 1 to 16 new tokens on 0 to 8,192 cached ones; all with one request, else drawn;
- *prompt*: 1 to 4 prompts of 32 to 4,096 tokens on 0, 1,024 or 4,096 cached ones;
- *mixed*: requests, longest draft and longest context drawn per batch (as `estimators.batch_time.fit` does), one
  batch in four with one or two cold prompts.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, product

import numpy as np

REQUESTS = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256)
NEW = (1, 2, 3, 5, 8, 12, 16)
CACHED = (0, 128, 512, 1024, 2048, 4096, 8192)
PROMPTS, PROMPT_REQUESTS, PROMPT_CACHED = (32, 64, 128, 256, 512, 1024, 2048, 4096), (1, 2, 4), (0, 1024, 4096)
LEAST_CONTEXT, LEAST_PROMPT, COLD_SHARE, COLD_REQUESTS = 64, 32, 0.25, 2
SHARES = {"equal": 0.45, "prompt": 0.13}  # of the grid; the rest is mixed
DRAWS = 200  # of mixed batches, for each that is wanted: most that do not fit are drawn again


@dataclass(frozen=True)
class Limits:
    """What fits: largest numbers of a batch.

    Attributes:
        requests, new, prompt, cached: requests of a batch; new tokens of a verified request; tokens of a prompt;
            cached tokens of a request.
        batch_tokens: new tokens of a batch, all requests together: activations take memory.
        room_tokens: rows of the cache: cached and new tokens of a batch.
    """

    requests: int = 256
    new: int = 16
    prompt: int = 4096
    cached: int = 8192
    batch_tokens: int = 8192
    room_tokens: int = 1 << 62

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return self.cached + max(self.new, self.prompt)


@dataclass(frozen=True)
class Batch:
    """One batch of the grid.

    Attributes:
        kind: "equal", "prompt" or "mixed".
        new, cached: tokens of each request.
    """

    kind: str
    new: tuple[int, ...]
    cached: tuple[int, ...]

    @property
    def name(self) -> str:
        """What the batch is, unique in a grid."""
        if self.kind != "mixed":
            return f"{self.kind} {len(self.new)}x{self.new[0]} on {self.cached[0]}"
        return f"mixed {len(self.new)} {hashlib.sha256(repr((self.new, self.cached)).encode()).hexdigest()[:8]}"

    def features(self) -> dict[str, int]:
        """Return the sums over the batch that the estimators use: new tokens, new tokens × length, cached tokens."""
        pairs = sum(n * (c + n) for n, c in zip(self.new, self.cached, strict=True))
        return {"new_tokens": sum(self.new), "pairs": pairs, "cached_tokens": sum(self.cached)}

    def sums(self) -> dict[str, int]:
        """Return `features`, and the keys that each new token attends to."""
        seen = sum(n * c + n * (n + 1) // 2 for n, c in zip(self.new, self.cached, strict=True))
        return {**self.features(), "seen_pairs": seen}

    def fits(self, limits: Limits) -> bool:
        """Return whether new tokens and cache stay within the limits."""
        return sum(self.new) <= limits.batch_tokens and sum(self.new) + sum(self.cached) <= limits.room_tokens


def equal(limits: Limits) -> list[Batch]:
    """Return all batches of equal requests that fit."""
    return _fitting("equal", limits, (REQUESTS, limits.requests), (NEW, limits.new), (CACHED, limits.cached))


def prompts(limits: Limits) -> list[Batch]:
    """Return all batches of prompts that fit."""
    requests, cached = (PROMPT_REQUESTS, limits.requests), (PROMPT_CACHED, limits.cached)
    return _fitting("prompt", limits, requests, (PROMPTS, limits.prompt), cached)


def _fitting(kind: str, limits: Limits, *sizes: tuple[tuple[int, ...], int]) -> list[Batch]:
    """Return the batches of equal requests that fit, by sizes and the most of requests, new and cached tokens."""
    within = ([value for value in values if value <= most] for values, most in sizes)
    every = (Batch(kind, (n,) * b, (c,) * b) for b, n, c in product(*within))
    return [batch for batch in every if batch.fits(limits)]


def mixed(limits: Limits, rng: np.random.Generator) -> Iterator[Batch]:
    """Draw mixed batches without end, whether they fit or not."""
    while True:
        requests = round(np.exp(rng.uniform(0.0, np.log(limits.requests))))
        longest_draft = rng.integers(1, limits.new, endpoint=True)
        least = min(LEAST_CONTEXT, limits.cached)
        longest_context = round(np.exp(rng.uniform(np.log(least), np.log(limits.cached))))
        new = rng.integers(1, longest_draft, requests, endpoint=True)
        cached = rng.integers(least, max(least, longest_context), requests, endpoint=True)
        if rng.random() < COLD_SHARE:
            cold = min(requests, int(rng.integers(1, COLD_REQUESTS, endpoint=True)))
            new[:cold] = np.exp(rng.uniform(np.log(min(LEAST_PROMPT, limits.prompt)), np.log(limits.prompt), cold))
            cached[:cold] = 0
        yield Batch("mixed", tuple(new.tolist()), tuple(cached.tolist()))


def grid(limits: Limits, count: int, seed: int) -> list[Batch]:
    """Return `count` batches (fewer only where fewer fit), single requests that decode first, the others shuffled.

    Any beginning of the list is then a fair sample: a profile that runs out of time is still one of the whole range.
    """
    rng = np.random.default_rng(seed)
    single = [batch for batch in equal(limits) if len(batch.new) == 1]
    several = [batch for batch in equal(limits) if len(batch.new) > 1]
    chosen = single[: round(SHARES["equal"] * count)]
    chosen += _some(several, round(SHARES["equal"] * count) - len(chosen), rng)
    chosen += _some(prompts(limits), round(SHARES["prompt"] * count), rng)
    drawn = (batch for batch in islice(mixed(limits, rng), DRAWS * count) if batch.fits(limits))
    chosen += islice(drawn, max(0, count - len(chosen)))
    chosen = [chosen[i] for i in rng.permutation(len(chosen))]
    return sorted(chosen, key=lambda batch: batch.kind != "equal" or batch.new != (1,))


def _some(batches: list[Batch], count: int, rng: np.random.Generator) -> list[Batch]:
    """Return up to `count` of the batches, drawn without replacement."""
    return [batches[i] for i in rng.permutation(len(batches))[: max(0, count)]]
