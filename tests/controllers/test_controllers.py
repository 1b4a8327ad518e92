"""Controllers: every rule's decision on cases computed by hand, learned policies and their files."""

from __future__ import annotations

import copy
import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wisp_gym.contract import device as o
from wisp_gym.controllers.names import ControllerError
from wisp_gym.controllers.policy import PolicyError, load_policy, make_policy, save_policy
from wisp_gym.controllers.predict import SpeculationPredictor
from wisp_gym.controllers.resolve import resolve
from wisp_gym.rules import batching as b
from wisp_gym.rules import speculation as s
from wisp_gym.rules.bandits import MEMORY
from wisp_gym.rules.catalogue import ALIASES, SPECULATION
from wisp_gym.rules.controller import NO_POLICY
from wisp_gym.rules.mlp import argmax_action, logits, pack
from wisp_gym.scenario import Scenario, load, with_
from wisp_gym.simulation import simulate

CAP = 12
NO_MEMORY = np.zeros(MEMORY)
REJECTED, ACCEPTED = 0, 1
SEND, CONTINUE = 0, 1


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return load("wisp-a100-qwen3-32b")


@pytest.fixture(scope="module")
def short(scenario: Scenario) -> Scenario:
    return with_(scenario, **{"horizon.warmup_s": 1.0, "horizon.measure_s": 10.0, "horizon.drain_s": 2.0})


def seen(drafted: int, **values: float) -> np.ndarray:
    """(SIZE,) observation after `drafted` tokens; the rest is what stands before the first token."""
    row = np.zeros(o.SIZE, np.float32)
    row[[o.SURVIVAL, o.ACCEPT_PROBABILITY, o.CONFIDENCE, o.MARGIN]] = 1.0
    row[o.DRAFTED_TOKENS] = drafted / CAP
    for name, value in values.items():
        row[o.NAMES.index(name)] = value
    return row


def decision(
    kind: int, parameters: tuple[float, ...], row: np.ndarray, last: int = ACCEPTED, following: int = ACCEPTED
) -> int:
    padded = np.zeros(8)
    padded[: len(parameters)] = parameters
    return int(s.continue_drafting(kind, padded, NO_POLICY, NO_MEMORY, CAP, row, last, following))


# --- speculation rules -----------------------------------------------------------------------------------------------

INF = math.inf
SPECULATION_CASES = [
    # fixed(3): exactly three tokens, whatever is seen
    (s.FIXED, (3,), seen(0), CONTINUE),
    (s.FIXED, (3,), seen(2, survival=0.0, confidence=0.0), CONTINUE),
    (s.FIXED, (3,), seen(3), SEND),
    (s.FIXED, (0,), seen(0), SEND),
    # SLED: continue while the last token's confidence is at least 0.6
    (s.CONFIDENCE_RULE, (0.6, INF), seen(0, confidence=0.0), CONTINUE),
    (s.CONFIDENCE_RULE, (0.6, INF), seen(1, confidence=0.61), CONTINUE),
    (s.CONFIDENCE_RULE, (0.6, INF), seen(1, confidence=0.59), SEND),
    (s.CONFIDENCE_RULE, (0.5, INF), seen(1, confidence=0.5), CONTINUE),
    (s.CONFIDENCE_RULE, (0.6, 4), seen(4, confidence=0.99), SEND),
    (s.CONFIDENCE_RULE, (0.6, 0), seen(0), SEND),
    # WISP: stop when the predictor takes the last token for rejected, however well the round stands
    (s.WISP, (0.4, INF), seen(0, accept_probability=0.0), CONTINUE),
    (s.WISP, (0.4, INF), seen(5, accept_probability=0.41, survival=0.01), CONTINUE),
    (s.WISP, (0.4, INF), seen(5, accept_probability=0.39, survival=0.99), SEND),
    (s.WISP, (0.4, 2), seen(2, accept_probability=0.9), SEND),
    # SpecDec++: stop when 1 - survival exceeds h = 0.7, from k_min = 2 on, up to k_max = 6
    (s.SURVIVAL_RULE, (0.7, INF, 0), seen(1, survival=0.31), CONTINUE),
    (s.SURVIVAL_RULE, (0.7, INF, 0), seen(1, survival=0.29), SEND),
    (s.SURVIVAL_RULE, (0.7, 6, 2), seen(1, survival=0.01), CONTINUE),
    (s.SURVIVAL_RULE, (0.7, 6, 2), seen(2, survival=0.01), SEND),
    (s.SURVIVAL_RULE, (0.7, 6, 2), seen(6, survival=1.0), SEND),
]


