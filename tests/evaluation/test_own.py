"""Controllers of one's own meet the same worlds as every other, and decide as the engine would."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest

from tests.support.bundles import SCENARIO as STUDY
from tests.support.scorers import random_scorer
from wisp_gym.cli import run
from wisp_gym.contract import device
from wisp_gym.controllers.policy import load_policy
from wisp_gym.controllers.predict import SpeculationPredictor
from wisp_gym.controllers.predict_batching import BatchingPredictor
from wisp_gym.controllers.scorer_policy import save_scorer
from wisp_gym.errors import InputError
from wisp_gym.evaluation import Comparison, evaluate, from_sb3, own
from wisp_gym.evaluation.comparison import PROGRAM, main
from wisp_gym.scenario import with_
from wisp_gym.serving.bundle.names import find

SHORT = with_(STUDY, **{"horizon.warmup_s": 1.0, "horizon.measure_s": 8.0, "horizon.drain_s": 10.0})
WORLDS: dict[str, Any] = {"scenario": SHORT, "devices": 12, "seeds": (0, 3)}


class Stingy:
    """Drafts two tokens."""

    def predict(self, observation: np.ndarray) -> tuple[np.ndarray, None]:
        return (observation[:, device.NAMES.index("drafted_tokens")] * SHORT.max_draft_tokens < 1.5).astype(int), None


class Counted:
    """A predictor that counts how often it is asked, and for how many."""

    def __init__(self, inner: Any):
        self.inner, self.calls, self.rows = inner, 0, 0

    def predict(self, observation: np.ndarray, **told: Any) -> Any:
        self.calls, self.rows = self.calls + 1, self.rows + len(observation)
        return self.inner.predict(observation)


class Remembers:
    """Drafts in every second round of a device, as its memory says, which is a recurrent network's."""

    def predict(self, observation: np.ndarray, state: Any, episode_start: np.ndarray) -> Any:
        turn = np.zeros((1, len(observation), 1)) if state is None else state[0].copy()
        turn[:, episode_start] = 0.0
        fresh = observation[:, device.NAMES.index("drafted_tokens")] == 0.0
        turn[0, fresh, 0] += 1.0
        return (fresh & (turn[0, :, 0] % 2 == 1)).astype(int), (turn,)


def worlds_of(found: Comparison, name: str) -> list[dict[str, Any]]:
    """What it gave in each world, decisions aside: an engine that follows a length counts its tokens."""
    return [outcome.metrics for outcome in found.outcomes[name]]


@pytest.mark.parametrize("rule", ["wisp", "fixed:4", "aligned", "speculation-v1"])
def test_an_object_that_decides_as_a_rule_gets_what_the_rule_gets(rule: str) -> None:
    predictor = SpeculationPredictor(rule, SHORT)
    asked = Counted(predictor)
    found = evaluate(
        [f"{rule}+wisp", own(asked, "wisp", name="mine", pays_predictor=predictor.controller.uses_predictor)], **WORLDS
    )
    assert worlds_of(found, "mine") == worlds_of(found, f"{rule}+wisp")
    assert asked.rows > 3 * asked.calls  # the devices of a batch together, and the worlds side by side


@pytest.mark.parametrize(("policy", "prices"), [("batching-v1", False), ("joint-v1", True)])
def test_a_server_of_ones_own_gets_what_its_policy_gets(policy: str, prices: bool) -> None:
    asked = own("aligned:0", BatchingPredictor(policy, SHORT, prices=prices), name="mine", prices=prices, visible=12)
    found = evaluate([f"aligned:0+{policy}", asked], **WORLDS)
    assert worlds_of(found, "mine") == worlds_of(found, f"aligned:0+{policy}")


def test_a_server_of_ones_own_says_for_whom_it_drafts(tmp_path: Path) -> None:
    path, rules = tmp_path / "hosting.json", "by-load:0+colocated:4"
    save_scorer(random_scorer("batching-hosting", 2), path)
    asked = own(
        "aligned:0", BatchingPredictor(str(path), SHORT), name="mine", additions=rules, hosting=True, visible=12
    )
    found = evaluate([f"aligned:0+{path}+{rules}", asked], **WORLDS)
    assert worlds_of(found, "mine") == worlds_of(found, f"aligned:0+{path}+{rules}")
    assert worlds_of(found, "mine")[0]["server_drafted_share"] > 0.0


