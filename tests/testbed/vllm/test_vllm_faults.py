"""The faults of the torch testbed, met by a server on vLLM: nothing is lost and nothing wrong is delivered."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")
psutil = pytest.importorskip("psutil")
grpc = pytest.importorskip("grpc")

from tests.support.testbed_faults import (
    Commands,
    Doubling,
    Fatal,
    Killed,
    Unreliable,
    hostile,
    raw,
    refusal,
)
from tests.support.testbed_world import TOKENIZER, World, answer_all, text_of, wait_for
from tests.support.vllm_world import BLOCK_TOKENS, ROOMY, TIGHT, Guess, greedy, prompts
from wisp_gym.testbed.client import Request
from wisp_gym.testbed.connection import Link
from wisp_gym.testbed.controlling import FixedLength
from wisp_gym.testbed.settings import Limits
from wisp_gym.testbed.wire_pb2 import FromDevice, Refusal, Round, Start


def known(count: int, tokens: int, seed: int) -> dict[tuple[int, ...], list[int]]:
    """Prompts and their right answers, by transformers."""
    return {tuple(ids): greedy(ids, tokens) for ids in prompts(count, seed, 4, 40)}


def limits(**changes: Any) -> Limits:
    return Limits(**{**ROOMY.__dict__, **changes})


def core_process() -> Any:
    """The process that vLLM's scheduler runs in."""
    children = psutil.Process().children(recursive=True)
    return next(child for child in children if any("EngineCore" in word for word in [child.name(), *child.cmdline()]))


def test_a_device_killed_mid_round_takes_its_session_up_again(roomy: Any) -> None:
    answers = known(1, 30, 1)
    ids = next(iter(answers))
    request = Request(ids, 30, session=b"0123456789abcdef")
    with World(engine=roomy, limits=ROOMY) as world:
        channel, got = world.channel(), list[int]()
        first = world.device(FixedLength(3), lambda: Fatal(channel, 5), Guess(answers, 0.7, 0))
        with pytest.raises(Killed):
            first.answer(request, got.extend)
        first.close()
        assert 0 < len(got) < 30
        second = world.device(FixedLength(2), draft=Guess(answers, 0.5, 1)).answer(request)
        assert second.tokens == answers[ids]
        assert got == second.tokens[: len(got)]


@pytest.mark.parametrize("kind", [Unreliable, Doubling])
def test_messages_lost_and_doubled_change_nothing(roomy: Any, kind: Any) -> None:
    answers = known(8, 20, 2)
    with World(engine=roomy, limits=ROOMY) as world:
        channel = world.channel()
        devices = [world.device(FixedLength(k), lambda: kind(channel), Guess(answers, 0.7, k)) for k in (0, 2, 4, 8)]
        found = answer_all(devices, [Request(ids, 20) for ids in answers])
        assert [each.tokens for each in found] == list(answers.values())
        assert world.count("wisp_committed_tokens_total") == 8 * 20
        if kind is Unreliable:
            assert sum(each.reconnects for each in found) > 2
        else:
            assert world.count("wisp_rounds_total") == sum(each.rounds for each in found)


def test_hostile_messages_end_their_own_stream_alone(roomy: Any) -> None:
    answers = known(2, 60, 3)
    ids, other = answers
    with World(engine=roomy, limits=limits(max_message_bytes=4096)) as world:
        device = world.device(FixedLength(2), draft=Guess(answers, 0.7, 0))
        got: list[Any] = []
        serving = threading.Thread(target=lambda: got.append(device.answer(Request(ids, 60))))
        serving.start()
        for message in hostile():
            raw(world, message)
        assert raw(world, bytes(10_000)) == grpc.StatusCode.RESOURCE_EXHAUSTED
        begun = Start(version=1, tokenizer=TOKENIZER, prompt=list(ids), max_new_tokens=60)
        assert refusal(world, Round(session=b"g" * 16, round=9, position=29)) == Refusal.UNKNOWN_SESSION
        begun.temperature = float("nan")
        assert refusal(world, Round(session=b"h" * 16, round=9, start=begun)) == Refusal.INVALID
        serving.join(30)
        assert got[0].tokens == answers[ids]
        assert got[0].reconnects == 0
        assert world.count("wisp_refusals_total", reason="INVALID") >= 5
        assert world.count("wisp_failed_batches_total") == 0
        assert world.device(draft=Guess(answers, 1.0, 1)).answer(Request(other, 60)).tokens == answers[other]