@pytest.mark.parametrize(("kind", "parameters", "row", "expected"), SPECULATION_CASES)
def test_speculation_rules_decide_as_their_formulas(
    kind: int, parameters: tuple[float, ...], row: np.ndarray, expected: int
) -> None:
    for last in (REJECTED, ACCEPTED):  # no rule but the bounds may depend on a fate
        for following in (REJECTED, ACCEPTED):
            assert decision(kind, parameters, row, last, following) == expected


def test_the_bounds_know_fates() -> None:
    assert decision(s.PERFECT, (), seen(0), last=REJECTED, following=REJECTED) == CONTINUE  # nothing drafted yet
    assert decision(s.PERFECT, (), seen(3), last=ACCEPTED, following=REJECTED) == CONTINUE
    assert decision(s.PERFECT, (), seen(3), last=REJECTED) == SEND
    assert decision(s.ORACLE, (), seen(0), following=REJECTED) == SEND
    assert decision(s.ORACLE, (), seen(3), last=ACCEPTED, following=ACCEPTED) == CONTINUE


def test_the_number_of_drafted_tokens_survives_its_scaling_for_every_cap() -> None:
    for cap in range(1, 33):
        for drafted in range(cap + 1):
            row = seen(0)
            row[o.DRAFTED_TOKENS] = drafted / cap
            parameters = np.array([drafted, *[0.0] * 7])
            assert s.continue_drafting(s.FIXED, parameters, NO_POLICY, NO_MEMORY, cap, row, 1, 1) == SEND
            parameters[0] = drafted + 1
            assert s.continue_drafting(s.FIXED, parameters, NO_POLICY, NO_MEMORY, cap, row, 1, 1) == CONTINUE


# --- batching rules --------------------------------------------------------------------------------------------------


def request(**values: float) -> np.ndarray:
    """(FEATURES,) features of a request that is alone for 50 ms, due at 1 s and expects 2 tokens."""
    row = np.zeros(b.FEATURES)
    defaults = {"solo_s": 0.05, "deadline_s": 1.0, "expected_tokens": 2.0, "arrived_s": 0.3}
    names = [feature.name for feature in b.FEATURE_TABLE]
    for name, value in {**defaults, **values}.items():
        row[names.index(name)] = value
    return row


def key(
    kind: int,
    row: np.ndarray,
    now_s: float = 0.0,
    mean_batch_s: float = 0.1,
    parameters: tuple[float, ...] = (0.0, 1.0),
) -> float:
    return float(b.priority(kind, np.array(parameters), now_s, mean_batch_s, row))


def admitted(
    kind: int,
    row: np.ndarray,
    n_batch: int,
    predicted_s: float,
    due_s: float = INF,
    n_running: int = 0,
    parameters: tuple[float, ...] = (0.0, 1.0),
    batch_s: float = 0.0,
    now_s: float = 0.0,
) -> bool:
    numbers = np.array(parameters, dtype=float)
    return bool(b.admits(kind, numbers, now_s, 0.1, row, n_batch, n_running, batch_s, predicted_s, due_s))


def test_the_feature_table_names_every_feature_in_order() -> None:
    assert [f.name for f in b.FEATURE_TABLE] == [
        *("waiting_s", "slack_s", "new_tokens", "uncached_tokens", "cached_tokens", "expected_tokens"),
        *("slo_tokens_per_s", "marginal_s", "solo_s", "draft_tokens", "arrived_s", "deadline_s", "running", "turn"),
        *("age_s", "committed_tokens", "due_s", "owed_tokens"),
    ]
    assert all(getattr(b, f.name.upper()) == index for index, f in enumerate(b.FEATURE_TABLE))


def test_static_batch_and_control_limit_wait() -> None:
    parameters = np.array([4.0, 0.1])
    for kind in (b.FCFS, b.EDF, b.WISP, b.CONTINUOUS, b.EDF_DEMOTED, b.LEAST_LAXITY, b.MARGINAL, b.PACED):
        assert b.ready(kind, parameters, 1, 0.0) == 0.0
    for kind in (b.STATIC, b.CONTROL_LIMIT):
        assert b.ready(kind, parameters, 3, 0.04) == pytest.approx(0.06)
        assert b.ready(kind, parameters, 4, 0.0) == 0.0
        assert b.ready(kind, parameters, 1, 0.1) == 0.0


