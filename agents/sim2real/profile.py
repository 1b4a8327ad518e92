"""What `agents.sim2real` measures of a running pair, and the scenario that it builds from the measurements alone.

The pair runs with drafts of random lengths, at each load that is compared. From the rounds come the time of a drafted token and of
a message, from the batches the four terms, the roofline, their noise, and what the server's loop takes between two batches, all at
the machine's mean speed as the yardstick beside them tells it. Acceptance and statistics come from a speculation trace of the same
pair on the same prompts.
"""

import itertools
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.sim2real import settings as chosen
from agents.sim2real.devices import Deployed, RoundRow
from agents.sim2real.server import BatchRow
from agents.sim2real.yardstick import pace_s
from estimators.batch_time.fit import Profile
from estimators.batch_time.profiles import possible, roofline
from estimators.batch_time.regression import WispRegressor, scores
from wisp_gym import scenario as parts
from wisp_gym.engine.verification import batch_time_s
from wisp_gym.errors import InputError
from wisp_gym.testbed.controlling import FixedLength

LEAST_ROUNDS, LEAST_BATCHES = 50, 50
LEAST_SHARPNESS = 0.25  # of the roofline: on a processor its batch time is concave in the new tokens
SHORT_DRAFT_TOKENS = 1  # most of a short draft
PHASE_S = 3.0  # in turn drafts are short and of any length, on all devices at once
SPREAD_QUANTILES = (0.05, 0.95)  # between which a spread is read, so that a stall of the machine counts little
NORMAL_WIDTH = 3.2897  # standard deviations between those quantiles of a normal


class RandomLength(FixedLength):
    """Drafts a number of tokens drawn anew for each round, in turn 0 to 1 and 0 to `most`, for three seconds each.

    Batches of short drafts have many members, batches of long ones many tokens, so a profile can tell what each of both costs.
    """

    def __init__(self, most: int, seed: int) -> None:
        super().__init__(most)
        self.most, self.rng = most, random.Random(seed)

    def begin_round(self, now_s: float, draft_token_s: float | None = None) -> None:
        """Draw the round's length."""
        super().begin_round(now_s, draft_token_s)
        short = int(now_s / PHASE_S) % 2 == 0
        self.k = self.rng.randint(0, min(SHORT_DRAFT_TOKENS, self.most) if short else self.most)


@dataclass(frozen=True)
class Measured:
    """A running pair in numbers, as a scenario wants them.

    Attributes:
        draft_token_s, round_overhead_s: of a device. one_way_s, jitter: median and log-normal spread of a message's delay.
        roofline: coefficients of `VerificationTime`. four_terms: of `Estimator`. noise: log-normal spread of a batch's time.
        host_s: from a batch's end to the next one's launch where rounds wait.
        fit: scores of the roofline and the four terms on the batches that they were fitted to.
        yardstick_s: mean time of the yardstick. model_share: of the batch time that is spent inside the model. rounds, batches: how many
            were measured.
    """

    draft_token_s: float
    round_overhead_s: float
    one_way_s: float
    jitter: float
    roofline: dict[str, float]
    four_terms: dict[str, Any]
    noise: float
    host_s: float
    fit: dict[str, dict[str, float]]
    yardstick_s: float
    model_share: float
    rounds: int
    batches: int


def measure(runs: Sequence[Deployed]) -> Measured:
    """What the profile's runs say.

    Raises:
        InputError: too few rounds or batches to tell.
    """
    rounds = [row for run in runs for row in run.rounds]
    batches = [row for run in runs for row in run.batches]
    if len(rounds) < LEAST_ROUNDS or len(batches) < LEAST_BATCHES:
        came = f"{len(rounds)} rounds and {len(batches)} batches came"
        raise InputError(f"--profile-seconds: {came}; needed are {LEAST_ROUNDS} and {LEAST_BATCHES}")
    yardstick_s = pace_s([row.yardstick_s for row in batches])
    profile = profile_of([row for run in runs for row in at_pace(run.batches, yardstick_s)])
    token_s, overhead_s = drafting(rounds)
    one_way_s, jitter = network(rounds)
    true, noise = verification(profile)
    four = WispRegressor().fit(profile.X, profile.seconds)
    fits = {"roofline": clean_s(profile, true), "four terms": four.predict(profile.X)}
    return Measured(
        token_s, overhead_s, one_way_s, jitter, true, four.coefficients(), noise, host(runs),
        {name: scores(profile.seconds, predicted) for name, predicted in fits.items()},
        yardstick_s, sum(row.pass_s for row in batches) / sum(row.seconds for row in batches), len(rounds), len(batches),
    )  # fmt: skip


