"""The target model: one forward pass over sessions whose cached prefixes and new tokens have different lengths.

On a processor a batch is packed (`packed`): nothing is padded. Elsewhere, and for models whose attention cannot be replaced, it
is laid out with padding on the left of both parts, so that all rows end together:

    slots     0 … C − 1               C … C + N − 1
    row b     ···· cached (c_b)       ·· new (n_b)          C = max c, N = max n

Slots of padding are masked, positions count without them. Rejected drafts are cropped from the caches afterwards.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import DynamicCache

from wisp_gym.errors import InputError
from wisp_gym.testbed.sampling import Law, softmax, verify_greedy, verify_sampled
from wisp_gym.testbed.torch_engine.kv_cache import SessionCache
from wisp_gym.testbed.torch_engine.packed import let_pack, packed_logits, takes_packed_rows

MOST_PADDING = 2.0  # longest over shortest run of new tokens in one pass: a prompt does not stretch short rounds


class ModelError(InputError):
    """A model that cannot be served; the message is one line."""


class Row(NamedTuple):
    """One round to verify (`wisp_gym.testbed.engine.Job`), with the cache of its session: keys and values of the context's first tokens."""

    cache: SessionCache
    context: Sequence[int]
    drafted: Sequence[int] = ()
    laws: Sequence[Law] = ()
    temperature: float = 0.0
    seed: int = 0
    position: int = 0

    @property
    def new_tokens(self) -> list[int]:
        """What the model must run: uncached context and draft."""
        return [*self.context[self.cache.length :], *self.drafted]


class Target:
    """A causal language model of transformers that verifies batches.

    Args:
        model: in evaluation mode, with keys and values of all tokens (no sliding windows, no recurrent states).
            Where it packs, its attention is replaced for good, by one that computes the same for others.
        packs: whether batches are packed rather than padded; None: on a processor, where the model allows it.

    Raises:
        ModelError: a model whose batched results are not those of a single row.
    """

    def __init__(self, model: Any, packs: bool | None = None) -> None:
        self.model = model
        self.device = model.device
        self.packs = model.device.type == "cpu" and takes_packed_rows(model) if packs is None else packs
        if self.packs:
            let_pack(model)
        self.check()

    @property
    def vocabulary(self) -> int:
        """Tokens that the model knows."""
        return int(self.model.config.vocab_size)

    @property
    def max_tokens(self) -> int:
        """Longest sequence, tokens."""
        return int(getattr(self.model.config, "max_position_embeddings", 1 << 20))

    @property
    def end_tokens(self) -> frozenset[int]:
        """Tokens that end an answer."""
        ends = self.model.generation_config.eos_token_id
        return frozenset(ends if isinstance(ends, list) else [] if ends is None else [ends])

    def verify(self, jobs: Sequence[Row]) -> list[list[int]]:
        """The tokens that each round commits; each cache then holds the context and the accepted tokens."""
        committed: list[list[int]] = [[]] * len(jobs)
        lengths = [len(job.new_tokens) for job in jobs]
        for group in [list(range(len(jobs)))] if self.packs else groups(lengths):
            rows = self.logits([jobs[b] for b in group])
            for b, logits in zip(group, rows, strict=True):
                committed[b] = self.commit(jobs[b], logits)
        return committed

    def commit(self, job: Row, logits: torch.Tensor) -> list[int]:
        """Accept and replace, given the (k + 1, V) logits after the context and after each drafted token."""
        if job.temperature == 0:
            tokens = verify_greedy(logits.argmax(-1).tolist(), job.drafted)
        else:
            p = softmax(logits.float().cpu().numpy(), job.temperature)
            tokens = verify_sampled(p, job.laws, job.drafted, job.seed, job.position)
        job.cache.crop(len(job.context) + len(tokens) - 1)
        return tokens

    @torch.inference_mode()
    def logits(self, jobs: Sequence[Row]) -> list[torch.Tensor]:
        """(k + 1, V) logits of each round, in one forward pass; the caches grow by all new tokens."""
        if not self.packs:
            return self._padded_logits(jobs)
        caches, new = [job.cache for job in jobs], [job.new_tokens for job in jobs]
        return packed_logits(self.model, caches, new, [len(job.drafted) + 1 for job in jobs])

    def _padded_logits(self, jobs: Sequence[Row]) -> list[torch.Tensor]:
        new = [job.new_tokens for job in jobs]
        cached, lengths = [job.cache.length for job in jobs], [len(tokens) for tokens in new]
        before, run = max(cached), max(lengths)
        rows = stack([job.cache for job in jobs], before)
        ids = torch.tensor([[0] * (run - len(tokens)) + tokens for tokens in new], device=self.device)  # (B, N)
        places = torch.tensor([c - (run - n) for c, n in zip(cached, lengths, strict=True)], device=self.device)
        positions = places[:, None] + torch.arange(run, device=self.device)[None]  # (B, N), wrong where padded
        keep = max(len(job.drafted) for job in jobs) + 1
        logits = self.model(
            ids, past_key_values=rows, use_cache=True, logits_to_keep=keep,
            attention_mask=self._mask(cached, lengths), position_ids=positions.clamp(min=0),
        ).logits  # fmt: skip
        for b, (job, n) in enumerate(zip(jobs, lengths, strict=True)):
            take(rows, b, n, job.cache)
        return [logits[b, keep - len(job.drafted) - 1 :] for b, job in enumerate(jobs)]

    def _mask(self, cached: Sequence[int], lengths: Sequence[int]) -> torch.Tensor:
        """(B, C + N) 1 where a slot holds a token, 0 where it is padding."""
        parts = []
        for sizes in (cached, lengths):
            slots = torch.arange(max(sizes), device=self.device)[None]
            parts.append(slots >= max(sizes) - torch.tensor(sizes, device=self.device)[:, None])
        return torch.cat(parts, 1).long()

    @torch.inference_mode()
    def check(self) -> None:
        """Compare a ragged batch with plain single rows: what does not agree is not served."""
        rng = np.random.default_rng(0)
        texts = [rng.integers(self.vocabulary, size=n).tolist() for n in (13, 6, 9)]
        jobs = [Row(SessionCache(), text) for text in texts]
        for job, cut in zip(jobs, (7, 0, 8), strict=True):  # rows with and without cached tokens
            if cut:
                self.logits([job._replace(context=job.context[:cut])])
        for job, ours in zip(jobs, self.logits(jobs), strict=True):
            plain = self.model(torch.tensor([job.context], device=self.device), use_cache=False).logits[0, -1]
            apart = (ours[-1].float() - plain.float()).abs().max().item() / max(plain.float().std().item(), 1e-9)
            if not apart < (1e-2 if plain.dtype in (torch.float32, torch.float64) else 0.5):
                raise ModelError("the model's batched results are not those of single rows; allowed are plain causal "
                                 "language models with keys and values of all tokens")  # fmt: skip