def test_a_turn_waits_for_its_members_until_its_planned_time() -> None:
    # launched at 2 s, a cycle of 0.4 s, a patience of one half: planned for 2.2 s
    for now_s, waiting, coming, expected in (
        (2.05, 3, 1, 0.15), (2.05, 0, 1, 0.15), (2.05, 3, 0, 0.0), (2.05, 0, 0, INF), (2.2, 3, 1, 0.0), (2.3, 0, 1, INF),
    ):  # fmt: skip
        assert b.turn_wait_s(np.array([0.5, 0.4, 2.0]), now_s, waiting, coming, 2.0) == pytest.approx(expected)


def test_a_pipelined_batch_is_of_one_group_and_of_prompts() -> None:
    member, other = request(arrived_s=0.5, turn=1.0), request(arrived_s=0.2, turn=0.0)
    prompt = request(arrived_s=0.1, turn=0.0, uncached_tokens=80.0)
    assert key(b.PIPELINED, member) == 0.5 - 1e9
    assert key(b.PIPELINED, prompt) == 0.1
    taken = [admitted(b.PIPELINED, row, n_batch=0, predicted_s=9.0) for row in (member, other, prompt)]
    assert taken == [True, False, True]


def test_orders_of_the_queue() -> None:
    early, late = request(arrived_s=0.1, deadline_s=2.0), request(arrived_s=0.2, deadline_s=1.0)
    for kind in (b.FCFS, b.STATIC, b.CONTROL_LIMIT, b.MARGINAL):
        assert key(kind, early) < key(kind, late)
    for kind in (b.EDF, b.EDF_DEMOTED, b.LEAST_LAXITY):
        assert key(kind, late, parameters=(0.0,)) < key(kind, early, parameters=(0.0,))
    running = request(arrived_s=0.9, running=1.0)
    for kind in (b.CONTINUOUS, b.PACED):
        assert key(kind, running) < key(kind, early)  # it stays in the batch


def test_least_laxity_starts_first_what_must_start_first() -> None:
    # latest starts: 1.0 - 0.05 = 0.95 and 1.1 - 0.2 = 0.9, against the order of the deadlines
    light, heavy = request(deadline_s=1.0), request(deadline_s=1.1, solo_s=0.2)
    assert key(b.LEAST_LAXITY, light) == pytest.approx(0.95)
    assert key(b.LEAST_LAXITY, heavy) == pytest.approx(0.9)
    assert key(b.EDF, light) < key(b.EDF, heavy)


def test_late_requests_are_demoted_to_best_effort() -> None:
    # alone it ends at 0.98 + 0.05 = 1.03: late by 30 ms
    late, fresh = request(), request(deadline_s=9.0)
    assert (
        key(b.EDF_DEMOTED, late, now_s=0.98, parameters=(0.04,)) == 1.0 - 1e9
    )  # late by less than 40 ms: in its place
    assert key(b.EDF_DEMOTED, late, now_s=0.98, parameters=(0.02,)) == 1.0  # behind all others
    assert key(b.EDF_DEMOTED, fresh, now_s=0.98, parameters=(0.02,)) == 9.0 - 1e9
    demoted = {"now_s": 0.98, "parameters": (0.0,), "n_batch": 3, "due_s": 1.2}
    assert admitted(b.EDF_DEMOTED, late, predicted_s=0.22, **demoted)  # ends at 1.20, as another one must
    assert not admitted(b.EDF_DEMOTED, late, predicted_s=0.23, **demoted)
    assert admitted(b.EDF_DEMOTED, fresh, predicted_s=0.23, **demoted)  # what is not late joins in any case
    assert admitted(b.EDF_DEMOTED, late, predicted_s=0.23, **(demoted | {"n_batch": 0}))


def test_a_request_joins_while_it_adds_less_than_the_batchs_time_per_request() -> None:
    # four requests take 60 ms so far, 15 ms each: one that makes it 74 ms joins, one that makes it 76 ms does not
    for predicted_s, expected in ((0.074, True), (0.076, False)):
        found = admitted(b.MARGINAL, request(), n_batch=4, predicted_s=predicted_s, batch_s=0.06, parameters=(1.0,))
        assert found == expected
    assert admitted(b.MARGINAL, request(), n_batch=4, predicted_s=0.076, batch_s=0.06, parameters=(1.1,))  # 16.5 ms
    assert admitted(b.MARGINAL, request(), n_batch=0, predicted_s=9.0, parameters=(1.0,))


