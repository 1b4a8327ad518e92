"""What reaches compiled code is checked on its way: numbers, arrays, packed weights, controllers made by hand, worlds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.support.outside import arrays_for_one
from tests.support.small_worlds import BASE, horizon
from wisp_gym.arrays import numbers
from wisp_gym.contract import device
from wisp_gym.controllers.policy import load_policy
from wisp_gym.controllers.resolve import resolve
from wisp_gym.controllers.scorer_policy import load_scorer
from wisp_gym.engine.run import BEGIN, LOG, STEP, TO_END
from wisp_gym.engine.state import TRACE_ROW
from wisp_gym.engine.worlds import Worlds
from wisp_gym.errors import InputError
from wisp_gym.rules import batching, mlp, scorer, speculation
from wisp_gym.rules.controller import SCORERS, Controller, Plan
from wisp_gym.scenario import ScenarioError, with_
from wisp_gym.simulation import simulate
from wisp_gym.values import MAX_DEVICES, between, whole


@pytest.mark.parametrize("value", [True, 1.0, "1", None, -1, 4, 10**400, np.float64(2), [1], np.nan])
def test_a_whole_number_is_one(value: Any) -> None:
    assert whole(0, 3).checked("n", np.int8(3)) == 3
    with pytest.raises(InputError, match=r"^n: given .*, allowed is a whole number from 0 to 3$"):
        whole(0, 3).checked("n", value)


@pytest.mark.parametrize("value", [False, "1", None, -0.1, np.inf, np.nan, 10**400, 1j])
def test_a_number_is_one(value: Any) -> None:
    assert between(0.0, 1.0).checked("x", np.float32(0.5)) == 0.5
    with pytest.raises(InputError, match=r"^x: given .*, allowed is a number from 0 to 1$"):
        between(0.0, 1.0).checked("x", value)


TABLES: tuple[Any, ...] = (
    None,
    "abc",
    [[1, 2], [3]],
    ["a", "b"],
    [1.0, np.nan],
    [np.inf, 0],
    [1, None],
    [True, False],
    [1j, 2],
    [1e300, 0],
    [[1.0, 2.0]],
    [-1, 0],
    [9, 9],
    [2**70, 1],
    {"a": 1},
)


@pytest.mark.parametrize("value", TABLES, ids=repr)
def test_a_table_is_one(value: Any) -> None:
    with pytest.raises(
        InputError, match=r"^x: given .*, allowed are float32 numbers of shape \(2,\) from 0 to 8$"
    ) as caught:
        numbers("x", value, np.float32, (2,), low=0, high=8)
    assert "\n" not in str(caught.value)


def test_a_table_comes_as_compiled_code_takes_it() -> None:
    rows = np.arange(24.0)[::3]
    rows.flags.writeable = False
    for given_rows in (rows, rows.astype(">f4"), rows.astype(np.int64), rows.tolist()):
        made = numbers("x", given_rows, np.float32, (None,))
        assert (made.dtype, made.flags.c_contiguous, made.flags.writeable) == (np.float32, True, True)
        assert made.tolist() == rows.tolist()
    same = np.zeros(3, np.float32)
    assert numbers("x", same, np.float32, (3,)) is same


def broken(weights: np.ndarray, header: int) -> list[Any]:
    """Vectors that compiled code would read beyond, or elsewhere than it should."""
    changed = []
    for place in range(header):
        for value in (-1.0, 0.5, 0.0, 1e6, weights[place] + 1.0):
            other = weights.copy()
            other[place] = value
            changed.append(other)
    ends = [
        weights[:-1],
        np.append(weights, np.float32(0)),
        weights[:2],
        weights[:0],
        weights[None],
        None,
        "weights",
        weights.astype(str),
    ]
    nan = weights.copy()
    nan[-1] = np.nan
    return [*changed, *ends, nan]


def test_packed_networks_of_wrong_sizes_are_refused() -> None:
    weights = load_policy("speculation-v1").weights
    wanted = ("policy", device.SIZE, (2, 2))
    assert mlp.check(wanted[0], weights, *wanted[1:]) is weights
    hidden = int(weights[mlp.N_HIDDEN])
    for vector in broken(weights, mlp.HEADER + hidden):
        if isinstance(vector, np.ndarray) and vector.shape == weights.shape and vector[mlp.ACTIVATION] in (0.0, 1.0):
            if np.array_equal(np.delete(vector, mlp.ACTIVATION), np.delete(weights, mlp.ACTIVATION)):
                continue  # the other activation is one too, and so is what did not change
        with pytest.raises(InputError, match=r"^policy: given .*, allowed (is|are) "):
            mlp.check(wanted[0], vector, *wanted[1:])


def test_packed_scorers_of_wrong_sizes_are_refused() -> None:
    weights = load_scorer("joint-v1").weights
    assert scorer.check("scorer", weights, SCORERS) is weights
    for vector in broken(weights, scorer.HEADER):
        if isinstance(vector, np.ndarray) and np.array_equal(vector, weights):
            continue  # no lengths are 0 lengths
        with pytest.raises(InputError, match=r"^scorer: given .*, allowed (is|are) "):
            scorer.check("scorer", vector, SCORERS)


FIXED = Controller("mine", speculation.FIXED, (4.0,), batching.FCFS, ())
SAVED = {"speculation": speculation.POLICY, "speculation_parameters": ()}
PLAN = Plan((0, 1), (4, 4), 2, 0.1, 50.0)
IMPOSSIBLE: tuple[dict[str, Any], ...] = (
    {"speculation": 26},
    {"speculation": -1},
    {"speculation": 1.0},
    {"speculation": None},
    {"batching": 13},
    {"batching": "fcfs"},
    {"speculation_parameters": ()},
    {"speculation_parameters": (4.0, 1.0)},
    {"speculation_parameters": (33,)},
    {"speculation_parameters": (np.nan,)},
    {"speculation_parameters": [4.0]},
    {"speculation_parameters": ("4",)},
    {"speculation_parameters": 9 * (1.0,)},
    {"speculation": speculation.SPECSTOP, "speculation_parameters": (1.0, np.inf, 4.0)},
    {"speculation": speculation.BANDITSPEC, "speculation_parameters": (1.0, 1.0, -300.0)},
    {"speculation": speculation.SUGGESTED_LENGTH, "speculation_parameters": ()},
    {"plan": "none"},
    {"batching": batching.PIPELINED, "batching_parameters": (1.0, 0.1, 2.0)},
    {"batching": batching.PIPELINED, "plan": PLAN},
    {"batching": batching.PIPELINED, "batching_parameters": (1.0, 0.1, 1e300), "plan": PLAN},
    {"trim": 4},
    {"trim_tokens": -1},
    {"trim_tokens": 2**70},
    {"chunk_tokens": 2.5},
    {"chunk_tokens": -1},
    {"chunk_share": 2},
    {"admit_share": np.nan},
    {"pace": (0.2, 8.0)},
    {"pace": (0.0, 8.0, 50.0, 1.3, 1.5, 30.0)},
    {"pace": (0.2, 8.0, 50.0, 1.3, 1.5, 30.0), "batching": batching.WISP, "batching_parameters": (0.05, 4.0)},
    SAVED,
    SAVED | {"policy": np.zeros(9, np.float32)},
    {"policy": np.zeros(3, np.float32)},
    {"batching": batching.LEARNED},
    {"batching": batching.LEARNED, "scorer": np.ones(7, np.float32)},
    {"name": None},
)


@pytest.mark.parametrize("changes", IMPOSSIBLE, ids=repr)
def test_a_controller_by_hand_is_checked(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"^controller.*: .*given .*, allowed (is|are) ") as caught:
        replace(FIXED, **changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Plan((0, 2), (4, 4), 2, 0.1, 50.0),
        lambda: Plan((0, -1), (4, 4), 2, 0.1, 50.0),
        lambda: Plan((0, 1), (4, 33), 2, 0.1, 50.0),
        lambda: Plan((0, 1), (4,), 2, 0.1, 50.0),
        lambda: Plan((0, 1), (4, 4), 0, 0.1, 50.0),
        lambda: Plan((0, 1), (4, 4), 2, np.nan, 50.0),
        lambda: Worlds(0, 4),
        lambda: Worlds(1, 0),
        lambda: Worlds(1, MAX_DEVICES + 1),
        lambda: Worlds(1, 2, log_rows=-1),
        lambda: Worlds(1, 2, threads=0),
        lambda: Worlds(1, 2, threads=-1),
        lambda: Worlds(1.0, 2),
        lambda: Worlds(1, 2, trace=np.zeros(3)),
        lambda: Worlds(1, 2, trace=None),
        lambda: Worlds(1, 2, trace=np.array([(np.nan, 1, 1)], TRACE_ROW)),
        lambda: Worlds(1, 2, trace=np.array([(-1.0, 1, 1)], TRACE_ROW)),
        lambda: simulate(BASE, seeds=()),
        lambda: simulate(BASE, seeds=3),
        lambda: simulate(BASE, seeds=[0.5]),
        lambda: simulate(BASE, seeds="12"),
        lambda: simulate(BASE, seeds=[2**64]),
        lambda: simulate(BASE, n_devices=0),
        lambda: simulate(BASE, n_devices=2.0),
        lambda: simulate(7),
        lambda: simulate(BASE, controller=None),
        lambda: simulate(BASE, threads=0),
        lambda: simulate("\0"),
        lambda: simulate(BASE, controller="a\nb"),
    ],
)
def test_plans_and_worlds_are_checked(make: Callable[[], Any]) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_world_takes_what_there_is_room_for() -> None:
    worlds, controller = Worlds(1, 4), resolve("wisp", BASE)
    before = worlds.arrays.device.tobytes()
    for index, seed, n in ((1, 0, 4), (-1, 0, 4), (0, None, 4), (0, 2**64, 4), (0, 0, 5), (0, 0, 0), (0.0, 0, 4)):
        with pytest.raises(InputError, match=r"given .*, allowed is a whole number from"):
            worlds.fill(index, BASE, seed, controller, n)
    with pytest.raises(InputError, match="allowed is a Controller"):
        worlds.fill(0, BASE, 0, "wisp", 4)  # type: ignore[arg-type]
    assert worlds.arrays.device.tobytes() == before


def test_a_world_is_opened_once_and_writes_where_there_is_room() -> None:
    """A second opening would put twice as many messages on the way as there are devices."""
    scenario = with_(BASE, n_devices=3, horizon=horizon(0.0, 2.0))
    worlds = Worlds(1, 3, threads=1)
    worlds.fill(0, scenario, 0, resolve("wisp", scenario))
    written = arrays_for_one()
    which = np.ones(1, bool)
    for task, arrays in (
        (STEP, {}), (BEGIN, {}), (LOG, {"which": which}), (4, {}), (-1, {}), (None, {}), (BEGIN, written), (TO_END, {"other": which}),
        (BEGIN, written | {"which": which, "observations": np.zeros((1, 3), np.float32)}),
        (BEGIN, written | {"which": which, "outcomes": np.zeros((1, 1))}),
        (BEGIN, written | {"which": which, "masks": np.zeros((1, 3), np.int8)}),
        (BEGIN, written | {"which": which, "pay": np.zeros((1, 3))}),
    ):  # fmt: skip
        with pytest.raises(InputError):
            worlds.spread(task, **arrays)
    worlds.run()
    after = worlds.arrays.server.tobytes()
    for again in (worlds.run, lambda: worlds.spread(BEGIN, which=which, **written)):
        with pytest.raises(InputError, match="that have begun, allowed are worlds that were filled anew"):
            again()
    assert worlds.arrays.server.tobytes() == after
    worlds.fill(0, scenario, 1, resolve("wisp", scenario))
    worlds.run()


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"horizon.measure_s": 1e9}, "horizon"),
        ({"horizon.measure_s": 1e308}, "horizon.measure_s"),
        ({"server.noise": 1e3}, "server.noise"),
        ({"verification.sharpness": 1e3}, "verification.sharpness"),
        ({"verification.weights_s": 1e-9, "verification.sharpness": 50}, "verification.sharpness"),
        ({"verification.token_s": 1e200, "verification.sharpness": 2}, "verification.token_s"),
        ({"verification.weights_s": 1e-300}, "verification.weights_s"),
        ({"workload.arrivals": "open", "workload.requests_per_s": 1e8}, "workload.requests_per_s"),
        ({"workload.output.median_tokens": 1e300}, "workload.output.median_tokens"),
        ({"workload.output.max_tokens": 2**53}, "workload.output.max_tokens"),
        ({"draft.acceptance.logit_mean": 50}, "draft.acceptance.logit_mean"),
        ({"n_devices": 100_001}, "n_devices"),
        ({"max_draft_tokens": 33}, "max_draft_tokens"),
        ({"devices.0.throttle_ratio": 1e-9}, "devices[0].throttle_ratio"),
        ({"devices.0.link.outages_per_s": 1.0}, "devices[0].link.outages_per_s"),
        ({"devices.0.link.jitter": 1e3}, "devices[0].link.jitter"),
        ({"devices.0.draft_tokens_per_s": 1e-300}, "devices[0].draft_tokens_per_s"),
        ({"slo.0.speed_tokens_per_s": 1e300}, "slo[0].speed_tokens_per_s"),
        ({"devices.0.share": 1e308}, "devices[0].share"),
    ],
)
def test_scenarios_beyond_what_the_engine_can_count_are_refused(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ScenarioError, match=r"given .*, allowed|is .*, allowed") as caught:
        with_(BASE, **changes)
    assert caught.value.key == key
