"""How long a step takes that drafts k tokens for each of B sessions and verifies them: ten coefficients, modelled or measured.

    launch + (weights^p + (token·n)^p)^(1/p) + cached·B·c + pair·n·(c + k + 1)          verification, n = B·(k + 1)
    + [k > 0]·overhead + k·(step + B·(sequence + draft_cached·c))                        drafting

c is the context of a session. The first line is the engine's batch time (`wisp_gym.engine.verification`), the second the time
of drafting at the server (docs/model/who-drafts.md). `python -m estimators.batch_time steps` fits all ten to measured steps.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wisp_gym.errors import InputError
from wisp_gym.files import read_text
from wisp_gym.scenario import Scenario, ServerDraft

Floats = NDArray[np.float64]

FORMAT, VERSION = "wisp-gym step times", 1
MAX_BYTES = 2**20
MOST_S = 3600.0  # no coefficient is an hour
LIMITS = {
    "batch": (1, 4096),
    "k": (0, 64),
    "context": (0, 10_000_000),
}  # of what can be measured, in sessions and tokens


@dataclass(frozen=True)
class StepTime:
    """Seconds, and the sharpness of the knee between reading weights and arithmetic, a pure number."""

    launch_s: float
    weights_s: float
    token_s: float
    sharpness: float
    cached_token_s: float
    pair_s: float
    draft_overhead_s: float
    draft_step_s: float
    draft_sequence_s: float
    draft_cached_token_s: float

    def seconds(self, batch: Floats, k: Floats, context: Floats | float) -> Floats:
        """Of steps of batch sizes, lengths and contexts that broadcast."""
        new = batch * (k + 1.0)
        arithmetic_s = np.maximum(self.token_s * new, 1e-300)
        longer_s = np.maximum(arithmetic_s, self.weights_s)  # taken out: no power overflows
        p = self.sharpness
        roofline_s = longer_s * ((self.weights_s / longer_s) ** p + (arithmetic_s / longer_s) ** p) ** (1.0 / p)
        verify_s = (
            self.launch_s + roofline_s + self.cached_token_s * batch * context + self.pair_s * new * (context + k + 1.0)
        )
        step_s = self.draft_step_s + batch * (self.draft_sequence_s + self.draft_cached_token_s * context)
        found: Floats = verify_s + (k > 0) * self.draft_overhead_s + k * step_s
        return found


def modelled(scenario: Scenario, draft: ServerDraft) -> StepTime:
    """Steps of a scenario's server that hosts a draft, as the simulated server takes them, without noise.

    Raises:
        InputError: costs of a serving engine, which this form of a step has no terms for.
    """
    for name in ("host_request_s", "host_token_s", "graph_tokens", "eager_s"):
        if given := getattr(scenario.server, name):
            allowed = "0, or steps measured on the engine (--profile)"
            raise InputError(f"server.{name} given {given:g}, allowed for a table of modelled steps: {allowed}")
    v, t = scenario.verification, draft.time
    return StepTime(
        scenario.server.host_s + v.launch_s, v.weights_s, v.token_s, v.sharpness, v.cached_token_s, v.pair_s,
        t.overhead_s, t.launch_s, t.sequence_s + t.token_s, t.cached_token_s,
    )  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """Fitted steps of a running engine.

    Attributes:
        time: the coefficients. batch, k, context: least and most that were measured.
        configurations: how many of them. held_out_error_percent: mean relative error of those that the fit has not seen.
        source, source_sha256: name and hash of the CSV that was fitted.
    """

    time: StepTime
    batch: tuple[float, float]
    k: tuple[float, float]
    context: tuple[float, float]
    configurations: int
    held_out_error_percent: float
    source: str
    source_sha256: str

    def document(self) -> dict[str, Any]:
        """As JSON values, which `read` takes."""
        return {"format": FORMAT, "version": VERSION} | asdict(self)


def read(path: Path) -> Measured:
    """Fitted steps of a JSON of `python -m estimators.batch_time steps`.

    Raises:
        InputError: the file is no such JSON; names it and what is allowed.
    """
    wrong = f"{path.name}: allowed is JSON of python -m estimators.batch_time steps"
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{wrong}, at most {MAX_BYTES} bytes")
        given = json.loads(read_text(path))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise InputError(wrong) from None
    if not isinstance(given, dict) or (given.get("format"), given.get("version")) != (FORMAT, VERSION):
        raise InputError(f"{wrong}, version {VERSION}")
    batch, k, context = (span(given.get(name), name, path.name) for name in LIMITS)
    source, hash_ = (str(given.get(name, ""))[:200] for name in ("source", "source_sha256"))
    configurations = int(number(given.get("configurations"), "configurations", path.name, 1e9))
    percent = number(given.get("held_out_error_percent"), "held_out_error_percent", path.name, 1e6)
    return Measured(
        coefficients(given.get("time"), path.name), batch, k, context, configurations, percent, source, hash_
    )  # fmt: skip


def coefficients(given: Any, place: str) -> StepTime:
    """The ten coefficients of a file."""
    table: Mapping[str, Any] = given if isinstance(given, dict) else {}
    values = {
        field.name: number(table.get(field.name), f"time.{field.name}", place, MOST_S) for field in fields(StepTime)
    }
    if values["sharpness"] < 0.1 or not values["launch_s"] + values["weights_s"] + values["token_s"]:
        raise InputError(f"{place}: time: allowed are a sharpness of at least 0.1 and steps that take time")
    return StepTime(**values)


def span(given: Any, name: str, place: str) -> tuple[float, float]:
    """Least and most of what was measured."""
    low, high = LIMITS[name]
    pair = given if isinstance(given, list) and len(given) == 2 else [None, None]
    least, most = (number(value, name, place, high) for value in pair)
    if not low <= least <= most:
        raise InputError(
            f"{place}: {name} given {given!r}, allowed are two numbers from {low} to {high}, the smaller first"
        )
    return least, most


def number(value: Any, name: str, place: str, most: float) -> float:
    """A number from 0 on."""
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not (math.isfinite(value) and 0 <= value <= most)
    ):
        raise InputError(f"{place}: {name} given {str(value)[:40]!r}, allowed is a number from 0 to {most:g}")
    return float(value)


def sha256(path: Path) -> str:
    """Hash of a file, to tell which one was fitted."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
