"""Lengths that the server suggests: formulas by hand, limits, and that devices follow them."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest

from tests.support.small_worlds import horizon, log_of, plain, run
from wisp_gym.rules import suggestions as g
from wisp_gym.rules.catalogue import SPECULATION

SUGGESTING = [name for name, rule in SPECULATION.items() if rule.suggests]
CAP = 12


def known(shares: tuple[float, ...], draft_s: float = 0.01) -> np.ndarray:
    """Knowledge after very many rounds, of which `shares[j]` were accepted up to position j + 1; a token drafts for 10 ms."""
    know, many = np.zeros(g.KNOWLEDGE), 1e9
    know[g.ROUNDS] = many
    for j, share in enumerate(shares, 1):
        know[g.REACHED_AT + j], know[g.HELD_AT + j] = many, many * share
    know[g.DRAFT_S] = draft_s * many * len(shares)
    know[g.EXAMINED], know[g.ACCEPTED] = many, many / 2
    return know


def turbospec(know: np.ndarray, n: int = 1, favour: float = 1.1, new_token_s: float = 0.0) -> int:
    return int(g.turbospec_length(np.array([favour]), know, n, CAP, 0.5, 0.1, new_token_s, 0.0))


def vllm(know: np.ndarray, n: int = 1, new_token_s: float = 0.01) -> int:
    return int(g.vllm_length(know, n, CAP, 0.5, 0.1, new_token_s, 0.0))


def test_turbospec_by_hand() -> None:
    # α = 0.5, batch 0.1 s whatever its size, 0.01 s a token: 1.1·10, 13.64, 14.58, 14.42 tokens/s for k = 0 … 3
    know = known((0.5,) * CAP)
    assert turbospec(know) == 2
    assert turbospec(know, favour=1.45) == 2
    assert turbospec(know, favour=1.47) == 0
    know[g.AWAY_S] = (
        0.1 * know[g.ROUNDS]
    )  # a round trip of 0.1 s: 1.75/0.22 = 7.95, 1.875/0.23 = 8.15, 1.9375/0.24 = 8.07
    assert turbospec(know) == 3


def test_vllm_by_hand() -> None:
    # 1/0.11 = 9.1, 1.5/0.12 = 12.5, 1.75/0.13 = 13.5, 1.75/0.14: nothing is accepted at the third position
    assert vllm(known((0.5, 0.25, 0.0))) == 2
    # positions never drafted are guessed: 0.125 at the third gives 1.875/0.14 = 13.4, still below
    assert vllm(known((0.5, 0.25))) == 2
    # with 5 ms a token: 1.75/0.115 = 15.2, 1.875/0.12 = 15.6, 1.9375/0.125 = 15.5
    assert vllm(known((0.5, 0.25)), new_token_s=0.005) == 3


@pytest.mark.parametrize("rule", [turbospec, vllm])
def test_a_larger_batch_never_lengthens(rule) -> None:  # type: ignore[no-untyped-def]
    know = known(tuple(0.7**j for j in range(1, CAP + 1)))
    lengths = [rule(know, n, new_token_s=2e-3) for n in range(1, 200)]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] > lengths[-1]


def test_noted_rounds_are_what_they_were() -> None:
    know = np.zeros(g.KNOWLEDGE)
    g.note_round(know, 3, 1, 0.06, 0.02, 100)  # accepted, rejected, beyond
    g.note_round(know, 2, 2, 0.04, 0.02, 200)
    assert know[g.REACHED_AT + 1 : g.REACHED_AT + 4].tolist() == [2, 2, 1]
    assert know[g.HELD_AT + 1 : g.HELD_AT + 4].tolist() == [2, 1, 0]
    assert (know[g.EXAMINED], know[g.ACCEPTED], g.drafted_tokens(know)) == (4, 3, 5)
    # 3 of 4 with a prior of 4 tokens at one half: 5/8
    assert g.acceptance_rate(know, 0.5) == 0.625
    for _ in range(2000):
        g.forget(know)
    assert g.acceptance_rate(know, 0.5) == pytest.approx(0.5)


def shares(budget: int, goodputs: list[float], k_max: int = CAP) -> list[float]:
    memory, members = np.zeros((5, 8)), np.arange(len(goodputs))
    memory[: len(goodputs), g.S_GOODPUT] = goodputs
    g.share_budget(budget, memory, members, len(goodputs), k_max, 0.5)
    return memory[: len(goodputs), g.S_LENGTH].tolist()


def test_goodspeed_shares_by_hand() -> None:
    # α = ½: 0.5, 0.25, 0.125, … each; equals go to the first
    assert shares(3, [1, 1]) == [2, 1]
    assert shares(4, [1, 1]) == [2, 2]
    # the second gets four times as much already: 0.125, 0.0625 …
    assert shares(3, [1, 4]) == [3, 0]
    assert shares(4, [1, 4]) == [3, 1]
    assert shares(0, [1, 1]) == [0, 0]
    assert shares(1000, [1, 4], k_max=5) == [5, 5]
    assert sum(shares(17, [1, 2, 3, 4])) == 17


def test_sglangs_table_takes_the_nearest_batch_size() -> None:
    sizes = {1: 0, 4: 0, 5: 1, 20: 1, 21: 2, 48: 2, 49: 3, 500: 3}
    assert {n: int(g.nearest_slot(n)) for n in sizes} == sizes
    starts = [int(g.sglang_load_length(np.zeros(g.KNOWLEDGE), n, 0.0)) for n in (1, 8, 32, 64)]
    assert starts == [3, 1, 1, 0]
    know = np.zeros(g.KNOWLEDGE)
    # the slot of eight starts at 0: after fifteen batches of 1 accepted token 1 − 0.8¹⁵ = 0.96 > 1 − 0.5, up to 3
    assert [int(g.sglang_load_length(know, 8, 1.0)) for _ in range(15)] == [1] * 14 + [3]
    assert int(g.sglang_load_length(know, 1, 1.0)) == 3  # another size has a record of its own


@pytest.mark.parametrize("name", SUGGESTING)
def test_devices_follow_what_the_reply_says(name: str) -> None:
    """With long outputs nothing but the cap of a finishing response shortens a round."""
    long = {"median_tokens": 400, "log_std": 0.0, "min_tokens": 8, "max_tokens": 512}
    scenario = plain(n_devices=12, horizon=horizon(0.0, 20.0), **{"workload.output": long})
    arrays = run(scenario, f"{name}+fcfs", [1], 40_000)
    log, of_batch = log_of(arrays), defaultdict(list)
    ends = dict.fromkeys(range(12), 0)
    batches = 0
    for _, kind, device, value in sorted(log, key=lambda row: row[0]):
        batches += kind == "end"
        if kind == "verify":
            ends[device] = batches
        if kind == "send" and ends[device]:
            of_batch[ends[device]].append(value)
    same = [len(set(lengths)) == 1 for lengths in of_batch.values() if len(lengths) > 1]
    assert len(same) > 15
    assert (np.mean(same) > 0.85) == (name != "goodspeed")  # which gives each its own
