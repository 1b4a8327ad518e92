"""How fast this machine runs the engine and the environments.

    wisp-gym benchmark [engine] [--quick] [--json FILE]

Every figure is the median over repeats, printed with its smallest and largest value, its target and their ratio.
What is counted:

- `rounds_per_s_core_64`, `rounds_per_s_core_1024`: messages verified and answered after the prompt, under the
  controller `wisp+wisp` on the default scenario with 64 (1,024) devices, over a whole run without warm-up and drain,
  on one thread. Prompts, prefill chunks and rounds under way at the end cost time but do not count.
- `decisions_per_s_core_64`: decisions of those devices to draft one more token or to send, in the same runs.
- `env_steps_per_s`, `vector_steps_per_s`: steps of `wisp_gym/Speculation-v1` with 16 devices a world through
  `gym.make` and through `gym.make_vec` (64 worlds, all cores), with random actions and the resets that they bring.
- `import_make_reset_s`: `import wisp_gym`, `gym.make`, `reset` in a fresh process, compiled code on disk;
  `first_import_make_reset_s` the same with nothing compiled yet (not with `--quick`).
- `peak_bytes_10000_devices`: peak resident memory of a process that runs 10,000 devices.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from wisp_gym.cli import Parser, output_file
from wisp_gym.cli import table as aligned
from wisp_gym.controllers.resolve import resolve
from wisp_gym.engine.worlds import Worlds
from wisp_gym.files import write_json
from wisp_gym.machine import machine, shown
from wisp_gym.scenario import load, with_

PROGRAM = "wisp-gym benchmark engine"
PACKAGES = ("numba", "numpy")  # whose versions matter
SCENARIO, CONTROLLER = "wisp-a100-qwen3-32b", "wisp+wisp"
ENV_ID, ENV_DEVICES, VECTOR_WORLDS = "wisp_gym/Speculation-v1", 16, 64

MAKE_AND_RESET = (
    f"import wisp_gym, gymnasium; gymnasium.make({ENV_ID!r}, devices={ENV_DEVICES}, ways=False).reset(seed=0)"
)
# VmHWM, where there is one: Linux lets ru_maxrss begin at the peak of the process that started this one.
RUN_10000_DEVICES = """
import resource, sys
from pathlib import Path
from wisp_gym.evaluation.speed import engine_run
engine_run(10_000, 20.0, 1)
status = Path("/proc/self/status")
if status.exists():
    print(next(int(line.split()[1]) << 10 for line in status.read_text().splitlines() if line.startswith("VmHWM")))
