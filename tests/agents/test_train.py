"""Training: what a run leaves behind, that it repeats and resumes to the bit, and how it refuses what is wrong."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("stable_baselines3")
import torch
from stable_baselines3 import PPO

import train
from agents.training import rivals
from agents.training.arguments import parse
from agents.training.checkpoint import read_checkpoint
from agents.training.learners import make_env, make_model
from agents.training.networks import Standardise, engine_policy
from agents.training.rivals import CHOICE, COLOCATED, RIVALS
from agents.training.run_folder import new_folder
from agents.training.settings import ALGORITHMS, ENVIRONMENTS, new_settings
from agents.wisp_study import reproduce
from tests.support.tiny import SCENARIO
from wisp_gym.cli import run
from wisp_gym.controllers.policy import load_policy, save_policy
from wisp_gym.errors import InputError
from wisp_gym.evaluation import comparison as evaluate
from wisp_gym.evaluation.pool import Threads
from wisp_gym.interrupts import ECHO_S, StopRequest
from wisp_gym.rules.mlp import logits
from wisp_gym.scenario import load

ROOT = Path(__file__).resolve().parents[2]
ROLLOUT = ALGORITHMS["ppo"].n_envs * ALGORITHMS["ppo"].hyperparameters["n_steps"]  # decisions between two updates
TOTAL = 3 * ROLLOUT
NAME = "ppo-Speculation-v1_1"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scenario file of a few short worlds."""
    path = tmp_path_factory.mktemp("scenario") / "tiny.toml"
    path.write_text(SCENARIO, encoding="utf-8")
    return path


def flags(tiny: Path, folder: Path, *more: str, n: int = TOTAL) -> list[str]:
    """Arguments of a small run."""
    kwargs = ["--env-kwargs", f"scenario:{tiny}", "horizon_s:8"]
    algo = [] if "--algo" in more or "--preset" in more else ["--algo", "ppo"]
    return [*algo, "-n", str(n), "-f", str(folder), "--eval-freq", str(ROLLOUT), "--n-eval-envs", "2", *more, *kwargs]


def call(*arguments: str) -> int:
    """Exit code of the command, run in this process."""
    try:
        return run(train.main, train.PROGRAM, arguments)
    except SystemExit as end:
        return int(end.code or 0)


