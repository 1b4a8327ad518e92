"""Request traces: when requests arrive and how long their prompts and outputs are.

Two formats are read and written, both public:

- ``azure``: the CSV of the Azure LLM inference traces 2023, columns ``TIMESTAMP`` (time of the call),
  ``ContextTokens`` (prompt) and ``GeneratedTokens`` (output). Source: Azure/AzurePublicDataset,
  AzureLLMInferenceDataset2023.md (Patel et al., "Splitwise", ISCA 2024).
- ``mooncake``: the JSON lines of the Mooncake traces, keys ``timestamp`` (milliseconds), ``input_length``,
  ``output_length`` (tokens) and ``hash_ids`` (one per 512-token block of the prompt; equal ids are equal prefixes).
  Source: kvcache-ai/Mooncake, FAST25-release/traces (Qin et al., "Mooncake", FAST 2025). Only the lengths and the time
  are used: prefixes shared between requests are not modelled.

A trace file is input from outside. Lines, numbers and rows are limited, so that no file can exhaust the memory, and
every fault is one `TraceError` that names the file, the line, what was given and what is allowed.
"""

import csv
import json
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TextIO

import numpy as np

from wisp_gym.errors import InputError, near
from wisp_gym.files import write_text

MAX_ROWS = 1_000_000  # 16 bytes a row: at most 16 MB while reading
MAX_TOKENS = 10_000_000  # ten times the longest context window on offer
MAX_SPAN_S = 366 * 86_400.0  # a leap year; the longest public trace covers some weeks
MAX_LINE_CHARS = 1 << 20  # a Mooncake line of 10 million tokens, 20,000 block ids, has a fifth of it
MAX_TIMESTAMP_MS = 1e13  # the year 2286 as Unix time
BLOCK_TOKENS = 512  # tokens a Mooncake `hash_ids` entry stands for
WRITE_START = datetime(2026, 1, 1)  # the first TIMESTAMP of a written Azure trace, which has no zero of its own

TIMESTAMP = re.compile(r"(\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)?", re.ASCII)
COUNT = re.compile(r"\d{1,15}", re.ASCII)
AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
MOONCAKE_KEYS = ("timestamp", "input_length", "output_length")


class TraceError(InputError):
    """A request trace that cannot be used; the message is one line."""


@dataclass(frozen=True, eq=False)
class RequestTrace:
    """Requests in order of arrival.

    Attributes:
        arrival_s: (n,) float64, seconds since the first request of the trace, not decreasing, 0 … `MAX_SPAN_S`.
        prompt_tokens: (n,) int32, length of the prompt, 1 … `MAX_TOKENS`.
        output_tokens: (n,) int32, length of the response, 1 … `MAX_TOKENS`.

    Raises:
        TraceError: no request, arrays of unequal length, or a value out of its range.
    """

    arrival_s: np.ndarray
    prompt_tokens: np.ndarray
    output_tokens: np.ndarray

    def __post_init__(self) -> None:
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


class Row(NamedTuple):
    """One request of a file; `time_ns` counts from a zero that the format chooses."""

    line: int
    time_ns: int
    prompt_tokens: int
    output_tokens: int


def read_trace(path: str | Path, format: str, max_rows: int = MAX_ROWS) -> RequestTrace:
    """Read a request trace; its first request arrives at 0 s.

    Args:
        path: A regular text file in UTF-8.
        format: ``"azure"`` or ``"mooncake"``.
        max_rows: More requests than this are an error.

    Raises:
        TraceError: an unknown format, an unreadable or empty file, or a bad line. A line that is earlier than the one
            before it is bad too: recorders write in order, so it tells of a damaged or merged file.
    """
    path, rows_of = Path(path), _format(format).rows
    time_ns, prompt_tokens, output_tokens = array("q"), array("i"), array("i")
    try:
        with _open(path) as file:
            start_ns = 0
            for row in rows_of(path, file):
                start_ns = start_ns if time_ns else row.time_ns
                since_start_ns = row.time_ns - start_ns
                _check_time(path, row.line, since_start_ns, time_ns[-1] if time_ns else 0)
                if len(time_ns) >= max_rows:
                    _fail(path, row.line, f"more than {max_rows} requests", f"at most {max_rows} (argument max_rows)")
                time_ns.append(since_start_ns)
                prompt_tokens.append(row.prompt_tokens)
                output_tokens.append(row.output_tokens)
    except UnicodeDecodeError as error:
        raise TraceError(f"{path}: byte {error.start} is not UTF-8 text") from None
    except OSError as error:
        raise TraceError(f"{path}: cannot be read ({error.strerror})") from None
    if not time_ns:
        raise TraceError(f"{path}: holds no request; allowed: at least one")
    return RequestTrace(np.array(time_ns) * 1e-9, np.array(prompt_tokens), np.array(output_tokens))


