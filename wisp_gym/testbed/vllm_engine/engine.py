"""The engine on vLLM: sessions are its requests, batches are orders, and processes that died are started anew."""

import itertools
import logging
import threading
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from transformers import AutoConfig, GenerationConfig

from wisp_gym.errors import InputError
from wisp_gym.serving.estimator import TERMS
from wisp_gym.testbed.engine import Job
from wisp_gym.testbed.vllm_engine.core import Core, CoreDied, CoreSettings

if TYPE_CHECKING:
    from wisp_gym.testbed.vllm_engine.transport import Report

log = logging.getLogger(__name__)
REPEATS = 3  # of a timed pass


@dataclass
class Kept:
    """What is known of a session at vLLM.

    Attributes:
        name: of its request. cached_tokens: first tokens of its context whose keys and values are in memory.
    """

    name: str
    cached_tokens: int = 0


class VllmEngine:
    """An engine (`wisp_gym.testbed.engine.Engine`) whose model runs in vLLM, in processes of its own.

    Args:
        settings: with what vLLM is started; `max_tokens` no more than the model has and the server's limits ask for.

    Raises:
        InputError: vLLM is missing, of another version, or refuses model or arguments.
    """

    def __init__(self, settings: CoreSettings) -> None:
        shape = read_shape(settings)
        self.settings = replace(settings, max_tokens=shape.max_tokens)
        self.core: Core | None = Core(self.settings)
        self.vocabulary, self.max_tokens, self.end_tokens = shape
        self.block_tokens, self.samples = self.core.block_tokens, self.core.samples
        self.kv_capacity_tokens = self.core.blocks * self.block_tokens
        self.restarts = 0
        self._lock = threading.Lock()  # of what follows: `verify` runs in a thread of its own
        self._kept: dict[Hashable, Kept] = {}
        self._ended: list[str] = []  # names of sessions that vLLM is still to be told of
        self._evictions = 0  # not yet told
        self._used_tokens = 0
        self._numbers = itertools.count(1)

    @property
    def kv_used_tokens(self) -> int:
        """Tokens that are occupied, in whole blocks: no more than vLLM said, no more than the sessions have."""
        with self._lock:
            held = sum(-(-kept.cached_tokens // self.block_tokens) for kept in self._kept.values())
            return min(self._used_tokens, held * self.block_tokens)

    def cached_tokens(self, key: Hashable) -> int:
        """Tokens of a session in memory; of one that was evicted none, whatever the prefix cache still has."""
        with self._lock:
            return self._kept[key].cached_tokens if key in self._kept else 0

    def reserve(self, tokens: Mapping[Hashable, int]) -> int:
        """vLLM makes room itself when the batch runs; how many sessions it has evicted since this was last asked."""
        del tokens
        with self._lock:
            evictions, self._evictions = self._evictions, 0
            return evictions

    def forget(self, key: Hashable) -> None:
        """Free a session's memory, before the next batch."""
        with self._lock:
            if (kept := self._kept.pop(key, None)) is not None:
                self._ended.append(kept.name)

    def verify(self, jobs: Sequence[Job]) -> list[list[int]]:
        """The tokens that each round commits; vLLM's processes are started anew where they died.

        Raises:
            RuntimeError: the rounds cannot run.
        """
        try:
            return self._run(jobs)
        except CoreDied:
            log.exception("vLLM is started anew")
            self._restart()
            return self._run(jobs)  # nothing of the first try was told to anyone

    def _run(self, jobs: Sequence[Job]) -> list[list[int]]:
        from wisp_gym.testbed.vllm_engine.transport import Round

        core = self._running_core()
        with self._lock:
            ended, self._ended = self._ended, []
        if ended:
            core.abort(ended)
        names = [self._name(core, job) for job in jobs]
        rounds = [Round(name, list(job.drafted), job.chunk_end) for name, job in zip(names, jobs, strict=True)]
        report = core.order(rounds)
        self._learn(report)
        if report.unfinished:
            raise RuntimeError(f"{len(report.unfinished)} of {len(jobs)} rounds do not fit into vLLM's memory")
        return [report.tokens.get(name, []) for name in names]

    def _running_core(self) -> Core:
        if self.core is None:
            self.core = Core(self.settings)
        return self.core

    def _restart(self) -> None:
        """Start new processes; they know no session."""
        core, self.core = self.core, None
        if core is not None:
            core.close()
        with self._lock:
            self._kept.clear()
            self._ended.clear()
            self._used_tokens = 0
        self.restarts += 1
        self.core = Core(self.settings)

    def _name(self, core: Core, job: Job) -> str:
        """The request of a session, made where there is none."""
        from vllm import SamplingParams

        from wisp_gym.testbed.vllm_engine.transport import session_request

        with self._lock:
            kept = self._kept.get(job.key)
        if kept is None:
            kept = Kept(f"session-{next(self._numbers)}")
            room = max(self.max_tokens - len(job.context), 1)
            sampling = SamplingParams(
                temperature=job.temperature, max_tokens=room, ignore_eos=True, detokenize=False
            )  # no seed: on a processor vLLM 0.32.0 fails where a chunk of a seeded request ends
            core.add(session_request(kept.name, job.context, sampling))
            with self._lock:
                self._kept[job.key] = kept
        return kept.name

    def _learn(self, told: "Report") -> None:
        """What a report tells of memory."""
        with self._lock:
            by_name = {kept.name: kept for kept in self._kept.values()}
            self._evictions += len(told.evicted)
            self._used_tokens = told.used_tokens
            for name in told.evicted:
                if name in by_name:
                    by_name[name].cached_tokens = 0
            for name, tokens in told.cached.items():
                if name in by_name:
                    by_name[name].cached_tokens = tokens

    def first_coefficients(self) -> dict[str, float]:
        """A batch of one token and one of many, timed on this machine; attention's parts are left to the first batches."""
        many, random = min(64, self.max_tokens - 1), np.random.default_rng(0)

        def seconds(tokens: int) -> float:
            text = random.integers(self.vocabulary, size=tokens).tolist()  # a new one, which no cache knows
            begun_s = time.perf_counter()
            self.verify([Job("timed", text)])
            taken_s = time.perf_counter() - begun_s
            self.forget("timed")
            return taken_s

        seconds(many)  # the first pass is slower
        one_s, many_s = (min(seconds(tokens) for _ in range(REPEATS)) for tokens in (1, many))
        new_token_s = max(many_s - one_s, 0.0) / (many - 1)
        return dict(zip(TERMS, (one_s, new_token_s, 1e-3 * new_token_s, 1e-2 * new_token_s), strict=True))

    def close(self) -> None:
        """End vLLM's processes."""
        if self.core is not None:
            self.core.close()
            self.core = None


class Shape(NamedTuple):
    """What a server must know of a model."""

    vocabulary: int
    max_tokens: int
    end_tokens: frozenset[int]


def read_shape(settings: CoreSettings) -> Shape:
    """Vocabulary, longest sequence that model, limits and memory allow, and tokens that end an answer.

    Raises:
        InputError: no such model.
    """
    model, limits = settings.model, settings.limits
    if model.startswith((".", "/", "~")) and not Path(model).is_dir():
        raise InputError(f"--model {model}: no such folder")
    try:
        config = AutoConfig.from_pretrained(model)
        text, ends = config.get_text_config(), read_end_tokens(model)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"--model {model}: cannot be loaded ({str(error).splitlines()[0][:160]})") from None
    wanted = limits.max_prompt_tokens + limits.max_new_tokens
    longest = min(int(getattr(text, "max_position_embeddings", wanted)), wanted, limits.kv_tokens)
    return Shape(int(text.vocab_size), longest, ends)


def read_end_tokens(model: str) -> frozenset[int]:
    """Tokens that end an answer of a model, by name or folder.

    Raises:
        OSError, ValueError, KeyError: it cannot be loaded.
    """
    try:
        ends = GenerationConfig.from_pretrained(model).eos_token_id
    except OSError:  # it has none
        ends = GenerationConfig.from_model_config(AutoConfig.from_pretrained(model)).eos_token_id
    return frozenset(ends if isinstance(ends, list) else [] if ends is None else [ends])
