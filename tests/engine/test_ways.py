"""How a round ends as a decision: policies that draft on while waiting and hand sessions over, beside the reference simulator."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest

from tests.support.invariants import assert_kept
from tests.support.small_worlds import BASE, SmallWorld, horizon, log_of, run
from tests.support.twins import LOG_ROWS, assert_same
from wisp_gym.contract import device
from wisp_gym.contract.actions import DRAFT, DRAFT_ON, HAND_OVER, SEND, TOKEN_ACTIONS, WAYS
from wisp_gym.controllers.policy import Policy, PolicyError, make_policy
from wisp_gym.controllers.resolve import resolve
from wisp_gym.engine.worlds import NO_TRACE
from wisp_gym.rules.controller import Controller
from wisp_gym.rules.ways import allows
from wisp_gym.scenario import Scenario, with_

DRAFT_TIME = {"overhead_s": 0.002, "launch_s": 0.004, "sequence_s": 1e-4, "token_s": 2e-5, "cached_token_s": 5e-8}
DRAFT_OF_THE_SERVER = {
    "name": "same", "weights_bytes": 12 * 10**8, "kv_bytes_per_token": 10**5, "offer": 1.0, "correlation": 1.0,
    "acceptance": asdict(BASE.draft.acceptance), "time": DRAFT_TIME,
}  # fmt: skip
SMALL = with_(
    BASE, n_devices=6, horizon=horizon(2.0, 10.0, 2.0), server_drafts=[DRAFT_OF_THE_SERVER], max_draft_tokens=5
)
ENDS = (
    "+by-device+colocated:3+overlap",
    "+by-device:2+colocated-survival+overlap:3,0.5",
    "+by-device",
    "+overlap:5",
    "+by-load:3+colocated:2",
    "+by-price+colocated-turbospec+overlap",
    "",
)


def random_policy(seed: int, decision: str) -> Policy:
    """Two random layers, eager to draft first: without that few rounds hold a token."""
    rng = np.random.default_rng(seed)
    n = len(TOKEN_ACTIONS) if decision == "token-way" else len(WAYS) * (SMALL.max_draft_tokens + 1)
    hidden = rng.normal(0.0, 0.6, (16, device.SIZE)).astype(np.float32)
    bias = rng.normal(0.0, 0.3, n).astype(np.float32)
    if n == len(TOKEN_ACTIONS):
        bias[DRAFT] += 1.5
    last = rng.normal(0.0, 0.7, (n, 16)).astype(np.float32)
    return make_policy([(hidden, np.zeros(16, np.float32)), (last, bias)], decision)


def controlled(policy: Policy, rest: str, scenario: Scenario = SMALL) -> Controller:
    """A policy of devices beside rules of the server."""
    return resolve(f"policy.json+{rest}", scenario, load=lambda name: policy)


@pytest.mark.parametrize("decision", ["token-way", "length-way"])
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("seed", range(3))
def test_engine_and_reference_tell_the_same_story(decision: str, end: str, seed: int) -> None:
    controller = controlled(random_policy(seed, decision), f"wisp{end}")
    assert assert_same(SmallWorld(SMALL, controller, seed, NO_TRACE)) > 300  # type: ignore[arg-type]


def always(action: int) -> Policy:
    """Draft one token, then this."""
    weights, bias = np.zeros((len(TOKEN_ACTIONS), device.SIZE), np.float32), np.zeros(len(TOKEN_ACTIONS), np.float32)
    bias[DRAFT], bias[action] = 1.0, 1.0 + bias[DRAFT] * (action != DRAFT)
    weights[DRAFT, device.DRAFTED_TOKENS] = -50.0
    weights[action, device.DRAFTED_TOKENS] = 0.0 if action == DRAFT else 5.0
    bias[action] = 0.5
    return make_policy([(weights, bias)], "token-way")


def test_a_device_that_always_hands_over_has_its_responses_from_the_server() -> None:
    log = log_of(run(SMALL, controlled(always(HAND_OVER), "wisp+by-device+colocated:3"), [1], LOG_ROWS))  # type: ignore[arg-type]
    kinds = [kind for _, kind, _, _ in log]
    moves = kinds.count("drafter")
    assert moves >= kinds.count("done") > 3  # each response, once: after its first round
    assert kinds.count("send") <= 2 * kinds.count("request") + moves
    assert kinds.count("overlap") == 0


def test_a_device_that_always_drafts_on_never_moves() -> None:
    log = log_of(run(SMALL, controlled(always(DRAFT_ON), "wisp+by-device+colocated:3+overlap:4"), [1], LOG_ROWS))  # type: ignore[arg-type]
    kinds = [kind for _, kind, _, _ in log]
    assert kinds.count("drafter") == 0
    assert kinds.count("overlap") > 20


def test_one_that_only_sends_is_the_plain_policy() -> None:
    """With the ways closed in its weights, and none open in the world, it is the same controller as without them."""
    ways = random_policy(4, "token-way")
    (hidden, nothing), (last, bias) = ways.layers
    plain = make_policy([(hidden, nothing), (last[:DRAFT_ON], bias[:DRAFT_ON])])
    both = [run(SMALL, controlled(policy, "wisp"), [2], LOG_ROWS) for policy in (ways, plain)]  # type: ignore[arg-type]
    assert log_of(both[0]) == log_of(both[1])


def test_the_place_at_the_server_is_asked_for_in_vain_where_it_is_full() -> None:
    log = log_of(run(SMALL, controlled(always(HAND_OVER), "wisp+by-device:0+colocated:3"), [1], LOG_ROWS))  # type: ignore[arg-type]
    assert [kind for _, kind, _, _ in log].count("drafter") == 0


def row(**quantities: float) -> np.ndarray:
    """An observation by the names of its entries, in their units."""
    o = np.zeros(device.SIZE, np.float32)
    for name, value in quantities.items():
        o[device.NAMES.index(name)] = value
    return o


@pytest.mark.parametrize(
    ("quantities", "allowed"),
    [
        ({"tokens_left": 1.0}, [True, True, False, False]),
        ({"tokens_left": 1.0, "drafts_on": 1.0}, [True, True, False, False]),  # nothing drafted, nothing to go on from
        ({"tokens_left": 1.0, "drafts_on": 1.0, "drafted_tokens": 0.4}, [True, True, True, False]),
        ({"tokens_left": 1.0, "takes_over": 1.0}, [True, True, False, True]),
        ({"tokens_left": 1.0, "takes_over": 1.0, "drafts_on": 1.0, "drafted_tokens": 1.0}, [True, False, True, True]),
        ({"tokens_left": 1 / 64, "takes_over": 1.0}, [True, False, False, False]),  # the last token
        ({"tokens_left": 3 / 64, "drafts_on": 1.0, "drafted_tokens": 0.4}, [True, False, True, False]),
    ],
)
def test_what_an_observation_allows(quantities: dict[str, float], allowed: list[bool]) -> None:
    o = row(**quantities)
    assert [bool(allows(action, 0, 5, o)) for action in (SEND, DRAFT, DRAFT_ON, HAND_OVER)] == allowed
    cap, drafted = min(5, round(quantities["tokens_left"] * 64) - 1), range(6)
    on, over = quantities.get("drafts_on", 0.0) > 0, quantities.get("takes_over", 0.0) > 0 and cap > 0
    wanted = [
        *(k <= cap for k in drafted),
        *(k <= cap and on and k > 0 for k in drafted),
        *(k <= cap and over for k in drafted),
    ]
    assert [bool(allows(action, 6, 5, o)) for action in range(18)] == wanted


def test_a_policy_of_lengths_and_ways_is_for_one_cap() -> None:
    policy = random_policy(0, "length-way")
    with pytest.raises(PolicyError, match="given 18 actions, allowed are 39: 3 ways with 0 to 12 tokens"):
        controlled(policy, "wisp", BASE)


def test_the_invariants_hold_where_sessions_move_on_request() -> None:
    scenario = with_(SMALL, n_devices=24, horizon=horizon(1.0, 12.0, 0.0))
    for seed in range(4):
        controller = controlled(random_policy(seed, "token-way"), "aged:2+by-device:6+colocated:3+overlap", scenario)
        assert_kept(SmallWorld(scenario, controller, seed, NO_TRACE))  # type: ignore[arg-type]