def at_pace(batches: Sequence[BatchRow], yardstick_s: float) -> list[BatchRow]:
    """The batches of one run as a machine would have run them on which the yardstick takes so long."""
    times = yardstick_s / pace_s([row.yardstick_s for row in batches])
    return [row._replace(seconds=times * row.seconds) for row in batches]


def verification(profile: Profile) -> tuple[dict[str, float], float]:
    """Coefficients of the roofline, and the log-normal noise around it.

    Relative least squares fit the shape; the level is then such that the roofline with its noise, whose mean is `exp(noise²/2)`, takes
    as long as all measured batches together.
    """
    true = roofline(profile, LEAST_SHARPNESS)
    noise = spread(np.log(profile.seconds / clean_s(profile, true)))
    level = float(profile.seconds.sum() / clean_s(profile, true).sum()) / float(np.exp(noise**2 / 2.0))
    return possible({name: value * (1.0 if name == "sharpness" else level) for name, value in true.items()}), noise


def clean_s(profile: Profile, true: dict[str, float]) -> NDArray[np.float64]:
    """(rows,) seconds of the roofline, without noise."""
    new, pairs, cached = profile.X.T
    # The same formula on arrays; compiled it takes one batch at a time.
    return np.asarray(batch_time_s.py_func(0.0, **true, new_tokens=new, pairs=pairs, cached_tokens=cached))


def profile_of(batches: Sequence[BatchRow]) -> Profile:
    """Batches as the estimators are fitted to them: new tokens, pairs and cached tokens (docs/model/model.md, §5)."""
    each = [np.array([(m.new_tokens, m.cached_tokens) for m in row.members]).reshape(-1, 2).T for row in batches]
    X = np.array([(new.sum(), (new * (new + cached)).sum(), cached.sum()) for new, cached in each], dtype=np.float64)
    seconds = np.array([row.seconds for row in batches])
    return Profile(X, seconds, np.unique(X, axis=0, return_inverse=True)[1].ravel(), "deployment")


def drafting(rounds: Sequence[RoundRow]) -> tuple[float, float]:
    """Seconds of a drafted token, and those of a round that do not depend on their number (least squares)."""
    drafted = [row for row in rounds if row.position > 0 and row.drafted > 0]
    tokens = np.array([row.drafted for row in drafted], dtype=np.float64)
    seconds = np.array([row.sent_s - row.begun_s for row in drafted])
    slope, rest = np.polyfit(tokens, seconds, 1) if np.ptp(tokens) > 0 else (seconds.mean() / tokens.mean(), 0.0)
    if rest < 0.0:
        slope, rest = float(seconds.sum() / tokens.sum()), 0.0
    return float(slope), float(rest)


def network(rounds: Sequence[RoundRow]) -> tuple[float, float]:
    """Median and log-normal spread of a one-way delay, from round trips without what the server held them.

    A round trip is the sum of two delays m·exp(σz), so its logarithm has variance `v` with `exp(σ²) − 1 = 2·(exp(v) − 1)`
    (the sum's first two moments, as of a log-normal: Fenton 1960), and its mean is `2m·exp(σ²/2)`.
    """
    trips = np.array([row.received_s - row.sent_s - row.held_s for row in rounds])
    trips = trips[trips > 0.0]
    v = spread(np.log(trips)) ** 2
    variance = float(np.log1p(2.0 * np.expm1(v)))
    middle = trips[trips < np.quantile(trips, 0.999)] if len(trips) > 1000 else trips
    return float(middle.mean() / 2.0 / np.exp(variance / 2.0)), float(np.sqrt(variance))


def spread(values: NDArray[np.float64]) -> float:
    """Standard deviation of nearly normal values, by quantiles."""
    low, high = np.quantile(values, SPREAD_QUANTILES)
    return float(high - low) / NORMAL_WIDTH


