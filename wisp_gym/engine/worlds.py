"""Worlds: the engine's arrays with the controllers in place, run on several threads."""

import copy
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from operator import is_

import numpy as np

from wisp_gym.contract import device, request, server
from wisp_gym.engine import gather
from wisp_gym.engine.build import empty_arrays, fill_world
from wisp_gym.engine.run import BEGIN, LOG, STEP, TO_END, run
from wisp_gym.engine.state import EVENTS, NO_TRACE, TRACE_ROW
from wisp_gym.engine.trace_files import load_source
from wisp_gym.errors import InputError, did_you_mean, of_kind, shown
from wisp_gym.jit import COMPILES
from wisp_gym.rules.controller import Controller, Plan
from wisp_gym.scenario import Scenario
from wisp_gym.values import DEVICES, THREADS, WORLDS, whole

MAX_LOG_ROWS = 10**9
SEEN = ("kinds", "observations", "outcomes")  # what worlds write for those who decide outside
NOTHING_SEEN: list[np.ndarray] = []
NEEDS = {TO_END: (), BEGIN: ("which", *SEEN), STEP: ("actions", *SEEN), LOG: ("which", "kinds")}  # of each task
SEED_BITS = whole(-(2**63), 2**64 - 1)  # 64 bits, as numpy's signed or unsigned integers hold them


@cache
def thread_pool(threads: int) -> ThreadPoolExecutor:
    """Threads that run worlds; the compiled loop holds no lock."""
    return ThreadPoolExecutor(threads, thread_name_prefix="wisp-gym")


if hasattr(os, "register_at_fork"):  # a forked child has the pool but none of its threads: it makes its own
    os.register_at_fork(after_in_child=thread_pool.cache_clear)


def checked_trace(rows: np.ndarray) -> np.ndarray:
    """Rows of a request trace as compiled code takes them: arrivals in seconds, whatever the lengths, which are clipped.

    Raises:
        InputError: other rows.
    """
    if not isinstance(rows, np.ndarray) or rows.dtype != TRACE_ROW or rows.ndim != 1:
        raise InputError(f"trace: given {shown(rows)}, allowed is an array of TRACE_ROW of shape (n,)")
    if not (np.isfinite(rows["arrival_s"]).all() and (rows["arrival_s"] >= 0).all()):
        raise InputError("trace: given arrivals that are negative or no numbers, allowed are seconds from 0 on")
    return np.require(rows, requirements=["C", "W", "A"])


def follow_plan(devices: np.ndarray, plan: Plan) -> None:
    """Write each device's group and length; those beyond the plan are of no group and draft as their class does."""
    n = min(len(plan.groups), len(devices))
    devices["group"] = -1
    devices["group"][:n], devices["suggested_tokens"][:n] = plan.groups[:n], plan.lengths[:n]
    for d in devices[n:]:
        alike = np.flatnonzero(devices["class_id"][:n] == d["class_id"])
        d["suggested_tokens"] = devices["suggested_tokens"][alike[0]] if len(alike) else 0


def outside(n_worlds: int, observation: int, outcome: int) -> dict[str, np.ndarray]:
    """Arrays that pass between worlds and those outside, by name: see `engine.run`; of so many columns."""
    return {
        "which": np.zeros(n_worlds, bool),
        "actions": np.zeros(n_worlds, np.int64),
        "kinds": np.zeros(n_worlds, np.int64),
        "observations": np.zeros((n_worlds, observation), np.float32),
        "outcomes": np.zeros((n_worlds, outcome)),
    }


