"""How far the engine is from the fastest loop of its kind, and from what other simulators reach.

    wisp-gym benchmark limit [--quick]

One thread, 64 devices, nanoseconds an event, the least of several runs in turn. An event of the engine is a message that
reaches the server, with all that its device did since its last reply, or the end of a batch. The bare loops take the
earliest of 64 events, draw when the same device's next one is due (exponential, of mean 1 s), and put it in: compiled, with
the engine's own heap and draws; and in plain Python, with `heapq` and `random`.
"""

import heapq
import random
import time
from collections.abc import Callable, Sequence

import numpy as np

from wisp_gym.cli import Parser
from wisp_gym.cli import table as aligned
from wisp_gym.engine.draws import exponential, stream_key
from wisp_gym.engine.heap import pop, push
from wisp_gym.evaluation.speed import engine_world
from wisp_gym.jit import jit
from wisp_gym.machine import machine, shown

PROGRAM = "wisp-gym benchmark limit"
N_DEVICES = 64


@jit
def compiled_loop(event_s, devices, n_events, seed):
    """Take and put in so many events; returns the time of the next one, in s.

    `event_s` (n,) float64 and `devices` (n,) int64 are a heap; `seed` of the draws.
    """
    n, key = devices.shape[0], stream_key(seed, 0, 0, 0)
    for k in range(n_events):
        now_s = event_s[0]
        i = pop(event_s, devices, n)
        push(event_s, devices, n - 1, now_s + exponential(key, k), i)
    return event_s[0]


def compiled_events(n_events: int) -> int:
    """Events of the compiled loop, which begins at time 0."""
    compiled_loop(np.zeros(N_DEVICES), np.arange(N_DEVICES), n_events, 1)
    return n_events


def python_events(n_events: int) -> int:
    """The same in plain Python."""
    draw, events = random.Random(1).expovariate, [(0.0, i) for i in range(N_DEVICES)]
    for _ in range(n_events):
        now_s, i = events[0]
        heapq.heapreplace(events, (now_s + draw(1.0), i))
    return n_events


def engine_events(n_events: int) -> int:
    """Events of a world under `wisp+wisp` on the default scenario, which has some 300 a second."""
    worlds = engine_world(N_DEVICES, n_events / 300.0, 1)
    worlds.run()
    return int(worlds.arrays.totals[0, 0]["events"])


def ns_an_event(run: Callable[[int], int], n_events: int) -> float:
    """Nanoseconds of this thread that an event takes, setting up included."""
    start = time.thread_time_ns()
    done = run(n_events)
    return (time.thread_time_ns() - start) / done


# Name → what runs about so many events, and how many for a tenth of a second or so.
LOOPS: dict[str, tuple[Callable[[int], int], int]] = {
    "compiled loop": (compiled_events, 2_000_000),
    "engine": (engine_events, 200_000),
    "Python loop": (python_events, 200_000),
}


def measured(repeats: int) -> dict[str, float]:
    """Least ns an event of each loop."""
    least = dict.fromkeys(LOOPS, np.inf)
    for _ in range(repeats + 1):  # the first loads or compiles
        for name, (run, n_events) in LOOPS.items():
            least[name] = min(least[name], ns_an_event(run, n_events))
    return least


def table(least: dict[str, float]) -> str:
    """Aligned rows: loop, ns an event, events a second, and how many times the compiled loop's time that is."""
    bare = least["compiled loop"]
    rows = [(name, f"{ns:,.0f}", f"{1e9 / ns:,.0f}", f"{ns / bare:.3g}") for name, ns in least.items()]
    return aligned(["loop", "ns an event", "events/s", "times the compiled loop"], rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = Parser(prog=PROGRAM, description="Compare the engine with bare loops of events, on one thread.")
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    given = parser.parse_args(arguments)
    least = measured(3 if given.quick else 15)
    print(shown(machine("numba", "numpy")))
    print(table(least))