def test_paced_serving_keeps_the_promised_speed() -> None:
    # the newcomer's class asks for 8 tokens/s, a step of 125 ms; the tightest of those that run for 100 ms
    row = request(slo_tokens_per_s=8.0)
    assert b.binding_deadline_s(b.PACED, 2.0, row, 0.0) == pytest.approx(2.125)
    for predicted_s, due_s, margin, expected in (
        (0.1, 0.1, 0.0, True), (0.101, 0.1, 0.0, False), (0.12, INF, 0.0, True), (0.13, INF, 0.0, False), (0.1, 0.1, 0.05, False),
    ):  # fmt: skip
        found = admitted(b.PACED, row, n_batch=5, predicted_s=predicted_s, due_s=due_s, parameters=(margin,))
        assert found == expected
    running = request(slo_tokens_per_s=8.0, running=1.0)
    assert admitted(b.PACED, running, n_batch=5, predicted_s=9.0, due_s=0.1)  # never thrown out
    assert admitted(b.PACED, row, n_batch=0, predicted_s=9.0)


def test_wisp_takes_urgent_requests_by_deadline_and_the_rest_by_density() -> None:
    # latest start 1.0 - 0.05·(1 + margin); urgent within one mean batch (0.1 s) of it
    assert key(b.WISP, request(), now_s=0.84) == pytest.approx(-2.0 / 0.05)
    assert key(b.WISP, request(), now_s=0.86) == 1.0 - 1e9
    # a margin of one half moves the latest start to 0.925
    assert key(b.WISP, request(), now_s=0.84, parameters=(0.5, 1.0)) == 1.0 - 1e9
    assert key(b.WISP, request(), now_s=0.74, parameters=(0.0, 2.0)) == pytest.approx(-40.0)  # a window of two batches
    assert key(b.WISP, request(), now_s=0.76, parameters=(0.0, 2.0)) == 1.0 - 1e9
    dense, thin = request(expected_tokens=4.0), request(expected_tokens=1.5)
    assert key(b.WISP, dense) < key(b.WISP, thin)
    sooner, later = request(deadline_s=0.9), request(deadline_s=0.95, expected_tokens=9.0)
    assert key(b.WISP, sooner, now_s=0.85) < key(b.WISP, later, now_s=0.85) < key(b.WISP, dense, now_s=0.0)


def test_wisp_admits_the_urgent_and_what_breaks_no_deadline() -> None:
    # latest start 1.0 - 0.05 = 0.95, the window one mean batch of 0.1 s: urgent from 0.85 s on
    assert admitted(b.WISP, request(), n_batch=0, predicted_s=9.0, due_s=0.1)  # the first is always taken
    assert admitted(b.WISP, request(), n_batch=1, predicted_s=0.5, due_s=0.5)
    assert not admitted(b.WISP, request(), n_batch=1, predicted_s=0.51, due_s=0.5)  # would make another one late
    assert not admitted(b.WISP, request(deadline_s=0.4), n_batch=1, predicted_s=0.5, due_s=0.6)  # would be late itself
    assert not admitted(b.WISP, request(), n_batch=1, predicted_s=0.5, due_s=0.5, parameters=(0.05, 1.0))  # the margin
    assert not admitted(b.WISP, request(), n_batch=1, predicted_s=0.5, due_s=1.3, now_s=0.84)
    assert admitted(b.WISP, request(), n_batch=1, predicted_s=0.5, due_s=1.3, now_s=0.86)  # urgent: in any case
    # late even alone: urgent, and binds nothing
    assert admitted(b.WISP, request(deadline_s=0.04), n_batch=1, predicted_s=0.5, due_s=0.6)
    assert b.binding_deadline_s(b.WISP, 0.0, request(deadline_s=0.04), 0.0) == INF
    assert b.binding_deadline_s(b.WISP, 0.0, request(deadline_s=0.06), 0.0) == 0.06
    assert b.binding_deadline_s(b.WISP, 0.0, request(deadline_s=0.06), 0.5) == INF


