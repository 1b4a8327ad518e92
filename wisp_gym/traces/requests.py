"""Request traces: when requests arrive and how long their prompts and outputs are.

Published formats are read by name, any other file by naming its columns (`wisp_gym.traces.request_formats`). Two of them are
written too, both public:

- ``azure``: the CSV of the Azure LLM inference traces, columns ``TIMESTAMP`` (time of the call), ``ContextTokens`` (prompt)
  and ``GeneratedTokens`` (output). Source: Azure/AzurePublicDataset, AzureLLMInferenceDataset2023.md (Patel et al.,
  "Splitwise", ISCA 2024).
- ``mooncake``: the JSON lines of the Mooncake traces, keys ``timestamp`` (milliseconds), ``input_length``,
  ``output_length`` (tokens) and ``hash_ids`` (one per 512-token block of the prompt; equal ids are equal prefixes).
  Source: kvcache-ai/Mooncake, FAST25-release/traces (Qin et al., "Mooncake", FAST 2025). Only the lengths and the time
  are used: prefixes shared between requests are not modelled.

A trace file is input from outside. Lines, numbers and rows are limited, so that no file can exhaust the memory, and
every fault is one `TraceError` that names the file, the line, what was given and what is allowed. A request without a
token is no fault: services log what failed so. It is skipped and counted.
"""

import json
import re
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from wisp_gym.errors import did_you_mean, of_kind, path_of, shown
from wisp_gym.files import write_text
from wisp_gym.traces.request_formats import UNITS, Format, TraceError, format_of
from wisp_gym.traces.request_rows import fail, rows_of
from wisp_gym.values import between, whole

MAX_ROWS = 10_000_000  # 16 bytes a row: at most 160 MB while reading; a window takes its part of a longer file
MAX_TOKENS = 10_000_000  # ten times the longest context window on offer
MAX_SPAN_S = 366 * 86_400.0  # a leap year; the longest public trace covers some months
MAX_TIME_S = 1e10  # the year 2286 as Unix time
BLOCK_TOKENS = 512  # tokens a Mooncake `hash_ids` entry stands for
WRITE_START = datetime(2026, 1, 1)  # the first TIMESTAMP of a written Azure trace, which has no zero of its own

# Times in seconds read as milliseconds make a thousandfold load. Public traces hold at most some tens of requests a second.
DOUBTFUL_RATE_PER_S, FEWEST_ROWS_OF_A_RATE = 200.0, 100

TIMESTAMP = re.compile(r"(\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)?", re.ASCII)
NUMBER = re.compile(r"-?\d{1,20}(?:\.\d*)?(?:[eE][+-]?\d{1,3})?", re.ASCII)


@dataclass(frozen=True, eq=False)
class RequestTrace:
    """Requests in order of arrival.

    Attributes:
        arrival_s: (n,) float64, seconds since the first request of the trace or the start of its window, not decreasing,
            0 … `MAX_SPAN_S`.
        prompt_tokens: (n,) int32, length of the prompt, 1 … `MAX_TOKENS`.
        output_tokens: (n,) int32, length of the response, 1 … `MAX_TOKENS`.
        skipped: requests that were left out because they have no prompt or no output.

    Raises:
        TraceError: no request, arrays of unequal length, or a value out of its range.
    """

    arrival_s: np.ndarray
    prompt_tokens: np.ndarray
    output_tokens: np.ndarray
    skipped: int = 0

    def __post_init__(self) -> None:
        for name in ("arrival_s", "prompt_tokens", "output_tokens"):
            try:
                np.asarray(getattr(self, name), np.float64)
            except (TypeError, ValueError):
                raise TraceError(f"{name}: given {shown(getattr(self, name))}, allowed are numbers (n,)") from None
        lengths = {np.shape(self.arrival_s), np.shape(self.prompt_tokens), np.shape(self.output_tokens)}
        if len(lengths) != 1 or len(next(iter(lengths))) != 1 or not len(self.arrival_s):
            raise TraceError(f"arrays of shapes {sorted(lengths)}; allowed: three of one shape (n,), n at least 1")
        arrival_s = np.asarray(self.arrival_s, np.float64)
        inside = np.isfinite(arrival_s) & (arrival_s >= 0) & (arrival_s <= MAX_SPAN_S)
        if not inside.all() or (np.diff(arrival_s) < 0).any():
            raise TraceError(f"arrival_s must be finite, not decreasing, from 0 to {MAX_SPAN_S:.0f} s")
        object.__setattr__(self, "arrival_s", arrival_s)
        for name in ("prompt_tokens", "output_tokens"):
            tokens = np.asarray(getattr(self, name))
            if not np.issubdtype(tokens.dtype, np.integer) or tokens.min() < 1 or tokens.max() > MAX_TOKENS:
                raise TraceError(f"{name} must be whole numbers from 1 to {MAX_TOKENS}")
            object.__setattr__(self, name, tokens.astype(np.int32))

    def __len__(self) -> int:
        return len(self.arrival_s)


