"""Power, clock and temperature of a GPU while it works, as `nvidia-smi` reads them."""

import contextlib
import statistics
import subprocess
import threading
import time
from typing import Any, Self

INTERVAL_MS = 50
POWER_QUERIES = ("power.draw.instant", "power.draw")  # older drivers know the second alone, a mean over a second
COLUMNS = ("power_w", "clock_mhz", "temperature_c")


def _ask(*arguments: str) -> str:
    """Return what `nvidia-smi` says, or nothing where it fails or is not there."""
    try:
        done = subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def driver(device: str) -> str:
    """Return the version of the driver; nothing where it is not known."""
    return _ask("-i", device, "--query-gpu=driver_version", "--format=csv,noheader")


class PowerLog:
    """Reads a GPU every `INTERVAL_MS` from entry to exit, in a process of its own.

    Args:
        device: what `nvidia-smi -i` takes: a UUID or a number; "" reads nothing.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._process: subprocess.Popen[str] | None = None
        self._readings: list[tuple[float, list[float]]] = []

    def __enter__(self) -> Self:
        form = ["-i", self._device, "--format=csv,noheader,nounits"]
        known = [q for q in POWER_QUERIES if self._device and _numbers(_ask(*form, f"--query-gpu={q}"))]
        if known:
            query = f"--query-gpu={known[0]},clocks.sm,temperature.gpu"
            command = ["nvidia-smi", *form, query, "-lms", str(INTERVAL_MS)]
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            self._reader = threading.Thread(target=self._read, daemon=True)
            self._reader.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._process:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=5)
            self._reader.join(timeout=5)
            if self._process.stdout and not self._reader.is_alive():
                self._process.stdout.close()

    def _read(self) -> None:
        assert self._process
        assert self._process.stdout
        for line in self._process.stdout:
            if len(values := _numbers(line)) == len(COLUMNS):
                self._readings.append((time.perf_counter(), values))

    def since(self, start: float) -> dict[str, float | str]:
        """Return medians of the readings since `start` (of `time.perf_counter`), by column; "" without any."""
        rows = [values for at, values in list(self._readings) if at >= start]
        if not rows:
            return dict.fromkeys(COLUMNS, "")
        medians = (statistics.median(column) for column in zip(*rows, strict=True))
        return {name: round(value, 1) for name, value in zip(COLUMNS, medians, strict=True)}


def _numbers(line: str) -> list[float]:
    """Return the numbers of a line with commas between; none if a field is no number."""
    try:
        return [float(field) for field in line.split(",")]
    except ValueError:
        return []
