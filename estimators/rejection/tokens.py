"""Drafted tokens of a recorded trace as rows to learn from: their statistics, their fates, and whose they are.

A token counts up to and including the first rejected one of its row: beyond it the draft goes on from a wrong prefix,
where "given that all before it are accepted" has no meaning and a stop comes too late anyway.

Two sets of rows. `on_path` has those tokens of the rows of every position: the most to learn from, but in greedy
decoding the same token comes back in up to K rows, and long accepted runs weigh more than on a device. `met` has those
that a device meets that drafts K tokens a round, one round after another: no place of the output comes twice. Tokens of
one answer still resemble each other, so answers to one prompt stay on one side of every split, and intervals resample
prompts, never rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import GroupShuffleSplit

from wisp_gym.errors import InputError
from wisp_gym.traces.requests import TraceError
from wisp_gym.traces.speculation import SpeculationTrace, concatenate, find, read_speculation_trace

PERCENT = (2.5, 97.5)  # of every interval


@dataclass(frozen=True)
class Tokens:
    """n drafted tokens.

    Attributes:
        statistics: confidence, entropy (nats), top-2 margin, spread of the logits, shape (n, 4).
        accepted: shape (n,).
        prompt: whose answer the token is in, shape (n,), whole numbers.
    """

    statistics: NDArray[np.float64]
    accepted: NDArray[np.bool_]
    prompt: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.accepted)

    def of(self, prompts: NDArray[np.int64]) -> Tokens:
        """The tokens of some prompts."""
        chosen = np.isin(self.prompt, prompts)
        return Tokens(self.statistics[chosen], self.accepted[chosen], self.prompt[chosen])


def read_any(paths: Sequence[str]) -> SpeculationTrace:
    """One trace of some files or shipped samples, with or without statistics; raises as `read`."""
    try:
        return concatenate([read_speculation_trace(find(path)) for path in paths])
    except TraceError as error:
        raise InputError(str(error)) from None


def read(paths: Sequence[str]) -> SpeculationTrace:
    """Return all requests of some traces, paths or names of shipped ones.

    Raises:
        InputError: a file cannot be read or has no statistics, or the traces differ in temperature or drafted tokens.
    """
    trace = read_any(paths)
    if trace.statistics is None:
        raise InputError(
            f"{paths[0]}: it has no statistics; allowed: traces that have some, as traces.record writes them"
        )
    return trace


def on_path(trace: SpeculationTrace) -> Tokens:
    """All tokens up to each row's first rejected one."""
    return _rows(trace, np.ones(len(trace.accepted_run), dtype=bool))


def met(trace: SpeculationTrace) -> Tokens:
    """The tokens up to the first rejected one of rounds of K tokens, one after another through every answer."""
    starts, runs = np.zeros(len(trace.accepted_run), dtype=bool), trace.accepted_run.tolist()
    for first, end in zip(trace.offsets[:-1].tolist(), trace.offsets[1:].tolist(), strict=True):
        while first < end:
            starts[first] = True
            first += runs[first] + 1
    return _rows(trace, starts)


def _rows(trace: SpeculationTrace, starts: NDArray[np.bool_]) -> Tokens:
    """The tokens of rows that start at some positions, up to the first rejected one or to the end of the answer."""
    to_the_end = (np.repeat(trace.offsets[1:], trace.output_tokens) - np.arange(len(starts)))[starts, None]
    run, j = trace.accepted_run[starts, None].astype(np.int64), np.arange(trace.draft_tokens)
    counts = (j <= run) & (j < to_the_end)
    prompt = np.repeat(trace.prompt_id, trace.output_tokens)[starts, None]
    assert trace.statistics is not None, "`read` takes no others"
    return Tokens(
        trace.statistics[starts][counts].astype(np.float64),
        np.broadcast_to(j < run, counts.shape)[counts],
        np.broadcast_to(prompt, counts.shape)[counts].astype(np.int64),
    )


def split(tokens: Tokens, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Prompts to train on (60 %), to calibrate and choose the threshold on (20 %), and to score on (20 %)."""
    prompts = np.unique(tokens.prompt)
    rest, test = next(GroupShuffleSplit(1, test_size=0.2, random_state=seed).split(prompts, groups=prompts))
    fit, check = next(
        GroupShuffleSplit(1, test_size=0.25, random_state=seed).split(prompts[rest], groups=prompts[rest])
    )
    return prompts[rest][fit], prompts[rest][check], prompts[test]


def resampled(prompt: NDArray[np.int64], draws: int) -> NDArray[np.float64]:
    """Weights of the rows in bootstrap samples of prompts, shape (draws, n); the same ones every time."""
    names, of_row = np.unique(prompt, return_inverse=True)
    counts = np.random.default_rng(0).multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
    return counts[:, of_row].astype(np.float64)


def interval(statistic: Callable[[NDArray[np.float64]], Any], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """2.5 and 97.5 percentile over bootstrap samples of a statistic of weighted rows, shape (2, …)."""
    return np.nanpercentile([statistic(weight) for weight in weights], PERCENT, axis=0)