class Request(NamedTuple):
    """One checked row: line (of a document: which request), time in ns from a zero of the format's, tokens."""

    line: int
    time_ns: int
    prompt: int
    output: int


def read_trace(
    path: str | Path,
    format: str,
    max_rows: int = MAX_ROWS,
    *,
    columns: Mapping[str, str] | None = None,
    start_s: float = 0.0,
    rows: int = 0,
) -> RequestTrace:
    """Read a request trace, or a window of it. Time counts from the first request, or from the window's start.

    Args:
        path: A regular file, text in UTF-8 or such text packed by gzip.
        format: A name of `wisp_gym.traces.request_formats.FORMATS`.
        max_rows: More requests than this are an error.
        columns: Fields of `wisp_gym.traces.request_formats.Columns` that are called otherwise in this file.
        start_s: Requests that arrive earlier after the first are left out, seconds, at least 0.
        rows: So many requests are read from there, at most; what follows is not looked at. 0 = all.

    Raises:
        TraceError: an unknown format, an unreadable or empty file, or a bad line. A line that is earlier than the one
            before it is bad too: recorders write in order, so it tells of a damaged or merged file. (A JSON document is
            put in order: benchmarks list requests as they end.)
    """
    path = path_of("trace", path, TraceError)
    between(0.0, MAX_SPAN_S).checked("start_s", start_s)
    whole(0, MAX_ROWS).checked("rows", rows)
    whole(1, MAX_ROWS).checked("max_rows", max_rows)
    named = of_kind("columns", {} if columns is None else columns, Mapping, TraceError)
    known = format_of(of_kind("format", format, str, TraceError), named)
    found = _Window(path, known, start_s, rows, max_rows)
    for request in _requests(path, known):
        if not found.take(request):
            break
    return found.trace()


def cached_trace(path: str, format: str, columns: Mapping[str, str], start_s: float, rows: int) -> RequestTrace:
    """`read_trace` of a file that several ask for, read once while it stays as it is; the arrays are read-only."""
    try:
        status = Path(path).stat()
    except OSError:  # reading says it better
        return read_trace(path, format, columns=columns, start_s=start_s, rows=rows)
    stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
    return _read_once(str(Path(path).absolute()), stamp, format, tuple(columns.items()), start_s, rows)


@lru_cache(2)
def _read_once(
    path: str, stamp: tuple[int, ...], format: str, columns: tuple[tuple[str, str], ...], start_s: float, rows: int
) -> RequestTrace:
    trace = read_trace(path, format, columns=dict(columns), start_s=start_s, rows=rows)
    for values in (trace.arrival_s, trace.prompt_tokens, trace.output_tokens):
        values.setflags(write=False)
    return trace


