"""Worlds: the engine's arrays with the controllers in place, run on several threads."""

import copy
import os

import numpy as np

from wisp_gym.contract import device
from wisp_gym.engine.build import empty_arrays, fill_world
from wisp_gym.engine.call import Call
from wisp_gym.engine.control import begin_drafting, begin_sessions, follow_drafting, follow_plan
from wisp_gym.engine.outside import Outside
from wisp_gym.engine.run import TO_END
from wisp_gym.engine.state import NO_TRACE, TRACE_ROW, as_known
from wisp_gym.engine.trace_files import load_source
from wisp_gym.errors import InputError, of_kind, shown
from wisp_gym.jit import COMPILES
from wisp_gym.rules.controller import Controller
from wisp_gym.rules.mlp import laid_out
from wisp_gym.scenario import Scenario
from wisp_gym.values import DEVICES, THREADS, WORLDS, whole

# Where a controller's `pace` goes, in the order of the catalogue's settings.
PACING = (
    "pace_batch_s", "pace_patience_s", "pace_begin_s", "pace_floor_tokens_per_s", "pace_lead_s", "pace_credit_s",
)  # fmt: skip

MAX_LOG_ROWS = 10**9
SEED_BITS = whole(-(2**63), 2**64 - 1)  # 64 bits, as numpy's signed or unsigned integers hold them


def checked_trace(rows: np.ndarray) -> np.ndarray:
    """Rows of a request trace as compiled code takes them: arrivals in seconds, whatever the lengths, which are clipped.

    Raises:
        InputError: other rows.
    """
    if not isinstance(rows, np.ndarray) or rows.dtype != TRACE_ROW or rows.ndim != 1:
        raise InputError(f"trace: given {shown(rows)}, allowed is an array of TRACE_ROW of shape (n,)")
    if not (np.isfinite(rows["arrival_s"]).all() and (rows["arrival_s"] >= 0).all()):
        raise InputError("trace: given arrivals that are negative or no numbers, allowed are seconds from 0 on")
    return as_known(np.require(rows, requirements=["C", "W", "A"]))


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
        self.outside = Outside(n_worlds)

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
        fill_world(self.arrays, place, scenario, seed, n_devices)
        self.begin(index, controller)

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

    def begin(self, index: int, controller: Controller) -> None:
        """Put a controller in charge of world `index` at its beginning."""
        self.control(index, controller)
        begin_drafting(self.arrays, index, controller)

    def control(self, index: int, controller: Controller) -> None:
        """Put a controller in charge of world `index` from now on. All worlds share one learned policy: the last that was given."""
        c = self.arrays.config[index, 0]
        c["speculation"], c["batching"] = controller.speculation, controller.batching
        c["uses_predictor"], c["sees_statistics"] = controller.uses_predictor, controller.sees_statistics
        c["sees_observation"], c["centralized"] = controller.sees_observation, controller.centralized
        c["learns"], c["suggests"], c["chooses_way"] = controller.learns, controller.suggests, controller.chooses_way
        c["chooses_hosting"] = controller.chooses_hosting
        if controller.plan:
            follow_plan(self.arrays.device[index], controller.plan)
        chunk_tokens = c["prefill_chunk_tokens"] if controller.chunk_tokens is None else controller.chunk_tokens
        c["chunk_tokens"], c["chunk_share"] = chunk_tokens, controller.chunk_share
        c["trim"], c["trim_tokens"] = controller.trim, controller.trim_tokens
        c["admit_share"] = controller.admit_share
        pace = controller.pace or (0.0,) * len(PACING)
        for name, value in zip(PACING, pace, strict=True):
            c[name] = value
        self.share_drafting(index, controller)
        self.arrays.speculation_parameters[index, : len(controller.speculation_parameters)] = (
            controller.speculation_parameters
        )
        self.arrays.batching_parameters[index, : len(controller.batching_parameters)] = controller.batching_parameters
        n = self.arrays.device.shape[1]
        if controller.learns or controller.suggests:
            self.arrays = self.arrays.with_rows(memory=n + 1, observation=n)
        if controller.trim:
            self.arrays = self.arrays.with_rows(survivals=n)
        if len(controller.scorer):
            self.arrays = self.arrays._replace(scorer=controller.scorer)
        if len(controller.policy):
            self.arrays = self.arrays._replace(policy=laid_out(controller.policy))

    def share_drafting(self, index: int, controller: Controller) -> None:
        """Write who drafts in world `index` besides a device before it sends."""
        drafting, n = controller.drafting, self.arrays.device.shape[1]
        if (drafting.mixes or drafting.hosted or drafting.overlap_tokens) and self.arrays.sessions.shape[1] < n:
            self.arrays = self.arrays.with_rows(sessions=n)
            begin_sessions(self.arrays.sessions)
        if drafting.mixes:
            self.arrays = self.arrays.with_rows(observation=n)
        if not (drafting.mixes or drafting.overlap_tokens):  # what devices saw of a choice that they no longer have
            self.arrays.observation[index, :, device.DRAFTS_ON :] = 0.0
        c, server = self.arrays.config[index, 0], self.arrays.server[index, 0]
        if not c["server_length"]:  # no batch has drafted yet: the length of the last one
            server["server_tokens"] = drafting.lookahead_tokens
        follow_drafting(c, drafting, controller.centralized)
        self.arrays.drafter_parameters[index, : len(drafting.drafter_parameters)] = drafting.drafter_parameters
        self.arrays.length_parameters[index, : len(drafting.length_parameters)] = drafting.length_parameters

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
        alone.arrays, alone.outside = self.arrays.at(slice(1)), Outside(1)
        alone.n_worlds, alone.threads = 1, 1
        return alone

    def spread(self, task: int, **arrays: np.ndarray) -> None:
        """Do a task of `engine.run` in all worlds, on all threads; the arrays that it takes have a row for each world.

        Raises:
            InputError: another task, an array that it needs missing or of other rows, columns or numbers, or worlds to open
                that are open; compiled code reads and writes without looking.
        """
        self.call(task, **arrays).run(task)

    def call(self, task: int, **arrays: np.ndarray) -> Call:
        """What does a task again and again with the same arrays; raises as `spread`."""
        return Call(self.arrays, self.outside.arguments(self.arrays, task, arrays), self.threads)


def world_of(scenario: Scenario, controller: Controller, seed: int) -> Worlds:
    """One world at its beginning, on one thread."""
    worlds = Worlds(1, scenario.n_devices, threads=1)
    worlds.fill(0, scenario, seed, controller)
    return worlds