class Masked:
    """Takes the last action that is allowed, as its masks say: the ways to end a round come after drafting."""

    def predict(self, observation: np.ndarray, action_masks: np.ndarray) -> tuple[np.ndarray, None]:
        assert action_masks.shape == (len(observation), 4)
        assert action_masks[:, 0].all()
        return action_masks.shape[1] - 1 - action_masks[:, ::-1].argmax(1), None


def test_masks_say_which_ways_are_open() -> None:
    hands_over = own(Masked(), decides="token-way", additions="by-device:6+colocated:3", name="hands over")
    drafts = own(Masked(), decides="token-way", name="drafts")
    found = evaluate([hands_over, drafts], **WORLDS)
    assert (
        worlds_of(found, "hands over")[0]["server_drafted_share"]
        > 0.0
        == worlds_of(found, "drafts")[0]["server_drafted_share"]
    )
    assert all(world["invalid_actions"] == 0 for name in found.outcomes for world in worlds_of(found, name))


def test_both_halves_may_be_ones_own() -> None:
    devices, server = SpeculationPredictor("aligned", SHORT), BatchingPredictor("batching-v1", SHORT)
    pays = devices.controller.uses_predictor
    found = evaluate(
        ["aligned+batching-v1", own(devices, server, name="mine", pays_predictor=pays, visible=12)], **WORLDS
    )
    assert worlds_of(found, "mine") == worlds_of(found, "aligned+batching-v1")


def test_an_object_or_its_class_alone_will_do() -> None:
    found = evaluate([Stingy, own(Stingy(), name="object"), "fixed:2+fcfs"], **WORLDS)
    assert worlds_of(found, "Stingy+fcfs") == worlds_of(found, "object")
    drafted = [worlds_of(found, name)[0]["drafted_per_round"] for name in ("object", "fixed:2+fcfs")]
    assert drafted[0] == pytest.approx(drafted[1], rel=0.05)
    assert list(evaluate(Stingy(), **WORLDS).outcomes) == ["Stingy+fcfs"]


def test_every_device_has_a_memory_of_its_own() -> None:
    found = evaluate(Remembers(), **WORLDS)
    assert 0.4 < worlds_of(found, "Remembers+fcfs")[0]["drafted_per_round"] < 0.6


def test_layers_run_inside_the_engine() -> None:
    torch, policy = pytest.importorskip("torch"), load_policy("speculation-v1")
    modules: list[Any] = []
    for w, b in policy.layers:
        linear = torch.nn.Linear(w.shape[1], w.shape[0])
        linear.weight.data, linear.bias.data = torch.tensor(w), torch.tensor(b)
        modules += [linear, torch.nn.ReLU()]
    controllers = [own(policy, "wisp", name="policy"), own(torch.nn.Sequential(*modules[:-1]), "wisp", name="layers")]
    assert policy.activation == "relu"
    assert not any(controller.is_driven for controller in controllers)
    found = evaluate([*controllers, "speculation-v1+wisp"], **WORLDS)
    assert worlds_of(found, "policy") == worlds_of(found, "layers") == worlds_of(found, "speculation-v1+wisp")