def groups(lengths: Sequence[int]) -> list[list[int]]:
    """Indices of rows in groups of similar length, each to be run in one pass."""
    order = sorted(range(len(lengths)), key=lambda b: -lengths[b])
    found: list[list[int]] = []
    for b in order:
        if found and lengths[found[-1][0]] <= MOST_PADDING * lengths[b]:
            found[-1].append(b)
        else:
            found.append([b])
    return found


def stack(caches: Sequence[SessionCache], longest: int) -> Any:
    """A cache of B rows, each padded on the left to `longest` tokens."""
    rows = DynamicCache()
    if not longest:
        return rows
    first = next(cache for cache in caches if cache.length)
    for layer, sides in enumerate(first.layers):
        padded = [side.new_zeros(len(caches), side.shape[0], longest, side.shape[2]) for side in sides]  # (B, H, C, D)
        for b, cache in enumerate(caches):
            if cache.length:
                for into, side in zip(padded, cache.layers[layer], strict=True):
                    into[b, :, longest - cache.length :] = side[:, : cache.length]
        rows.update(padded[0], padded[1], layer)
    return rows


def take(rows: Any, b: int, new: int, cache: SessionCache) -> None:
    """Copy the last `new` tokens of row b to the session's cache."""
    for i, layer in enumerate(rows.layers):
        if getattr(layer, "keys", None) is None:
            raise ModelError("a model without keys and values of all tokens; allowed are plain transformers")
        cache.append(i, layer.keys[b, :, -new:], layer.values[b, :, -new:])
    cache.grown(new)
