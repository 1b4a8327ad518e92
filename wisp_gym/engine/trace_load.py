"""The request trace of a scenario as the engine's rows, and what becomes of the file on the way: skipped, cut, never reached.

The engine keeps lengths within the scenario's ranges (`workload.prompt`, `workload.output`). A scenario file that does not
name them takes them from the trace (`wisp_gym.scenario.toml`), so nothing is cut that nobody asked to cut.
"""

import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from wisp_gym.engine.state import NO_TRACE, TRACE_ROW, table
from wisp_gym.scenario import Scenario, ScenarioError
from wisp_gym.traces.requests import RequestTrace, cached_trace


@dataclass(frozen=True)
class TraceUse:
    """What a scenario makes of its request trace.

    Attributes:
        file: name of the trace. requests: in its window. span_s: from the first to the last of them.
        skipped: requests of the window without a prompt or an output.
        cut: requests of which the ranges change a length. lost_share: tokens that this takes away, of all.
        arriving: requests that arrive before the horizon ends; the rest is never reached.
        measured: requests that arrive in the window of measurement. measured_to_s: its end.
    """

    file: str
    requests: int
    span_s: float
    skipped: int
    cut: int
    lost_share: float
    arriving: int
    measured: int
    measured_to_s: float

    @property
    def row(self) -> dict[str, float]:
        """What results say of it."""
        shares = {"trace_cut_share": self.cut / self.requests, "trace_lost_token_share": self.lost_share}
        return {"trace_requests": self.requests, "trace_skipped": self.skipped, **shares}

    def line(self) -> str:
        """All of it in one line."""
        rate = f" ({self.requests / self.span_s:.3g} a second)" if self.span_s else ""
        return (
            f"trace {self.file}: {self.requests:,} requests in {self.span_s:,.0f} s{rate}, {self.skipped:,} skipped, "
            f"{self.cut:,} cut ({self.cut / self.requests:.1%}), {self.arriving:,} arrive before the horizon ends"
        )

    def changes(self) -> list[str]:
        """How what runs differs from the file, one line each; empty where the trace is replayed as it is."""
        found = []
        if self.cut:
            found.append(
                f"trace {self.file}: {self.cut:,} of {self.requests:,} requests are cut to the ranges of workload.prompt and "
                f"workload.output, {self.lost_share:.1%} of all tokens are lost"
            )
        if self.skipped:
            found.append(f"trace {self.file}: {self.skipped:,} requests without a prompt or an output are skipped")
        return found

    def doubts(self) -> list[str]:
        """All that a reader should know, one line each."""
        found = self.changes()
        if self.span_s < self.measured_to_s:
            found.append(
                f"trace {self.file}: its last request comes at {self.span_s:.4g} s, before the end of what is measured "
                f"({self.measured_to_s:g} s)"
            )
        elif not self.measured:
            found.append(
                f"trace {self.file}: no request comes within what is measured, which ends at {self.measured_to_s:g} s"
            )
        return found


def load_trace(scenario: Scenario) -> np.ndarray:
    """Rows of the scenario's request trace, (rows,) TRACE_ROW; empty without one.

    Raises:
        TraceError: a trace that cannot be read.
        ScenarioError: a request that KV memory does not hold, after its lengths are cut.
    """
    if scenario.workload.arrivals != "trace":
        return NO_TRACE
    trace = read(scenario)
    check_memory(scenario, trace)
    rows = table(len(trace), TRACE_ROW)
    rows["arrival_s"], rows["prompt_tokens"], rows["output_tokens"] = (
        trace.arrival_s,
        trace.prompt_tokens,
        trace.output_tokens,
    )
    return rows


def trace_use(scenario: Scenario) -> TraceUse | None:
    """What the scenario makes of its request trace; None without one. Raises as `load_trace` does."""
    if scenario.workload.arrivals != "trace":
        return None
    trace, horizon = read(scenario), scenario.horizon
    check_memory(scenario, trace)
    prompt, output = kept(scenario, trace)
    lost = np.maximum(trace.prompt_tokens - prompt, 0).sum() + np.maximum(trace.output_tokens - output, 0).sum()
    measured_to_s = horizon.warmup_s + horizon.measure_s
    begun, measured, ended = np.searchsorted(
        trace.arrival_s, [horizon.warmup_s, measured_to_s, measured_to_s + horizon.drain_s]
    ).tolist()
    return TraceUse(
        file=Path(scenario.workload.trace).name,
        requests=len(trace),
        span_s=float(trace.arrival_s[-1]),
        skipped=trace.skipped,
        cut=int(np.count_nonzero((prompt != trace.prompt_tokens) | (output != trace.output_tokens))),
        lost_share=float(lost / (trace.prompt_tokens.sum(dtype=np.int64) + trace.output_tokens.sum(dtype=np.int64))),
        arriving=ended,
        measured=measured - begun,
        measured_to_s=measured_to_s,
    )


def warn_of_changes(scenario: Scenario) -> None:
    """Say in code what a command prints: a `UserWarning` where the trace is not replayed as it is."""
    use = trace_use(scenario)
    for change in use.changes() if use else []:
        warnings.warn(change, UserWarning, stacklevel=3)


def read(scenario: Scenario) -> RequestTrace:
    """The window of the trace that the scenario names."""
    w = scenario.workload
    return cached_trace(w.trace, w.trace_format, asdict(w.trace_columns), w.trace_start_s, w.trace_rows)


def kept(scenario: Scenario, trace: RequestTrace) -> tuple[np.ndarray, np.ndarray]:
    """Prompts and outputs as the engine runs them. A speculation trace brings outputs of its own: none is cut then."""
    w = scenario.workload
    prompt = np.clip(trace.prompt_tokens, w.prompt.min_tokens, w.prompt.max_tokens)
    if scenario.draft.trace:
        return prompt, trace.output_tokens
    return prompt, np.clip(trace.output_tokens, w.output.min_tokens, w.output.max_tokens)


def check_memory(scenario: Scenario, trace: RequestTrace) -> None:
    """Refuse a request that never fits into KV memory. (A speculation trace's answers are checked where it is read.)"""
    prompt, output = kept(scenario, trace)
    tokens = prompt.astype(np.int64) + scenario.max_draft_tokens + (0 if scenario.draft.trace else output)
    if (longer := int(np.count_nonzero(tokens > scenario.kv_tokens))) == 0:
        return
    raise ScenarioError(
        f"{longer:,} of {len(trace):,} requests are longer than KV memory of {scenario.server.name} holds (the longest prompt + "
        f"output + max_draft_tokens is {tokens.max()} tokens), allowed: <= {scenario.kv_tokens}; workload.prompt.max_tokens "
        "and workload.output.max_tokens cut them", "workload.trace")  # fmt: skip
