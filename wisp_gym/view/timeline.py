"""The timeline: devices as rows, what they did in colour or in letters. For people, and for `render()`.

    wisp-gym timeline --controller wisp+wisp --devices 8 --seconds 2 --out timeline.png

Colours are those of Okabe and Ito (Color Universal Design, 2008), which people with any common colour vision tell
apart; they differ in lightness as well, flights are drawn thinner, and wasted drafting is hatched.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np

from wisp_gym.controllers.resolve import resolve
from wisp_gym.engine.worlds import Worlds, load_trace
from wisp_gym.scenario import load, with_
from wisp_gym.view.raster import ADVANCE, GLYPH_ROWS, Colour, blank, box, hatched_box, png, text, text_width
from wisp_gym.view.spans import (
    BATCH,
    DOWNLINK,
    DRAFTING,
    KINDS,
    QUEUEING,
    SERVER,
    THINKING,
    UPLINK,
    VERIFYING,
    WASTED,
    chrome_trace,
    predicted_ends_s,
    spans,
)

__all__ = ["ansi", "chrome_trace", "draw", "record", "spans"]

SEAM = len(KINDS)  # the line between two batches
PAPER, INK, FAINT, BAND = (255, 255, 255), (40, 40, 40), (222, 222, 222), (255, 246, 214)
COLOURS: dict[int, Colour] = {
    THINKING: (222, 222, 222),
    DRAFTING: (0, 114, 178),
    WASTED: (0, 114, 178),
    UPLINK: (110, 110, 110),
    QUEUEING: (240, 200, 60),
    VERIFYING: (213, 94, 0),
    DOWNLINK: (110, 110, 110),
    BATCH: (213, 94, 0),
    SEAM: (255, 255, 255),
}
DRAWN = (THINKING, QUEUEING, DRAFTING, WASTED, DOWNLINK, UPLINK, VERIFYING, BATCH)  # the later over the earlier
THICKNESS = {THINKING: 0.1, DOWNLINK: 0.4, UPLINK: 0.4}  # share of the row's height, centred; the others are full
LEGEND = (DRAFTING, WASTED, UPLINK, QUEUEING, VERIFYING, THINKING)
LEGEND_WORDS = {UPLINK: "in flight"}
LETTERS = ".dxuqvrv"  # one for each kind
ANSI_LEGEND = "d drafting  x wasted drafting  u uplink  q queueing  v verification  r reply  . thinking"
MOST_S = 3600.0  # of a recorded world
MIN_ROW, TARGET_LABEL_PX = 14, 110  # a row no thinner than its label; from this width on, seconds are labelled


def rows_shown(found: np.ndarray, n_devices: int | None, tagged: int | None, room: int) -> list[int]:
    """Devices to show, the tagged one first (whatever its number), as many as there are and there is room for."""
    n = n_devices if n_devices is not None else int(found["device"].max(initial=-1)) + 1
    first = [] if tagged is None or tagged < 0 else [tagged]
    return [*first, *(device for device in range(n) if device not in first)][: max(0, min(n, room))]


class Canvas:
    """A picture with rows, each `row` pixels high, and a time axis from x0 to x1."""

    def __init__(self, width: int, height: int, start_s: float, end_s: float, n_rows: int):
        self.scale = 2 if width >= 1200 else 1
        line = (GLYPH_ROWS + 4) * self.scale
        self.picture = blank(width, height, PAPER)
        self.x0, self.x1 = (9 * ADVANCE + 6) * self.scale, width - 8 * self.scale
        self.y0, self.y1 = line + 2 * self.scale, height - 2 * line
        self.start_s, self.end_s = start_s, end_s
        self.row = max(1, (self.y1 - self.y0) // max(n_rows, 1))

    def x(self, time_s: float | np.ndarray) -> np.ndarray:
        """Pixel column of a time, kept inside the axis."""
        share = (np.asarray(time_s) - self.start_s) / (self.end_s - self.start_s)
        return np.rint(self.x0 + share.clip(0.0, 1.0) * (self.x1 - self.x0)).astype(int)

    def bar(self, row: int, kind: int, start_s: float, end_s: float) -> None:
        """Draw one span in a row; at least one pixel wide."""
        left, right = int(self.x(start_s)), int(self.x(end_s))
        gap = max(1, self.row // 8)
        full = self.row - gap
        high = max(1, round(full * THICKNESS.get(kind, 1.0)))
        top = self.y0 + row * self.row + (full - high) // 2
        if kind == WASTED:
            hatched_box(self.picture, left, top, right, top + high, COLOURS[kind], PAPER, 4 * self.scale)
        else:
            box(self.picture, left, top, max(right, left + 1), top + high, COLOURS[kind])

    def batch(self, row: int, start_s: float, end_s: float, requests: float) -> None:
        """One batch of the server, parted from the one before, with its number of requests if there is room for it."""
        self.bar(row, BATCH, start_s, end_s)
        left, right, words = int(self.x(start_s)), int(self.x(end_s)), f"{requests:.0f}"
        self.bar(row, SEAM, start_s, start_s)
        if right - left > text_width(words, self.scale) + 4 * self.scale:
            middle = (left + right - text_width(words, self.scale)) // 2
            top = self.y0 + row * self.row + (self.row - GLYPH_ROWS * self.scale) // 2
            text(self.picture, middle, top, words, PAPER, self.scale)

    def label(self, row: int, words: str) -> None:
        """Name of a row, to the left of the axis."""
        y = self.y0 + row * self.row + (self.row - GLYPH_ROWS * self.scale) // 2
        text(self.picture, self.x0 - 6 * self.scale - text_width(words, self.scale), y, words, INK, self.scale)

    def axis(self) -> None:
        """Vertical lines at round times, labelled in seconds below."""
        step = tick_s(self.end_s - self.start_s, (self.x1 - self.x0) / (TARGET_LABEL_PX * self.scale))
        digits = max(0, -int(np.floor(np.log10(step) + 1e-9)))
        for index in range(int(np.ceil(self.start_s / step - 1e-9)), int(self.end_s / step + 1e-9) + 1):
            column, words = int(self.x(index * step)), f"{index * step:.{digits}f} s"
            box(self.picture, column, self.y0, column + 1, self.y1 + 3 * self.scale, FAINT)
            left = min(column - text_width(words, self.scale) // 2, self.x1 - text_width(words, self.scale))
            text(self.picture, left, self.y1 + 5 * self.scale, words, INK, self.scale)

    def legend(self, note: str) -> None:
        """Sample and name of every kind on top, a note below on the right."""
        s, x, y = self.scale, 6 * self.scale, 2 * self.scale
        for kind in LEGEND:
            words = LEGEND_WORDS.get(kind, KINDS[kind])
            high = max(2, round(GLYPH_ROWS * THICKNESS.get(kind, 1.0))) * s
            top = y + (GLYPH_ROWS * s - high) // 2
            if kind == WASTED:
                hatched_box(self.picture, x, top, x + 16 * s, top + high, COLOURS[kind], PAPER, 4 * s)
            box(self.picture, x, top, x + (0 if kind == WASTED else 16 * s), top + high, COLOURS[kind])
            text(self.picture, x + 20 * s, y, words, INK, s)
            x += (20 + 14) * s + text_width(words, s)
        below = self.picture.shape[0] - (GLYPH_ROWS + 2) * s
        text(self.picture, self.x1 - text_width(note, s), below, note, INK, s)


def tick_s(length_s: float, most: float) -> float:
    """Round distance between ticks (1, 2 or 5 times a power of ten) that gives at most about `most` of them."""
    least = length_s / max(most, 1.0)
    power = 10.0 ** np.floor(np.log10(least))
    return float(next(m * power for m in (1.0, 2.0, 5.0, 10.0) if m * power >= least * (1.0 - 1e-9)))


def check_window(start_s: float, end_s: float, width: int, height: int) -> None:
    """Refuse a window or a size that shows nothing."""
    if not start_s < end_s:
        raise ValueError(f"timeline: given {start_s:g} to {end_s:g} s, allowed is a start before the end")
    if width < 200 or height < 80:
        raise ValueError(f"timeline: given {width} × {height} pixels, allowed are at least 200 × 80")


def draw(
    log: np.ndarray, start_s: float, end_s: float, width: int = 960, height: int = 360, n_devices: int | None = None,
    tagged: int | None = None, overhead_s: np.ndarray | float = 0.0,
) -> np.ndarray:  # fmt: skip
    """Picture of a stretch of an event log.

    Args:
        log: (rows,) LOG_ROW of one world.
        start_s, end_s: stretch to show. What has not ended at `end_s` is drawn up to there.
        width, height: pixels, at least 200 × 80.
        n_devices: population; default those in the log. As many are shown as there is room for, the server above.
        tagged: device to show first and to mark, for instance the one whose decisions are learned.
        overhead_s: see `spans`.

    Returns:
        (height, width, 3) uint8 RGB.

    Raises:
        ValueError: an empty stretch or too small a picture.
    """
    check_window(start_s, end_s, width, height)
    found = spans(log, end_s, overhead_s)
    room = Canvas(width, height, start_s, end_s, 1)
    devices = rows_shown(found, n_devices, tagged, room.row // (MIN_ROW * room.scale) - 1)
    canvas = Canvas(width, height, start_s, end_s, len(devices) + 1)
    row_of = {device: row for row, device in enumerate([SERVER, *devices])}
    if tagged in row_of:
        top = canvas.y0 + row_of[tagged] * canvas.row
        box(canvas.picture, 0, top - 1, width, top + canvas.row - 1, BAND)
    canvas.axis()
    visible = found[(found["end_s"] > start_s) & (found["start_s"] < end_s)]
    for kind in DRAWN:
        for device, _, from_s, to_s, count in visible[visible["kind"] == kind].tolist():
            if kind == BATCH:
                canvas.batch(row_of[device], from_s, to_s, count)
            elif device in row_of:
                canvas.bar(row_of[device], kind, from_s, to_s)
    for device, row in row_of.items():
        canvas.label(row, "server" if device == SERVER else f"device {device}")
    hidden = (n_devices or 0) - len(devices)
    canvas.legend(f"and {hidden} more devices" if hidden > 0 else "")
    return canvas.picture


def letters(found: np.ndarray, start_s: float, end_s: float, columns: int) -> str:
    """One device's row of text: in each column the kind that takes most of its time."""
    edges = np.linspace(start_s, end_s, columns + 1)
    covered = np.zeros((len(KINDS) + 1, columns))
    covered[-1] = 1e-12  # nothing at all: a blank
    for _, kind, from_s, to_s, _ in found.tolist():
        covered[kind] += np.maximum(np.minimum(to_s, edges[1:]) - np.maximum(from_s, edges[:-1]), 0.0)
    return "".join((LETTERS + " ")[kind] for kind in covered.argmax(axis=0))


