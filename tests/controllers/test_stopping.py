"""Stopping rules: decisions computed by hand, limits and invariances, of all rules that are asked after each token."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.small_worlds import CONSTANT_ACCEPTANCE, horizon, log_of, plain, run
from wisp_gym.contract import device as o
from wisp_gym.controllers.resolve import resolve
from wisp_gym.engine.build import mean_acceptance
from wisp_gym.engine.state import PARAMETERS
from wisp_gym.rules import speculation as s
from wisp_gym.rules.bandits import MEMORY
from wisp_gym.rules.catalogue import SPECULATION
from wisp_gym.rules.controller import NO_POLICY
from wisp_gym.scenario import with_
from wisp_gym.simulation import simulate

CAP, INF = 12, math.inf
TOKEN_RULES = {name: rule for name, rule in SPECULATION.items() if rule.kind < s.POLICY_LENGTH}
SHORT = plain(n_devices=5, horizon=horizon(0.0, 12.0))


def seen(drafted: int = 0, **values: float) -> np.ndarray:
    """(SIZE,) observation after `drafted` tokens."""
    row = np.zeros(o.SIZE, np.float32)
    row[[o.SURVIVAL, o.ACCEPT_PROBABILITY, o.CONFIDENCE, o.MARGIN, o.TOKENS_LEFT]] = 1.0
    row[o.DRAFTED_TOKENS] = drafted / CAP
    for name, value in values.items():
        row[o.NAMES.index(name)] = value
    return row


def goes_on(name: str, parameters: tuple[float, ...], row: np.ndarray, memory: np.ndarray | None = None) -> bool:
    """Decision of a rule, which must not depend on fates."""
    padded = np.zeros(PARAMETERS)
    padded[: len(parameters)] = parameters
    own = np.zeros(MEMORY) if memory is None else memory
    answers = {
        s.continue_drafting(SPECULATION[name].kind, padded, NO_POLICY, own, CAP, row, last, following)
        for last in (0, 1)
        for following in (0, 1)
    }
    assert len(answers) == 1
    return bool(answers.pop())


# S = 0.8, α = 0.5: the next token survives with 0.4; one token takes a quarter of a batch, in which the device earns 0.5
NEXT = {"survival": 0.8, "acceptance_average": 0.5, "draft_time": 0.25, "own_rate": 0.5}
BUSY = NEXT | {"server_busy": 1, "boundary_left": 0.5, "jitter": 0.05}
CASES = [
    ("margin", (0.5, INF), seen(0, margin=0.0), True),
    ("margin", (0.5, INF), seen(2, margin=0.51), True),
    ("margin", (0.5, INF), seen(2, margin=0.49), False),
    ("margin", (0.5, 2), seen(2, margin=0.9), False),
    # √0.35 = 0.59, √0.37 = 0.61
    ("svip", (0.6, INF), seen(1, entropy=0.35), True),
    ("svip", (0.6, INF), seen(1, entropy=0.37), False),
    ("svip", (0.6, INF), seen(0, entropy=8.0), True),
    # cost 1·0.5·0.25 + M = 0.125 + M against 0.4
    ("price", (1, 0.27, INF), seen(1, **NEXT), True),
    ("price", (1, 0.28, INF), seen(1, **NEXT), False),
    ("price", (1, 0.20, INF), seen(1, **NEXT, price=0.08), False),  # the server's price counts as well
    ("price", (3.1, 0, INF), seen(1, **NEXT), True),  # 0.3875
    ("price", (3.3, 0, INF), seen(1, **NEXT), False),  # 0.4125
    ("price", (0, 0, 1), seen(1, **NEXT), False),
    # room 0.5 − 2·0.05 − 0.1 = 0.3 ≥ 0.25: the next token makes the same boundary, 0.4 against thr
    ("aligned", (0.39, 9, 2, 0.1, INF), seen(1, **BUSY), True),
    ("aligned", (0.41, 0, 2, 0.1, INF), seen(1, **BUSY), False),
    # draft 0.4 > 0.3: one batch more, n = ⌊1.3/0.4⌋ = 3 tokens worth 0.4·(1 + 0.5 + 0.25) = 0.7 against 0.9·0.5 + 0.1·1.5 = 0.6
    ("aligned", (0.1, 0.9, 2, 0.1, INF), seen(1, **BUSY | {"draft_time": 0.4}), True),
    # at 0.63 tokens a batch: 0.567 + 0.15 = 0.717
    ("aligned", (0.1, 0.9, 2, 0.1, INF), seen(1, **BUSY | {"draft_time": 0.4, "own_rate": 0.63}), False),
    # two more output tokens wanted than are drafted: n = 1, worth 0.4 against 0.45 + 0.05
    ("aligned", (0.1, 0.9, 2, 0.1, INF), seen(0, **BUSY | {"draft_time": 0.4, "tokens_left": 2 / 64}), False),
    # 0.05 left less 0.2: the boundary is out of reach, the next has room 0.85, in which 0.25 fits
    ("aligned", (0.39, 9, 2, 0.1, INF), seen(1, **BUSY | {"boundary_left": 0.05}), True),
    # a token of 2.5 batches, room 0.3: three boundaries go by, n = ⌊3.3/2.5⌋ = 1, 0.4 against 0.9·0.1·3 + 0.05 = 0.32 (0.15: 0.455)
    ("aligned", (0.1, 0.9, 2, 0.1, INF), seen(1, **BUSY | {"draft_time": 2.5, "own_rate": 0.1}), True),
    ("aligned", (0.1, 0.9, 2, 0.1, INF), seen(1, **BUSY | {"draft_time": 2.5, "own_rate": 0.15}), False),
    # an idle server: 0.4 against 0.9·ρ·0.25 + 0.05
    ("aligned", (0.1, 0.9, 2, 0.1, INF), seen(1, **NEXT | {"own_rate": 1.5}), True),  # 0.3875
    ("aligned", (0.1, 0.9, 2, 0.1, INF), seen(1, **NEXT | {"own_rate": 1.6}), False),  # 0.41
    ("aligned", (0, 0, 0, 0, 1), seen(1, **BUSY), False),
    # 1 − √(0.2·0.8) = 0.6 against λ
    ("adaedl", (0.2, 0.59, 0.9, 0.01, INF), seen(1, entropy=0.8), True),
    ("adaedl", (0.2, 0.61, 0.9, 0.01, INF), seen(1, entropy=0.8), False),
    ("adaedl", (0.2, 0.61, 0.9, 0.01, INF), seen(0), True),
]  # fmt: skip


@pytest.mark.parametrize(("name", "parameters", "row", "expected"), CASES)
def test_rules_decide_as_their_formulas(
    name: str, parameters: tuple[float, ...], row: np.ndarray, expected: bool
) -> None:
    assert goes_on(name, parameters, row) == expected


@pytest.mark.parametrize(
    ("p", "chance", "expected"), [(0.3, 0.29, True), (0.3, 0.31, False), (0.0, 0.0, False), (1.0, 0.999, True)]
)
def test_random_goes_on_where_a_draw_is_below_p(p: float, chance: float, expected: bool) -> None:
    parameters, memory = np.zeros(8), np.zeros(MEMORY)
    parameters[0] = p
    kind = SPECULATION["random"].kind
    for row in (seen(0), seen(5, survival=0.0)):
        assert bool(s.continue_drafting(kind, parameters, NO_POLICY, memory, CAP, row, 0, 0, chance)) == expected


unit = st.floats(0.0, 1.0, width=32)
rows = st.builds(
    seen, st.integers(0, CAP - 1), survival=unit, acceptance_average=unit, draft_time=st.floats(0.015625, 4.0, width=32),
    own_rate=st.floats(0.0, 5.0, width=32), boundary_left=unit, jitter=unit, server_busy=st.integers(0, 1),
    price=st.floats(0.0, 0.5, width=32), tokens_left=st.integers(13, 64).map(lambda n: n / 64),
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(rows, st.sampled_from(["price", "aligned"]), st.integers(0, 1), unit, unit)
def test_dearer_time_or_verification_never_lengthens_a_draft(
    row: np.ndarray, name: str, place: int, a: float, b: float
) -> None:
    rest = (INF,) if name == "price" else (2.0, 0.05, INF)
    cheap, dear = ([0.3, 0.3], [0.3, 0.3])
    cheap[place], dear[place] = min(a, b), max(a, b)
    if goes_on(name, (*dear, *rest), row):
        assert goes_on(name, (*cheap, *rest), row)


@settings(max_examples=200, deadline=None)
@given(rows)
def test_without_prices_both_draft_whatever_may_be_accepted_and_at_the_highest_nothing(row: np.ndarray) -> None:
    free = row.copy()
    free[o.PRICE] = 0.0
    gain = row[o.SURVIVAL] * row[o.ACCEPTANCE_AVERAGE] > 0.0
    assert goes_on("price", (0, 0, INF), free) == gain
    assert goes_on("aligned", (0, 0, 0, 0, INF), free) == gain
    assert not goes_on("price", (0, 1, INF), row)
    if row[o.SERVER_BUSY] and row[o.DRAFT_TIME] <= row[o.BOUNDARY_LEFT]:
        assert not goes_on("aligned", (1, 0, 0, 0, INF), row)


def rows_at_random(n: int, seed: int = 0) -> np.ndarray:
    """(n, SIZE) observations within the documented ranges."""
    return np.random.default_rng(seed).uniform(o.LOW, o.HIGH, (n, o.SIZE)).astype(np.float32)


@pytest.mark.parametrize("name", [name for name in TOKEN_RULES if name not in ("perfect", "oracle")])
def test_no_rule_but_the_bounds_depends_on_a_fate(name: str) -> None:
    parameters = resolve(f"{name}+fcfs", SHORT).speculation_parameters
    for row in rows_at_random(200):
        goes_on(name, parameters, row)


@pytest.mark.parametrize("name", sorted(SPECULATION))
def test_every_rule_keeps_to_its_cap_and_repeats_itself(name: str) -> None:
    rule = SPECULATION[name]
    places = [k for k, setting in enumerate(rule.settings) if setting.name == "k_max"]
    given_ = [setting.default for setting in rule.settings]
    controller = f"{name}+fcfs"
    if places and not any(map(math.isnan, given_)):
        given_[places[0]] = 2
        controller = f"{name}:{','.join(f'{x:g}' for x in given_)}+fcfs"
    first, again = run(SHORT, controller, [3], 20_000), run(SHORT, controller, [3], 20_000)
    for a, b in zip(first, again, strict=True):
        assert not isinstance(a, np.ndarray) or a.tobytes() == b.tobytes()
    lengths = [value for _, kind, _, value in log_of(first) if kind == "send"]
    assert len(lengths) > 50
    assert max(lengths) <= (2 if controller != f"{name}+fcfs" else SHORT.max_draft_tokens)


def test_a_dearer_server_gets_shorter_drafts() -> None:
    drafted = [simulate(SHORT, f"price:0.5,{m}+fcfs", (0, 1))[0].drafted_per_round for m in (0.0, 0.1, 0.3, 0.6)]
    assert drafted == sorted(drafted, reverse=True)
    assert drafted[0] > drafted[-1] + 1.0


def test_a_predictor_that_knows_nothing_leaves_powers_of_the_mean() -> None:
    """At an area of one half S_j = m^j; with A = 0 and M = 0.2 no round may be longer than m^j > 0.2 allows."""
    scenario = with_(SHORT, **CONSTANT_ACCEPTANCE | {"draft.statistics.auc": 0.5})
    longest = math.ceil(math.log(0.2) / math.log(mean_acceptance(scenario.draft.acceptance)))
    lengths = [value for _, kind, _, value in log_of(run(scenario, "price:0,0.2+fcfs", [0], 20_000)) if kind == "send"]
    assert 0 < max(lengths) <= min(longest, scenario.max_draft_tokens)


def test_a_device_that_has_lost_heart_tries_again() -> None:
    """Rounds without drafts bring the running acceptance back to what was expected at first."""
    scenario = with_(SHORT, **CONSTANT_ACCEPTANCE)
    arrays = run(scenario, "fixed:0+fcfs", [0])
    d = arrays.device[0]
    np.testing.assert_allclose(d["accepted_sum"] / d["examined_sum"], mean_acceptance(scenario.draft.acceptance))