class Worlds:
    """Many worlds, one scenario, seed and controller each, advanced together.

    Args:
        n_worlds: number of worlds. n_devices: room for devices in each. log_rows: room for events in each log.
        trace: rows of a request trace shared by all worlds.
        threads: threads to run on; default one for each core.

    Raises:
        InputError: numbers or rows that cannot be.
    """

    def __init__(
        self, n_worlds: int, n_devices: int, log_rows: int = 0, trace: np.ndarray = NO_TRACE, threads: int | None = None
    ):
        self.n_worlds, threads = WORLDS.checked("number of worlds", n_worlds), THREADS.checked("threads", threads)
        rows = whole(0, MAX_LOG_ROWS).checked("log_rows", log_rows)
        self.arrays = empty_arrays(n_worlds, DEVICES.checked("devices", n_devices), rows, checked_trace(trace))
        self.files: tuple[str, str] | None = None  # speculation trace and predictor, "" for none
        self.threads = min(threads or os.cpu_count() or 1, n_worlds) if COMPILES else 1
        self.none = outside(n_worlds, 0, 0)  # what a task does not take
        self.seen = NOTHING_SEEN  # the arrays that the last step wrote, which have been checked
        self.edges = [round(n_worlds * k / self.threads) for k in range(self.threads + 1)]

    def __len__(self) -> int:
        return self.n_worlds

    def fill(
        self, index: int, scenario: Scenario, seed: int, controller: Controller, n_devices: int | None = None
    ) -> None:
        """Set world `index` to the beginning of a scenario under a controller.

        Raises:
            InputError: no such world, or more devices than there is room for; and as `read_files`.
        """
        of_kind("scenario", scenario, Scenario)
        of_kind("controller", controller, Controller)
        SEED_BITS.checked("seed", seed)
        place = whole(0, len(self) - 1).checked("world", index)
        room = whole(1, self.arrays.device.shape[1])
        n_devices = room.checked("devices", scenario.n_devices if n_devices is None else n_devices)
        self.read_files(scenario)
        self.seen = NOTHING_SEEN
        fill_world(self.arrays, place, scenario, seed, n_devices)
        self.control(index, controller)

    def read_files(self, scenario: Scenario) -> None:
        """Take the speculation trace and the predictor that a scenario's draft names; all worlds share them.

        Raises:
            TraceError, PredictorError, ScenarioError: a file that cannot be used, or does not fit the scenario.
            InputError: another world was given other files; its rows would be read from the wrong trace.
        """
        files = (of_kind("scenario", scenario, Scenario).draft.trace, scenario.draft.predictor)
        if self.files not in (None, files):
            raise InputError(
                f"worlds: given a trace and predictor {files}, allowed: {self.files}, as another world has"
            )
        self.files = files
        self.arrays = self.arrays._replace(source=load_source(scenario))

    def control(self, index: int, controller: Controller) -> None:
        """Put a controller in charge of world `index`. All worlds share one learned policy: the last that was given."""
        c = self.arrays.config[index, 0]
        c["speculation"], c["batching"] = controller.speculation, controller.batching
        c["uses_predictor"], c["sees_statistics"] = controller.uses_predictor, controller.sees_statistics
        c["sees_observation"], c["centralized"] = controller.sees_observation, controller.centralized
        c["learns"], c["suggests"] = controller.learns, controller.suggests
        if controller.plan:
            follow_plan(self.arrays.device[index], controller.plan)
        chunk_tokens = c["prefill_chunk_tokens"] if controller.chunk_tokens is None else controller.chunk_tokens
        c["chunk_tokens"], c["chunk_share"] = chunk_tokens, controller.chunk_share
        c["trim"], c["trim_tokens"] = controller.trim, controller.trim_tokens
        c["admit_share"] = controller.admit_share
        self.arrays.speculation_parameters[index, : len(controller.speculation_parameters)] = (
            controller.speculation_parameters
        )
        self.arrays.batching_parameters[index, : len(controller.batching_parameters)] = controller.batching_parameters
        if len(controller.scorer):
            self.arrays = self.arrays._replace(scorer=controller.scorer)
        if len(controller.policy):
            self.arrays = self.arrays._replace(policy=controller.policy)

    def run(self, early: bool = False) -> None:
        """Run every world to its end.

        Args:
            early: end a world as soon as nothing that is measured can change any more: after the window of measurement, when
                every counted request is done. Totals of the whole run (evictions, peaks) then cover a shorter one.
        """
        self.arrays.config["ends_early"] = early
        self.spread(TO_END)

    def first(self) -> "Worlds":
        """The first of these worlds alone, its arrays views of theirs, on one thread."""
        alone = copy.copy(self)
        alone.arrays, alone.none = self.arrays.at(slice(1)), outside(1, 0, 0)
        alone.n_worlds, alone.threads, alone.edges, alone.seen = 1, 1, [0, 1], NOTHING_SEEN
        return alone

    def spread(self, task: int, **arrays: np.ndarray) -> None:
        """Do a task of `engine.run` in all worlds, on all threads; the arrays that it takes have a row for each world.

        Raises:
            InputError: another task, an array that it needs missing or of other rows, columns or numbers, or worlds to open
                that are open; compiled code reads and writes without looking.
        """
        arguments = self.arguments(task, arrays)
        if self.threads == 1:
            run(self.arrays, task, *arguments, 0, len(self))
            return
        pool = thread_pool(self.threads)
        ranges = zip(self.edges, self.edges[1:], strict=False)
        for job in [pool.submit(partial(run, self.arrays, task, *arguments, a, b)) for a, b in ranges]:
            job.result()

    def arguments(self, task: int, arrays: dict[str, np.ndarray]) -> list[np.ndarray]:
        """The arrays in order, `none` for those that the task does not take; a step with those of the last one costs little."""
        none, actions = self.none, arrays.get("actions")
        again = type(task) is int and task == STEP and self.seen and all(map(is_, map(arrays.get, SEEN), self.seen))
        if again and len(arrays) == 4 and isinstance(actions, np.ndarray):
            return [none["which"], self.fitting("actions", actions, none["actions"]), *self.seen]
        self.refuse_missing(whole(TO_END, LOG).checked("task", task), arrays)
        arguments = [self.fitting(name, arrays.get(name, like), like) for name, like in none.items()]
        self.refuse_misfits(task, arrays)
        self.seen = arguments[-len(SEEN) :] if task == STEP else self.seen
        return arguments

    def refuse_missing(self, task: int, arrays: dict[str, np.ndarray]) -> None:
        """A task has the arrays that it needs, and no others."""
        if missing := [name for name in NEEDS[task] if not isinstance(arrays.get(name), np.ndarray)]:
            raise InputError(f"{missing[0]}: given {shown(arrays.get(missing[0]))}, allowed is an array of all worlds")
        if unknown := arrays.keys() - self.none.keys():
            raise InputError(f"arrays: {did_you_mean(min(unknown), self.none)}")

    def refuse_misfits(self, task: int, arrays: dict[str, np.ndarray]) -> None:
        """There is room for what a task writes, and it opens no world twice."""
        if "outcomes" in NEEDS[task]:
            c = self.arrays.config[0, 0]
            seen = server.SIZE + int(c["visible_requests"]) * request.SIZE if c["external_batching"] else device.SIZE
            for name, width in (("observations", seen), ("outcomes", gather.SIZE)):
                if arrays[name].shape[1:] != (width,):
                    allowed = f"({self.n_worlds}, {width})"
                    raise InputError(f"{name}: given shape {arrays[name].shape}, allowed is {allowed}")
        if task == TO_END or "which" in NEEDS[task]:
            opened = self.arrays.server[arrays["which"]] if "which" in NEEDS[task] else self.arrays.server
            if ((opened["stage"] != EVENTS) | (opened["n_events"] > 0)).any():
                raise InputError("worlds: given some that have begun, allowed are worlds that were filled anew")

    def fitting(self, name: str, array: np.ndarray, like: np.ndarray) -> np.ndarray:
        """An array of the kind of `like`, with a row for each world."""
        if array.dtype == like.dtype and array.ndim == like.ndim and len(array) == self.n_worlds and array.flags.carray:
            return array
        allowed = f"{like.dtype} with {self.n_worlds} rows, one for each world, in C order"
        raise InputError(f"{name}: given {shown(array)}, allowed is {allowed}")