def test_a_file_decides(tmp_path: Path) -> None:
    path = find("aligned", "token")
    pays = SpeculationPredictor("aligned", SHORT).controller.uses_predictor
    found = evaluate([own(path, "wisp", name="file", pays_predictor=pays), "aligned+wisp"], **WORLDS)
    assert worlds_of(found, "file") == worlds_of(found, "aligned+wisp")
    with pytest.raises(InputError, match="no such file"):
        own(tmp_path / "none.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"nothing")
    with pytest.raises(InputError, match="onnxruntime refuses it"):
        own(tmp_path / "bad.onnx")


def test_models_of_stable_baselines3(tmp_path: Path) -> None:
    torch, sb3 = pytest.importorskip("torch"), pytest.importorskip("stable_baselines3")
    import gymnasium as gym

    torch.manual_seed(0)
    model = sb3.PPO(
        "MlpPolicy", gym.make("wisp_gym/Speculation-v1", ways=False, devices=4), n_steps=8, batch_size=8, device="cpu"
    )
    inside, outside = from_sb3(model), own(model, "wisp", name="asked")
    model.save(tmp_path / "model.zip")
    found = evaluate(
        [own(inside, "wisp", name="inside"), outside, own(from_sb3(tmp_path / "model.zip"), "wisp", name="zip")],
        **WORLDS,
    )
    assert worlds_of(found, "inside") == worlds_of(found, "asked") == worlds_of(found, "zip")
    (tmp_path / "bad.zip").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"bad.zip' is no model of PPO"):
        from_sb3(tmp_path / "bad.zip")
    layers = torch.nn.Sequential(torch.nn.Linear(device.SIZE, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    assert not own(layers).is_driven
    with pytest.raises(InputError, match=r"given a network of Linear, GELU, Linear"):
        own(torch.nn.Sequential(torch.nn.Linear(device.SIZE, 8), torch.nn.GELU(), torch.nn.Linear(8, 2)))


@numba.njit
def two_tokens(o):  # type: ignore[no-untyped-def]
    """Drafts two tokens."""
    return 1 if o[0] * 12 < 1.5 else 0


@numba.njit
def two_at_once(o):  # type: ignore[no-untyped-def]
    """Drafts two tokens."""
    return 2 if o[0] == 0.0 else -1


def test_a_compiled_function_runs_in_the_engine() -> None:
    assert SHORT.max_draft_tokens == 12
    lengths = own(two_at_once, "wisp", decides="length", name="lengths")
    found = evaluate([own(two_tokens, "wisp"), own(Stingy(), "wisp", name="asked"), lengths], **WORLDS)
    assert worlds_of(found, "two_tokens+wisp") == worlds_of(found, "asked") == worlds_of(found, "lengths")
    assert list(evaluate(two_tokens, **WORLDS).outcomes) == ["two_tokens+fcfs"]
    with pytest.raises(InputError, match="allowed for a compiled function are 'token' and 'length'"):
        own(two_tokens, decides="token-way")
    with pytest.raises(InputError, match="cannot be compiled"):
        own(numba.njit(lambda o: o.no_such))


class Answers:
    """Answers what it is told to."""

    def __init__(self, answer: Any):
        self.answer = answer

    def predict(self, observation: np.ndarray) -> Any:
        return self.answer(len(observation))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda n: np.zeros(n + 1, int), r"predict gave int64 of shape \(\d+,\) for \d+ observations"),
        (lambda n: np.zeros(n), r"predict gave float64"),
        (lambda n: np.full(n, 7), r"predict gave action 7, allowed are 0 to 1"),
        (lambda n: (np.zeros(n, int), "memory"), r"predict gave a state of 'memory'"),
    ],
)
def test_wrong_answers_end_in_one_line(answer: Any, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        evaluate(Answers(answer), **WORLDS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: own(3), r"devices: given 3, allowed are a name, what has predict"),
        (lambda: own(server=object), r"server: given <class 'object'>"),
        (lambda: own(Answers), r"Answers: cannot be made without arguments"),
        (lambda: own(decides="tokens"), r"decides: given 'tokens'; did you mean 'token'"),
        (lambda: own(visible=0), r"visible: given 0"),
        (lambda: from_sb3(3), r"model: given 3"),
    ],
)
def test_what_decides_nothing_is_refused(make: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        make()


def test_names_of_modules_and_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_rules.py").write_text(
        "class One:\n    def predict(self, observation):\n        return (observation[:, 0] == 0).astype(int), None\n"
    )
    (tmp_path / "mine.onnx").write_bytes(find("aligned", "token").read_bytes())
    monkeypatch.chdir(tmp_path)
    flags = ["--devices", "8", "--seeds", "2", "--json", "rows.json"]
    assert run(main, PROGRAM, ["--controllers", "my_rules:One+wisp,mine.onnx+fcfs,wisp,fixed:1+wisp", *flags]) == 0
    rows = {row["controller"]: row for row in json.loads(Path("rows.json").read_text())}
    assert list(rows) == ["my_rules:One+wisp", "mine.onnx+fcfs", "wisp", "fixed:1+wisp"]
    assert 0.5 < rows["my_rules:One+wisp"]["drafted_per_round"] <= 1.0
    capsys.readouterr()
    for name, words in (("my_rules:Two", "module 'my_rules' has no 'Two'"), ("no.such:One", "No module named 'no'")):
        assert run(main, PROGRAM, ["--controllers", name, *flags]) == 2
        assert words in capsys.readouterr().err
