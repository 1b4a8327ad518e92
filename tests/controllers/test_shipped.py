"""Policies that come with the package: they load by name, run alike everywhere, are small, and each has its card."""

import numpy as np
import pytest

from wisp_gym.contract import device
from wisp_gym.controllers.policy import load_policy
from wisp_gym.controllers.shipped import FOLDER, policy_path, shipped_names
from wisp_gym.policies import load
from wisp_gym.scenario import load as load_scenario
from wisp_gym.scenario import with_
from wisp_gym.simulation import simulate

SPECULATION = [name for name in shipped_names() if name.startswith("speculation")]
SHORT = {"warmup_s": 10.0, "measure_s": 30.0, "drain_s": 60.0}


def test_every_policy_is_small_and_has_a_card() -> None:
    assert "speculation-v1" in shipped_names()
    for name in shipped_names():
        assert policy_path(name).stat().st_size < 100_000
        card = (FOLDER / f"{name}.md").read_text(encoding="utf-8")
        for heading in ("## Trained on", "## Results", "## Where it loses"):
            assert heading in card, (name, heading)
    assert {path.suffix for path in FOLDER.iterdir()} <= {".json", ".onnx", ".md"}


@pytest.mark.parametrize("name", SPECULATION)
def test_one_name_for_engine_environment_and_server(name: str) -> None:
    scenario = load_scenario("wisp-study")
    loaded = load(name)
    seen = np.random.default_rng(0).uniform(device.LOW, device.HIGH, (500, device.SIZE)).astype(np.float32)
    seen[:, device.DRAFTED_TOKENS] *= 0.5
    seen[:, device.TOKENS_LEFT] = 1.0  # at the end of a response the bundle sends by itself, as the engine does
    in_environment = loaded.environment(scenario).predict(seen)[0]
    on_server = loaded.bundle().decide({"observation": seen})[0]
    assert np.array_equal(loaded.engine(scenario).policy, load_policy(name).weights)
    assert (in_environment == on_server).mean() > 0.995  # sums in another order: a tie may fall the other way
    assert 0.0 < in_environment.mean() < 1.0


@pytest.mark.parametrize("devices", [24, 64])
def test_the_shipped_policy_beats_wisp_and_the_aligned_rule(devices: int) -> None:
    """By a stated amount, in worlds that neither training nor its validation saw."""
    scenario = with_(load_scenario("wisp-study"), n_devices=devices, horizon=SHORT)

    def goodput(controller: str) -> float:
        return float(np.mean([m.goodput_tokens_per_s for m in simulate(scenario, controller, range(700, 704))]))

    learned = goodput("speculation-v1+fcfs")
    assert learned > 1.03 * goodput("wisp+fcfs")
    assert learned > goodput("aligned+fcfs")
