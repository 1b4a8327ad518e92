"""The timeline as text: a row for the server and each device, a letter for each column of time."""

from collections.abc import Sequence

import numpy as np

from wisp_gym.view.spans import KINDS, SERVER, Stretch

LETTERS = ".dxuqvrv"  # one for each kind
LEGEND = "d drafting  x wasted drafting  u uplink  q queueing  v verification  r reply  . thinking"
COLUMNS = 100


def letters(found: np.ndarray, start_s: float, end_s: float, columns: int) -> str:
    """One row, of (n,) SPAN of a device: in each column the kind that takes most of its time."""
    edges = np.linspace(start_s, end_s, columns + 1)
    covered = np.zeros((len(KINDS) + 1, columns))
    covered[-1] = 1e-12  # nothing at all: a blank
    for _, kind, from_s, to_s, _ in found.tolist():
        covered[kind] += np.maximum(np.minimum(to_s, edges[1:]) - np.maximum(from_s, edges[:-1]), 0.0)
    return "".join((LETTERS + " ")[kind] for kind in covered.argmax(axis=0))


def ansi(shown: Stretch, devices: Sequence[int], tagged: int | None = None, columns: int = COLUMNS) -> str:
    """Rows of text with a legend below.

    Args:
        devices: to show, below the server. tagged: one of them that is marked with a `>`.
        columns: characters of the time axis, at least 20.
    """
    lines = [f"{'':12}{f'{shown.start_s:.2f} s':<{columns - 10}}{f'{shown.end_s:.2f} s':>10}"]
    for device in [SERVER, *devices]:
        name = "server" if device == SERVER else f"{'>' if device == tagged else ''}device {device}"
        own = shown.spans[shown.spans["device"] == device]
        lines.append(f"{name:>11} {letters(own, shown.start_s, shown.end_s, columns)}".rstrip())
    return "\n".join([*lines, f"{'':12}{LEGEND}"])
