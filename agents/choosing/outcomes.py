"""What every candidate reaches in every case: goodput, starved devices, requests within their SLO; one line of JSON a case, gone on
with after a kill."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from agents.choosing.candidates import ATTAINMENT, CANDIDATES, GOODPUT
from agents.choosing.cases import HORIZON, case
from agents.study.play import chunk
from wisp_gym.cli import progress
from wisp_gym.controllers.choice import filled, needs
from wisp_gym.controllers.deployment import draft_places
from wisp_gym.engine.trace_load import load_trace
from wisp_gym.errors import InputError
from wisp_gym.evaluation.outcomes import Outcome
from wisp_gym.evaluation.pool import Threads
from wisp_gym.files import holds_files, read_text, write_text
from wisp_gym.scenario import Horizon

WORLDS = 2  # of each case, the same for all candidates
MEASURES = ("goodput_tokens_per_s", "starved_share", "slo_attainment")
# Who is overloaded looks well in a short window, and `wisp-gym capacity` measures in the presets' own: attainment is told by that.
HORIZONS = {GOODPUT: HORIZON, ATTAINMENT: Horizon(warmup_s=20.0, measure_s=120.0, drain_s=280.0)}
Line = dict[str, Any]


@dataclass(frozen=True)
class Outcomes:
    """Means over each case's worlds.

    Attributes:
        candidates: who ran. cases: (n,) their numbers. goodput: (n, candidates) tokens/s on time, NaN where the case does not allow the
            candidate. starved: (n, candidates) share of devices. attained: (n, candidates) share of requests within their SLO.
    """

    candidates: Sequence[str]
    cases: np.ndarray
    goodput: np.ndarray
    starved: np.ndarray
    attained: np.ndarray


def world_seeds(number: int) -> list[int]:
    """Seeds of a case's worlds."""
    return [10 * number + k for k in range(1, WORLDS + 1)]


def measures(world: Outcome) -> list[float]:
    """What is kept of a world."""
    values = [world.metrics[key] for key in MEASURES]
    return [1.0 if value is None else float(value) for value in values]  # nothing was asked for, so nothing was missed


def outcome(number: int, goal: str) -> Line:
    """A case's line: means of MEASURES by candidate."""
    scenario = replace(case(number), horizon=HORIZONS[goal])
    trace, places = load_trace(scenario), draft_places(scenario)
    found = {
        name: np.mean(chunk(scenario, filled(name, places), world_seeds(number), trace, measures), 0).tolist()
        for name in CANDIDATES[goal]
        if needs(name) <= places.keys()
    }
    return {"case": number, "worlds": WORLDS, "found": found}


def gather(numbers: Sequence[int], goal: str, file: Path) -> None:
    """Append the cases that a file lacks, in order, on all cores; a line that a kill cut short is dropped first.

    Raises:
        InputError: the file holds something else.
    """
    known = read(file, CANDIDATES[goal])
    write_text(file, "".join(json.dumps(line) + "\n" for line in known))
    missing = [number for number in numbers if number not in {line["case"] for line in known}]
    with progress(len(numbers), "case") as bar, file.open("a", encoding="utf-8") as out:
        bar.update(len(numbers) - len(missing))
        for line in Threads().map(outcome, [(number, goal) for number in missing]):
            out.write(json.dumps(line) + "\n")
            out.flush()
            bar.update()


def read(file: Path, candidates: Sequence[str]) -> list[Line]:
    """The lines of a file of outcomes, none where there is none yet.

    Raises:
        InputError: it holds something else, or outcomes of other candidates.
    """
    lines = read_text(file).splitlines() if holds_files(file.parent) and file.is_file() else []
    found: list[Line] = []
    for place, text in enumerate(lines):
        try:
            line = json.loads(text)
            ours = line["worlds"] == WORLDS and set(line["found"]) <= set(candidates)
            ours = ours and all(len(values) == len(MEASURES) for values in line["found"].values())
        except (ValueError, KeyError, TypeError):
            if place + 1 == len(lines):
                break
            ours = False
        if not ours:
            raise InputError(f"{file}: line {place + 1}: no outcomes of these candidates in {WORLDS} worlds")
        found.append(line)
    return found


def table(lines: Iterable[Line], candidates: Sequence[str]) -> Outcomes:
    """Lines as arrays."""
    given = list(lines)
    nothing = [np.nan] * len(MEASURES)
    values = np.array([[line["found"].get(name, nothing) for name in candidates] for line in given], np.float64)
    return Outcomes(candidates, np.array([line["case"] for line in given], np.int64), *np.moveaxis(values, 2, 0))