class _Window:
    """Collects the requests of a window in order."""

    def __init__(self, path: Path, format: Format, start_s: float, rows: int, max_rows: int) -> None:
        self.path, self.format, self.start_s, self.rows, self.max_rows = path, format, start_s, rows, max_rows
        self.start_ns = round(start_s * 1e9)
        self.first_ns: int | None = None
        self.last_ns, self.skipped = 0, 0
        self.time_ns, self.prompt_tokens, self.output_tokens = array("q"), array("i"), array("i")

    def take(self, request: Request) -> bool:
        """Take a request; whether there is room for more."""
        has_tokens = request.prompt > 0 and request.output > 0
        if self.first_ns is None and not has_tokens:
            self.skipped += self.start_ns == 0
            return True
        self.first_ns = request.time_ns if self.first_ns is None else self.first_ns
        since_ns = request.time_ns - self.first_ns
        self.check_time(request.line, since_ns)
        self.last_ns = since_ns
        if since_ns < self.start_ns:
            return True
        if not has_tokens:
            self.skipped += 1
            return True
        if len(self.time_ns) >= self.max_rows:
            allowed = f"at most {self.max_rows}; take a window of it (start and number of rows)"
            fail(self.path, self.format.layout, request.line, f"more than {self.max_rows} requests", allowed)
        self.time_ns.append(since_ns - self.start_ns)
        self.prompt_tokens.append(request.prompt)
        self.output_tokens.append(request.output)
        return len(self.time_ns) != self.rows

    def check_time(self, line: int, since_ns: int) -> None:
        """Refuse times that run backwards or too far."""
        if since_ns < self.last_ns:
            given = f"a time {(self.last_ns - since_ns) * 1e-9:.7g} s before the line above"
            fail(self.path, self.format.layout, line, given, "lines in order of time")
        if since_ns > MAX_SPAN_S * 1e9:
            given = f"a time {since_ns * 1e-9:.7g} s after the first"
            fail(self.path, self.format.layout, line, given, f"at most {MAX_SPAN_S:.0f} s")

    def trace(self) -> RequestTrace:
        """What was collected."""
        if not self.time_ns:
            lost = f" with tokens ({self.skipped} without)" if self.skipped else ""
            after = (
                f" from {self.start_s:g} s on, {self.last_ns * 1e-9:g} s after the first is the last"
                if self.start_ns
                else ""
            )
            raise TraceError(f"{self.path}: holds no request{lost}{after}; allowed: at least one")
        arrival_s = np.array(self.time_ns) * 1e-9
        self.check_unit(arrival_s)
        return RequestTrace(arrival_s, np.array(self.prompt_tokens), np.array(self.output_tokens), self.skipped)

    def check_unit(self, arrival_s: np.ndarray) -> None:
        """Refuse milliseconds that look like seconds, unless the caller says that they are milliseconds."""
        n, unit, span_s = len(arrival_s), self.format.columns.unit, float(arrival_s[-1] - arrival_s[0])
        if unit in ("date", "s") or "unit" in self.format.asked or n < FEWEST_ROWS_OF_A_RATE:
            return
        if n > DOUBTFUL_RATE_PER_S * span_s:
            raise TraceError(
                f"{self.path}: {n} requests within {span_s:g} s if times are in {unit}; allowed: at most "
                f"{DOUBTFUL_RATE_PER_S:g} a second, or the unit of the file's times by name (trace column unit = 's' or '{unit}')"
            )


def _requests(path: Path, format: Format) -> Iterator[Request]:
    """The checked rows of a file; those of a document in order of time."""
    found = (
        Request(line, _time_ns(path, format, line, time), *_both_tokens(path, format, line, prompt, output))
        for line, time, prompt, output in rows_of(path, format)
    )
    return iter(sorted(found, key=lambda request: request.time_ns)) if format.layout == "json" else found


def write_trace(trace: RequestTrace, path: str | Path, format: str) -> None:
    """Write a request trace, wholly or not at all.

    Azure keeps arrivals to 100 ns, Mooncake to 1 ms (as the published files do). Azure times start at
    2026-01-01 00:00:00; Mooncake's `hash_ids` are fresh for every block, so that no two requests share a prefix.

    Raises:
        TraceError: an unknown format or a place that cannot be written.
    """
    path = path_of("trace", path, TraceError)
    if of_kind("format", format, str, TraceError) not in WRITERS:
        raise TraceError(f"a trace is not written in format {format!r}; {did_you_mean(format, WRITERS)}")
    lines = WRITERS[format](of_kind("trace", trace, RequestTrace, TraceError))
    try:
        write_text(path, "".join(f"{line}\n" for line in lines))
    except OSError as error:
        raise TraceError(f"{path}: cannot be written ({error.strerror})") from None


def sample_path(name: str) -> Path:
    """Path of a sample trace that is shipped with the package, such as ``"azure-conv-like.csv"``.

    Raises:
        TraceError: no sample has this name.
    """
    known = shipped(".csv", ".jsonl")
    if of_kind("trace", name, str, TraceError) not in known:
        raise TraceError(f"no sample trace {name!r}; {did_you_mean(name, known)}")
    return known[name]


