"""Who drafts is learned: cases whose optimum is known by value iteration, and the same policy from the same seed."""

import numpy as np
import pytest

from agents.batching.toys import TOYS, Learned, alone, cells, learned, learned_hosting


@pytest.mark.parametrize(("name", "server_share"), [("one, the server drafts in 4 ticks", 0.0), ("two, in 1", 1.0)])
def test_who_drafts_is_learned_to_within_one_percent(name: str, server_share: float) -> None:
    found = learned(TOYS[name], seed=1, decisions=20_480)
    assert found.trained > 0.99
    assert found.server_share == pytest.approx(server_share, abs=0.01)
    assert min(alone(TOYS[name])) < 0.92  # the other way is worse


def test_same_seed_same_policy() -> None:
    one, two, other = (learned_hosting(TOYS["two, in 4"], 5120, seed)[-1].weights for seed in (0, 0, 1))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)


def test_a_row_says_how_many_seeds_solve_the_case() -> None:
    found = [Learned(0.5, 0.995, 1.0), Learned(0.7, 0.9, 0.5)]
    row = cells("case", TOYS["two, in 4"], found)
    assert row == ["case", "17.52", "1.000", "0.913", "0.600", "0.948", "0.900", "0.750", "1 of 2"]
