"""On Ray: the bytes of a local run, whatever dies on the way, and one line where there is no cluster."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("stable_baselines3")
pytest.importorskip("ray")
import ray

import train
from agents import pool as pools
from agents.pool import LOCAL, RayPool, carried, cluster, received, worker_settings
from agents.study import run as study
from agents.study.folder import read_study
from agents.study.play import chunk, player, training_goodput
from agents.training.fleet_tasks import TaskFleet
from agents.training.networks import engine_policy
from agents.training.settings import ALGORITHMS
from tests.agents.test_fleet import actor, fleet
from tests.agents.test_train import assert_same_end
from tests.support.tiny import SCENARIO, SUITE
from wisp_gym.cli import run
from wisp_gym.controllers.policy import save_policy
from wisp_gym.engine.trace_load import load_trace
from wisp_gym.errors import InputError
from wisp_gym.evaluation.pool import Threads
from wisp_gym.scenario import load, with_
from wisp_gym.traces.requests import sample_path
from wisp_gym.traces.speculation import find, samples

ROLLOUT = 2048  # decisions between two updates


@pytest.fixture(scope="module")
def pool() -> Iterator[RayPool]:
    """A cluster of two workers on this machine; the commands of these tests stay with it."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    ray.init(num_cpus=2, runtime_env=worker_settings(LOCAL), **quiet)
    with cluster(LOCAL) as found:
        yield found
    ray.shutdown()


def call(command: Any, *arguments: object) -> int:
    """Exit code of a command, run in this process."""
    try:
        return run(command.main, command.PROGRAM, [str(word) for word in arguments])
    except SystemExit as end:
        return int(end.code or 0)


def kill_a_worker(wait_s: float = 60.0) -> Any:
    """Begin a task that kills the first other worker that it sees at work; the reference of that one's process id."""

    def kill() -> int:
        import time

        deadline = time.monotonic() + wait_s
        while time.monotonic() < deadline:
            for entry in os.listdir("/proc"):
                try:
                    with open(f"/proc/{entry}/cmdline", "rb") as file:
                        at_work = file.read().startswith(b"ray::call")
                    with open(f"/proc/{entry}/stat") as file:
                        parent = int(file.read().rpartition(")")[2].split()[1])
                except (OSError, ValueError):
                    continue
                if at_work and parent == os.getppid():  # started by the same raylet
                    os.kill(int(entry), signal.SIGKILL)
                    return int(entry)
        return 0

    return ray.remote(num_cpus=0, max_retries=0)(kill).remote()


