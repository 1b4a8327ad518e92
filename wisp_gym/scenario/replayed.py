"""The workload of a scenario that replays a request trace: where its file is, and lengths as long as the trace's own."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from wisp_gym.scenario.fields import ScenarioError, build, field_types, shown
from wisp_gym.scenario.parts import Lengths, Workload

Table = dict[str, Any]
_ANY_LENGTHS = {"median_tokens": 1, "log_std": 0, "min_tokens": 1, "max_tokens": 1}


def replayed(workload: Any, own: Any, folder: Path | None) -> Any:
    """The table of a workload; one with trace arrivals gets the lengths that its file does not state from the trace.

    A preset's lengths are those of its own requests: they would cut a trace's without anyone having asked for it.

    Args:
        workload: the whole table, with what the preset says. own: what the file itself says.
        folder: the scenario file's, from which a relative path is taken; None = the working directory.

    Raises:
        ScenarioError: the trace is not there or cannot be read.
    """
    if not isinstance(workload, Mapping) or workload.get("arrivals") != "trace":
        return workload
    stated = {name: _stated(own, name) for name in ("prompt", "output")}
    # Lengths are checked at last, when they are known; what names the trace is checked first.
    checked = build(Workload, {**workload, **dict.fromkeys(stated, _ANY_LENGTHS)}, "workload")
    path = (folder / checked.trace).resolve() if folder else Path(checked.trace)
    unstated = any(isinstance(table, dict) and table.keys() < field_types(Lengths).keys() for table in stated.values())
    if (folder or unstated) and not path.is_file():
        raise ScenarioError(f"given {shown(checked.trace)}, allowed: a file that exists", "workload.trace")
    place = {"trace": str(path)} if folder else {}
    return {**workload, **place, **(_lengths(path, checked, stated) if unstated else {})}


def _stated(own: Any, name: str) -> Any:
    return own.get(name, {}) if isinstance(own, Mapping) else {}


def _lengths(path: Path, checked: Workload, stated: Table) -> Table:
    """Lengths of the trace, with what the file states of them."""
    # Here, not above: a scenario without a trace needs no reader of traces.
    from wisp_gym.traces.request_formats import TraceError
    from wisp_gym.traces.requests import cached_trace

    columns, window = asdict(checked.trace_columns), (checked.trace_start_s, checked.trace_rows)
    try:
        trace = cached_trace(str(path), checked.trace_format, columns, *window)
    except TraceError as error:
        raise ScenarioError(str(error), "workload.trace") from None
    found = {"prompt": trace.prompt_tokens, "output": trace.output_tokens}
    return {name: _with_stated(found[name], own) if isinstance(own, dict) else own for name, own in stated.items()}


def _with_stated(tokens: Any, own: Table) -> Table:
    """Range, median and spread of lengths, (n,) tokens, with what is stated; the rest makes room for that."""
    import numpy as np

    low, high, median = int(tokens.min()), int(tokens.max()), float(np.median(tokens))
    if isinstance(most := own.get("max_tokens"), int):
        low, high = min(low, most), most
    if isinstance(least := own.get("min_tokens"), int):
        low, high = least, max(high, least) if most is None else high
    found = {"min_tokens": low, "max_tokens": high, "median_tokens": min(max(median, low), high)}
    return {**found, "log_std": float(np.log(tokens).std()), **own}
