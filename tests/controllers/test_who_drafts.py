"""Who drafts, as controllers: names, what they load, and the rules of lengths and of the choice."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from wisp_gym.controllers.names import ControllerError
from wisp_gym.controllers.resolve import resolve
from wisp_gym.controllers.who_drafts import step_s, survivals, thresholds
from wisp_gym.errors import InputError
from wisp_gym.rules import batching, drafters, server_lengths
from wisp_gym.rules.bandits import MEMORY
from wisp_gym.rules.server_lengths import SURVIVAL, note_server_round, server_learns, server_length
from wisp_gym.rules.who_drafts import Drafting
from wisp_gym.scenario import Scenario, load, with_


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return load("wisp-a100-qwen3-32b")


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "numbers", "lookahead"),
    [
        ("colocated:3", server_lengths.FIXED, (3.0,), 3),
        ("colocated(k=32, draft=1)", server_lengths.FIXED, (32.0,), 12),  # at most what a round may hold
        ("colocated-turbospec", server_lengths.TURBOSPEC, (1.1,), 12),
        ("colocated-ema(high=5)", server_lengths.EMA, (1.0, 3.0, 5.0, 0.2, -0.25, 0.0, 5.0, 10.0), 5),
        ("colocated-throughput", server_lengths.THROUGHPUT, (0.0, 2.0, 5.0, 0.05), 5),
        ("colocated-survival:0.5,4", SURVIVAL, (0.5, 4.0), 4),
    ],
)
def test_a_server_that_drafts_for_itself(
    scenario: Scenario, name: str, kind: int, numbers: tuple[float, ...], lookahead: int
) -> None:
    found = resolve(name, scenario)
    assert (found.centralized, found.batching, found.batching_parameters) == (True, batching.CONTINUOUS, (0.0, 0.0))
    assert (found.drafting.length, found.drafting.length_parameters) == (kind, numbers)
    assert found.drafting.lookahead_tokens == lookahead
    assert resolve(f"centralized:0+{name}", scenario).drafting == found.drafting


def test_a_draft_takes_memory_and_only_where_something_is_drafted(scenario: Scenario) -> None:
    for index, draft in enumerate(scenario.server_drafts):
        hosted = resolve(f"colocated:2,{index}", scenario).drafting.hosted
        assert hosted is not None
        assert hosted.name == draft.name
        assert hosted.kv_tokens == scenario.kv_tokens_beside(draft.weights_bytes, draft.kv_bytes_per_token)
        assert hosted.shares_fates == (draft.name == scenario.draft.name)
    assert resolve("colocated:0", scenario) == resolve("colocated:0,1", scenario).__class__(
        **vars(resolve("centralized:0", scenario)) | {"name": "colocated:0"}
    )


def test_a_search_over_lengths_may_end_at_none(scenario: Scenario) -> None:
    assert resolve("colocated:0,1+dspark", scenario).drafting.hosted is None


def test_devices_and_the_server_may_share_the_drafting(scenario: Scenario) -> None:
    found = resolve("aligned+wisp+by-price(A=0.5, n=9)+colocated:2,1+overlap:4,0.3", scenario)
    d = found.drafting
    assert not found.centralized
    assert (d.drafter, d.drafter_parameters) == (drafters.BY_PRICE, (0.5, 9.0))
    assert (d.overlap_tokens, d.overlap_chance, d.length_parameters) == (4, 0.3, (2.0,))
    alone = resolve("aligned+wisp+by-load:8", scenario).drafting
    assert (alone.drafter, alone.hosted, alone.lookahead_tokens) == (drafters.BY_LOAD, None, 0)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("colocated:2,3", "server draft given 3; allowed: 0 (qwen3-0.6b), 1 (eagle3-qwen3-32b), 2 (ngram)"),
        ("wisp+wisp+colocated:2", "co-located drafting needs a rule of who drafts; allowed: by-load, by-class"),
        ("colocated:2+overlap", "'overlap' does not fit"),
        ("centralized+by-load", "'by-load' does not fit"),
        ("wisp+fcfs+by-load+by-class", "'by-class' does not fit"),
        ("centralized+dspark", "trimming needs drafts; allowed: colocated"),
        ("colocatd:2", "did you mean 'colocated'?"),
        ("wisp+wisp+overlap(n=40)", "n given 40, allowed is 0 to 32"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(scenario: Scenario, name: str, words: str) -> None:
    with pytest.raises(ControllerError) as caught:
        resolve(name, scenario)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_server_without_room_has_no_such_rule(scenario: Scenario) -> None:
    full = with_(scenario, **{"server.memory_bytes": 76_000_000_000})
    assert resolve("centralized:0", full)
    assert resolve("colocated:2,2", full)  # a search in the text takes none
    with pytest.raises(ControllerError, match=r"has no room for draft 'qwen3-0.6b': KV memory would hold \d+ tokens"):
        resolve("colocated:2", full)
    with pytest.raises(ControllerError, match="names none"):
        resolve("colocated:2", with_(scenario, server_drafts=[]))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"overlap_tokens": 33}, "overlap_tokens"),
        ({"drafter": 99}, "drafter"),
        ({"drafter": drafters.BY_LOAD, "drafter_parameters": ()}, "allowed is a tuple of 1: n"),
        ({"length": server_lengths.FIXED, "length_parameters": (2.0,)}, "hosted given None"),
        ({"hosted": "qwen"}, "hosted"),
    ],
)
def test_numbers_that_no_rule_can_work_with_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        Drafting(**given)
    assert words in str(caught.value)


# --- lengths ---------------------------------------------------------------------------------------------------------


def test_the_table_is_solved_from_the_scenario(scenario: Scenario) -> None:
    draft = scenario.server_drafts[1]
    found = thresholds(scenario, draft)
    assert list(found) == sorted(found, reverse=True)
    tokens = 1.0 + np.concatenate([[0.0], np.cumsum(survivals(draft.acceptance, 6))])
    for size in (1, 20, 64, 130, 256):
        rates = tokens / step_s(scenario, draft, np.array([[size]]), np.arange(7))[0]
        assert sum(size <= threshold for threshold in found) == rates.argmax()


def length(kind: int, parameters: tuple[float, ...], memory: np.ndarray, sessions: int = 8, **more: Any) -> int:
    """A rule's length for some sessions, at costs of a server that reads its weights in 40 ms."""
    costs = {"others": 0, "k_max": 12, "expected": 0.7, "base_s": 0.04, "step_s": 0.003, "verify_s": 2e-4 * sessions,
             "overhead_s": 0.001} | more  # fmt: skip
    padded = np.zeros(8)
    padded[: len(parameters)] = parameters
    return int(server_length(kind, padded, memory, sessions, *costs.values()))


