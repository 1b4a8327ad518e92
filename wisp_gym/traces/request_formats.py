"""What the columns of request traces are called: published formats, and files of one's own by a mapping.

A format says how a file is laid out and which columns hold the time, its unit, and both lengths. Anything else in a file is
ignored. traces/README.md has the table of sources.

- ``csv``: a header and one request a line.
- ``jsonl``: one JSON object a line. ``json``: one document, with a list of objects or columns as lists.

In JSON a column may be a dotted path (``usage.prompt_tokens``).
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from wisp_gym.errors import InputError, near, one_of

UNITS = {"s": 1e9, "ms": 1e6, "us": 1e3, "ns": 1.0}  # of numbers, in nanoseconds; "date" is a date and time as text


class TraceError(InputError):
    """A request trace that cannot be used; the message is one line."""


class Columns(NamedTuple):
    """Where a file keeps what is read of it.

    `time` in `unit` (s, ms, us, ns, or date), `prompt` and `output` in tokens. `records`: path of the requests inside a JSON
    document, "" for the document itself; `*` in it stands for the only member of a list.
    """

    time: str = ""
    unit: str = ""
    prompt: str = ""
    output: str = ""
    records: str = ""

    @property
    def names(self) -> tuple[str, str, str]:
        """Time, prompt and output."""
        return self.time, self.prompt, self.output


class Format(NamedTuple):
    """A layout (csv, jsonl or json) and its columns; `asked`: what the caller named himself."""

    layout: str
    columns: Columns = Columns()
    asked: frozenset[str] = frozenset()


FORMATS = {
    "azure": Format("csv", Columns("TIMESTAMP", "date", "ContextTokens", "GeneratedTokens")),
    "mooncake": Format("jsonl", Columns("timestamp", "ms", "input_length", "output_length")),
    "bailian": Format("jsonl", Columns("timestamp", "s", "input_length", "output_length")),
    "burstgpt": Format("csv", Columns("Timestamp", "s", "Request tokens", "Response tokens")),
    "servegen": Format("csv", Columns("timestamp", "s", "input_tokens", "output_tokens")),
    "vidur": Format("csv", Columns("arrived_at", "s", "num_prefill_tokens", "num_decode_tokens")),
    "vllm": Format("json", Columns("start_times", "s", "input_lens", "output_lens")),
    "guidellm": Format(
        "json",
        Columns("request_start_time", "s", "prompt_tokens", "output_tokens", "benchmarks.*.requests.successful"),
    ),
    "csv": Format("csv"),
    "jsonl": Format("jsonl"),
    "json": Format("json"),
}


def format_of(name: str, columns: Mapping[str, str]) -> Format:
    """The format of this name with some columns named anew.

    Args:
        columns: fields of `Columns` → what they are in the file; an empty text leaves the format's own.

    Raises:
        TraceError: an unknown format, column or unit, or one that is missing.
    """
    layout, own, _ = FORMATS[one_of("trace format", name, FORMATS, TraceError)]
    asked = {one_of("trace column", key, Columns._fields, TraceError): text for key, text in columns.items() if text}
    found = own._replace(**asked)
    if missing := [field for field in Columns._fields[:4] if not getattr(found, field)]:
        needed = ", ".join(Columns._fields[:4])
        raise TraceError(f"trace format '{name}' says no {missing[0]}; it needs trace columns {needed}")
    one_of("unit of a trace's time", found.unit, [*UNITS, "date"], TraceError)
    if found.records and layout != "json":
        raise TraceError(f"trace column records: given '{found.records}', allowed in a JSON document alone")
    return Format(layout, found, frozenset(asked))


def missing_column(name: str, given: Iterable[str], wanted: Iterable[str]) -> str:
    """What to say of a column that a file lacks: the nearest of those not wanted, and the format that it looks like."""
    given, wanted = list(given), set(wanted)
    like = near(name, [other for other in given if other not in wanted])
    alike = next(
        (key for key, one in FORMATS.items() if one.columns.time and set(one.columns.names) <= set(given)), None
    )
    by_name = f"; did you mean {name!r} by {like[:40]!r}?" if like else ""
    return by_name + (f"; these are the columns of trace format '{alike}'" if alike else "")
