"""A process that makes the calls of a fuzz and writes each down before it is made: `python -m tests.fuzz.child`."""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import os
import random
import resource
import sys
import warnings
from collections import Counter
from pathlib import Path

import gymnasium as gym
import numpy as np

import wisp_gym
from tests.fuzz.calls import Fault, function_call
from tests.fuzz.play import play
from tests.fuzz.targets import targets
from tests.fuzz.values import SMALL
from wisp_gym.contract import device, request, server
from wisp_gym.controllers.predict import SpeculationPredictor
from wisp_gym.controllers.predict_batching import BatchingPredictor
from wisp_gym.simulation import simulate

HANGS_S = 60.0  # a call that lasts longer hangs (compiling for new types takes some)
MEMORY_BYTES = 12 * 2**30
ENVIRONMENTS_SHARE = 0.4


def warm_up() -> None:
    """Compile what calls run, which takes minutes where no cache holds it: that is no hang."""
    simulate(SMALL, "speculation-v1+joint-v1")
    for name in wisp_gym.ENVIRONMENTS:
        for env in (
            gym.make(name, scenario=SMALL, horizon_s=1.0),
            gym.make_vec(name, num_envs=1, scenario=SMALL, horizon_s=1.0),
        ):
            env.reset(seed=0)
            env.step(env.action_space.sample())
    for predictor in (SpeculationPredictor("wisp", SMALL), SpeculationPredictor("speculation-v1", SMALL)):
        predictor.predict(np.zeros(device.SIZE))
    for judge in (BatchingPredictor("wisp", SMALL), BatchingPredictor("batching-v1", SMALL)):
        judge.predict(np.zeros(server.SIZE + request.SIZE))


def main() -> None:
    """Read the flags and make the calls; results go to a folder."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--calls", type=int)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    warm_up()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    warnings.simplefilter("ignore")
    os.chdir(given.out)
    rng, found, called = random.Random(given.seed), targets(), Counter[str]()
    front = [target for target in found if target.front]
    faults: dict[Fault, str] = {}
    last, done = "", 0
    with open("last", "w") as file, open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):

        def note(call: str) -> None:
            nonlocal last
            last = call
            file.seek(0)
            file.write(call + "\n")
            file.truncate()
            file.flush()
            faulthandler.dump_traceback_later(HANGS_S, exit=True, file=sys.__stderr__)

        def fail(fault: Fault) -> None:
            faults.setdefault(fault, last)

        while done < given.calls:
            if rng.random() < ENVIRONMENTS_SHARE / 15:
                made = play(rng, rng.random() < 0.5, note, fail, given.calls - done)
                called["environments"] += made
                done += made
                continue
            target = rng.choice(front if rng.random() < 0.7 else found)
            fault = function_call(target, rng, note)
            called[target.name] += 1
            done += 1
            if fault:
                fail(fault)
    faulthandler.cancel_dump_traceback_later()
    lines = [
        {"name": fault.name, "what": fault.what, "call": f"{call}: {fault.message}"} for fault, call in faults.items()
    ]
    Path("result.json").write_text(json.dumps({"calls": done, "called": called, "faults": lines}))


if __name__ == "__main__":
    main()