@pytest.fixture(scope="module")
def trained(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never interrupted."""
    folder = tmp_path_factory.mktemp("straight")
    assert call(*flags(tiny, folder, "--no-comparison")) == 0
    return folder / NAME


@pytest.fixture
def damaged(trained: Path, tmp_path: Path) -> Path:
    """A copy of a run, to be damaged."""
    return Path(shutil.copytree(trained, tmp_path / "damaged" / trained.name))


def refused(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: str) -> str:
    """The one line with which the command refuses; it must leave with 2, print nothing else and write nothing."""
    before = sorted(folder.rglob("*"))
    capsys.readouterr()
    assert call(*arguments, "-f", str(folder / "runs")) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"{train.PROGRAM}: ")
    assert err.count("\n") == 1
    leftovers = [path for path in sorted(folder.rglob("*")) if path not in before and path != folder / "runs"]
    assert not leftovers
    return err


def checkpoint(run_folder: Path, decisions: int) -> Path:
    """A checkpoint of a run."""
    return run_folder / "checkpoints" / f"checkpoint-{decisions:010d}.pt"


def table(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file."""
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def leaves(value: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a nested state with its place; tensors as bytes, so that equal means to the bit."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from leaves(part, f"{at}/{key}")
    elif isinstance(value, (list, tuple)):
        for key, part in enumerate(value):
            yield from leaves(part, f"{at}/{key}")
    else:
        yield at, value.numpy().tobytes() if isinstance(value, torch.Tensor) else value


def assert_same_end(one: Path, other: Path) -> None:
    """Both runs end with the same weights, worlds, random generators, scores and best policy."""
    ends = [sorted((folder / "checkpoints").glob("*.pt"))[-1] for folder in (one, other)]
    assert ends[0].name == ends[1].name
    first, second = (dict(leaves(read_checkpoint(end))) for end in ends)
    assert first.keys() == second.keys()
    assert {place for place in first if first[place] != second[place]} - {"/episodes"} == set()
    for name in ("policy.json", "validation.csv"):
        assert (one / name).read_bytes() == (other / name).read_bytes()


# --- the run folder --------------------------------------------------------------------------------------------------


def test_the_folder_says_what_the_run_was(trained: Path, tiny: Path) -> None:
    config = json.loads((trained / "config.json").read_text())
    assert (config["algo"], config["env"], config["n_timesteps"], config["seed"]) == (
        "ppo",
        "wisp_gym/Speculation-v1",
        TOTAL,
        0,
    )
    assert config["env_kwargs"] == {"scenario": str(tiny), "controller": "wisp+fcfs", "ways": False, "horizon_s": 8}
    assert config["hyperparameters"] == ALGORITHMS["ppo"].hyperparameters
    assert not set(config["validation_seeds"]) & set(config["test_seeds"])
    assert "train.py --algo ppo -n" in (trained / "command.txt").read_text()
    assert json.loads((trained / "versions.json").read_text())["torch"] == version("torch")
    assert load(str(trained / "scenario.toml")) == load(str(tiny))
    names = [path.name for path in sorted((trained / "checkpoints").iterdir())]
    assert names == [f"checkpoint-{k * ROLLOUT:010d}.pt" for k in (1, 2, 3)]
    assert not list(trained.rglob("*.partial"))


def test_metrics_are_kept(trained: Path) -> None:
    rows = table(trained / "validation.csv")
    assert [int(row["decisions"]) for row in rows] == [k * ROLLOUT for k in range(4)]
    assert all(float(row["goodput_tokens_per_s"]) > 0 for row in rows)
    log = table(trained / "progress.csv")
    assert [int(row["time/total_timesteps"]) for row in log] == [ROLLOUT, 2 * ROLLOUT, TOTAL]
    best = max(rows, key=lambda row: float(row["goodput_tokens_per_s"]))
    assert load_policy(trained).about["decisions"] == int(best["decisions"])


def test_a_folder_is_never_used_twice(tmp_path: Path) -> None:
    (tmp_path / "a_7").mkdir()
    (tmp_path / "a_9").write_text("a file of this name is in the way too")
    (tmp_path / "a_x").mkdir()
    assert [new_folder(tmp_path, "a").name for _ in range(2)] == ["a_10", "a_11"]
    assert new_folder(tmp_path / "new" / "deep", "a").name == "a_1"


def test_tensorboard_events_go_to_a_folder_of_the_run(tiny: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    assert call(*flags(tiny, tmp_path, "--no-comparison", "--tensorboard-log", str(tmp_path / "tb"), n=10)) == 0
    assert list((tmp_path / "tb" / NAME).glob("events.*"))
    assert (tmp_path / NAME / "progress.csv").stat().st_size > 0


@pytest.mark.parametrize("asked", [False, True])
def test_the_bar_appears_on_a_terminal_or_on_demand(
    asked: bool, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*flags(tiny, tmp_path, "--no-comparison", *["-P"] * asked, n=10)) == 0
    err = capsys.readouterr().err
    assert ("decisions/s" in err) == asked
    assert asked or err == ""


# --- what is learned and exported ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("algo", "env"),
    [
        ("ppo", "SpeculationLength-v1"), ("a2c", "Speculation-v1"), ("fleet", "Speculation-v1"), ("fleet", "SpeculationLength-v1"),
    ],
)  # fmt: skip
def test_other_algorithms_and_decisions_train_and_resume(algo: str, env: str, tiny: Path, tmp_path: Path) -> None:
    given = ALGORITHMS[algo].hyperparameters
    steps = given["decisions"] if algo == "fleet" else ALGORITHMS[algo].n_envs * given["n_steps"]
    more = ("--no-comparison", "--algo", algo, "--env", f"wisp_gym/{env}", "--eval-freq", str(steps))
    assert call(*flags(tiny, tmp_path, *more, n=2 * steps)) == 0
    straight, resumed = tmp_path / f"{algo}-{env}_1", tmp_path / f"{algo}-{env}_2"
    assert load_policy(straight).decision == ENVIRONMENTS[f"wisp_gym/{env}"]
    assert call("-i", str(checkpoint(straight, steps)), "-f", str(tmp_path), "--no-comparison") == 0
    assert_same_end(straight, resumed)


def test_the_exported_policy_acts_like_the_network(tiny: Path, tmp_path: Path) -> None:
    settings = train.chosen_settings(*parse(train.Arguments, train.PROGRAM, "", flags(tiny, tmp_path)))
    env = make_env(settings)
    model = make_model(settings, env)
    assert isinstance(model.policy.features_extractor, Standardise)
    torch.nn.init.normal_(model.policy.action_net.weight, generator=torch.Generator().manual_seed(3))
    save_policy(engine_policy(model.policy, "token"), tmp_path / "policy.json")
    packed = load_policy(tmp_path / "policy.json").weights
    rng, space = np.random.default_rng(2), env.observation_space
    seen = np.concatenate([env.step(rng.integers(0, 2, env.num_envs))[0] for _ in range(20)])
    anywhere = rng.uniform(space.low, space.high, (2_000, *space.shape)).astype(np.float32)
    for observations in (seen, anywhere):  # what occurs, and what the documented ranges allow
        with torch.no_grad():
            wanted = model.policy.get_distribution(torch.from_numpy(observations)).distribution.logits.numpy()
        out = np.zeros((len(observations), 2), np.float32)
        for observation, row in zip(observations, out, strict=True):
            logits(packed, observation, row)
        gap = wanted[:, 1] - wanted[:, 0]
        np.testing.assert_allclose(out[:, 1] - out[:, 0], gap, atol=2e-3)
        assert 0.05 < (gap > 0).mean() < 0.95


def test_validation_meets_the_population_and_service_of_the_training(tiny: Path) -> None:
    settings = new_settings(env_kwargs={"devices": 3, "slo": 8.0})
    held_out = rivals.held_out_scenario(settings, load(str(tiny)))
    assert held_out.n_devices == 3
    assert [slo.speed_tokens_per_s for slo in held_out.slo] == [8.0]


def test_a_whole_run_compares_with_the_rivals(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*flags(tiny, tmp_path, "-P", n=10)) == 0
    out, err = capsys.readouterr()
    folder = tmp_path / NAME
    rows = json.loads((folder / "comparison.json").read_text())
    learned = f"{folder / 'policy.json'}+fcfs"
    names = {row["controller"] for row in rows}
    assert names > {learned, CHOICE, *RIVALS}
    assert all(name.startswith("wisp:") for name in names - {learned, CHOICE, *RIVALS, *COLOCATED})  # tuned
    goodput = [row["goodput_tokens_per_s"] for row in rows]
    assert goodput == sorted(goodput, reverse=True)
    assert {row["seeds"] for row in rows} == {20}
    text = (folder / "comparison.txt").read_text()
    assert text.strip() in out
    assert "learned: " in text
    rungs = text[text.index("ladder ") :]
    assert all(
        f"\n{rung}" in rungs
        for rung in (
            "WISP ", "WISP, tuned", "best rule of devices (", "best server that drafts for itself (", "centralized serving (",
            "learned", "controller-v2", "lookahead (", "bound, devices draft", "bound, the server drafts",
        )
    )  # fmt: skip
    assert (folder / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert "held-out worlds" in err


# --- the same numbers ------------------------------------------------------------------------------------------------


def test_a_resumed_run_ends_like_one_that_was_never_interrupted(trained: Path, tmp_path: Path) -> None:
    assert call("-i", str(checkpoint(trained, 2 * ROLLOUT)), "-f", str(tmp_path), "--no-comparison") == 0
    assert_same_end(trained, tmp_path / NAME)
    assert json.loads((tmp_path / NAME / "config.json").read_text())["n_timesteps"] == TOTAL


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_leaves_a_run_that_resumes_to_the_same_numbers(
    number: signal.Signals, code: int, trained: Path, tiny: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "train.py", *flags(tiny, tmp_path / "runs")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert "run folder" in process.stdout.readline()
    process.send_signal(number)  # before the first rollout has ended
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    stopped = tmp_path / "runs" / NAME
    asked, told = err.strip().splitlines()
    assert "stopping before the next rollout" in asked
    assert told.startswith(f"{train.PROGRAM}: interrupted")
    assert told.endswith(f"best policy so far: {stopped / 'policy.json'}; go on with {train.PROGRAM} -i {stopped}")
    assert int(sorted((stopped / "checkpoints").iterdir())[-1].stem.rpartition("-")[2]) < TOTAL

    arguments = ["--scenario", str(tiny), "--seeds", "1", "--controllers", f"{stopped}+fcfs,wisp"]
    assert run(evaluate.main, evaluate.PROGRAM, arguments) == 0
    tiny_copy = stopped / "scenario.toml"  # the run does not need the file that its scenario came from
    config = json.loads((stopped / "config.json").read_text())
    config["env_kwargs"]["scenario"] = str(tmp_path / "gone.toml")
    (stopped / "config.json").write_text(json.dumps(config))
    assert tiny_copy.exists()
    assert call("-i", str(stopped), "-f", str(tmp_path / "resumed"), "--no-comparison") == 0
    assert_same_end(trained, tmp_path / "resumed" / NAME)


def test_the_same_seed_gives_the_same_policy_in_another_process(trained: Path, tiny: Path, tmp_path: Path) -> None:
    command = [sys.executable, "train.py", *flags(tiny, tmp_path, "--no-comparison")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert (tmp_path / NAME / "policy.json").read_bytes() == (trained / "policy.json").read_bytes()
    assert call(*flags(tiny, tmp_path, "--no-comparison", "--seed", "1")) == 0
    assert (tmp_path / NAME.replace("_1", "_2") / "policy.json").read_bytes() != (trained / "policy.json").read_bytes()


def test_a_run_is_a_function_of_values(trained: Path, tiny: Path, tmp_path: Path) -> None:
    kwargs = {"scenario": str(tiny), "horizon_s": 8}
    settings = new_settings("ppo", n_timesteps=TOTAL, eval_freq=ROLLOUT, n_eval_envs=2, env_kwargs=kwargs)
    folder = train.train(settings, train.Output(tmp_path, comparison=False, command=["mine.py"]), Threads())
    assert folder == tmp_path / NAME
    assert_same_end(trained, folder)
    assert (folder / "config.json").read_bytes() == (trained / "config.json").read_bytes()
    assert (folder / "command.txt").read_text().endswith(" mine.py\n")


def test_a_longer_training_follows_the_schedule_of_its_total(trained: Path, tmp_path: Path) -> None:
    total = 5 * ROLLOUT
    assert call("-i", str(trained), "-n", str(total), "-f", str(tmp_path), "--no-comparison") == 0
    rows = table(tmp_path / NAME / "progress.csv")
    rates = {int(row["time/total_timesteps"]): row["train/learning_rate"] for row in rows}  # logged a rollout later
    assert float(rates[total]) == pytest.approx(ALGORITHMS["ppo"].learning_rate * (1 - 4 / 5))
    scores = (tmp_path / NAME / "validation.csv").read_text().splitlines()
    assert scores[:5] == (trained / "validation.csv").read_text().splitlines()
    assert scores[-1].startswith(f"{total},")


# --- Ctrl-C in other places ------------------------------------------------------------------------------------------


def test_the_first_ctrl_c_asks_and_the_second_interrupts(capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    with StopRequest("stopping soon") as stop:
        stop.obey()
        signal.raise_signal(signal.SIGINT)
        assert stop.asked == signal.SIGINT
        assert capfd.readouterr().err == "\nstopping soon; once more stops at once\n"
        signal.raise_signal(signal.SIGTERM)  # at once: the same wish from elsewhere
        with pytest.raises(KeyboardInterrupt):
            stop.obey()
        stop.heard_s -= ECHO_S
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def interrupt(*_: Any, **__: Any) -> None:
    """What a pressed Ctrl-C does to a function."""
    raise KeyboardInterrupt


def test_an_interruption_before_the_first_checkpoint_leaves_a_policy(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PPO, "train", interrupt)
    assert call(*flags(tiny, tmp_path, "--no-comparison")) == 130
    err = capsys.readouterr().err
    assert "no checkpoint yet" in err
    assert "policy.json" in err
    assert err.count("\n") == 1
    assert load_policy(tmp_path / NAME).decision == "token"
    assert "holds no checkpoint" in refused(capsys, tmp_path, "-i", str(tmp_path / NAME))


def test_an_interrupted_comparison_leaves_the_finished_training(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rivals, "evaluate", interrupt)
    assert call(*flags(tiny, tmp_path, n=ROLLOUT)) == 130
    assert "the training is complete" in capsys.readouterr().err
    folder = tmp_path / NAME
    assert load_policy(folder).decision == "token"
    assert not list(folder.glob("comparison*"))
    more = ("-n", str(2 * ROLLOUT), "-f", str(tmp_path), "--no-comparison")
    assert call("-i", str(folder), *more) == 0


# --- refusals --------------------------------------------------------------------------------------------------------

KWARGS = "argument --env-kwargs: "


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--n-timestep", "5"], "did you mean '--n-timesteps'?"),
        (["-n", "0"], "argument -n/--n-timesteps: given '0', allowed is a whole number"),
        (["-n", "1e6"], "given '1e6'"),
        (["--seed", "-1"], "argument --seed: given '-1'"),
        (["--n-eval-envs", "0"], "argument --n-eval-envs"),
        (["--algo", "pp"], "argument --algo: given 'pp'; did you mean 'ppo'?"),
        (["--algo", "dqn"], "allowed: fleet, ppo, a2c"),
        (["--preset", "speculations"], "argument --preset: given 'speculations'; did you mean 'speculation'?"),
        (["--env", "wisp_gym/Speculation-v0"], "argument --env: given 'wisp_gym/Speculation-v0'; did you mean"),
        (["--device", "tpu"], "argument --device: given 'tpu'; did you mean 'cpu'?"),
        (["--env-kwargs", "devices"], KWARGS + "given 'devices', allowed is KEY:VALUE"),
        (["--env-kwargs", "devicez:3"], KWARGS + "unknown 'devicez'; did you mean 'devices'?"),
        (["--env-kwargs", "num_envs:3"], KWARGS + "unknown 'num_envs'; allowed: scenario, devices"),
        (["--env-kwargs", "devices:3", "devices:4"], KWARGS + "devices is given twice"),
        (["--env-kwargs", "devices:many"], KWARGS + "devices given 'many', allowed is a whole number"),
        (["--env-kwargs", "devices:True"], KWARGS + "devices given True"),
        (["--env-kwargs", "devices:0"], KWARGS + "devices given 0, allowed"),
        (["--env-kwargs", "horizon_s:1e999"], KWARGS + "horizon_s given inf"),
        (["--env-kwargs", "horizon_s:0.001"], KWARGS + "no decision falls before the horizon"),
        (
            ["--algo", "ppo", "--env-kwargs", "controller:wips+fcfs"],
            KWARGS + "unknown speculation controller 'wips'; did you mean",
        ),
        (["--algo", "ppo", "--env-kwargs", "controller:centralized"], KWARGS + "controller: given 'centralized'"),
        (["--algo", "ppo", "--env-kwargs", "others:nowhere.json"], "nowhere.json: No such file"),
        (
            ["--algo", "ppo", "--env-kwargs", "reward_weights:{'tim':1}"],
            "reward_weights: unknown 'tim'; did you mean 'time'?",
        ),
        (
            ["--algo", "ppo", "--env-kwargs", "reward_weights:{'time':'1'}"],
            KWARGS + "reward_weights: time given '1'",
        ),
        (["--env-kwargs", "randomise:{'jitter':{1,2}}"], KWARGS + "randomise: jitter given"),
        (
            ["--env-kwargs", "others:mine.json"],
            "others is not for --algo fleet, whose devices all learn; allowed: scenario",
        ),
        (["--env-kwargs", "slo:-2"], "slo given -2, allowed is a positive, finite number"),
        (["--env-kwargs", "scenario:h100-qwen3-32"], "h100-qwen3-32b"),
        (["--env-kwargs", "scenario:__import__('os')._exit(7)"], "is neither a preset nor a TOML file"),
        (["--env-kwargs", "devices:__import__('os')._exit(7)"], "allowed is a whole number"),
        (["-i", "nowhere"], "argument --trained-agent: 'nowhere' does not exist; allowed is a run folder"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in refused(capsys, tmp_path, *arguments)


def test_a_wrong_scenario_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(SCENARIO.replace("n_devices = 6", "n_device = 6"), encoding="utf-8")
    line = refused(capsys, tmp_path, "--env-kwargs", f"scenario:{wrong}")
    assert "wrong.toml" in line
    assert "n_devices" in line


@pytest.mark.parametrize("flag", ["--log-folder", "--tensorboard-log"])
def test_a_folder_that_cannot_be_written_is_named(
    flag: str, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("no folder")
    capsys.readouterr()
    assert call(*flags(tiny, tmp_path / "runs"), flag, str(tmp_path / "file" / "below")) == 2
    line = capsys.readouterr().err
    assert f"argument {flag}: cannot write '{tmp_path / 'file' / 'below'}'" in line
    assert line.count("\n") == 1
    assert not [path for path in tmp_path.rglob("*") if path.name not in ("file", "runs")]


@pytest.mark.parametrize(
    "flag", [["--algo", "ppo"], ["--env", "wisp_gym/Speculation-v1"], ["--seed", "3"], ["--n-eval-envs", "4"], ["--env-kwargs", "devices:9"]]
)  # fmt: skip
def test_a_resumed_run_keeps_its_settings(
    flag: list[str], trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, tmp_path, "-i", str(trained), *flag)
    assert f"argument {flag[0]}: not allowed with --trained-agent" in line
    assert "--eval-freq" in line


def test_a_resumed_run_needs_something_to_do(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"allowed is more than the {TOTAL}" in refused(capsys, tmp_path, "-i", str(trained))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        (None, None, "config.json' cannot be read: No such file or directory; allowed is a run folder"),
        (None, "{", "is no JSON"),
        (None, "[]", "holds no settings"),
        ("algo", "pop", "algo: given 'pop'; did you mean 'ppo'?"),
        ("env", 3, "env: given 3; allowed: wisp_gym/Speculation-v1"),
        ("seed", "0", "'seed' given '0', allowed is for instance 0"),
        ("widths", [64, "x"], "'widths' given 'x'"),
        ("hyperparameters", {"gamma": 0.9}, "'hyperparameters.n_steps' is missing"),
        (
            "env_kwargs",
            {"controller": "wisp+fcfs", "ways": False, "scenario": "x", "devises": 3},
            "unknown 'devises'; did you mean",
        ),
        ("widths", [32, 32], "does not fit the settings of its run"),
        (
            "env_kwargs",
            {"controller": "wisp+fcfs", "ways": False, "scenario": "x", "devices": 9},
            "does not fit the settings",
        ),
    ],
)
def test_a_run_with_a_damaged_configuration_is_refused(
    key: str | None, value: Any, words: str, damaged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = damaged / "config.json"
    if key is not None:
        config.write_text(json.dumps({**json.loads(config.read_text()), key: value}))
    elif value is not None:
        config.write_text(value)
    else:
        config.unlink()
    line = refused(capsys, tmp_path, "-i", str(damaged), "-n", str(2 * TOTAL))
    assert words in line
    assert "--trained-agent" in line


# --- damaged checkpoints ---------------------------------------------------------------------------------------------


def test_a_damaged_checkpoint_is_refused_or_says_the_same(trained: Path, tmp_path: Path) -> None:
    """Every changed byte is either noticed or lies where it means nothing (padding between the parts)."""
    path, rng = tmp_path / "damaged.pt", np.random.default_rng(0)
    whole = checkpoint(trained, TOTAL).read_bytes()
    expected = dict(leaves(read_checkpoint(checkpoint(trained, TOTAL))))
    messages = []
    for trial in range(60):
        content = bytearray(whole)
        # Half of them near the end, where the archive keeps its directory; the parts themselves are many times larger.
        low = 0 if trial % 2 else len(content) - 20_000
        content[int(rng.integers(low, len(content)))] ^= int(rng.integers(1, 256))
        path.write_bytes(content)
        try:
            assert dict(leaves(read_checkpoint(path))) == expected
        except InputError as error:
            messages.append(str(error))
    assert len(messages) > 30
    assert all(str(path) in message and "\n" not in message for message in messages)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"{}", os.urandom(4096), None])
def test_what_is_no_checkpoint_ends_the_command(
    content: bytes | None, damaged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = checkpoint(damaged, TOTAL)
    path.write_bytes(path.read_bytes()[:100_000] if content is None else content)
    line = refused(capsys, tmp_path, "-i", str(damaged), "-n", str(2 * TOTAL))
    assert f"argument --trained-agent: '{path}' is no checkpoint" in line


class Bomb:
    """An object that would run code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (7,)


def test_a_checkpoint_runs_no_code(damaged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = checkpoint(damaged, TOTAL)
    torch.save({"version": 1, "policy": Bomb()}, path)
    assert "is no checkpoint" in refused(capsys, tmp_path, "-i", str(damaged), "-n", str(2 * TOTAL))


@pytest.mark.parametrize("change", ["policy", "worlds", "validation", "numpy_random", "version"])
def test_a_checkpoint_that_lacks_a_part_is_refused(
    change: str, damaged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = checkpoint(damaged, TOTAL)
    state = torch.load(path, weights_only=True)
    del state[change]
    torch.save(state, path)
    assert str(path) in refused(capsys, tmp_path, "-i", str(damaged), "-n", str(2 * TOTAL))


def test_a_folder_that_cannot_be_is_refused_before_anything_is_computed(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    for module, name in (("agents.training.run", "make"), ("agents.wisp_study.reproduce", "study")):
        monkeypatch.setattr(f"{module}.{name}", interrupt)
    for main, words in ((train.main, flags(tiny, tmp_path / "file")), (reproduce.main, ["-f", str(tmp_path / "file")])):
        assert run(main, "prog", words) == 2
        said = f"prog: argument --log-folder: cannot write '{tmp_path / 'file'}': Not a directory"
        assert capsys.readouterr().err == f"{said}; allowed is a writable folder\n"