def test_turbospec_takes_the_length_with_most_tokens_a_second() -> None:
    for sessions in (1, 8, 64, 400):
        step_s, verify_s = 0.003, 2e-4 * sessions

        def rate(k: int, n: int = sessions, step_s: float = step_s, verify_s: float = verify_s) -> float:
            return n * sum(0.7**j for j in range(k + 1)) / (0.04 + k * (step_s + verify_s) + 0.001 * (k > 0))

        best = max(range(13), key=rate)
        assert length(server_lengths.TURBOSPEC, (1.0,), np.zeros(MEMORY), sessions) == best
    assert length(server_lengths.TURBOSPEC, (10.0,), np.zeros(MEMORY)) == 0  # nothing, where that is favoured enough


def test_rules_learn_from_what_was_accepted() -> None:
    for kind, numbers in ((server_lengths.TURBOSPEC, (1.0,)), (server_lengths.THROUGHPUT, (0.0, 2.0, 6.0, 0.0))):
        chosen = []
        for accepted in (0, 6):
            memory, parameters = np.zeros(MEMORY), np.array([*numbers, *[0.0] * (8 - len(numbers))])
            for _ in range(200):
                server_learns(kind, parameters, memory, 1, float(accepted))
                note_server_round(kind, memory, 6, accepted)
            chosen.append(length(kind, numbers, memory))
        assert chosen[0] == 0
        assert chosen[1] >= 6


def test_a_small_gain_changes_no_length() -> None:
    memory, numbers = np.zeros(MEMORY), (1.0, 3.0, 6.0, 1.0)
    assert length(server_lengths.THROUGHPUT, numbers, memory) == 1  # not twice as good: the first stays
    assert length(server_lengths.THROUGHPUT, (*numbers[:3], 0.0), memory) == 3
    assert length(server_lengths.THROUGHPUT, numbers, memory) == 3  # and now the middle one


def test_the_ladder_climbs_with_the_accepted_tokens() -> None:
    parameters, memory = np.array([1.0, 3.0, 7.0, 0.2, -0.25, 0.0, 5.0, 10.0]), np.zeros(MEMORY)
    assert length(server_lengths.EMA, tuple(parameters), memory) == 3
    for _ in range(40):
        server_learns(server_lengths.EMA, parameters, memory, 4, 3.0)
    assert length(server_lengths.EMA, tuple(parameters), memory) == 7
    for _ in range(60):
        server_learns(server_lengths.EMA, parameters, memory, 4, 0.0)
    assert length(server_lengths.EMA, tuple(parameters), memory) == 1
    server_learns(server_lengths.EMA, parameters, memory, 0, 0.0)  # a batch without drafts teaches nothing
    assert length(server_lengths.EMA, tuple(parameters), memory) == 1


# --- the choice ------------------------------------------------------------------------------------------------------


def drafts(kind: int, parameters: tuple[float, ...], others: int = 0, v: float = 4.0, device: float = 40.0,
           gain: float = 0.0, price: float = 0.0) -> bool:  # fmt: skip
    """Whether the server drafts for a session."""
    padded = np.zeros(8)
    padded[: len(parameters)] = parameters
    return bool(drafters.server_drafts(kind, padded, others, v, device, gain, price))


def test_who_drafts_by_each_rule() -> None:
    no_limit = math.inf
    assert not drafts(drafters.DEVICE, ())
    assert drafts(drafters.SERVER, ())
    assert [drafts(drafters.BY_LOAD, (3.0,), others) for others in (0, 2, 3)] == [True, True, False]
    assert [drafts(drafters.BY_CLASS, (6.0, no_limit), v=v) for v in (2.0, 6.0, 8.0)] == [False, True, True]
    assert [drafts(drafters.BY_SPEED, (30.0, no_limit), device=v) for v in (7.0, 30.0, 50.0)] == [True, True, False]
    assert [drafts(drafters.BY_PRICE, (2.0, no_limit), gain=gain, price=1.5) for gain in (2.9, 3.1)] == [False, True]
    for kind in (drafters.BY_CLASS, drafters.BY_SPEED, drafters.BY_PRICE):
        assert not drafts(kind, (-1.0 if kind == drafters.BY_PRICE else 0.0, 5.0), others=5, device=0.0, gain=1.0)


def test_a_devices_round_is_drafting_ways_and_waiting() -> None:
    assert drafters.device_round_s(4, 0.1, 0.05, 0.02, 0.06) == pytest.approx(0.1 + 0.2 + 0.04 + 0.09)
    assert drafters.tokens_per_s(0.5, 2, 0.5) == pytest.approx(1.75 / 0.5)
