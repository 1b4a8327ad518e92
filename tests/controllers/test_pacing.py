"""Pacing: the order of what waits, how long a batch gets, and what it brings in overload."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from tests.support.small_worlds import log_of, run
from wisp_gym.controllers.names import ControllerError
from wisp_gym.controllers.resolve import resolve
from wisp_gym.engine.state import CONFIG
from wisp_gym.errors import InputError
from wisp_gym.rules import batching as rules
from wisp_gym.rules.pacing import carried_tokens, lacking_tokens, paced_priority, recovery_tokens
from wisp_gym.scenario import Scenario, load, with_
from wisp_gym.simulation import simulate

NOW_S, BATCH_S = 100.0, 0.2


def compute_bound() -> Scenario:
    """Many devices on a server on which each token of a batch costs 0.7 ms."""
    return with_(
        load("wisp-a100-qwen3-32b"),
        **{
            "verification.weights_s": 0.010, "verification.token_s": 7e-4, "estimator.launch_s": 0.0252,
            "estimator.new_token_s": 5.3e-4, "horizon.warmup_s": 20.0, "horizon.measure_s": 60.0, "horizon.drain_s": 0.0,
        },
    )  # fmt: skip


@pytest.fixture
def config() -> np.void:
    """The numbers of `pace:0.2,8,25`."""
    c = np.zeros(1, CONFIG)[0]
    c["pace_batch_s"], c["pace_patience_s"], c["pace_begin_s"] = BATCH_S, 8.0, 25.0
    c["pace_floor_tokens_per_s"], c["pace_lead_s"], c["pace_credit_s"] = 1.3, 1.5, 30.0
    return c


def request(due_s: float, age_s: float = 5.0, committed: int = 20, uncached: int = 0, speed: float = 4.0) -> np.ndarray:
    """(FEATURES,) of a request whose next token is due at a time."""
    f = np.zeros(rules.FEATURES)
    f[rules.DUE_S], f[rules.AGE_S], f[rules.COMMITTED_TOKENS], f[rules.UNCACHED_TOKENS] = (
        due_s,
        age_s,
        committed,
        uncached,
    )
    f[rules.SLO_TOKENS_PER_S], f[rules.SOLO_S] = speed, 0.03
    return f


def test_those_below_the_floor_lead_then_those_that_need_a_token_then_late_ones_then_those_ahead(
    config: np.void,
) -> None:
    in_order = [
        request(NOW_S - 9.0, age_s=38.0, committed=20),  # lacks 19 tokens of 1.3·(38 − 8) = 39
        request(NOW_S - 9.0, age_s=28.0, committed=20),  # lacks 6
        request(NOW_S + 0.1),
        request(NOW_S + 1.4),
        request(NOW_S + 1.6, committed=0, uncached=150),  # a prompt is never ahead
        request(NOW_S - 2.0, speed=4.0),  # 8 tokens bring it back
        request(NOW_S - 2.0, speed=8.0),  # 16
        request(NOW_S - 2.0, committed=0, uncached=150),  # 158
        request(NOW_S + 1.6),
        request(NOW_S + 9.0),
    ]
    keys = [paced_priority(config, NOW_S, f) for f in in_order]
    assert all(earlier < later for earlier, later in itertools.pairwise(keys))


def test_the_floor_begins_later_for_who_lacks_context(config: np.void) -> None:
    assert lacking_tokens(config, request(0.0, age_s=30.0, committed=10)) == pytest.approx(1.3 * 22.0 - 10.0)
    assert lacking_tokens(config, request(0.0, age_s=30.0, committed=10, uncached=99)) == pytest.approx(
        1.3 * 5.0 - 10.0
    )
    assert recovery_tokens(request(NOW_S - 3.0, uncached=99, speed=6.0), NOW_S) == pytest.approx(99.0 + 18.0)


def test_a_device_carries_what_it_lacks_into_its_next_response(config: np.void) -> None:
    assert carried_tokens(config, 0.0, 20.0, 10) == pytest.approx(16.0)
    assert carried_tokens(config, 16.0, 20.0, 30) == pytest.approx(12.0)
    assert carried_tokens(config, 12.0, 20.0, 300) == pytest.approx(
        -1.3 * 30.0
    )  # no more than half a minute is to its credit
    f = request(0.0, age_s=30.0, committed=10)
    f[rules.OWED_TOKENS] = 16.0
    assert lacking_tokens(config, f) == pytest.approx(1.3 * 22.0 - 10.0 + 16.0)


def waits_s(name: str) -> list[float]:
    """How long prompts of 800 tokens waited for their first token, among short ones that come all the time."""
    scenario = with_(compute_bound(), n_devices=128)
    found, since_s = [], {}
    for time_s, kind, device, value in log_of(run(scenario, name, [1], log_rows=1_000_000)):
        if kind == "request" and value > 300:
            since_s[device] = time_s
        if kind == "deliver" and device in since_s:
            found.append(time_s - since_s.pop(device))
    return [*found, *(80.0 - time_s for time_s in since_s.values())]


def test_long_prompts_do_not_wait_for_ever_behind_short_ones() -> None:
    called, never = waits_s("centralized:0+admit+pace:0.2,8,20"), waits_s("centralized:0+admit+pace:0.2,1e6,1e6")
    assert max(called) < 60.0 < 70.0 < max(never)


def test_no_batch_of_several_is_predicted_longer_than_allowed() -> None:
    world = run(with_(compute_bound(), n_devices=96), f"wisp+fcfs+pace:{BATCH_S},1e6,1e6", [3], log_rows=400_000)
    lengths = []
    for (start_s, kind, _, members), (_, follows, _, end_s) in itertools.pairwise(log_of(world)):
        if kind == "launch" and members > 1:
            assert follows == "predict"
            lengths.append(end_s - start_s)
    assert len(lengths) > 300
    assert max(lengths) <= BATCH_S + 1e-9
    assert max(lengths) > 0.95 * BATCH_S  # and the server is busy enough for the limit to matter


def test_more_tokens_come_on_time_in_overload_and_nobody_is_given_up() -> None:
    plain, paced, demoted = (
        simulate(compute_bound(), f"centralized:0+admit{pace}" if pace != "edf" else "wisp+edf-demoted+admit", [0, 1, 2], 128, threads=1)
        for pace in ("", "+pace:0.2,8,16", "edf")
    )  # fmt: skip
    goodput = [np.mean([m.goodput_tokens_per_s for m in found]) for found in (plain, paced)]
    assert goodput[1] > 1.2 * goodput[0]
    starved = [np.mean([m.starved_share for m in found]) for found in (paced, demoted)]
    assert starved[0] < 0.02 < 0.1 < starved[1]


@pytest.mark.parametrize("name", ["wisp+wisp+pace", "wisp+edf-demoted+pace", "speculation-v1+batching-v1+pace"])
def test_rules_that_protect_deadlines_by_their_order_keep_it(name: str) -> None:
    with pytest.raises(ControllerError, match="protect deadlines by their order; allowed: fcfs, static, edf, aged"):
        resolve(name, load("wisp-a100-qwen3-32b"))


def test_a_controller_made_by_hand_is_held_to_it() -> None:
    plain = resolve("wisp+wisp", load("wisp-a100-qwen3-32b"))
    with pytest.raises(InputError, match="protect deadlines by their order"):
        replace(plain, pace=(0.2, 8.0, 50.0, 1.3, 1.5, 30.0))


def test_its_numbers_come_from_the_name() -> None:
    scenario = load("wisp-a100-qwen3-32b")
    assert resolve("fixed:4+aged+pace", scenario).pace == (0.2, 8.0, 50.0, 1.3, 1.5, 30.0)
    assert resolve("centralized:0+admit+pace(begin_s=16, batch_s=0.1)", scenario).pace == (
        0.1,
        8.0,
        16.0,
        1.3,
        1.5,
        30.0,
    )
    assert resolve("fixed:4+aged+admit", scenario).pace == ()
