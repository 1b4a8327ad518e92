"""Standard streams of a command: they carry any text, whatever their encoding, and their faults are errors of one class."""

import codecs
import contextlib
import errno
import io
import os
import sys
import unicodedata
from collections.abc import Iterator

BROKEN_PIPE = 128 + 13  # the exit code of what writes to a reader that is gone, as shells have it (SIGPIPE)
LOST_OUTPUT = 2  # as of every file that cannot be written
PLAIN = "wisp_gym.plain"  # the way in which streams write what their encoding lacks
# Of one letter where that can be, so that tables stay aligned; names in other scripts are escaped.
LETTERS = {
    "×": "x", "·": ".", "–": "-", "−": "-", "±": "~", "→": "->", "←": "<-", "≤": "<=", "≥": ">=", "½": "1/2",
    "µ": "u", "μ": "u", "√": "sqrt", "Σ": "sum", "Φ": "Phi", "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta",
    "θ": "theta", "λ": "lambda", "ρ": "rho", "σ": "sigma", "τ": "tau",
}  # fmt: skip


def plain(error: UnicodeError) -> tuple[str | bytes, int]:
    """A letter that an encoding lacks, in ASCII: `×` as x, `é` as e, else an escape; bytes of a file's name as they are."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letter = error.object[error.start]
    if "\udc80" <= letter <= "\udcff":
        return os.fsencode(letter), error.start + 1
    bare = unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode()
    return LETTERS.get(letter) or bare or letter.encode("ascii", "backslashreplace").decode(), error.start + 1


class OutputError(OSError):
    """A standard stream cannot be written: its reader is gone (`| head`), or its disk is full."""

    @property
    def code(self) -> int:
        """The exit code after it."""
        return BROKEN_PIPE if self.errno == errno.EPIPE else LOST_OUTPUT


class Output(io.TextIOWrapper):
    """Standard output or error: it can write any text, whatever its encoding, and its faults are an `OutputError`.

    Args:
        stream: what it replaces. One that was told what to do with strange letters (PYTHONIOENCODING=…:…) goes on so.

    Attributes:
        lost: the first fault.
    """

    lost: OutputError | None = None

    def __init__(self, stream: io.TextIOWrapper) -> None:
        codecs.register_error(PLAIN, plain)
        told = stream.errors not in ("strict", "backslashreplace", "surrogateescape")
        errors, lines, at_once = stream.errors if told else PLAIN, stream.line_buffering, stream.write_through
        super().__init__(stream.detach(), stream.encoding, errors, None, lines, at_once)

    def write(self, text: str) -> int:
        """As of every text stream."""
        with self.faults():
            return super().write(text)

    def flush(self) -> None:
        """As of every text stream."""
        with self.faults():
            super().flush()

    @contextlib.contextmanager
    def faults(self) -> Iterator[None]:
        """The system's faults as ours; argparse drops them, so the first one is kept."""
        try:
            yield
        except OSError as error:
            self.lost = self.lost or OutputError(*error.args)
            raise self.lost from None


def open_streams() -> None:
    """Fill the places of standard streams that are closed (`>&-`), so that no file of ours is opened there."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest place that is free
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - it stays open


def complain(line: str) -> None:
    """A line on standard error, if anybody can see it."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)
