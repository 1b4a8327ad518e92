"""Files: text read as it was handed over, and results written whole or not at all.

A result is a draft beside the file, then a rename. Whatever happens, the old file or the new one is there.
"""

import contextlib
import csv
import io
import json
import os
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wisp_gym.errors import InputError

DRAFT = ".draft"
STALE_S = 3600.0


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write `content` whole or not at all.

    Raises:
        OSError: the place cannot be written.
    """
    target = Path(os.path.realpath(path))  # what a link leads to
    draft = target.with_name(f".{target.name[:100]}.{secrets.token_hex(4)}{DRAFT}")
    try:
        with open(draft, "xb") as file:
            file.write(content)
        os.replace(draft, target)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from None  # a full disk does not say whose
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    drop_drafts(target.parent)


def drop_drafts(folder: Path) -> None:
    """Remove what killed processes left in a folder; a young draft may be of one that is at work."""
    for draft in folder.glob(f".*{DRAFT}"):
        with contextlib.suppress(OSError):  # of somebody else, or gone by now
            if time.time() - draft.stat().st_mtime > STALE_S:
                draft.unlink()


def holds_files(folder: Path) -> bool:
    """Whether there is anything in a folder, but for drafts that killed processes left."""
    return any(path.suffix != DRAFT for path in folder.iterdir())


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
    """A CSV's rows with their line numbers; # starts a comment line. Raises OSError or InputError."""
    lines = list(enumerate(read_text(path).splitlines(), 1))
    kept = [(number, line) for number, line in lines if line.strip() and not line.startswith("#")]
    rows = csv.DictReader(line for _, line in kept)
    return [(number, row) for (number, _), row in zip(kept[1:], rows, strict=True)]


def read_text(path: str | Path) -> str:
    """UTF-8 text as somebody handed it over: a byte order mark before it (of editors on Windows) is no part of it.

    Raises:
        OSError: it cannot be read. InputError: it is no UTF-8 text.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is no UTF-8 text") from None


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
