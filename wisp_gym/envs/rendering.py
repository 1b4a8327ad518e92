"""Rendering: the last seconds of a world as a timeline."""

from __future__ import annotations

import numpy as np

from wisp_gym.engine.state import World

LOG_ROWS = 20_000
SHOWN_S = 2.0
SHOWN_DEVICES = 12


class Recorder:
    """Keeps the recent events of world 0 for `render`.

    Args:
        mode: "ansi", "rgb_array" or None (records nothing). allowed: the environment's render modes.
    """

    def __init__(self, mode: str | None, allowed: list[str]):
        if mode is not None and mode not in allowed:
            raise ValueError(f"render_mode: given {mode!r}, allowed are None, {', '.join(map(repr, allowed))}")
        self.mode = mode
        self.log_rows = LOG_ROWS if mode else 0

    def clear(self) -> None:
        """Nothing recorded yet (the engine clears its log when a world begins again)."""

    def keep(self, arrays: World) -> None:
        """Drop the older half of the events when the log is nearly full."""
        length = min(int(arrays.server[0, 0]["log_length"]), self.log_rows)  # what came when it was full is lost
        if self.log_rows and length > 0.75 * self.log_rows:
            log = arrays.log[0]
            half = length // 2
            log[: length - half] = log[half:length].copy()
            arrays.server[0, 0]["log_length"] = length - half

    def render(self, arrays: World, now_s: float, tagged: int) -> str | np.ndarray | None:
        """Picture or text of the last seconds before `now_s`."""
        if self.mode is None:
            return None
        from wisp_gym.view import timeline

        length = min(int(arrays.server[0, 0]["log_length"]), self.log_rows)
        n = int(arrays.config[0, 0]["n_devices"])
        log, start_s = arrays.log[0, :length], max(now_s - SHOWN_S, 0.0)
        if self.mode == "ansi":
            return timeline.ansi(log, start_s, now_s, n_devices=min(n, SHOWN_DEVICES), tagged=tagged)
        return timeline.draw(log, start_s, now_s, n_devices=min(n, SHOWN_DEVICES), tagged=tagged)
