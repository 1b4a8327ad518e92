"""Files written whole or not at all: a draft beside the file, then a rename. Whatever happens, the old file or the new one is there."""

import csv
import io
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wisp_gym.errors import InputError


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write `content` whole or not at all.

    Raises:
        OSError: the place cannot be written.
    """
    target = Path(path)
    handle, draft = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:100]}.")
    try:
        with open(handle, "wb") as file:
            file.write(content)
        os.chmod(draft, 0o644)  # mkstemp's files are private; a written file is an ordinary one
        os.replace(draft, target)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text whole or not at all. Raises OSError."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON; NaN and infinity are refused with ValueError, as JSON has neither."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def csv_text(rows: Sequence[dict[str, Any]], columns: Sequence[str] | None = None, comment: str = "") -> str:
    """Rows as CSV, None as an empty cell.

    Args:
        rows: at least one. columns: keys in order; default those of the first row. Other keys are left out.
        comment: lines to stand before the header, each marked by `#`.
    """
    text = io.StringIO()
    text.writelines(f"# {line}\n" for line in comment.splitlines())
    writer = csv.DictWriter(text, columns or list(rows[0]), extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_csv(path: str | Path, rows: Sequence[dict[str, Any]], comment: str = "") -> None:
    """Write rows as CSV, see `csv_text`."""
    write_text(path, csv_text(rows, comment=comment))


def csv_rows(path: str | Path) -> list[tuple[int, dict[str, str]]]:
    """A CSV's rows with their line numbers; # starts a comment line. Raises OSError or UnicodeDecodeError."""
    lines = list(enumerate(Path(path).read_text(encoding="utf-8-sig").splitlines(), 1))
    kept = [(number, line) for number, line in lines if line.strip() and not line.startswith("#")]
    rows = csv.DictReader(line for _, line in kept)
    return [(number, row) for (number, _), row in zip(kept[1:], rows, strict=True)]


def check_writable(path: str | Path) -> Path:
    """`path`, where a file can be written, so that a long run does not end without its result.

    Raises:
        InputError: the folder is missing or not writable, or `path` is a folder.
    """
    target = Path(path)
    if target.is_dir():
        raise InputError(f"cannot write {target}: it is a folder, a file name is needed")
    if not target.parent.is_dir():
        raise InputError(f"cannot write {target}: the folder {target.parent} does not exist")
    if not os.access(target.parent, os.W_OK):
        raise InputError(f"cannot write {target}: the folder {target.parent} is not writable")
    return target