def write_trace(trace: RequestTrace, path: str | Path, format: str) -> None:
    """Write a request trace, wholly or not at all.

    Azure keeps arrivals to 100 ns, Mooncake to 1 ms (as the published files do). Azure times start at
    2026-01-01 00:00:00; Mooncake's `hash_ids` are fresh for every block, so that no two requests share a prefix.

    Raises:
        TraceError: an unknown format or a place that cannot be written.
    """
    lines = _format(format).lines(trace)
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
    if name not in known:
        raise TraceError(f"no sample trace {name!r}; allowed: {', '.join(known)}{_nearest(name, known)}")
    return known[name]


def shipped(*endings: str) -> dict[str, Path]:
    """Shipped traces of these file endings by name, sorted."""
    package = Path(__file__).resolve().parents[1]
    # An installation has the samples inside the package, a checkout beside it.
    folder = next((place for place in (package / "_traces", package.parent / "traces") if place.is_dir()), package)
    return {path.name: path for path in sorted(folder.iterdir()) if path.suffix in endings}


def _azure_rows(path: Path, file: TextIO) -> Iterator[Row]:
    reader = csv.reader(_lines(path, file), strict=True)
    try:
        header = [cell.strip() for cell in next(reader, [])]
        columns = [_column(path, header, name) for name in AZURE_COLUMNS] if header else []
        for cells in reader:
            if not cells:
                continue
            line = reader.line_num
            if len(cells) != len(header):
                _fail(path, line, f"{len(cells)} cells", f"{len(header)}, as in the header")
            time, *counts = (cells[column].strip() for column in columns)
            numbers = [int(text) if COUNT.fullmatch(text) else text for text in counts]
            yield Row(line, _timestamp_ns(path, line, time), *_tokens(path, line, AZURE_COLUMNS, numbers))
    except csv.Error as error:
        _fail(path, reader.line_num, str(error), "comma-separated values")


def _column(path: Path, header: list[str], name: str) -> int:
    if header.count(name) != 1:
        fault = "stands twice" if name in header else "is missing"
        like = near(name, header) if name not in header else None
        hint = f"; did you mean {name!r} by {like!r}?" if like else ""
        _fail(path, 1, f"column {name!r} {fault} in {_quote(','.join(header))}{hint}", ",".join(AZURE_COLUMNS))
    return header.index(name)


def _timestamp_ns(path: Path, line: int, text: str) -> int:
    match = TIMESTAMP.fullmatch(text)
    try:
        if match is None:
            raise ValueError
        clock, fraction, zone = match.groups()
        moment = datetime.fromisoformat(clock + (zone or "Z"))
    except ValueError:
        _fail(path, line, f"TIMESTAMP {_quote(text)}", "a date and time like 2023-11-16 18:17:03.9799600")
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return round(since / timedelta(seconds=1)) * 1_000_000_000 + int((fraction or "0").ljust(9, "0"))


