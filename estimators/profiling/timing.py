"""Time of device work: events on the device's own clock, CUDA graphs, ceilings of matrix products and memory."""

import contextlib
import ctypes
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

WARM_UP = 3  # runs that are not timed
MOST_REPEATS = 200
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # parameters of glibc's mallopt (malloc.h)
# Sizes of the ceilings' tests: several times any cache, a second or less in all.
COPY_BYTES = {"cuda": 4 << 30, "cpu": 128 << 20}
MATRIX = {"cuda": 8192, "cpu": 512}

Run = Callable[[], Any]


@dataclass(frozen=True)
class Timed:
    """Seconds of repeated runs: median, half the interquartile range, and how many."""

    seconds: float
    spread_s: float
    repeats: int


@dataclass(frozen=True)
class Ceilings:
    """Rates measured on the device itself.

    Attributes:
        matrix_flop_s: of a large square matrix product in the model's type, on random numbers.
        copy_bytes_s: of a large copy on the device, bytes read plus bytes written.
        read_bytes_s: of a sum over a large array, bytes read.
    """

    matrix_flop_s: float
    copy_bytes_s: float
    read_bytes_s: float

    @property
    def memory_bytes_s(self) -> float:
        """The larger of copying and reading: what a batch is held against."""
        return max(self.copy_bytes_s, self.read_bytes_s)


def once_s(run: Run, device: str) -> float:
    """Return seconds of one run: between CUDA events, or by the processor's clock."""
    if device == "cpu":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    first.record()
    run()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / 1e3


def timed(run: Run, device: str, repeats: int, seconds: float = 0.0, warm_up: int = WARM_UP) -> Timed:
    """Warm up, then run at least `repeats` times and for `seconds` in all, and return the median."""
    for _ in range(warm_up):
        once_s(run, device)
    each: list[float] = []
    while len(each) < repeats or (sum(each) < seconds and len(each) < MOST_REPEATS):
        each.append(once_s(run, device))
    low, _, high = statistics.quantiles(each, n=4, method="inclusive")
    return Timed(statistics.median(each), (high - low) / 2, len(each))


def captured(run: Run) -> Run:
    """Return a replay of `run` as one CUDA graph: hundreds of small kernels without a launch from the host each.

    Args:
        run: does the same work on the same tensors every time.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # what is compiled or chosen at the first runs must not be captured
        for _ in range(WARM_UP):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = run()

    def replay() -> Any:
        graph.replay()
        return kept

    return replay


def ceilings(device: str, dtype: torch.dtype) -> Ceilings:
    """Measure the device: medians of ten runs after warm-up."""
    size = MATRIX[device]
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    product_s = timed(lambda: a @ b, device, 10).seconds
    source = torch.randn(COPY_BYTES[device] // 4, device=device)
    target = torch.empty_like(source)
    copy_s = timed(lambda: target.copy_(source), device, 10).seconds
    read_s = timed(lambda: source.sum(), device, 10).seconds
    return Ceilings(2 * size**3 / product_s, 2 * COPY_BYTES[device] / copy_s, COPY_BYTES[device] / read_s)


def keep_memory() -> None:
    """Have glibc keep freed memory, as serving engines keep their buffers.

    Else each large temporary is mapped afresh and its page faults are timed: up to five times the batch's own time.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library: timed as it is
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_MAX, 0)
        library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