def host(runs: Iterable[Deployed]) -> float:
    """Median seconds from a batch's end to the next one's launch, where a member of the next one waited already."""
    pairs = (pair for run in runs for pair in itertools.pairwise(run.batches))
    gaps = [b.end_s - b.seconds - a.end_s for a, b in pairs if min(m.arrived_s for m in b.members) < a.end_s]
    return max(float(np.median(gaps)), 0.0) if gaps else 0.0


def build_scenario(
    measured: Measured, settings: chosen.Settings, target: parts.Target, prompt_tokens: Sequence[int], trace: str
) -> parts.Scenario:
    """The scenario of the measurements; power, energy and price are not measured and are zero.

    Args:
        settings: what is not measured, but chosen. target: its shape. prompt_tokens: of the recorded prompts.
        trace: file of the speculation trace, beside the scenario.
    """
    link = parts.Link("measured", measured.one_way_s, measured.jitter, 0.0, 0.0, 0.0, 0.0, 0.0, 1e9, 1e9, 0.0, 0.0)
    device = parts.DeviceClass(
        "measured", 1.0, 1.0 / measured.draft_token_s, measured.round_overhead_s, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, link
    )
    lengths, logs = np.asarray(prompt_tokens), np.log(prompt_tokens)
    least, most = int(lengths.min()), int(lengths.max())
    median = float(np.clip(np.exp(logs.mean()), least, most))  # of equal lengths it is that length but for rounding
    prompt = parts.Lengths(median, float(logs.std()), least, most)
    output = parts.Lengths(float(settings.max_new_tokens), 0.0, 1, settings.max_new_tokens)
    slo = [parts.SLOClass(f"speed-{v:g}", 1.0, v, chosen.GRACE_S, chosen.TTFT_S, "first_token") for v in settings.slo]
    memory = target.weights_bytes + chosen.KV_TOKENS * target.kv_bytes_per_token  # what the limit of tokens asks for
    server = parts.Server(
        "measured", 1, memory, 1.0, 0, measured.host_s, measured.noise, 0.0, 0.0, 0.0,
        chosen.MAX_BATCH_REQUESTS, chosen.PREFILL_CHUNK_TOKENS,
    )  # fmt: skip
    unused = parts.Acceptance(0.0, 0.0, 0.0, 1.0, 0.0)  # acceptance and statistics are the trace's
    return parts.Scenario(
        name="measured", description="Measured on a running deployment (agents.sim2real)",
        server=server, target=target,
        draft=parts.Draft("measured", 1, unused, parts.Statistics(0.75, 0.0), trace, ""),
        verification=parts.VerificationTime(**measured.roofline), estimator=parts.Estimator(**measured.four_terms),
        devices=(device,), slo=tuple(slo),
        workload=parts.Workload("closed", 0.0, 0.0, chosen.START_WINDOW_S, prompt, output, "", ""),
        horizon=parts.Horizon(float(settings.warmup_seconds), float(settings.seconds), 0.0),
        n_devices=settings.loads[-1], max_draft_tokens=settings.max_draft_tokens,
    )  # fmt: skip


def machine_level(yardstick_s: float, batches: Sequence[Any]) -> float:
    """How many times as long as in the profile, where the yardstick took so long, it took while these batches, or steps, ran."""
    return pace_s([row.yardstick_s for row in batches]) / yardstick_s


def batch_level(measured: Measured, runs: Iterable[Sequence[BatchRow]]) -> float:
    """How many times as long as predicted, at the machine's speed in each run, the runs' batches took together."""
    profile = profile_of([row for run in runs for row in at_pace(run, measured.yardstick_s)])
    fitted_s = clean_s(profile, measured.roofline).sum() * np.exp(measured.noise**2 / 2.0)
    return float(profile.seconds.sum() / fitted_s)


def at_level(scenario: parts.Scenario, times: float) -> parts.Scenario:
    """The scenario with batches, and drafts of the server, that take so many times as long."""
    verification = {name: value for name, value in asdict(scenario.verification).items() if name != "sharpness"}
    scaled = possible({name: times * value for name, value in verification.items()})
    changes = {f"verification.{name}": value for name, value in scaled.items()}
    for place, draft in enumerate(scenario.server_drafts):
        changes |= {f"server_drafts.{place}.time.{name}": times * value for name, value in asdict(draft.time).items()}
    return parts.with_(scenario, **changes)