def _azure_lines(trace: RequestTrace) -> Iterator[str]:
    yield ",".join(AZURE_COLUMNS)
    ticks = np.round(trace.arrival_s * 1e7).astype(np.int64)  # of 100 ns
    for tick, prompt, output in zip(ticks.tolist(), trace.prompt_tokens, trace.output_tokens, strict=True):
        moment = WRITE_START + timedelta(seconds=tick // 10_000_000)
        yield f"{moment:%Y-%m-%d %H:%M:%S}.{tick % 10_000_000:07d},{prompt},{output}"


def _mooncake_rows(path: Path, file: TextIO) -> Iterator[Row]:
    for line, text in enumerate(_lines(path, file), 1):
        if not text.strip():
            continue
        try:
            entry = json.loads(text)
        except (ValueError, RecursionError):
            _fail(path, line, _quote(text), 'one JSON object a line, like {"timestamp": 0, "input_length": 9, …}')
        if not isinstance(entry, dict):
            _fail(path, line, _quote(text), "a JSON object with timestamp, input_length and output_length")
        time, *numbers = (_value(path, line, entry, key) for key in MOONCAKE_KEYS)
        yield Row(line, _milliseconds_ns(path, line, time), *_tokens(path, line, MOONCAKE_KEYS, numbers))


def _value(path: Path, line: int, entry: dict[str, Any], key: str) -> Any:
    if key not in entry:
        like = near(key, [other for other in entry if other not in MOONCAKE_KEYS])
        hint = f"; did you mean {key!r} by {_quote(like)}?" if like else ""
        _fail(path, line, f"key {key!r} is missing{hint}", "hash_ids and " + ", ".join(MOONCAKE_KEYS))
    return entry[key]


def _milliseconds_ns(path: Path, line: int, value: Any) -> int:
    # bool is an int to Python; NaN fails every comparison and so the range.
    if type(value) not in (int, float) or not 0 <= value <= MAX_TIMESTAMP_MS:
        _fail(path, line, f"timestamp {_quote(value)}", f"milliseconds from 0 to {MAX_TIMESTAMP_MS:.0f}")
    return round(value * 1_000_000)


def _mooncake_lines(trace: RequestTrace) -> Iterator[str]:
    times_ms = np.round(trace.arrival_s * 1e3).astype(np.int64).tolist()
    block = 0
    lengths = zip(trace.prompt_tokens.tolist(), trace.output_tokens.tolist(), strict=True)
    for time_ms, (prompt, output) in zip(times_ms, lengths, strict=True):
        hash_ids = list(range(block, block - (-prompt // BLOCK_TOKENS)))
        block += len(hash_ids)
        yield json.dumps({"timestamp": time_ms, "input_length": prompt, "output_length": output, "hash_ids": hash_ids})


def _tokens(path: Path, line: int, names: Sequence[str], values: list[Any]) -> list[int]:
    """Tokens of prompt and output, checked; in `names` the time comes before them."""
    for name, value in zip(names[1:], values, strict=True):
        if type(value) is not int or not 1 <= value <= MAX_TOKENS:
            _fail(path, line, f"{name} {_quote(value)}", f"a whole number from 1 to {MAX_TOKENS}")
    return values


def _check_time(path: Path, line: int, since_start_ns: int, previous_ns: int) -> None:
    if since_start_ns < previous_ns:
        early_s = (previous_ns - since_start_ns) * 1e-9
        _fail(path, line, f"a time {early_s:.7g} s before the line above", "lines in order of time")
    if since_start_ns > MAX_SPAN_S * 1e9:
        _fail(path, line, f"a time {since_start_ns * 1e-9:.7g} s after the first", f"at most {MAX_SPAN_S:.0f} s")


def _open(path: Path) -> TextIO:
    if not path.exists():
        names = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        raise TraceError(f"{path}: no such file{_nearest(path.name, names)}")
    if not path.is_file():  # a pipe or a device could block, or never end
        raise TraceError(f"{path}: not a regular file")
    return path.open(encoding="utf-8-sig", newline="")


def _lines(path: Path, file: TextIO) -> Iterator[str]:
    number = 0
    while text := file.readline(MAX_LINE_CHARS + 1):
        number += 1
        if len(text) > MAX_LINE_CHARS:
            _fail(path, number, f"more than {MAX_LINE_CHARS} characters", f"lines of at most {MAX_LINE_CHARS}")
        yield text


def _fail(path: Path, line: int, given: str, allowed: str) -> NoReturn:
    raise TraceError(f"{path}: line {line}: {given}; allowed: {allowed}")


def _quote(value: Any) -> str:
    """The value as one short line."""
    text = repr(value.strip() if isinstance(value, str) else value)
    return text if len(text) <= 60 else text[:57] + "…"


def _nearest(given: str, choices: Iterable[str]) -> str:
    like = near(given, choices)
    return f"; did you mean {like!r}?" if like else ""


class Format(NamedTuple):
    """How a format is read and written."""

    rows: Callable[[Path, TextIO], Iterator[Row]]
    lines: Callable[[RequestTrace], Iterator[str]]


FORMATS = {"azure": Format(_azure_rows, _azure_lines), "mooncake": Format(_mooncake_rows, _mooncake_lines)}


def _format(name: str) -> Format:
    if name not in FORMATS:
        raise TraceError(f"unknown trace format {_quote(name)}; allowed: {', '.join(FORMATS)}{_nearest(name, FORMATS)}")
    return FORMATS[name]