def test_limits_of_the_other_batches() -> None:
    for kind in (b.FCFS, b.EDF, b.LEAST_LAXITY, b.CONTROL_LIMIT):
        assert admitted(kind, request(deadline_s=0.0), n_batch=500, predicted_s=99.0, due_s=0.0)
    assert admitted(b.STATIC, request(), n_batch=3, predicted_s=1.0, parameters=(4, 0.1))
    assert not admitted(b.STATIC, request(), n_batch=4, predicted_s=1.0, parameters=(4, 0.1))
    assert admitted(b.CONTINUOUS, request(), n_batch=9, predicted_s=1.0, n_running=15, parameters=(0, 16))
    assert not admitted(b.CONTINUOUS, request(), n_batch=9, predicted_s=1.0, n_running=16, parameters=(0, 16))
    assert admitted(b.CONTINUOUS, request(running=1.0), n_batch=9, predicted_s=1.0, n_running=16, parameters=(0, 16))
    # 0: no limit
    assert admitted(b.CONTINUOUS, request(), n_batch=9, predicted_s=1.0, n_running=999, parameters=(0, 0))
    assert not admitted(b.CONTINUOUS, request(running=1.0), n_batch=16, predicted_s=1.0, parameters=(16, 0))
    assert (
        b.priority(b.CONTINUOUS, (16.0, 0.0), 0.0, 0.05, request(arrived_s=7.0)) == 0.0
    )  # in turn: as they stand in the queue


# --- learned policies ------------------------------------------------------------------------------------------------


