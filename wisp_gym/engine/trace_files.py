"""From the files that a scenario's draft names, a speculation trace and a rejection predictor, to the engine's arrays."""

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from wisp_gym.engine.state import NO_SOURCE, TRACE_TOKEN, Source, table
from wisp_gym.rules.rejection_predictor import load_predictor
from wisp_gym.scenario import Scenario, ScenarioError
from wisp_gym.traces.speculation import SpeculationTrace, find, read_speculation_trace


class DraftTrace(NamedTuple):
    """A speculation trace as the engine reads it."""

    offsets: np.ndarray  # (answers + 1,) int64 first row of each answer
    tokens: np.ndarray  # (rows, K) TRACE_TOKEN
    share: float  # of positions at which the draft's token is accepted
    has_statistics: bool


def load_source(scenario: Scenario) -> Source:
    """What the draft's files say; `NO_SOURCE` where it names none.

    Raises:
        TraceError, PredictorError: a file that cannot be used.
        ScenarioError: longer rounds than the trace has tokens for, or answers that KV memory does not hold.
    """
    draft = scenario.draft
    if not (draft.trace or draft.predictor):
        return NO_SOURCE
    source = NO_SOURCE
    if draft.trace:
        trace = load_draft_trace(scenario)
        if draft.predictor and not trace.has_statistics:
            raise ScenarioError(
                f"given {draft.predictor!r}, allowed with {Path(draft.trace).name}, which has no statistics: ''", "draft.predictor")  # fmt: skip
        source = source._replace(offsets=trace.offsets, tokens=trace.tokens)
    return source._replace(predictor=load_predictor(draft.predictor).weights) if draft.predictor else source


def load_draft_trace(scenario: Scenario) -> DraftTrace:
    """The trace that the draft names, checked against the scenario; raises as `load_source` does."""
    path = find(scenario.draft.trace)
    stat = path.stat() if path.is_file() else None
    trace = _read(path, (stat.st_mtime_ns, stat.st_size) if stat else None)
    k = trace.tokens.shape[1]
    if scenario.max_draft_tokens > k:
        raise ScenarioError(
            f"given {scenario.max_draft_tokens}, allowed: at most {k}, the tokens that {path.name} holds at each "
            "position", "max_draft_tokens")  # fmt: skip
    longest = int(np.diff(trace.offsets).max()) + scenario.workload.prompt.max_tokens + scenario.max_draft_tokens
    if longest > scenario.kv_tokens:
        raise ScenarioError(
            f"longest prompt + recorded answer + max_draft_tokens is {longest} tokens, allowed: <= "
            f"{scenario.kv_tokens}, all that KV memory of {scenario.server.name} holds", "draft.trace")  # fmt: skip
    return trace


@lru_cache(maxsize=2)
def _read(path: Path, stamp: tuple[int, int] | None) -> DraftTrace:
    """Read a trace once for all worlds; `stamp` (time and size of the file) tells a changed file apart."""
    trace = read_speculation_trace(path)
    tokens = tokens_of(trace)
    share = float(tokens["acceptance"][:, 0].mean(dtype=float))
    return DraftTrace(trace.offsets.copy(), tokens, share, trace.statistics is not None)


def tokens_of(trace: SpeculationTrace) -> np.ndarray:
    """(P, K) TRACE_TOKEN; in greedy decoding a token's acceptance is 1 within the accepted run, 0 after it."""
    tokens = table((len(trace.accepted_run), trace.draft_tokens), TRACE_TOKEN)
    run = trace.accepted_run[:, None]
    tokens["acceptance"] = np.arange(trace.draft_tokens) < run if trace.acceptance is None else trace.acceptance
    for k, name in enumerate(("confidence", "entropy", "margin", "logit_spread")):
        tokens[name] = (
            place_statistics(tokens["acceptance"])[:, k] if trace.statistics is None else trace.statistics[:, :, k]
        )
    return tokens


def place_statistics(acceptance: np.ndarray) -> np.ndarray:
    """(K, 4) statistics that stand for tokens of which nothing was recorded: the same for all at a place of a round.

    Confidence is how often the token there is accepted once all before it are, over all rows; entropy, margin and spread are
    those of a choice between two with these chances. They tell a rule no more than that (assumption).
    """
    reached = np.cumprod(acceptance, axis=1, dtype=float).sum(axis=0)
    before = np.concatenate([[len(acceptance)], reached[:-1]])
    p = np.divide(reached, before, out=np.zeros_like(reached), where=before > 0).clip(1e-3, 1.0 - 1e-3)
    entropy = -p * np.log(p) - (1.0 - p) * np.log(1.0 - p)
    return np.column_stack([p, entropy, np.abs(2.0 * p - 1.0), np.abs(np.log(p / (1.0 - p))) / 2.0])


def passed_confidence(tokens: np.ndarray, share: float) -> float:
    """The highest confidence that at least `share` of the accepted tokens reach.

    Over the first token of every row: each place of the answers once. At a temperature above 0 a token counts with its
    acceptance probability.
    """
    order = np.argsort(tokens["confidence"][:, 0], kind="stable")[::-1]
    accepted = np.cumsum(tokens["acceptance"][order, 0], dtype=float)
    return float(tokens["confidence"][order, 0][np.searchsorted(accepted, share * accepted[-1])])
