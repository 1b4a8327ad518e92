"""For whom the server drafts, and how long, as decisions of the agent that composes its batches."""

from __future__ import annotations

from collections.abc import Callable

import gymnasium as gym
import numpy as np
import pytest

from tests.support.invariants import memory_adds_up
from tests.support.small_worlds import log_of
from wisp_gym.contract import request, server
from wisp_gym.contract.ladders import CHUNK_TOKENS, SERVER_TOKENS
from wisp_gym.envs.shells import DecisionEnv
from wisp_gym.scenario import load

Q, K = 12, load("wisp-a100-qwen3-32b").max_draft_tokens
LAUNCH, WAIT = Q, Q + 1
LENGTHS = WAIT + 1 + len(CHUNK_TOKENS)
MOVES = LENGTHS + len(SERVER_TOKENS)


def made(**arguments: object) -> DecisionEnv:
    """A server of twelve devices, with its log."""
    env = gym.make(
        "wisp_gym/Batching-v1", visible=Q, devices=Q, horizon_s=20.0, render_mode="ansi", **arguments
    ).unwrapped
    assert isinstance(env, DecisionEnv)
    return env


def serve(env: DecisionEnv, choose: Callable[[np.ndarray, np.ndarray], int | None], seed: int = 3) -> list[tuple]:
    """Events of an episode: what `choose` says, else everybody is picked, in order of arrival, and the batch launched."""
    seen, info = env.reset(seed=seed)
    over = False
    while not over:
        mask = info["action_mask"]
        action = choose(seen, mask)
        if action is None:
            picks = np.flatnonzero(mask[:Q])
            action = int(picks[0]) if len(picks) else LAUNCH if mask[LAUNCH] else WAIT
        assert mask[action]
        seen, _, _, over, info = env.step(action)
        memory_adds_up(env.task.episodes.arrays)
    assert info["invalid_actions"] == 0
    return log_of(env.task.episodes.arrays)


def nothing(seen: np.ndarray, mask: np.ndarray) -> None:
    """Leave all choices to the rules."""


def places(seen: np.ndarray) -> np.ndarray:
    """(Q, SIZE) entries of the waiting requests."""
    return seen[server.SIZE :].reshape(Q, request.SIZE)


def bring_all(seen: np.ndarray, mask: np.ndarray) -> int | None:
    """Move every session to the server."""
    movable = np.flatnonzero((mask[MOVES:] == 1) & (places(seen)[:, request.STAYS] < 0.5))
    return MOVES + int(movable[0]) if len(movable) else None


def count(log: list[tuple], kind: str) -> int:
    """Number of events of a kind."""
    return sum(event[1] == kind for event in log)


def test_who_moves_nobody_has_a_server_of_devices_alone() -> None:
    with_choices = serve(made(controller="wisp+fcfs+by-load:0+colocated:4"), nothing)
    without = serve(made(controller="wisp+fcfs+by-load:0+colocated:4", hosting=False), nothing)
    assert with_choices == without
    assert count(with_choices, "drafter") == count(with_choices, "draft") == 0


def test_every_session_that_is_moved_streams_from_the_server() -> None:
    log = serve(made(controller="wisp+fcfs+by-load:0+colocated:4"), bring_all)
    prompts = {(device, n) for n, (_, kind, device, _) in enumerate(log) if kind == "request"}
    assert count(log, "send") == len(prompts)  # prompts alone go up
    assert 0 < count(log, "drafter") <= len(prompts)
    assert count(log, "draft") > 20


@pytest.mark.parametrize("k", [0, 1, 3])
def test_a_chosen_length_is_drafted_for_each_of_its_sessions(k: int) -> None:
    def choose(seen: np.ndarray, mask: np.ndarray) -> int | None:
        if mask[LENGTHS + k]:
            assert mask[LENGTHS : LENGTHS + 5].all()
            assert not mask[LENGTHS + 5 : MOVES].any()  # places are kept for four
            assert seen[server.LENGTH_OPEN] == 1.0
            return LENGTHS + k
        if seen[server.SERVER_SESSIONS] > 0:
            assert seen[server.DRAFT_TOKENS] * K == pytest.approx(k)
        return bring_all(seen, mask)

    log = serve(made(controller="wisp+fcfs+by-load:0+colocated-survival:0,4"), choose)
    drafted = [value for _, kind, _, value in log if kind == "draft"]
    assert len(drafted) > 50 if k else not drafted
    assert max(drafted, default=0) == k
    assert np.mean(np.array(drafted) == k) > 0.9 if k else True  # all but at the ends of responses


def test_a_session_can_be_given_back() -> None:
    rng = np.random.default_rng(0)

    def choose(seen: np.ndarray, mask: np.ndarray) -> int | None:
        movable = np.flatnonzero(mask[MOVES:])
        return MOVES + int(rng.choice(movable)) if len(movable) and rng.random() < 0.4 else None

    log = serve(made(controller="wisp+fcfs+by-load:0+colocated:2"), choose)
    moved = [value for _, kind, _, value in log if kind == "drafter"]
    assert min(moved.count(1.0), moved.count(0.0)) > 10


def test_each_session_moves_once_a_batch() -> None:
    def choose(seen: np.ndarray, mask: np.ndarray) -> int | None:
        assert np.array_equal(mask[MOVES:] == 1, places(seen)[:, request.MOVABLE] > 0.5)
        assert not (mask[MOVES:] == 1)[places(seen)[:, request.PRESENT] < 0.5].any()
        movable = np.flatnonzero(mask[MOVES:])
        return MOVES + int(movable[-1]) if len(movable) else None

    assert count(serve(made(controller="wisp+fcfs+by-load:0"), choose), "drafter") > 10


def test_there_is_nothing_to_choose_where_no_session_can_move() -> None:
    def choose(seen: np.ndarray, mask: np.ndarray) -> None:
        assert not mask[LENGTHS:].any()
        assert not seen[server.SERVER_SESSIONS :].any() or not places(seen)[:, request.AT_SERVER :].any()

    serve(made(controller="wisp+fcfs"), choose)


def test_a_server_alone_chooses_its_length() -> None:
    def choose(seen: np.ndarray, mask: np.ndarray) -> int | None:
        assert not mask[MOVES:].any()
        return LENGTHS + 2 if mask[LENGTHS + 2] else None

    drafted = [value for _, kind, _, value in serve(made(controller="colocated:4"), choose) if kind == "draft"]
    assert len(drafted) > 50
    assert max(drafted) == 2