def test_a_draft_in_a_prompts_round_is_verified_like_any_other(roomy: Any) -> None:
    """Devices draft after the first token; one that does before is served all the same, also with a prompt of one token."""
    for ids in (prompts(1, 4, 20, 20)[0], [7]):
        right = greedy(ids, 4)
        with World(engine=roomy, limits=ROOMY) as world:
            link = Link(world.channel())
            begun = Start(version=1, tokenizer=TOKENIZER, prompt=ids, max_new_tokens=10)
            link.send(FromDevice(round=Round(session=bytes([len(ids)]) * 16, round=1, start=begun, tokens=right[:2])))
            tokens = list(link.receive(10).reply.tokens)
            assert tokens == right[: len(tokens)]
            assert len(tokens) == (3 if len(ids) > 1 else 1)
            link.close()


def test_a_dead_connection_leaves_nothing_behind(roomy: Any) -> None:
    """Held sessions time out and are evicted with their keys and values."""
    with World(engine=roomy, limits=limits(orphan_s=0.2)) as world:
        for i, ids in enumerate(prompts(5, 6)):
            link = Link(world.channel())
            begun = Start(version=1, tokenizer=TOKENIZER, prompt=ids, max_new_tokens=10)
            link.send(FromDevice(round=Round(session=bytes([i]) * 16, round=1, start=begun)))
            assert link.receive(10).reply.tokens
            link.close()
        assert len(world.server.table.sessions) > 0
        assert world.engine.kv_used_tokens >= 5 * BLOCK_TOKENS
        assert wait_for(lambda: not world.server.table.sessions and not world.engine._kept)
        assert world.engine.kv_used_tokens == 0


def test_vllm_killed_mid_round_is_started_anew(tight: Any) -> None:
    """Its process dies with all sessions: they are rebuilt by prefill, and devices notice a pause alone."""
    answers, before = known(4, 90, 7), tight.restarts
    requests = [Request(ids, 90) for ids in answers]
    with World(engine=tight, limits=TIGHT) as world:
        patient = {"give_up_s": 240.0, "reply_timeout_s": 240.0}
        devices = [world.device(FixedLength(3), draft=Guess(answers, 0.5, i), **patient) for i in range(4)]
        found: list[Any] = []
        work = threading.Thread(target=lambda: found.extend(answer_all(devices, requests)))
        work.start()
        assert wait_for(lambda: world.count("wisp_committed_tokens_total") > 40)
        for pid in tight.core.pids():
            os.kill(pid, signal.SIGKILL)
        assert world.count("wisp_committed_tokens_total") < 4 * 90
        work.join(240)
        assert [each.tokens for each in found] == list(answers.values())
        assert tight.restarts == before + 1
        assert world.count("wisp_committed_tokens_total") == 4 * 90


@pytest.fixture
def commands(folder: Path) -> Iterator[Commands]:
    made = Commands(folder.parent)
    yield made
    made.stop()


def test_the_command_serves_is_killed_and_drains(commands: Commands, folder: Path) -> None:
    """`wisp-gym server --engine vllm`, killed mid-answer and started again; devices are the same command as ever."""
    commands.folder = folder.parent
    (folder.parent / "target").exists() or os.symlink(folder, folder.parent / "target")
    more = ("--engine", "vllm", "--vllm", '{"block_size": 32}', "--max-new-tokens", "600", "--max-prompt-tokens", "100")
    ids, tokens = prompts(1, 8, 12, 12)[0], 500
    server, port, metric = commands.server(0, "batching-v1", *more)
    flags = [
        "--server",
        f"127.0.0.1:{port}",
        "--draft",
        str(folder),
        "--prompt",
        text_of(ids),
        "--max-new-tokens",
        str(tokens),
    ]
    device = commands.start("device", *flags, "--controller", "fixed:1", "--name", "edge-1")
    assert wait_for(lambda: metric("wisp_committed_tokens_total") > 20, 90)
    family = [server.pid, *(child.pid for child in psutil.Process(server.pid).children(recursive=True))]
    server.send_signal(signal.SIGKILL)
    server.wait(10)
    assert wait_for(lambda: not any(alive(pid) for pid in family), 30)  # its processes of vLLM go with it
    server, _, metric = commands.server(port, "batching-v1", *more)
    output, told = device.communicate(timeout=180)
    assert device.returncode == 0, told
    assert output.split() == text_of(greedy(ids, tokens)).split()
    assert re.search(r"\[500 tokens, .* drafted tokens accepted\]", told)
    family = [child.pid for child in psutil.Process(server.pid).children(recursive=True)]
    server.send_signal(signal.SIGTERM)
    output, told = server.communicate(timeout=60)
    assert server.returncode == 0, told
    assert output == "draining\n"
    assert wait_for(lambda: not any(alive(pid) for pid in family), 30)


def alive(pid: int) -> bool:
    """Whether a process runs."""
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
