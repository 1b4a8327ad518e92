"""What `agents.sim2real` measures of vLLM drafting for itself, and the scenario of the co-located cells.

vLLM verifies, then drafts for the next step. The draft model runs once over the step's tokens whatever is drafted, its first token
included, and k − 1 times more over one token of each sequence. The simulated server drafts k steps, then verifies. So the first pass,
which grows with the step's tokens, is a part of the fitted verification, and what k passes and k steps have apart is the error of the
form: both forms are fitted, and the report says how well each fits.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.sim2real.devices import Deployed, RoundRow
from agents.sim2real.profile import LEAST_ROUNDS, LEAST_SHARPNESS, spread
from agents.sim2real.stream_server import StepRow
from agents.sim2real.yardstick import pace_s
from estimators.batch_time.profiles import possible
from estimators.batch_time.regression import WispRegressor, scores
from estimators.batch_time.roofline import SoftRooflineRegressor
from estimators.batch_time.steps import step_time
from wisp_gym import scenario as parts
from wisp_gym.engine.verification import batch_time_s
from wisp_gym.errors import InputError
from wisp_gym.scenario import Scenario

Floats = NDArray[np.float64]
LEAST_STEPS = 100
LEAST_TARGET_SHARE = 0.1  # of a step's time that is the target's at least, whatever drafting is said to take
# Name of a form → passes of the draft model that cost nothing beyond the verification.
FORMS = {"steps as the engine has them": 0, "steps as vLLM runs them": 1}


@dataclass(frozen=True)
class MeasuredSteps:
    """A running engine that drafts for itself, in numbers.

    Attributes:
        one_way_s, jitter: median and log-normal spread of a message's delay. roofline: coefficients of `VerificationTime`, the draft's
            first pass among them. draft_time: of `DraftTime`. four_terms: of `Estimator`. noise: log-normal spread of a step's time.
        host_s: from a step's end to the next one's beginning where requests are open.
        fit: scores of each form on the steps that it was fitted to. yardstick_s: its mean time. rounds, steps: how many were measured.
    """

    one_way_s: float
    jitter: float
    roofline: dict[str, float]
    draft_time: dict[str, float]
    four_terms: dict[str, Any]
    noise: float
    host_s: float
    fit: dict[str, dict[str, float]]
    yardstick_s: float
    rounds: int
    steps: int


def measure(runs: Sequence[Deployed]) -> MeasuredSteps:
    """What the profile's runs say.

    Raises:
        InputError: too few rounds or steps to tell.
    """
    rounds, steps = [row for run in runs for row in run.rounds], [row for run in runs for row in run.steps]
    if len(rounds) < LEAST_ROUNDS or len(steps) < LEAST_STEPS:
        came = f"{len(rounds)} rounds and {len(steps)} steps came"
        raise InputError(f"--profile-seconds: {came}; needed are {LEAST_ROUNDS} and {LEAST_STEPS}")
    yardstick_s = pace_s([row.yardstick_s for row in steps])
    steps = [row for run in runs for row in at_pace(run.steps, yardstick_s)]
    models = {name: fitted(steps, free) for name, free in FORMS.items()}
    roofline, draft_time, noise = costs(steps, models[next(iter(FORMS))])
    four = WispRegressor().fit(verified(steps), target_s(steps, draft_time))
    predicted = {name: models[name].predict(design(steps, free)) for name, free in FORMS.items()}
    predicted["four terms beside drafting"] = four.predict(verified(steps)) + drafting_s(steps, draft_time)
    fit = {name: scores(seconds_of(steps), each) for name, each in predicted.items()}
    return MeasuredSteps(
        *network(rounds), roofline, draft_time, four.coefficients(), noise, host(runs), fit,
        yardstick_s, len(rounds), len(steps),
    )  # fmt: skip


def at_pace(steps: Sequence[StepRow], yardstick_s: float) -> list[StepRow]:
    """The steps of one run as a machine would have run them on which the yardstick takes so long."""
    times = yardstick_s / pace_s([row.yardstick_s for row in steps])
    return [row._replace(seconds=times * row.seconds) for row in steps]


def network(rounds: Sequence[RoundRow]) -> tuple[float, float]:
    """Median and log-normal spread of a message's delay, of those that carry tokens behind the first: their clocks agree."""
    trips = np.array([row.received_s - row.sent_s for row in rounds if row.position])
    logs = np.log(trips[trips > 0.0])
    return float(np.exp(np.median(logs))), spread(logs)


def host(runs: Iterable[Deployed]) -> float:
    """Median seconds from a step's end to the next one's beginning, where the next one goes on with a request."""
    pairs = (pair for run in runs for pair in itertools.pairwise(run.steps))
    gaps = [b.end_s - b.seconds - a.end_s for a, b in pairs if b.cached_tokens]
    return max(float(np.median(gaps)), 0.0) if gaps else 0.0


# --- time of a step --------------------------------------------------------------------------------------------------


def seconds_of(steps: Sequence[StepRow]) -> Floats:
    """(n,) seconds of steps."""
    return np.array([row.seconds for row in steps])


