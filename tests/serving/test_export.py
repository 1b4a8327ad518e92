"""Exported policies decide as their originals, byte for byte the same each time."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from stable_baselines3.common.policies import ActorCriticPolicy

from agents.training.networks import Standardise, engine_policy
from tests.support.bundles import SCENARIO, network_bytes, random_policy, rule, rule_bytes
from wisp_gym.cli import run
from wisp_gym.contract import device
from wisp_gym.controllers.policy import save_policy
from wisp_gym.controllers.predict import named
from wisp_gym.controllers.resolve import published_threshold
from wisp_gym.controllers.shipped import shipped_names
from wisp_gym.files import write_bytes
from wisp_gym.policies import load
from wisp_gym.scenario import dumps
from wisp_gym.serving.bundle.bundle import from_bytes, load_bundle
from wisp_gym.serving.bundle.names import shipped
from wisp_gym.serving.bundle.schema import BundleError
from wisp_gym.serving.export import command, policies
from wisp_gym.serving.export.parity import compiled_actions, held, record

RULES = (
    "fixed:0", "fixed:3", "confidence:0.6", "confidence:0.3,4", "wisp", "wisp:0.3,6", "survival:0.5", "survival:0.7,8,2", "margin:0.6", "svip:1",
    "price:0.8,0.05", "aligned", "aligned:0.02,0.5,1,0.2,7", "leviathan", "leviathan:0,5", "ratio", "ratio:4",
)  # fmt: skip


@pytest.fixture(scope="module")
def recorded() -> dict[str, np.ndarray]:
    """10,000 observations of each environment, which its devices met under a rule that acts at random."""
    rules = {"token": "random:0.7", "length": "leviathan"}
    return {decision: record(SCENARIO, decision, named(name, SCENARIO), 10_000) for decision, name in rules.items()}


@pytest.mark.parametrize("name", RULES)
def test_a_rule_decides_as_in_the_engine(recorded: dict[str, np.ndarray], name: str) -> None:
    bundle = rule(name)
    seen = recorded[bundle.schema.decision]
    ours = bundle.decide({"observation": seen})[0]
    assert (ours == compiled_actions(named(name, SCENARIO), SCENARIO, seen)).all()
    assert len(set(ours)) > 1 or name == "fixed:0"


@pytest.mark.parametrize("name", RULES)
def test_a_rule_decides_as_in_the_engine_anywhere(name: str) -> None:
    bundle, rng = rule(name), np.random.default_rng(5)
    seen = rng.uniform(device.LOW, device.HIGH, size=(10_000, device.SIZE)).astype(np.float32)
    seen[:, device.DRAFTED_TOKENS] = np.float32(rng.integers(0, 12, 10_000) / SCENARIO.max_draft_tokens)
    seen[:, device.TOKENS_LEFT] = rng.integers(33, 65, 10_000) / 64  # within a round the cap is K
    seen[:, device.SERVER_BUSY] = rng.integers(0, 2, 10_000)
    seen[:, device.DRAFT_TIME] /= 40
    ours = bundle.decide({"observation": seen})[0]
    assert (ours == compiled_actions(named(name, SCENARIO), SCENARIO, seen)).all()


@pytest.mark.parametrize("decision", ["token", "length"])
def test_a_network_decides_as_in_torch(recorded: dict[str, np.ndarray], decision: str) -> None:
    torch.manual_seed(1)
    import gymnasium as gym

    space = gym.spaces.Box(np.float32(device.LOW), np.float32(device.HIGH))
    actions = 2 if decision == "token" else SCENARIO.max_draft_tokens + 1
    policy = ActorCriticPolicy(
        space, gym.spaces.Discrete(actions), lambda _: 1e-3, net_arch=[64, 64], features_extractor_class=Standardise
    )
    seen = recorded[decision]
    policy.features_extractor.fit(seen)
    for parameter in policy.action_net.parameters():  # SB3 begins with actions nearly alike
        torch.nn.init.normal_(parameter)
    with torch.no_grad():
        theirs = policy.get_distribution(torch.from_numpy(seen)).mode().numpy()
    bundle = from_bytes(network_bytes(engine_policy(policy, decision)))
    ours = bundle.decide({"observation": seen})[0]
    assert len(set(theirs)) > 1
    # scores are summed in another order: where two are equal to seven digits, the other may be the largest
    assert (ours == held(theirs, seen, SCENARIO)).mean() >= 0.9999


def test_masked_actions_are_never_taken() -> None:
    seen = np.zeros((SCENARIO.max_draft_tokens + 2, device.SIZE), np.float32)
    left = np.arange(SCENARIO.max_draft_tokens + 2)
    seen[:, device.TOKENS_LEFT] = left / 64
    most = np.clip(left - 1, 0, SCENARIO.max_draft_tokens)
    lengths = from_bytes(network_bytes(random_policy("length", seed=3))).decide({"observation": seen})[0]
    assert (lengths <= most).all()
    assert (rule("ratio").decide({"observation": seen})[0] <= most).all()
    seen[:, device.DRAFTED_TOKENS] = 1.0
    assert not rule("fixed:32").decide({"observation": seen})[0].any()


def test_the_same_bytes_again() -> None:
    assert rule_bytes("aligned") == rule_bytes("aligned")
    assert network_bytes(random_policy("token")) == network_bytes(random_policy("token"))


def test_shipped_bundles_are_what_the_command_writes(tmp_path: Path) -> None:
    rules = {name: path for name, path in shipped().items() if path.parent.name == "bundles"}
    assert len(rules) == 5
    for name, path in rules.items():
        origin = load_bundle(name).schema.origin
        kind, _, _ = name.partition("-")
        flags = [] if kind == "speculation" else ["--batching"]
        assert run(command.main, command.PROGRAM, [origin.made_by, *flags, "-o", str(tmp_path / name)]) == 0
        assert (tmp_path / name).read_bytes() == path.read_bytes()


def run_of(folder: Path) -> Path:
    """A run folder as train.py leaves it."""
    save_policy(random_policy("token"), folder / "policy.json")
    write_bytes(folder / "scenario.toml", dumps(SCENARIO).encode())
    write_bytes(folder / "versions.json", json.dumps({"commit": "1" * 40}).encode())
    return folder


def test_a_run_is_exported_with_its_origin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "policy.onnx"
    assert run(command.main, command.PROGRAM, [str(run_of(tmp_path)), "-o", str(out), "--check", "1000"]) == 0
    assert "1,000 of 1,000 recorded observations decided as by the engine, 1,000 as by torch" in capsys.readouterr().out
    described = load_bundle(out).schema
    assert described.learned
    assert described.origin.commit == "1" * 40
    assert described.origin.scenario == SCENARIO.name
    assert described.origin.scenario_sha256 == policies.scenario_sha256(SCENARIO)
    assert described.inputs["observation"][1] == ["survival", "probability", 0.0, 1.0]
    assert described.actions == ["send what is drafted", "draft one more token"]
    assert described.fallback == {"threshold": published_threshold(SCENARIO)}
    again = tmp_path / "again.onnx"
    assert run(command.main, command.PROGRAM, [str(tmp_path), "-o", str(again)]) == 0
    assert again.read_bytes() == out.read_bytes()


@pytest.mark.parametrize("name", shipped_names())
def test_a_shipped_policy_is_exported_by_its_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it ships; made anew for a scenario, it has the same origin and decides alike, wherever the command runs."""
    here, there = tmp_path / "here", tmp_path / "there"
    made = []
    for folder in (here, there):
        folder.mkdir()
        (folder / "versions.json").write_text('{"commit": "of something else"}')
        monkeypatch.chdir(folder)
        assert run(command.main, command.PROGRAM, [name, "-o", "shipped.onnx"]) == 0
        assert Path("shipped.onnx").read_bytes() == shipped()[f"{name}.onnx"].read_bytes()
        assert run(command.main, command.PROGRAM, [name, "--scenario", "wisp-study", "-o", "anew.onnx"]) == 0
        made.append(Path("anew.onnx").read_bytes())
    assert made[0] == made[1]
    ours, theirs = (load_bundle(here / file).schema for file in ("anew.onnx", "shipped.onnx"))
    assert (ours.origin.made_by, ours.origin.commit) == (theirs.origin.made_by, theirs.origin.commit)
    assert (ours.inputs, ours.actions, ours.decision) == (theirs.inputs, theirs.actions, theirs.decision)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["adaedl", "-o", "x.onnx"], "no function of the observation alone"),
        (["wosp", "-o", "x.onnx"], "did you mean 'wisp'"),
        (["wisp", "-o", "x.json"], "ends in .onnx"),
        (["nowhere/policy.json", "-o", "x.onnx"], "No such file"),
        (
            ["runs/no-such-run", "-o", "x.onnx"],
            "no such folder, allowed is a policy.json, its run folder, or a shipped",
        ),
        (["wisp", "-o", "x.onnx", "--scenario", "nope"], "nope"),
    ],
)
def test_refusals_are_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with contextlib.suppress(SystemExit):  # the parser's way to refuse
        assert run(command.main, command.PROGRAM, arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert not list(tmp_path.iterdir())


def test_one_name_for_engine_environment_and_server(tmp_path: Path) -> None:
    seen = np.random.default_rng(0).uniform(device.LOW, device.HIGH, (50, device.SIZE)).astype(np.float32)
    assert run(command.main, command.PROGRAM, [str(run_of(tmp_path)), "-o", str(tmp_path / "policy.onnx")]) == 0
    for name in ("aligned", str(tmp_path), str(tmp_path / "policy.json")):
        loaded = load(name)
        assert loaded.engine(SCENARIO) == named(name, SCENARIO)
        theirs = held(loaded.environment(SCENARIO.name).predict(seen)[0], seen, SCENARIO)
        few = seen[:, device.TOKENS_LEFT] * 64 > 40
        assert (loaded.bundle().decide({"observation": seen})[0] == theirs)[
            few & (seen[:, device.DRAFTED_TOKENS] < 0.9)
        ].all()
    with pytest.raises(BundleError, match="no such file"):
        load("wosp").bundle()
