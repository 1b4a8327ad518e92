"""A short fuzz: `python -m tests.fuzz` makes twenty thousand calls."""

from __future__ import annotations

import random

from tests.fuzz.__main__ import batch
from tests.fuzz.calls import attempt
from tests.fuzz.targets import targets
from tests.fuzz.values import run_worlds
from wisp_gym.errors import InputError


def test_a_few_hundred_calls_find_no_fault() -> None:
    called, faults = batch(300, 0)
    assert not faults
    assert 300 <= called.total() <= 302  # an environment that is made is called at least once


def test_what_is_called_is_found_in_the_modules() -> None:
    found = {target.name: target for target in targets()}
    assert {"wisp_gym.simulation.simulate", "wisp_gym.scenario.load", "wisp_gym.evaluation.evaluate"} <= found.keys()
    assert len(found) > 400
    assert sum(target.front for target in found.values()) > 90


def test_a_fault_is_seen() -> None:
    """Errors of another kind, of several lines, and worlds that changed before a call was refused."""
    worlds = run_worlds(random.Random(0))

    def change() -> None:
        worlds.arrays.device["price"] += 1.0
        raise InputError("x: given 1, allowed is 2")

    def lookup() -> None:
        [][1]

    def refuse() -> None:
        raise InputError("x: given 1, allowed is 2")

    assert "changed a world" in attempt("x", worlds, change, [], {}, True).what
    assert "IndexError" in attempt("x", None, lookup, [], {}, True).what
    assert attempt("x", None, lookup, [], {}, False) is None
    assert attempt("x", worlds, refuse, [], {}, True) is None
