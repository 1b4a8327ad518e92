"""The engine in torch: a target model and the memory of its sessions."""

import time
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from wisp_gym.serving.estimator import TERMS
from wisp_gym.testbed.engine import Job
from wisp_gym.testbed.settings import BLOCK_TOKENS
from wisp_gym.testbed.torch_engine.kv_cache import KvMemory, SessionCache
from wisp_gym.testbed.torch_engine.target import Row, Target

REPEATS = 3  # of a timed pass


class TorchEngine:
    """An engine (`wisp_gym.testbed.engine.Engine`) of a causal language model of transformers.

    Args:
        target: the model. kv_tokens: whose keys and values stay in memory, of all sessions together; whole blocks of them count.
    """

    block_tokens = BLOCK_TOKENS
    samples = True

    def __init__(self, target: Target, kv_tokens: int) -> None:
        self.target = target
        self.kv_capacity_tokens = kv_tokens // BLOCK_TOKENS * BLOCK_TOKENS
        self.memory = KvMemory(self.kv_capacity_tokens)
        self.vocabulary, self.max_tokens, self.end_tokens = target.vocabulary, target.max_tokens, target.end_tokens

    @property
    def kv_used_tokens(self) -> int:
        """Tokens that are occupied, in whole blocks."""
        return self.memory.used_tokens

    def cached_tokens(self, key: Hashable) -> int:
        """Tokens of a session in memory."""
        return self.memory.cached_tokens(key)

    def reserve(self, tokens: Mapping[Hashable, int]) -> int:
        """Evict others until a batch of so many tokens for each session fits; its sessions become the most recently used."""
        before = self.memory.evictions
        self.memory.reserve(tokens.keys(), tokens.values())
        for key in tokens:
            self.memory.cache(key)
        return self.memory.evictions - before

    def verify(self, jobs: Sequence[Job]) -> list[list[int]]:
        """The tokens that each round commits."""
        return self.target.verify([self._row(job) for job in jobs])

    def _row(self, job: Job) -> Row:
        cache = self.memory.caches[job.key]
        if job.chunk_end:  # what it commits is not looked at
            return Row(cache, job.context[: job.chunk_end])
        return Row(cache, job.context, job.drafted, job.laws, job.temperature, job.seed, job.position)

    def forget(self, key: Hashable) -> None:
        """Free a session's memory."""
        self.memory.release(key)

    def close(self) -> None:
        """The model goes with the process."""

    def first_coefficients(self) -> dict[str, float]:
        """A batch of one token and one of many, timed on this machine; attention's parts are left to the first batches."""
        many = min(64, self.max_tokens)
        text = np.random.default_rng(0).integers(self.vocabulary, size=many).tolist()

        def seconds(tokens: int) -> float:
            begun_s = time.perf_counter()
            self.target.verify([Row(SessionCache(), text[:tokens])])
            return time.perf_counter() - begun_s

        seconds(many)  # the first pass is slower
        one_s, many_s = (min(seconds(tokens) for _ in range(REPEATS)) for tokens in (1, many))
        new_token_s = max(many_s - one_s, 0.0) / (many - 1)
        return dict(zip(TERMS, (one_s, new_token_s, 1e-3 * new_token_s, 1e-2 * new_token_s), strict=True))
