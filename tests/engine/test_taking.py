"""Worlds are taken once each; arrays of another kind never reach compiled code."""

from __future__ import annotations

import numpy as np
import pytest

from wisp_gym.engine.build import empty_arrays
from wisp_gym.engine.call import Call
from wisp_gym.engine.outside import Outside
from wisp_gym.engine.taking import all_done, count_done, next_place
from wisp_gym.errors import InputError
from wisp_gym.jit import COMPILES


def test_each_world_is_taken_once_and_who_comes_late_finds_none() -> None:
    counts = np.zeros(2, np.int64)
    assert [next_place(counts, 3) for _ in range(5)] == [0, 1, 2, 3, 3]
    assert not all_done(counts, 3, 10)
    count_done(counts, 3)
    assert all_done(counts, 3, 0)
    assert [next_place(counts, 5), next_place(counts, 3), next_place(counts, 5)] == [3, 4, 4]  # the second is late


@pytest.mark.skipif(not COMPILES, reason="plain Python looks at every array")
@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("policy", np.zeros(3)),
        ("line", np.zeros((1, 4), np.int64)[:, ::2]),
        ("keys", np.zeros(2)),
    ],
)
def test_arrays_of_another_kind_are_refused(name: str, array: np.ndarray) -> None:
    worlds = empty_arrays(1, 2)._replace(**{name: array})
    with pytest.raises(InputError, match=f"^{name}: given .*, allowed is "):
        Call(worlds, Outside(1).none, 1)