else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(peak if sys.platform == "darwin" else peak << 10)
"""


@dataclass(frozen=True)
class Target:
    """What a figure should reach; a rate from above, a time or a size from below."""

    value: float
    at_most: bool = False


TARGETS = {
    "rounds_per_s_core_64": Target(300_000),
    "rounds_per_s_core_1024": Target(150_000),  # follows from the first and from the next
    "cost_per_round_1024_over_64": Target(2.0, at_most=True),
    "decisions_per_s_core_64": Target(1_000_000),
    "env_steps_per_s": Target(30_000),
    "vector_steps_per_s": Target(150_000),
    "import_make_reset_s": Target(1.5, at_most=True),
    "first_import_make_reset_s": Target(30.0, at_most=True),
    "peak_bytes_10000_devices": Target(1e9, at_most=True),
}


@dataclass(frozen=True)
class Figure:
    """Median and range of the repeats of one measurement."""

    median: float
    low: float
    high: float
    repeats: int


def figure(values: Sequence[float]) -> Figure:
    """Figure of at least one repeat."""
    return Figure(statistics.median(values), min(values), max(values), len(values))


def engine_world(n_devices: int, simulated_s: float, seed: int) -> Worlds:
    """One world that is measured from the start to the end, on one thread."""
    horizon = {"horizon.warmup_s": 0.0, "horizon.measure_s": simulated_s, "horizon.drain_s": 0.0}
    scenario = with_(load(SCENARIO), **horizon)
    worlds = Worlds(1, n_devices, threads=1)
    worlds.fill(0, scenario, seed, resolve(CONTROLLER, scenario), n_devices)
    return worlds


def engine_run(n_devices: int, simulated_s: float, seed: int) -> tuple[int, int, float]:
    """Rounds and decisions of one world, and the seconds its run took on one thread (setting it up not included)."""
    worlds = engine_world(n_devices, simulated_s, seed)
    start = time.perf_counter()
    worlds.run()
    seconds = time.perf_counter() - start
    totals = worlds.arrays.totals[0, 0]
    return int(totals["rounds"]), int(totals["decisions"]), seconds


def engine_rates(n_devices: int, repeats: int, simulated_s: float) -> tuple[Figure, Figure]:
    """Rounds and decisions per second and core; each repeat is another seed."""
    engine_run(n_devices, 1.0, 0)  # loads or compiles
    runs = [engine_run(n_devices, simulated_s, seed) for seed in range(repeats)]
    rounds = figure([rounds / seconds for rounds, _, seconds in runs])
    return rounds, figure([decisions / seconds for _, decisions, seconds in runs])


def env_steps_per_s(repeats: int, steps: int) -> Figure:
    """Steps a second through `gym.make`, the wrappers that it adds included."""
    import gymnasium

    env = gymnasium.make(ENV_ID, devices=ENV_DEVICES, ways=False)
    env.reset(seed=0)
    actions = np.random.default_rng(0).integers(0, 2, steps)  # numpy's integers, as an agent hands them over

    def once() -> None:
        for action in actions:
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()

    return figure([steps / timed(once) for _ in range(repeats)])


def vector_steps_per_s(repeats: int, steps: int) -> Figure:
    """Steps a second, of all worlds together, through `gym.make_vec`."""
    import gymnasium

    options = {
        "num_envs": VECTOR_WORLDS,
        "vectorization_mode": "vector_entry_point",
        "devices": ENV_DEVICES,
        "ways": False,
    }
    envs = gymnasium.make_vec(ENV_ID, **options)  # type: ignore[arg-type]
    envs.reset(seed=0)
    actions = np.random.default_rng(0).integers(0, 2, (steps, VECTOR_WORLDS))

    def once() -> None:
        for row in actions:
            envs.step(row)

    once()  # the worlds begin together; after one pass their episodes end at different times
    return figure([actions.size / timed(once) for _ in range(repeats)])


def timed(function: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def fresh_process(code: str, **environment: str) -> str:
    """What `code` prints in a new interpreter that finds this same package.

    Raises:
        RuntimeError: the process failed; the last line says why.
    """
    paths = os.pathsep.join([str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")])
    settings = {**os.environ, "PYTHONPATH": paths.rstrip(os.pathsep), **environment}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=settings, check=False)
    if done.returncode != 0:
        raise RuntimeError((done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1])
    return done.stdout.strip()


def import_make_reset_s(repeats: int) -> Figure:
    """Seconds from starting Python to the first observation, compiled code on disk."""
    fresh_process(MAKE_AND_RESET)
    return figure([timed(lambda: fresh_process(MAKE_AND_RESET)) for _ in range(repeats)])


def first_import_make_reset_s() -> Figure:
    """The same with nothing compiled yet."""
    with tempfile.TemporaryDirectory() as folder:
        return figure([timed(lambda: fresh_process(MAKE_AND_RESET, NUMBA_CACHE_DIR=folder))])


def peak_bytes_10000_devices() -> Figure:
    """Peak resident memory of a process that runs 10,000 devices for 20 s."""
    return figure([float(fresh_process(RUN_10000_DEVICES))])


def engine_figures(quick: bool) -> dict[str, Figure]:
    """The engine's figures. The cost of a round compares medians."""
    repeats, simulated_s = (5, 100.0) if quick else (15, 300.0)
    rounds_64, decisions_64 = engine_rates(64, repeats, simulated_s)
    rounds_1024, _ = engine_rates(1024, repeats, simulated_s)
    return {
        "rounds_per_s_core_64": rounds_64,
        "rounds_per_s_core_1024": rounds_1024,
        "cost_per_round_1024_over_64": figure([rounds_64.median / rounds_1024.median]),
        "decisions_per_s_core_64": decisions_64,
    }


def environment_figures(quick: bool) -> dict[str, Figure]:
    """The environments' figures."""
    measures: dict[str, Callable[[], Figure]] = {
        "env_steps_per_s": partial(env_steps_per_s, *((5, 20_000) if quick else (9, 60_000))),
        "vector_steps_per_s": partial(vector_steps_per_s, *((5, 1_500) if quick else (9, 5_000))),
        "import_make_reset_s": partial(import_make_reset_s, 3 if quick else 7),
    }
    if not quick:
        measures["first_import_make_reset_s"] = first_import_make_reset_s
    return {name: measure() for name, measure in measures.items()}


def measure_all(quick: bool) -> dict[str, Figure]:
    """Every figure."""
    figures = engine_figures(quick) | environment_figures(quick)
    return figures | {"peak_bytes_10000_devices": peak_bytes_10000_devices()}


def short(value: float) -> str:
    """A number to four digits, with separators."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(figures: dict[str, Figure]) -> str:
    """Aligned rows: name, median, range, target, and how many times better than the target."""
    rows = []
    for name, one in figures.items():
        target = TARGETS[name]
        better = target.value / one.median if target.at_most else one.median / target.value
        limit = f"{'≤' if target.at_most else '≥'} {short(target.value)}"
        rows.append((name, short(one.median), short(one.low), short(one.high), limit, f"{better:.2f}"))
    return aligned(["figure", "median", "min", "max", "target", "times better"], rows)


def report(figures: dict[str, Figure]) -> dict[str, Any]:
    """What `--json` writes: the medians by key, their ranges, the targets and the machine."""
    return {
        **{name: one.median for name, one in figures.items()},
        "range": {name: [one.low, one.high] for name, one in figures.items()},
        "repeats": {name: one.repeats for name, one in figures.items()},
        "target": {name: TARGETS[name].value for name in figures},
        "machine": machine(*PACKAGES),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write where asked, and print."""
    parser = Parser(prog=PROGRAM, description="Measure the speed of the engine and the environments.")
    parser.add_argument("--quick", action="store_true", help="fewer repeats, no first compilation: under 45 s")
    parser.add_argument("--json", type=output_file(), metavar="FILE", help="also write the figures to a file")
    given = parser.parse_args(arguments)
    print(shown(machine(*PACKAGES)), flush=True)
    figures = measure_all(given.quick)
    if given.json:
        write_json(given.json, report(figures))
    print(table(figures))