def files(folder: Path) -> dict[str, bytes]:
    """Name → content of everything in a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# --- the study -------------------------------------------------------------------------------------------------------


def test_a_study_has_the_bytes_of_the_local_one_though_a_worker_dies(pool: RayPool, tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(SUITE)
    assert call(study, "--suite", tmp_path / "tiny.toml", "--out", tmp_path / "here") == 0
    killed = kill_a_worker()
    assert call(study, "--suite", tmp_path / "tiny.toml", "--out", tmp_path / "there", "--distributed") == 0
    assert ray.get(killed)
    assert files(tmp_path / "there") == files(tmp_path / "here")


def test_a_study_that_was_begun_here_goes_on_there(pool: RayPool, tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(SUITE)
    assert call(study, "--suite", tmp_path / "tiny.toml", "--out", tmp_path / "study") == 0
    whole = files(tmp_path / "study")
    worlds = tmp_path / "study" / "worlds.jsonl"
    worlds.write_bytes(worlds.read_bytes()[:-40])
    assert call(study, "--resume", tmp_path / "study", "--distributed") == 0
    assert files(tmp_path / "study") == whole


def test_files_travel_by_content(pool: RayPool, tmp_path: Path) -> None:
    sample = find(next(iter(samples())))
    (tmp_path / sample.name).write_bytes(sample.read_bytes())
    (tmp_path / "requests.csv").write_bytes(sample_path("azure-conv-like.csv").read_bytes())
    save_policy(engine_policy(actor(), "token"), tmp_path / "policy.json")
    short = {
        "n_devices": 3,
        "max_draft_tokens": 8,
        "horizon.warmup_s": 1.0,
        "horizon.measure_s": 5.0,
        "horizon.drain_s": 2.0,
    }
    trace = {"draft.trace": str(tmp_path / sample.name)}
    requests = {
        "workload.arrivals": "trace",
        "workload.trace": str(tmp_path / "requests.csv"),
        "workload.trace_format": "azure",
    }
    scenario = with_(load("wisp-a100-qwen3-32b"), **short, **trace, **requests)
    who = player(f"{tmp_path / 'policy.json'}+fcfs", scenario)
    job = (scenario, who, (0, 1), load_trace(scenario), training_goodput)
    (here,) = Threads().map(chunk, [job])
    sent = pool.submit(chunk, job)
    there = carried(scenario)
    for path in tmp_path.iterdir():
        path.unlink()
    assert pool.result(sent) == here
    arrived = received(there)
    assert Path(arrived.draft.trace).read_bytes() == sample.read_bytes()
    assert Path(arrived.workload.trace).read_bytes() == sample_path("azure-conv-like.csv").read_bytes()
    assert received(there) == arrived, "the same content has one place, so that it is read once"


def test_results_come_in_order_and_a_fault_is_that_of_the_job(pool: RayPool) -> None:
    assert list(pool.map(divmod, [(7, k) for k in (1, 2, 3, 4)])) == [(7, 0), (3, 1), (2, 1), (1, 3)]
    with pytest.raises(InputError) as fault:
        list(pool.map(read_study, [(Path("nowhere"),)]))
    assert str(fault.value).startswith("'nowhere' holds no study"), "without Ray's account of it"


def test_other_sources_on_a_machine_are_refused(pool: RayPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "sources_digest", lambda: "another version")
    with pytest.raises(InputError, match=r"has other sources in .*; allowed are the same, or none at that path"):
        list(pool.map(divmod, [(7, 2)]))


def test_a_job_that_kills_every_worker_ends_with_one_line(pool: RayPool) -> None:
    once = RayPool(ray, retries=1)
    with pytest.raises(InputError, match="died 2 times"):
        list(once.map(os._exit, [(1,)]))


# --- training --------------------------------------------------------------------------------------------------------


def test_rollouts_are_those_of_the_local_fleet_though_a_worker_dies(pool: RayPool) -> None:
    policies = [engine_policy(actor(k), "token") for k in range(3)]
    here, there = fleet(ROLLOUT), TaskFleet(fleet(ROLLOUT), pool)
    killed = kill_a_worker()
    for policy in policies:
        for a, b in zip(here.collect(policy), there.collect(policy), strict=True):
            assert a.tobytes() == b.tobytes()
    assert ray.get(killed)
    generators = [[rng.bit_generator.state for rng in one.generators()] for one in (here, there)]
    assert generators[0] == generators[1]
    saved, fetched = here.saved(), there.saved()
    assert {name for name in saved if saved[name].tobytes() != fetched[name].tobytes()} == set()
    for array in fetched.values():  # what is written there counts
        array[...] = array
    assert here.collect(policies[0]).rewards.tobytes() == there.collect(policies[0]).rewards.tobytes()


def flags(tmp_path: Path, name: str) -> list[str]:
    """Arguments of a small run in a folder of this name."""
    (tmp_path / "tiny.toml").write_text(SCENARIO)
    sizes = ["-n", str(3 * ROLLOUT), "--eval-freq", str(ROLLOUT), "--n-eval-envs", "2", "--no-comparison"]
    return [
        *sizes,
        "-f",
        str(tmp_path / name),
        "--env-kwargs",
        f"scenario:{tmp_path / 'tiny.toml'}",
        "horizon_s:8",
        "devices:6",
    ]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short rollouts."""
    base, sizes = ALGORITHMS["fleet"], {"decisions": ROLLOUT, "batch_size": ROLLOUT}
    hyperparameters, worlds = base.hyperparameters | sizes, replace(base.fleet, worlds=4)
    monkeypatch.setitem(ALGORITHMS, "fleet", replace(base, hyperparameters=hyperparameters, fleet=worlds))