def ansi(
    log: np.ndarray, start_s: float, end_s: float, columns: int = 100, n_devices: int | None = None,
    tagged: int | None = None, overhead_s: np.ndarray | float = 0.0,
) -> str:  # fmt: skip
    """The timeline as text: a row for the server and each device, a letter for each column of time, and a legend.

    Args: as for `draw`; columns: characters of the time axis, at least 20. The tagged device comes first, with a `>`.

    Raises:
        ValueError: an empty stretch or too few columns.
    """
    check_window(start_s, end_s, 200 if columns >= 20 else columns, 80)
    found = spans(log, end_s, overhead_s)
    visible = found[(found["end_s"] > start_s) & (found["start_s"] < end_s)]
    devices = rows_shown(found, n_devices, tagged, 1 << 30)
    lines = [f"{'':12}{f'{start_s:.2f} s':<{columns - 10}}{f'{end_s:.2f} s':>10}"]
    for device in [SERVER, *devices]:
        name = "server" if device == SERVER else f"{'>' if device == tagged else ''}device {device}"
        row = letters(visible[visible["device"] == device], start_s, end_s, columns)
        lines.append(f"{name:>11} {row}".rstrip())
    return "\n".join([*lines, f"{'':12}{ANSI_LEGEND}"])


def record(scenario: str, controller: str, n_devices: int, end_s: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Event log of a world up to `end_s`, (rows,) LOG_ROW, and the devices' overhead a round, (n_devices,) s."""
    horizon = {"horizon.warmup_s": 0.0, "horizon.measure_s": end_s, "horizon.drain_s": 0.0}
    world = with_(load(scenario), **horizon, n_devices=n_devices)
    chosen, trace, rows = resolve(controller, world), load_trace(world), 1 << 16
    while True:
        worlds = Worlds(1, n_devices, log_rows=rows, trace=trace)
        worlds.fill(0, world, seed, chosen)
        worlds.run()
        length = int(worlds.arrays.server[0, 0]["log_length"])
        if length <= rows:
            return worlds.arrays.log[0, :length], worlds.arrays.device[0]["round_overhead_s"].copy()
        rows = length  # the same seed writes the same log


def window(
    log: np.ndarray, start_s: float, end_s: float, overhead_s: np.ndarray | float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """The (n,) SPAN of a log that reach into a stretch of time, and the (batches,) predicted ends inside it, s."""
    found, predicted_s = spans(log, end_s, overhead_s), predicted_ends_s(log)
    inside = (predicted_s > start_s) & (predicted_s < end_s)
    return found[(found["end_s"] > start_s) & (found["start_s"] < end_s)], predicted_s[inside]


class Parser(ArgumentParser):
    """Errors are one line, exit code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def flags() -> Parser:
    """The command line."""
    parser = Parser(
        prog="wisp_gym.view.timeline", description="Draw what devices and server do, or write it for Perfetto."
    )
    parser.add_argument("--scenario", default="wisp-a100-qwen3-32b", help="preset or TOML file")
    parser.add_argument("--controller", default="wisp+wisp", help="speculation+batching")
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--start", type=float, default=40.0, help="first second to show")
    parser.add_argument("--seconds", type=float, default=2.0, help="how many seconds to show")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--width", type=int, default=1600, help="pixels")
    parser.add_argument("--height", type=int, default=0, help="pixels; default 44 for each device, at most 4,000")
    parser.add_argument("--out", default="", help=".png picture or .json Chrome trace (ui.perfetto.dev); default: text")
    return parser


def check(given: Namespace) -> None:
    """Refuse flags that cannot work, before anything runs or is written."""
    if given.out and Path(given.out).suffix not in (".png", ".json"):
        raise ValueError(f"--out: given '{given.out}', allowed are names that end in .png or .json")
    if given.out and not Path(given.out).resolve().parent.is_dir():
        raise ValueError(f"--out: given '{given.out}', but the folder does not exist")
    if given.devices < 1:
        raise ValueError(f"--devices: given {given.devices}, allowed is 1 or more")
    if not (given.start >= 0 and given.seconds > 0 and given.start + given.seconds <= MOST_S):
        window = f"{given.start:g} and {given.seconds:g}"
        raise ValueError(f"--start and --seconds: given {window}, allowed is a stretch between 0 and {MOST_S:g} s")
    given.height = given.height or min(44 * (given.devices + 1) + 64, 4000)
    check_window(given.start, given.start + given.seconds, given.width, given.height)


def produce(given: Namespace) -> bytes:
    """The file (or the text) that the flags ask for."""
    end_s = given.start + given.seconds
    log, overhead_s = record(given.scenario, given.controller, given.devices, end_s, given.seed)
    common = {"n_devices": given.devices, "overhead_s": overhead_s}
    if given.out.endswith(".png"):
        return png(draw(log, given.start, end_s, given.width, given.height, **common))
    if given.out.endswith(".json"):
        return json.dumps(chrome_trace({given.controller: window(log, given.start, end_s, overhead_s)})).encode()
    return (ansi(log, given.start, end_s, **common) + "\n").encode()


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; a wrong flag, scenario or controller ends with one line and exit code 2, nothing written."""
    parser = flags()
    given = parser.parse_args(arguments)
    try:
        check(given)
        made = produce(given)
    except ValueError as error:  # of flags, scenario, controller, policy or trace: one line each
        parser.error(str(error))
    if not given.out:
        print(made.decode(), end="")
        return
    Path(given.out).write_bytes(made)
    print(f"wrote {given.out}")


if __name__ == "__main__":
    main()