def layers(seed: int, *widths: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Random (W, b) of layers from the observation through `widths`."""
    rng = np.random.default_rng(seed)
    sizes = [o.SIZE, *widths]
    return [
        (rng.normal(0, n**-0.5, (m, n)).astype(np.float32), rng.normal(0, 0.1, m).astype(np.float32))
        for n, m in pairwise(sizes)
    ]


def forward(parts: list[tuple[np.ndarray, np.ndarray]], rows: np.ndarray, activation: str) -> np.ndarray:
    """(n, outputs) of a plain NumPy evaluation."""
    for index, (w, bias) in enumerate(parts):
        rows = rows.astype(np.float64) @ w.astype(np.float64).T + bias
        if index < len(parts) - 1:
            rows = np.tanh(rows) if activation == "tanh" else np.maximum(rows, 0.0)
    return rows


def rows_of(n: int) -> np.ndarray:
    """(n, SIZE) observations within the documented bounds."""
    return np.random.default_rng(3).uniform(o.LOW, o.HIGH, (n, o.SIZE)).astype(np.float32)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("widths", [(2,), (16, 2), (64, 32, 13)])
def test_the_compiled_network_is_numpys(activation: str, widths: tuple[int, ...]) -> None:
    parts, rows = layers(1, *widths), np.random.default_rng(2).normal(size=(200, o.SIZE)).astype(np.float32)
    weights, expected = pack(parts, activation), forward(parts, rows, activation)
    out = np.empty(widths[-1], np.float32)
    for row, outputs in zip(rows, expected, strict=True):
        assert logits(weights, row, out) == widths[-1]
        np.testing.assert_allclose(out, outputs, rtol=1e-3, atol=1e-4)
    sure = np.sort(expected, axis=1)[:, -1] - np.sort(expected, axis=1)[:, -2] > 1e-3  # float32 may turn a tie
    assert sure.mean() > 0.9
    actions = np.array([argmax_action(weights, row) for row in rows])
    assert (actions == expected.argmax(axis=1))[sure].all()
    assert len(set(expected.argmax(axis=1))) > 1


def test_a_tie_goes_to_the_first_output() -> None:
    assert argmax_action(pack([(np.zeros((3, o.SIZE), np.float32), np.zeros(3, np.float32))]), seen(0)) == 0


def test_a_policy_survives_its_file_and_drives_the_engine(short: Scenario, tmp_path: Path) -> None:
    policy = make_policy(layers(2, 8, 2), "token", "relu", command="made by hand")
    save_policy(policy, tmp_path / "policy.json")
    assert [path.name for path in tmp_path.iterdir()] == ["policy.json"]
    for name in (tmp_path, tmp_path / "policy.json"):
        again = load_policy(name)
        assert again.weights.tobytes() == policy.weights.tobytes()
        assert (again.decision, again.activation, again.about) == ("token", "relu", {"command": "made by hand"})
    found = resolve(f"{tmp_path}+fcfs", short)
    assert (found.speculation, found.batching) == (s.POLICY, b.FCFS)
    assert resolve(str(tmp_path), short).batching == b.WISP
    assert simulate(short, found, (0,), 4) == simulate(short, f"{tmp_path}/policy.json+fcfs", (0,), 4)


def test_a_constant_policy_is_a_fixed_length(short: Scenario, tmp_path: Path) -> None:
    """Logits ±(drafted - 2.5)/K continue up to three tokens: with a free predictor, the worlds of fixed(3)."""
    free = with_(short, **{f"devices.{index}.predictor_s": 0.0 for index in range(len(short.devices))})
    weight = np.zeros((2, o.SIZE), np.float32)
    weight[:, o.DRAFTED_TOKENS] = [1.0, -1.0]
    bias = np.array([-2.5, 2.5], np.float32) / short.max_draft_tokens
    save_policy(make_policy([(weight, bias)]), tmp_path / "policy.json")
    assert simulate(free, f"{tmp_path}+fcfs", (0, 1), 4) == simulate(free, "fixed:3+fcfs", (0, 1), 4)
    length = (np.zeros((6, o.SIZE), np.float32), np.eye(6, dtype=np.float32)[3])
    save_policy(make_policy([length], "length"), tmp_path / "policy.json")
    assert simulate(free, f"{tmp_path}+fcfs", (0, 1), 4) == simulate(free, "fixed:3+fcfs", (0, 1), 4)


@pytest.mark.parametrize(
    ("parts", "decision_kind", "activation", "words"),
    [
        (layers(0, 2), "word", "tanh", "allowed are token, length"),
        (layers(0, 2), "token", "gelu", "allowed are 'tanh' and 'relu'"),
        (layers(0, 3), "token", "tanh", "outputs: given 3"),
        (layers(0, 40), "length", "tanh", "outputs: given 40"),
        ([(np.zeros((2, 5), np.float32), np.zeros(2, np.float32))], "token", "tanh", "inputs: given 5"),
        ([*layers(0, 4), *layers(0, 2)], "token", "tanh", "do not follow"),
        (layers(0, 1025, 2), "token", "tanh", "at most 1024"),
        ([], "token", "tanh", "layers"),
        ([(np.full((2, o.SIZE), np.nan, np.float32), np.zeros(2, np.float32))], "token", "tanh", "finite"),
    ],
)
def test_weights_that_do_not_fit_are_refused(parts: Any, decision_kind: str, activation: str, words: str) -> None:
    with pytest.raises(PolicyError, match=words):
        make_policy(parts, decision_kind, activation)


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("policy") / "policy.json"
    save_policy(make_policy(layers(5, 3, 2)), path)
    return json.loads(path.read_text())


WRONG_VALUES = [
    *(None, True, 0, -1, 10**400, 1e39, 1.5, "", "1.0", "x"),
    *([], [[]], [1, [2]], {}, {"a": 1}, [None], [{"weight": 1, "bias": 2}]),
]
PATHS = [
    *(("format",), ("version",), ("decision",), ("activation",), ("about",)),
    *(("observation",), ("observation", 0), ("observation", 0, 0)),
    *(("layers",), ("layers", 0), ("layers", 0, "weight"), ("layers", 0, "weight", 0), ("layers", 0, "weight", 0, 0)),
    *(("layers", 1, "bias"), ("layers", 1, "bias", 0)),
]


def reads_or_refuses(path: Path) -> None:
    """A damaged file is read or refused by one line; nothing else ever comes of it."""
    refusal = ""
    try:
        policy = load_policy(path)
    except PolicyError as error:
        refusal = str(error)
    if refusal:
        assert "\n" not in refusal
        assert str(path) in refusal
        return
    assert np.isfinite(policy.weights).all()
    assert policy.decision in ("token", "length")
    assert argmax_action(policy.weights, seen(0)) in range(33)


@pytest.mark.parametrize("place", PATHS, ids=lambda place: ".".join(map(str, place)))
def test_damaged_policies_are_refused(place: tuple[Any, ...], document: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    for value in WRONG_VALUES:
        damaged = copy.deepcopy(document)
        part = damaged
        for step in place[:-1]:
            part = part[step]
        part[place[-1]] = value
        path.write_text(json.dumps(damaged))
        reads_or_refuses(path)
        if isinstance(part, dict):
            del part[place[-1]]
            path.write_text(json.dumps(damaged))
            reads_or_refuses(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10**6), st.binary(max_size=6), st.integers(0, 40))
def test_damaged_bytes_are_refused(
    document: dict[str, Any], tmp_path: Path, at: int, inserted: bytes, dropped: int
) -> None:
    content = json.dumps(document).encode()
    at %= len(content)
    path = tmp_path / "policy.json"
    path.write_bytes(content[:at] + inserted + content[at + dropped :])
    reads_or_refuses(path)


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "[" * 100_000, '{"format": "wisp-gym policy", "version": 1}', "NaN", "\ufeff{}"]
)
def test_other_files_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(PolicyError, match=r"policy\.json"):
        load_policy(path)


def test_missing_files_and_other_kinds_are_refused(tmp_path: Path) -> None:
    for name, words in (("absent.json", "No such file"), ("model.zip", "given a '.zip' file"), (".", "No such file")):
        with pytest.raises(PolicyError, match=words):
            load_policy(tmp_path / name)


# --- predict ---------------------------------------------------------------------------------------------------------


def test_predict_decides_as_the_rule(scenario: Scenario) -> None:
    predictor = SpeculationPredictor("survival:0.7", scenario)  # the batching rule may be left out
    rows = np.stack([seen(0), seen(3, survival=0.31), seen(3, survival=0.29)])
    actions, state = predictor.predict(rows)
    assert (actions.tolist(), actions.dtype, state) == ([1, 1, 0], np.int64, None)
    for row, action in zip(rows, actions, strict=True):
        single, same = predictor.predict(row, state=(row,), episode_start=np.ones(1, bool), deterministic=True)
        assert (single.shape, single.dtype, int(single)) == ((), np.int64, action)
        assert same == (row,)
    np.testing.assert_array_equal(predictor.predict(rows[:, ::-1].astype(np.float64)[:, ::-1])[0], actions)
    assert predictor.predict(np.empty((0, o.SIZE)))[0].shape == (0,)


def test_predict_takes_every_speculation_rule(scenario: Scenario, tmp_path: Path) -> None:
    rows = rows_of(50)
    rows[:, [o.DRAFTS_ON, o.TAKES_OVER]] = 0.0  # rounds end in one way, so nobody is asked when they are full
    fates = {"last_fate": np.arange(50) % 2, "next_fate": np.arange(50) // 2 % 2}
    for name in [*(name for name, rule in SPECULATION.items() if not rule.learns), *ALIASES, "wisp+edf"]:
        predictor = SpeculationPredictor(name, scenario)
        last = 1 if predictor.controller.speculation < s.POLICY_LENGTH else CAP
        assert set(predictor.predict(rows, info=fates)[0]) <= set(range(last + 1))
    assert SpeculationPredictor("oracle", scenario).predict(rows, info=fates)[0].tolist() == fates["next_fate"].tolist()
    for outputs, kind in ((2, "token"), (13, "length")):
        parts = layers(4, 8, outputs)
        save_policy(make_policy(parts, kind), tmp_path / "policy.json")
        actions, _ = SpeculationPredictor(str(tmp_path), scenario).predict(rows)
        assert (actions == forward(parts, rows, "tanh").argmax(axis=1)).mean() > 0.95


def test_predict_refuses_what_it_cannot_use(scenario: Scenario) -> None:
    with pytest.raises(ControllerError, match="drafts nothing"):
        SpeculationPredictor("centralized", scenario)
    for name in (name for name, rule in SPECULATION.items() if rule.learns):
        with pytest.raises(ControllerError, match="inside the engine alone; allowed: fixed"):
            SpeculationPredictor(name, scenario)
    with pytest.raises(ControllerError, match="did you mean 'fixed'"):
        SpeculationPredictor("fixd:3", scenario)
    for shape in ((), (3,), (2, o.SIZE + 1), (1, 2, o.SIZE)):
        with pytest.raises(ValueError, match=r"observation: given .*shape"):
            SpeculationPredictor("wisp", scenario).predict(np.zeros(shape))
    for name, fate in (("perfect", "last_fate"), ("oracle", "next_fate")):
        predictor = SpeculationPredictor(name, scenario)
        for info in (None, {}, {"dt": 0.1}):
            with pytest.raises(ValueError, match=fate):
                predictor.predict(seen(1), info=info)
        for given_fates in (2, [0, 1], [[1]]):
            with pytest.raises(ValueError, match="allowed are 0 and 1"):
                predictor.predict(seen(1), info={fate: given_fates})