@pytest.mark.usefixtures("small")
def test_a_training_has_the_policy_and_checkpoints_of_the_local_one(pool: RayPool, tmp_path: Path) -> None:
    assert call(train, *flags(tmp_path, "here")) == 0
    assert call(train, *flags(tmp_path, "there"), "--distributed") == 0
    here, there = (tmp_path / name / "fleet-Speculation-v1_1" for name in ("here", "there"))
    assert_same_end(here, there)
    assert [path.name for path in (here / "checkpoints").iterdir()] == [
        path.name for path in (there / "checkpoints").iterdir()
    ]


@pytest.mark.usefixtures("small")
def test_seeds_are_runs_of_their_own_and_the_same_there(
    pool: RayPool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = []
    for name, more in (
        ("here", []),
        ("away", ["--distributed"]),
    ):  # paths of one length: the table is as wide as they are
        assert call(train, *flags(tmp_path, name), "--seed", "3", "--seeds", "2", *more) == 0
        tables.append(capsys.readouterr().out.partition("2 seeds, ")[2].replace(str(tmp_path / name), "").splitlines())
    for number in (1, 2):
        here, there = (tmp_path / name / f"fleet-Speculation-v1_{number}" for name in ("here", "away"))
        assert_same_end(here, there)
        assert files(here).keys() == files(there).keys()
        assert (here / "config.json").read_bytes() == (there / "config.json").read_bytes()
    assert [line.split() for line in tables[0]] == [line.split() for line in tables[1]]
    of = {line.split()[0]: line.split()[1] for line in tables[0] if line[:1].isalnum()}
    goodput = [float(of[seed].replace(",", "")) for seed in ("3", "4")]
    one, two = (tmp_path / "here" / f"fleet-Speculation-v1_{number}" / "progress.csv" for number in (1, 2))
    assert one.read_bytes() != two.read_bytes()  # other seeds, other numbers (tiny worlds may end alike)
    assert abs(float(of["mean"]) - np.mean(goodput)) <= 0.1
    assert abs(float(of["std"]) - np.std(goodput, ddof=1)) <= 0.15
    assert [float(of["least"]), float(of["most"])] == sorted(goodput)


# --- what cannot be --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [study, train])
@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("nonsense", "given 'nonsense', allowed is HOST:PORT of a Ray cluster"),
        ("127.0.0.1:70000", "given '127.0.0.1:70000', allowed is HOST:PORT"),
        ("127.0.0.1:1", "nothing answers at 127.0.0.1:1"),
    ],
)
def test_a_wrong_address_is_one_line(
    command: Any,
    address: str,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    assert call(command, "--distributed", address) == 2
    assert_one_line(capsys, words, tmp_path)


@pytest.mark.parametrize("command", [study, train])
def test_without_ray_it_says_what_to_install(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)
    assert call(command, "--distributed") == 2
    assert_one_line(capsys, "pip install -e '.[distributed]'", tmp_path)


@pytest.mark.parametrize(
    ("words", "refusal"),
    [
        (["--algo", "ppo", "--distributed"], "argument --distributed: --algo ppo steps its worlds in one process"),
        (["--seeds", "0"], "argument --seeds: given '0', allowed is a whole number from 1 to 1000"),
        (["--seeds", "2", "--seed", "2147483647"], "argument --seeds: given 2, allowed is a last seed of 2147483647"),
        (["--seeds", "2", "--distributed", "--tensorboard-log", "board"], "argument --tensorboard-log: not allowed"),
    ],
)
def test_flags_that_do_not_go_together_are_one_line(
    words: list[str], refusal: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(train, *words) == 2
    assert_one_line(capsys, refusal, tmp_path)


def assert_one_line(capsys: pytest.CaptureFixture[str], words: str, folder: Path) -> None:
    """The command said this in one line, and wrote nothing."""
    out, err = capsys.readouterr()
    assert out == ""
    assert len([line for line in err.splitlines() if not line.startswith("note: ")]) == 1
    assert words in err
    assert not list(folder.iterdir())
