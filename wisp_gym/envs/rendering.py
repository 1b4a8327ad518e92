"""Rendering: the last seconds of a world as a timeline."""

import numpy as np

from wisp_gym.engine.state import World
from wisp_gym.errors import InputError, require

LOG_ROWS = 20_000
SHOWN_S = 2.0
SHOWN_DEVICES = 12


class FrameLog:
    """Keeps the recent events of world 0 for `render`.

    Args:
        mode: "ansi", "rgb_array" (needs matplotlib) or None (keeps nothing). allowed: the environment's render modes.
    """

    def __init__(self, mode: str | None, allowed: list[str]):
        if mode is not None and mode not in allowed:
            raise InputError(f"render_mode: given {mode!r}, allowed are None, {', '.join(map(repr, allowed))}")
        if mode == "rgb_array":
            require("matplotlib", "plot")
        self.mode = mode
        self.log_rows = LOG_ROWS if mode else 0

    def keep(self, arrays: World) -> None:
        """Drop the older half of the events when the log is nearly full."""
        if not self.log_rows:
            return
        length = min(int(arrays.server[0, 0]["log_length"]), self.log_rows)  # what came when it was full is lost
        if length > 0.75 * self.log_rows:
            log = arrays.log[0]
            half = length // 2
            log[: length - half] = log[half:length].copy()
            arrays.server[0, 0]["log_length"] = length - half

    def render(self, arrays: World, now_s: float, tagged: int) -> str | np.ndarray | None:
        """Text, or an (height, width, 3) uint8 picture, of the last seconds before `now_s`; the tagged device (−1: none)
        comes first."""
        if self.mode is None:
            return None
        from wisp_gym.view import plot, text
        from wisp_gym.view.spans import rows_of, window

        length = min(int(arrays.server[0, 0]["log_length"]), self.log_rows)
        n = int(arrays.config[0, 0]["n_devices"])
        devices = rows_of(n, tagged, SHOWN_DEVICES)
        shown = window(arrays.log[0, :length], max(now_s - SHOWN_S, 0.0), max(now_s, 1e-3))
        if self.mode == "ansi":
            return text.ansi(shown, devices, tagged)
        return plot.frame(shown, devices, tagged, n - len(devices))