def shipped(*endings: str) -> dict[str, Path]:
    """Shipped traces of these file endings by name, sorted."""
    package = Path(__file__).resolve().parents[1]
    # An installation has the samples inside the package, a checkout beside it.
    folder = next((place for place in (package / "_traces", package.parent / "traces") if place.is_dir()), package)
    return {path.name: path for path in sorted(folder.iterdir()) if path.suffix in endings}


def _azure_lines(trace: RequestTrace) -> Iterator[str]:
    yield ",".join(format_of("azure", {}).columns.names)
    ticks = np.round(trace.arrival_s * 1e7).astype(np.int64)  # of 100 ns
    for tick, prompt, output in zip(ticks.tolist(), trace.prompt_tokens, trace.output_tokens, strict=True):
        moment = WRITE_START + timedelta(seconds=tick // 10_000_000)
        yield f"{moment:%Y-%m-%d %H:%M:%S}.{tick % 10_000_000:07d},{prompt},{output}"


def _mooncake_lines(trace: RequestTrace) -> Iterator[str]:
    times_ms = np.round(trace.arrival_s * 1e3).astype(np.int64).tolist()
    block = 0
    lengths = zip(trace.prompt_tokens.tolist(), trace.output_tokens.tolist(), strict=True)
    for time_ms, (prompt, output) in zip(times_ms, lengths, strict=True):
        hash_ids = list(range(block, block - (-prompt // BLOCK_TOKENS)))
        block += len(hash_ids)
        yield json.dumps({"timestamp": time_ms, "input_length": prompt, "output_length": output, "hash_ids": hash_ids})


def _both_tokens(path: Path, format: Format, line: int, prompt: Any, output: Any) -> tuple[int, int]:
    columns = format.columns
    return _tokens(path, format, line, columns.prompt, prompt), _tokens(path, format, line, columns.output, output)


def _tokens(path: Path, format: Format, line: int, name: str, value: Any) -> int:
    """A number of tokens, checked; 0 is no fault here."""
    # str.isdigit takes digits of all scripts, and int takes underscores: neither is what a trace is written in.
    if type(value) is str and value.isascii() and value.isdigit() and len(value) <= 15:
        value = int(value)
    if type(value) is not int or not 0 <= value <= MAX_TOKENS:
        fail(path, format.layout, line, f"{name} {shown(value)}", f"a whole number from 1 to {MAX_TOKENS}")
    return value


def _time_ns(path: Path, format: Format, line: int, value: Any) -> int:
    columns = format.columns
    if columns.unit == "date":
        return _timestamp_ns(path, format, line, value)
    if type(value) is str and NUMBER.fullmatch(value):
        value = float(value)
    most = MAX_TIME_S * 1e9 / UNITS[columns.unit]
    # bool is an int to Python; NaN fails every comparison and so the range.
    if type(value) not in (int, float) or not 0 <= value <= most:
        what = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}[columns.unit]
        fail(path, format.layout, line, f"{columns.time} {shown(value)}", f"{what} from 0 to {most:.0f}")
    return round(value * UNITS[columns.unit])


def _timestamp_ns(path: Path, format: Format, line: int, value: Any) -> int:
    match = TIMESTAMP.fullmatch(value) if isinstance(value, str) else None
    try:
        if match is None:
            raise ValueError
        clock, fraction, zone = match.groups()
        second = _unix_second(clock, zone or "Z")
    except ValueError:
        fail(
            path,
            format.layout,
            line,
            f"{format.columns.time} {shown(value)}",
            "a date and time like 2023-11-16 18:17:03.9799600",
        )
    return second * 1_000_000_000 + int((fraction or "0").ljust(9, "0"))


@lru_cache(64)  # lines of the same second follow each other
def _unix_second(clock: str, zone: str) -> int:
    since = datetime.fromisoformat(clock + zone) - datetime(1970, 1, 1, tzinfo=UTC)
    return round(since / timedelta(seconds=1))


WRITERS: dict[str, Callable[[RequestTrace], Iterator[str]]] = {"azure": _azure_lines, "mooncake": _mooncake_lines}
