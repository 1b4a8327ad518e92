"""Worlds run in every kind of process: forked from one that has run some, spawned, on threads, in several at once."""

import multiprocessing
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

import wisp_gym  # noqa: F401
from wisp_gym.simulation import simulate

ROOT = Path(__file__).parents[2]
PATIENCE_S = 240  # a child may have to compile first


def tokens() -> list[float]:
    """Tokens of two worlds, run on two threads."""
    return [
        found.throughput_tokens_per_s for found in simulate("wisp-a100-qwen3-32b", seeds=(0, 1), n_devices=2, threads=2)
    ]


def rewards() -> list[float]:
    """Rewards of a vector environment on two threads."""
    envs = gym.make_vec("wisp_gym/Speculation-v1", num_envs=4, devices=2, horizon_s=2.0, threads=2)
    envs.reset(seed=0)
    return np.sum([envs.step(np.ones(4, int))[1] for _ in range(20)], axis=0).tolist()


def both() -> tuple[list[float], list[float]]:
    """What a process must find, whatever it is."""
    return tokens(), rewards()


@pytest.fixture(scope="module")
def expected() -> tuple[list[float], list[float]]:
    """What this process finds; from then on it has a thread pool."""
    return both()


@pytest.mark.parametrize(
    "method", [m for m in ("fork", "spawn", "forkserver") if m in multiprocessing.get_all_start_methods()]
)
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12 warns of what this test is about
def test_a_child_finds_the_same(method: str, expected: tuple[list[float], list[float]]) -> None:
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert [job.get(PATIENCE_S) for job in [pool.apply_async(both) for _ in range(2)]] == [expected] * 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_an_environment_goes_on_in_a_forked_child() -> None:
    envs = gym.make_vec("wisp_gym/Speculation-v1", num_envs=4, devices=2, horizon_s=2.0, threads=2)
    envs.reset(seed=0)
    child = os.fork()
    if not child:
        signal.alarm(PATIENCE_S)
        envs.step(np.zeros(4, int))
        os._exit(0)
    envs.step(np.zeros(4, int))
    assert os.waitpid(child, 0)[1] == 0


def test_threads_find_the_same(expected: tuple[list[float], list[float]]) -> None:
    with ThreadPoolExecutor(4) as pool:
        assert [job.result(PATIENCE_S) for job in [pool.submit(both) for _ in range(4)]] == [expected] * 4


def test_two_processes_on_an_empty_cache(tmp_path: Path) -> None:
    code = "from wisp_gym.engine.draws import uniform; print(uniform(1, 2))"  # small, but the whole way
    given = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    both = [subprocess.Popen([sys.executable, "-c", code], env=given, stdout=-1, text=True) for _ in range(2)]
    first, second = (process.communicate(timeout=PATIENCE_S)[0] for process in both)
    assert first == second != ""
