"""What the functions refuse that run whole worlds: one line each, before a world is run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wisp_gym import policies
from wisp_gym.contract import device
from wisp_gym.controllers.predict import SpeculationPredictor
from wisp_gym.controllers.predict_batching import BatchingPredictor
from wisp_gym.controllers.resolve import resolve
from wisp_gym.errors import InputError
from wisp_gym.evaluation import capacity, evaluate
from wisp_gym.scenario import load, save, with_
from wisp_gym.simulation import simulate

NAN, INF = float("nan"), float("inf")
SHORT = with_(
    load("wisp-a100-qwen3-32b"),
    **{"horizon.warmup_s": 0.0, "horizon.measure_s": 4.0, "horizon.drain_s": 0.0},
    n_devices=4,
)
NO_SEEDS: list[Any] = [
    (), [], 5, None, "12", b"12", {1, 2}, {1: 2}, [0.0], [1.5], [True], ["1"], [None], [-1], [2**63], [[1]], np.zeros(3), [10**5000],
]  # fmt: skip
NO_SCENARIO: list[Any] = [
    5,
    None,
    b"wisp-study",
    True,
    {},
    [],
    "",
    "a\0b",
    "x" * 5000,
    "wisp-stud",
    Path("wisp-stud"),
    Path("."),
]
NO_CONTROLLER: list[Any] = [5, None, b"wisp", True, {}, "", "wips", Path("nowhere.json"), "x" * 5000]
NO_DEVICES: list[Any] = [0, -1, 2.0, True, "4", [4], 10**9, 10**5000, NAN]
NO_SPEED: list[Any] = [0, -1, "8", True, NAN, INF, [8]]

WRONG: list[tuple[Callable[..., Any], dict[str, list[Any]]]] = [
    (
        lambda **given: simulate(**{"scenario": SHORT, **given}),
        {
            "seeds": NO_SEEDS,
            "scenario": NO_SCENARIO,
            "controller": [*NO_CONTROLLER, []],
            "n_devices": NO_DEVICES,
            "threads": [0, -1, 2.0, True, "2"],
        },
    ),
    (
        lambda **given: evaluate(**{"controllers": "wisp", "scenario": SHORT, **given}),
        {
            "seeds": [*NO_SEEDS, [1, 1]],
            "scenario": NO_SCENARIO,
            "controllers": [*NO_CONTROLLER, [], ["wisp", 5], ["wisp", "wisp"]],
            "devices": NO_DEVICES,
            "slo": NO_SPEED,
            "reference": ["sled", 5],
        },
    ),
    (
        lambda **given: capacity(**{"controllers": "wisp", "scenario": SHORT, **given}),
        {
            "seeds": [*NO_SEEDS, [1, 1]],
            "scenario": NO_SCENARIO,
            "controllers": NO_CONTROLLER,
            "slo": NO_SPEED,
            "attainment": [0, 1.1, "0.9", True, None, NAN],
            "starved": [-0.1, 1.1, "0", True, NAN],
            "max_devices": NO_DEVICES,
        },
    ),
    (
        lambda **given: SpeculationPredictor(**{"controller": "wisp", "scenario": SHORT, **given}),
        {"scenario": NO_SCENARIO, "controller": NO_CONTROLLER},
    ),
    (
        lambda **given: BatchingPredictor(**{"controller": "wisp", "scenario": SHORT, **given}),
        {"scenario": NO_SCENARIO, "controller": NO_CONTROLLER},
    ),
]
CASES = [(call, argument, values) for call, wrong in WRONG for argument, values in wrong.items()]
NAMES = [f"{name} {argument}" for name, (_, wrong) in zip(("simulate", "evaluate", "capacity", "speculation", "batching"), WRONG, strict=True)
         for argument in wrong]  # fmt: skip


@pytest.mark.parametrize(("call", "argument", "values"), CASES, ids=NAMES)
def test_a_wrong_value_is_refused_in_one_line(call: Callable[..., Any], argument: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(InputError) as raised:
            call(**{argument: value})
        assert "\n" not in str(raised.value)
        assert str(raised.value)


def test_observations_of_another_kind_are_refused_in_one_line() -> None:
    for predictor in (SpeculationPredictor("wisp", SHORT), BatchingPredictor("wisp", SHORT)):
        for wrong in (
            None,
            "seen",
            5,
            [[1], [1, 2]],
            np.zeros(3),
            np.zeros((2, 2, device.SIZE)),
            [None] * device.SIZE,
            np.zeros(device.SIZE, complex),
        ):
            with pytest.raises(InputError, match="observation: given"):
                predictor.predict(wrong)  # type: ignore[arg-type]
    seen = np.zeros((2, device.SIZE), np.float32)
    predictor = SpeculationPredictor("wisp", SHORT)
    read_only = np.broadcast_to(seen[:1], (2, device.SIZE))
    for alike in (seen.tolist(), seen.astype(int), np.asfortranarray(seen), read_only, seen[::-1]):
        assert predictor.predict(alike)[0].tolist() == predictor.predict(seen)[0].tolist()


def test_paths_scenarios_and_numpys_numbers_mean_the_same(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    save(SHORT, path)
    policy = Path(policies.__file__).parent / "data" / "policies" / "speculation-v1.json"
    plain = simulate(SHORT, "wisp", [0, 1], 4, 1)
    for scenario in (path, str(path)):
        for seeds in ((0, 1), np.arange(2), range(2), iter([0, 1])):
            assert simulate(scenario, resolve("wisp", SHORT), seeds, np.int64(4), np.int64(1)) == plain
    assert simulate(SHORT, policy, [0], 4) == simulate(SHORT, str(policy), [0], 4)
    assert list(evaluate([Path(policy), "wisp"], path, seeds=[0]).outcomes) == [str(policy), "wisp"]
    assert policies.load(policy).engine(path).policy.size > 0
    assert evaluate("wisp", SHORT, seeds=iter([0])).rows() == evaluate(["wisp"], path, seeds=[0]).rows()
