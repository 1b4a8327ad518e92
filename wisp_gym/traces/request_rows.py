"""Rows of a request trace as its file has them: time, prompt and output of each request, not yet checked.

A file is input from outside: lines, documents and what a compressed file unpacks to are limited, so that none can exhaust
the memory.
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TextIO

from wisp_gym.errors import near, shown
from wisp_gym.traces.request_formats import Columns, Format, TraceError, missing_column

MAX_LINE_CHARS = 1 << 20  # a Mooncake line of 10 million tokens, 20,000 block ids, has a fifth of it
MAX_DOCUMENT_CHARS = 1 << 26  # 64 MiB: parsed, a JSON document takes up to about 25 times its size
MAX_FILE_CHARS = 1 << 33  # of all lines: a week of Azure 2024 has a quarter of it
MAX_EMPTY_LINES = 1_000_000  # in a row: a few kilobytes of gzip unpack to hundreds of millions of them

GZIP = b"\x1f\x8b"
OTHER_KINDS = {  # first bytes of what people keep traces in, and how to make text of it
    b"PAR1": "a Parquet file; write it as text first: pandas.read_parquet(path).to_csv(new, index=False)",
    b"PK\x03\x04": "a zip archive; unpack it first",
    b"\x28\xb5\x2f\xfd": "packed by zstd; unpack it first, or pack it by gzip",
    b"BZh": "packed by bzip2; unpack it first, or pack it by gzip",
    b"\xfd7zXZ": "packed by xz; unpack it first, or pack it by gzip",
    b"\xff\xfe": "UTF-16 text; save it as UTF-8",
    b"\xfe\xff": "UTF-16 text; save it as UTF-8",
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself; fetch it by `git lfs pull`",
}
Row = tuple[int, Any, Any, Any]  # line (of a document: which request, from 1), time, prompt, output


def rows_of(path: Path, format: Format) -> Iterator[Row]:
    """The rows of a file, in its order.

    Raises:
        TraceError: the file cannot be read, or is not laid out as its format says.
    """
    layouts = {"csv": _csv_rows, "jsonl": _jsonl_rows, "json": _json_rows}
    try:
        with _open(path) as file:
            yield from layouts[format.layout](path, file, format.columns)
    except UnicodeDecodeError as error:
        raise TraceError(f"{path}: byte {error.start} is not UTF-8 text") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise TraceError(f"{path}: cannot be unpacked ({error})") from None
    except OSError as error:
        raise TraceError(f"{path}: cannot be read ({error.strerror})") from None


def fail(path: Path, layout: str, number: int, given: str, allowed: str) -> NoReturn:
    """Raise for one row."""
    raise TraceError(f"{path}: {'request' if layout == 'json' else 'line'} {number}: {given}; allowed: {allowed}")


@contextmanager
def _open(path: Path) -> Iterator[TextIO]:
    if not path.exists():
        like = near(path.name, [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else [])
        raise TraceError(f"{path}: no such file" + (f"; did you mean {like!r}?" if like else ""))
    if not path.is_file():  # a pipe or a device could block, or never end
        raise TraceError(f"{path}: not a regular file")
    with path.open("rb") as file:
        begin = file.read(32)
        file.seek(0)
        if kind := next((kind for first, kind in OTHER_KINDS.items() if begin.startswith(first)), None):
            raise TraceError(f"{path}: {kind}")
        # By content, not by name: a file may be renamed, and a browser may unpack what it fetches.
        unpacked: Any = gzip.GzipFile(fileobj=file) if begin.startswith(GZIP) else file
        with io.TextIOWrapper(unpacked, encoding="utf-8-sig", newline="") as text:
            yield text


def _lines(path: Path, file: TextIO) -> Iterator[str]:
    number, read, empty = 0, 0, 0
    while text := file.readline(MAX_LINE_CHARS + 1):
        number += 1
        read += len(text)
        empty = 0 if text.strip(", \t\r\n") else empty + 1
        if len(text) > MAX_LINE_CHARS:
            fail(path, "", number, f"more than {MAX_LINE_CHARS} characters", f"lines of at most {MAX_LINE_CHARS}")
        if read > MAX_FILE_CHARS:
            fail(path, "", number, f"more than {MAX_FILE_CHARS} characters so far", f"at most {MAX_FILE_CHARS}")
        if empty > MAX_EMPTY_LINES:
            fail(path, "", number, f"{empty} lines in a row without anything", f"at most {MAX_EMPTY_LINES}")
        yield text


def _csv_rows(path: Path, file: TextIO, columns: Columns) -> Iterator[Row]:
    # Lines of nothing but blanks and commas are no rows: spreadsheets write them below a table.
    reader = csv.reader(_lines(path, file), strict=True)
    try:
        header = next(([cell.strip() for cell in cells] for cells in reader if not _empty(cells)), [])
        time, prompt, output = [_place(path, header, columns, name) for name in columns.names] if header else (0, 0, 0)
        width = len(header)
        for cells in reader:
            if len(cells) == width and (text := cells[time].strip()):
                yield reader.line_num, text, cells[prompt].strip(), cells[output].strip()
            elif not _empty(cells):
                if len(cells) != width:
                    fail(path, "", reader.line_num, f"{len(cells)} cells", f"{width}, as in the header")
                yield reader.line_num, "", cells[prompt].strip(), cells[output].strip()
    except csv.Error as error:
        fail(path, "", reader.line_num, str(error), "comma-separated values")


def _empty(cells: list[str]) -> bool:
    return not any(cell.strip() for cell in cells)


def _place(path: Path, header: list[str], columns: Columns, name: str) -> int:
    if header.count(name) != 1:
        fault = "stands twice" if name in header else "is missing"
        hint = missing_column(name, header, columns.names) if name not in header else ""
        given = f"column {name!r} {fault} in {shown(','.join(header))}{hint}"
        fail(path, "", 1, given, f"{','.join(columns.names)} (trace columns name others)")
    return header.index(name)


def _jsonl_rows(path: Path, file: TextIO, columns: Columns) -> Iterator[Row]:
    for line, text in enumerate(_lines(path, file), 1):
        if not text.strip():
            continue
        try:
            entry = json.loads(text)
        except (ValueError, RecursionError):
            fail(path, "", line, shown(text), 'one JSON object a line, like {"timestamp": 0, "input_length": 9, …}')
        yield _object_row(path, "", line, entry, columns)


def _json_rows(path: Path, file: TextIO, columns: Columns) -> Iterator[Row]:
    text = file.read(MAX_DOCUMENT_CHARS + 1)
    if len(text) > MAX_DOCUMENT_CHARS:
        raise TraceError(f"{path}: a document of more than {MAX_DOCUMENT_CHARS} characters; allowed: so many, or lines")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TraceError(f"{path}: not one JSON document ({str(error)[:80]})") from None
    records = _records(path, document, columns.records)
    if isinstance(records, list):
        for number, entry in enumerate(records, 1):
            yield _object_row(path, "json", number, entry, columns)
        return
    lists = _object_row(path, "json", 1, records, columns)[1:]
    if not all(isinstance(one, list) for one in lists) or len({len(one) for one in lists}) > 1:
        names = ", ".join(columns.names)
        raise TraceError(f"{path}: {names} are not lists of one length; allowed: a list of requests, or such columns")
    for number, values in enumerate(zip(*lists, strict=True), 1):
        yield number, *values


def _records(path: Path, document: Any, where: str) -> Any:
    """What stands at a dotted path of a document; `*` is the only member of a list."""
    here, words = document, where.split(".") if where else []
    for word in words:
        if isinstance(here, list):
            if word == "*" and len(here) != 1:
                allowed = f"records = {where.replace('*', '0', 1)!r} (0 to {len(here) - 1})" if here else "at least one"
                raise TraceError(f"{path}: {len(here)} members where {where!r} says *; allowed: {allowed}")
            here = dict(enumerate(here)).get(0 if word == "*" else int(word) if word.isdecimal() else -1)
        else:
            here = here.get(word) if isinstance(here, dict) else None
    if not isinstance(here, list | dict):
        raise TraceError(f"{path}: no requests at {where or 'the top'!r}; allowed: a list of objects, or lists by name")
    return here


def _object_row(path: Path, layout: str, number: int, entry: Any, columns: Columns) -> Row:
    if not isinstance(entry, dict):
        fail(path, layout, number, shown(entry), f"a JSON object with {', '.join(columns.names)}")
    time, prompt, output = (_value(path, layout, number, entry, name, columns) for name in columns.names)
    return number, time, prompt, output


def _value(path: Path, layout: str, number: int, entry: dict[str, Any], name: str, columns: Columns) -> Any:
    here: Any = entry
    for word in [name] if name in entry else name.split("."):
        if not isinstance(here, dict) or word not in here:
            hint = missing_column(name, entry, columns.names)
            fail(path, layout, number, f"key {name!r} is missing{hint}", ", ".join(columns.names))
        here = here[word]
    return here