def verified(steps: Sequence[StepRow]) -> Floats:
    """(n, 3) new tokens, pairs and cached tokens of steps."""
    return np.array([(row.new_tokens, row.pairs, row.cached_tokens) for row in steps], dtype=np.float64)


def drafted(steps: Sequence[StepRow], free: int = 0) -> Floats:
    """(n, 4) sums of drafting, `free` passes of which cost nothing: whether any is left, how many, times sequences, times context."""
    sizes = np.array([(row.length, row.decoding, row.context) for row in steps], dtype=np.float64)
    passes, decoding, context = np.maximum(sizes[:, 0] - free, 0.0), sizes[:, 1], sizes[:, 2]
    return np.column_stack([passes > 0, passes, passes * decoding, passes * context])


def design(steps: Sequence[StepRow], free: int) -> Floats:
    """(n, 8) sums of steps as `estimators.batch_time.steps` orders them."""
    verify = verified(steps)
    return np.column_stack([verify, verify[:, 1], drafted(steps, free)])


def fitted(steps: Sequence[StepRow], free: int) -> SoftRooflineRegressor:
    """The soft roofline with attention and drafting, relative errors minimised, no coefficient below 0."""
    return SoftRooflineRegressor(least_sharpness=LEAST_SHARPNESS).fit(design(steps, free), seconds_of(steps))


def costs(steps: Sequence[StepRow], model: SoftRooflineRegressor) -> tuple[dict[str, float], dict[str, float], float]:
    """Coefficients of verification and drafting, and the log-normal noise around them.

    As in `agents.sim2real.profile.verification` the level is such that all steps together take, with noise, what they took.
    """
    time = step_time(model)
    roofline = {name: getattr(time, name) for name in parts.VerificationTime.__dataclass_fields__}
    draft = {"overhead_s": time.draft_overhead_s, "launch_s": time.draft_step_s, "sequence_s": time.draft_sequence_s,
             "token_s": 0.0, "cached_token_s": time.draft_cached_token_s}  # fmt: skip
    clean, seconds = clean_s(steps, roofline, draft), seconds_of(steps)
    noise = spread(np.log(seconds / clean))
    level = float(seconds.sum() / clean.sum()) / float(np.exp(noise**2 / 2.0))
    roofline = {name: value * (1.0 if name == "sharpness" else level) for name, value in roofline.items()}
    return possible(roofline), {name: value * level for name, value in draft.items()}, noise


def drafting_s(steps: Sequence[StepRow], draft: dict[str, float]) -> Floats:
    """(n,) seconds of drafting."""
    names = ("overhead_s", "launch_s", "sequence_s", "cached_token_s")
    return np.asarray(drafted(steps) @ [draft[name] for name in names])


def clean_s(steps: Sequence[StepRow], roofline: dict[str, float], draft: dict[str, float]) -> Floats:
    """(n,) seconds of steps, without noise."""
    new, pairs, cached = verified(steps).T
    verify_s = batch_time_s.py_func(0.0, **roofline, new_tokens=new, pairs=pairs, cached_tokens=cached)
    return np.asarray(verify_s + drafting_s(steps, draft))


def target_s(steps: Sequence[StepRow], draft: dict[str, float]) -> Floats:
    """(n,) seconds of steps without their drafting."""
    seconds = seconds_of(steps)
    return np.maximum(seconds - drafting_s(steps, draft), LEAST_TARGET_SHARE * seconds)


def step_level(measured: MeasuredSteps, runs: Iterable[Sequence[StepRow]]) -> float:
    """How many times as long as predicted, at the machine's speed in each run, the runs' steps took together."""
    steps = [row for run in runs for row in at_pace(run, measured.yardstick_s)]
    fitted_s = clean_s(steps, measured.roofline, measured.draft_time).sum() * np.exp(measured.noise**2 / 2.0)
    return float(seconds_of(steps).sum() / fitted_s)


# --- scenario --------------------------------------------------------------------------------------------------------


def build_scenario(measured: MeasuredSteps, edge: Scenario) -> Scenario:
    """The scenario of the co-located cells.

    The server's draft is the devices' own, fate by fate. vLLM is given room for so many tokens, both models' keys and values counted,
    so the draft takes none of it.

    Args:
        edge: that of the cells whose devices draft: prompts, promises, trace and horizon are the same.
    """
    draft = parts.ServerDraft(
        edge.draft.name, 0, 0, 1.0, 1.0, edge.draft.acceptance, parts.DraftTime(**measured.draft_time)
    )
    changes = {
        "description": "Measured on vLLM drafting for itself (agents.sim2real)",
        "verification": parts.VerificationTime(**measured.roofline),
        "estimator": parts.Estimator(**measured.four_terms),
        "server_drafts": [draft],
        "server.host_s": measured.host_s,
        "server.noise": measured.noise,
        "devices.0.link.one_way_s": measured.one_way_s,
        "devices.0.link.jitter": measured.jitter,
    }
    return parts.with_(edge, **changes)
