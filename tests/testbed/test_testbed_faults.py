"""Faults that a deployment meets: nothing is lost and nothing wrong is delivered."""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
grpc = pytest.importorskip("grpc")
pytest.importorskip("transformers")

from tests.support.testbed_faults import Commands, Doubling, Fatal, Killed, SlowDraft, Unreliable, hostile, raw, refusal
from tests.support.testbed_world import (
    COEFFICIENTS,
    TOKENIZER,
    SlowTarget,
    World,
    answer_all,
    controllers,
    draft_model,
    greedy,
    prompt,
    right,
    save_pair,
    target_model,
    text_of,
    wait_for,
)
from wisp_gym.serving import Batch, FirstComeFirstServed, VerificationTimeEstimator
from wisp_gym.testbed.client import GaveUp, Request
from wisp_gym.testbed.connection import Link
from wisp_gym.testbed.controlling import FixedLength
from wisp_gym.testbed.scheduling import batch_limits
from wisp_gym.testbed.settings import Limits
from wisp_gym.testbed.torch_engine.target import Target
from wisp_gym.testbed.wire_pb2 import FromDevice, Refusal, Round, Start

ROOT = Path(__file__).resolve().parents[2]


def test_a_device_killed_mid_round_takes_its_session_up_again() -> None:
    """The device vanishes with a round at the server; another process with the same session goes on."""
    request = Request(prompt(1), 30, session=b"0123456789abcdef")

    with World(target=SlowTarget(0.02)) as world:
        channel = world.channel()
        got: list[int] = []
        first = world.device(FixedLength(3), connect=lambda: Fatal(channel, 5))
        with pytest.raises(Killed):
            first.answer(request, got.extend)
        first.close()
        assert 0 < len(got) < 30
        second = world.device(FixedLength(2)).answer(request)
        assert second.tokens == right(request)
        assert got == second.tokens[: len(got)]
        # What was committed before came at once, not by new verification.
        assert second.rounds < 30 - len(got) + 2


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_restarted_server_rebuilds_sessions_by_prefill(temperature: float) -> None:
    requests = [Request(prompt(i), 40, temperature, seed=i) for i in range(3)]
    with World() as world:
        undisturbed = answer_all([world.device(FixedLength(3)) for _ in requests], requests)
    old = World(target=SlowTarget(0.01))
    devices = [old.device(FixedLength(3)) for _ in requests]
    again = [Request(r.prompt, 40, temperature, r.seed) for r in requests]
    answers: list[Any] = []
    work = threading.Thread(target=lambda: answers.extend(answer_all(devices, again)))
    work.start()
    assert wait_for(lambda: old.count("wisp_committed_tokens_total") > 30)
    old.stop()  # at once: rounds in flight are lost with all sessions
    with World(port=old.port) as new:
        work.join(60)
        assert new.count("wisp_committed_tokens_total") > 0
        assert new.count("wisp_answers_total") == 3
        computed = new.count("wisp_computed_tokens_total")
        assert computed > sum(12 + 1 for _ in requests)  # prompts and what was committed were run again
    # Chance belongs to places, not to rounds: not even sampled answers change.
    assert [a.tokens for a in answers] == [a.tokens for a in undisturbed]
    assert all(a.reconnects > 0 for a in answers)
    old.__exit__()


def test_replies_lost_or_doubled_change_nothing() -> None:
    with World() as world:
        channel = world.channel()
        devices = [world.device(c, connect=lambda: Unreliable(channel)) for c in controllers()]
        requests = [Request(prompt(i), 20) for i in range(8)]
        answers = answer_all(devices, requests)
        assert [a.tokens for a in answers] == [right(r) for r in requests]
        assert sum(a.reconnects for a in answers) > 2
        assert sum(a.ignored for a in answers) > 2
        # A reply that was lost is not verified again: the server answers from what is committed.
        assert world.count("wisp_committed_tokens_total") == 8 * 20


def test_rounds_sent_twice_are_verified_once() -> None:
    with World() as world:
        channel = world.channel()
        answers = answer_all(
            [world.device(c, connect=lambda: Doubling(channel)) for c in controllers()],
            requests := [Request(prompt(i), 20) for i in range(4)],
        )
        assert [a.tokens for a in answers] == [right(r) for r in requests]
        assert world.count("wisp_committed_tokens_total") == 4 * 20
        assert world.count("wisp_rounds_total") == sum(a.rounds for a in answers)


def test_a_slow_device_holds_up_nobody_and_is_forgotten_without_harm() -> None:
    with World(limits=Limits(idle_s=0.1)) as world:
        draft = SlowDraft(draft_model())
        slow = world.device(FixedLength(8), draft=draft)
        request, got = Request(prompt(9), 12), []
        waiting = threading.Thread(target=lambda: got.append(slow.answer(request)))
        waiting.start()
        quick = [world.device(c) for c in controllers()]
        requests = [Request(prompt(i), 16) for i in range(8)]
        answers = answer_all(quick, requests)
        assert [a.tokens for a in answers] == [right(r) for r in requests]
        assert waiting.is_alive()
        assert wait_for(lambda: request.session not in [key[1] for key in world.server.table.sessions])
        draft.hurry.set()
        waiting.join(30)
        assert got[0].tokens == right(request)
        assert world.count("wisp_refusals_total", reason="UNKNOWN_SESSION") > 0  # it was silent for longer than allowed


def test_hostile_messages_end_their_own_stream_alone() -> None:
    with World(limits=Limits(max_message_bytes=4096)) as world:
        good = world.device(FixedLength(2))
        request, got = Request(prompt(2), 60), []
        serving = threading.Thread(target=lambda: got.append(good.answer(request)))
        serving.start()
        for message in hostile():
            raw(world, message)
        assert raw(world, bytes(10_000)) == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert raw(world, *[b"\x12\x00"] * 3000) == grpc.StatusCode.OK  # closes what it never had
        serving.join(30)
        assert got[0].tokens == right(request)
        assert got[0].reconnects == 0
        assert world.count("wisp_refusals_total", reason="INVALID") >= 5
        assert world.count("wisp_failed_batches_total") == 0
        assert wait_for(lambda: world.count("wisp_connections") == 1)
        assert world.device().answer(Request(prompt(3), 8)).tokens == greedy(tuple(prompt(3)), 8)


def test_a_stranger_who_guesses_a_session_cannot_change_its_answer() -> None:
    """Another start, other tokens, other positions for a session that is open."""
    request, got = Request(prompt(4), 30), []
    expected = right(request)  # before the server runs the same model: a model is used by one thread at a time
    with World(target=SlowTarget(0.02)) as world:
        device = world.device(FixedLength(2), give_up_s=20)
        serving = threading.Thread(target=lambda: got.append(device.answer(request)))
        serving.start()
        assert wait_for(lambda: world.count("wisp_rounds_total") > 2)
        start = Start(version=1, tokenizer=TOKENIZER, prompt=prompt(5), max_new_tokens=30)
        for forged in (
            Round(session=request.session, round=9, start=start),
            Round(session=request.session, round=9, position=1, start=Start(version=1, tokenizer=TOKENIZER, max_new_tokens=30,
                  prompt=request.prompt, committed=[(expected[0] + 1) % 64])),
            Round(session=request.session, round=9, position=29),
        ):  # fmt: skip
            assert refusal(world, forged) in (Refusal.INVALID, Refusal.UNKNOWN_SESSION)
        serving.join(30)
        assert got[0].tokens == expected
        assert got[0].reconnects == 0


def test_more_sessions_than_memory_are_evicted_and_computed_again() -> None:
    with World(limits=Limits(kv_tokens=192)) as world:  # three blocks for eight devices
        devices = [world.device(c) for c in controllers() * 2]
        requests = [Request(prompt(i, 10 + i), 24) for i in range(8)]
        answers = answer_all(devices, requests)
        assert [a.tokens for a in answers] == [right(r) for r in requests]
        assert world.count("wisp_evictions_total") > 8
        assert world.engine.kv_used_tokens <= 192
        with pytest.raises(GaveUp, match="allowed are 192"):
            world.device().answer(Request(prompt(0), 300))


@pytest.mark.parametrize(("ahead_s", "rate"), [(-1e6, 1.0), (3e7, 1.5), (0.0, 0.7)])
def test_skewed_clocks_change_neither_answers_nor_deadlines(ahead_s: float, rate: float) -> None:
    """The device's clock is days off and runs at another speed; nothing compares it with the server's."""
    with World(clock=lambda: time.monotonic() + 12345.0) as world:
        deadlines: list[float] = []
        entered = world.server.verifier.enter

        def enter(session: Any) -> None:
            deadlines.append(session.pending.request.deadline_s - session.pending.request.arrived_s)
            entered(session)

        world.server.verifier.enter = enter  # type: ignore[method-assign]
        device = world.device(FixedLength(3), clock=lambda: ahead_s + rate * time.monotonic())
        request = Request(prompt(7), 24, slo_tokens_per_s=2.0, ttft_s=3.0)
        answer = device.answer(request)
        assert answer.tokens == right(request)
        assert answer.reconnects == 0
        assert 0 <= device.controller.delay_mean_s < 1.0
        # ttft 3 s for the prompt; at 2 tokens a second between half a second and two for each round, less what has passed.
        assert 1.0 < deadlines[0] <= 3.0
        assert all(-1.0 < left <= 2.0 for left in deadlines[1:])


class Failing:
    """A target that raises now and then."""

    def __init__(self) -> None:
        self._target, self.calls = Target(target_model()), 0
        self.vocabulary, self.max_tokens, self.end_tokens = self._target.vocabulary, 1024, self._target.end_tokens

    def verify(self, jobs: Any) -> list[list[int]]:
        self.calls += 1
        committed = self._target.verify(jobs)  # caches are written before it fails
        if self.calls % 4 == 2:
            raise RuntimeError("out of memory")
        return committed


def test_a_batch_that_fails_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    with World(target=Failing()) as world:
        devices = [world.device(c) for c in controllers()]
        requests = [Request(prompt(i), 16) for i in range(4)]
        answers = answer_all(devices, requests)
        assert [a.tokens for a in answers] == [right(r) for r in requests]
        assert world.count("wisp_failed_batches_total") > 2
        assert world.count("wisp_committed_tokens_total") == 4 * 16
    assert "verification failed" in caplog.text


def test_a_scheduler_that_fails_is_replaced(caplog: pytest.LogCaptureFixture) -> None:
    class Mad(FirstComeFirstServed):
        calls = 0

        def compose(self, queue: Any, now_s: float, kv_used_tokens: int = 0) -> Batch:
            self.calls += 1
            nonsense = ([len(queue)], [1]), ([0], [0]), ([0], [10_000]), ([0, 0], [1, 1]), ([], [])
            if self.calls % 6 == 5:
                raise RuntimeError("no idea")
            return Batch(*nonsense[self.calls % 6])

    with World(scheduler=lambda *of: Mad(VerificationTimeEstimator(COEFFICIENTS), batch_limits(*of))) as world:
        requests = [Request(prompt(i), 16) for i in range(4)]
        answers = answer_all([world.device(c) for c in controllers()], requests)
        assert [a.tokens for a in answers] == [right(r) for r in requests]
    assert "impossible batch" in caplog.text
    assert "no idea" in caplog.text


def test_a_dead_connection_leaves_nothing_behind() -> None:
    with World(limits=Limits(orphan_s=0.2)) as world:
        for i in range(5):
            link = Link(world.channel())
            start = Start(version=1, tokenizer=TOKENIZER, prompt=prompt(i), max_new_tokens=10)
            link.send(FromDevice(round=Round(session=bytes([i]) * 16, round=1, start=start)))
            assert link.receive(10).reply.tokens
            link.close()
        assert len(world.server.table.sessions) > 0
        assert wait_for(lambda: not world.server.table.sessions and not world.engine.memory.caches)


# --- processes ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def commands(tmp_path: Path) -> Iterator[Commands]:
    save_pair(tmp_path)
    made = Commands(tmp_path)
    yield made
    made.stop()


@pytest.mark.parametrize(("controller", "scheduler"), [("fixed:1", "fcfs"), ("speculation-v1", "batching-v1")])
def test_processes_are_killed_and_the_answer_is_right(commands: Commands, controller: str, scheduler: str) -> None:
    """Device and server run by their commands; first one is killed, then the other, mid-round."""
    ids, tokens = prompt(8), 700
    server, port, metric = commands.server(scheduler=scheduler)
    flags = ["--server", f"127.0.0.1:{port}", "--draft", str(commands.folder / "draft"), "--prompt", text_of(ids)]
    flags += [
        "--max-new-tokens",
        str(tokens),
        "--controller",
        controller,
        "--name",
        "edge-1",
        "--report",
        str(commands.folder / "r"),
    ]
    device = commands.start("device", *flags)
    assert wait_for(lambda: metric("wisp_committed_tokens_total") > 20, 60)
    device.send_signal(signal.SIGKILL)
    device.wait(10)
    before = metric("wisp_committed_tokens_total")
    assert before < tokens
    device = commands.start("device", *flags)
    assert wait_for(lambda: metric("wisp_committed_tokens_total") > before + 20, 60)
    assert metric("wisp_committed_tokens_total") < tokens
    server.send_signal(signal.SIGKILL)
    server.wait(10)
    server, _, metric = commands.server(port, scheduler)
    output, told = device.communicate(timeout=120)
    assert device.returncode == 0, told
    assert output.split() == text_of(greedy(tuple(ids), tokens)).split()
    assert re.search(r"\[700 tokens, .* a second, \d+ rounds, \d+ of \d+ drafted tokens accepted\]", told)
    assert (commands.folder / "r").read_text().count('"tokens"') == 1
    server.send_signal(signal.SIGTERM)
    output, told = server.communicate(timeout=30)
    assert server.returncode == 0, told
    assert output == "draining\n"


@pytest.mark.parametrize(("controller", "scheduler"), [("confidence:0.5,8", "fcfs"), ("speculation-v1", "joint-v1")])
def test_a_short_soak_finds_no_fault(commands: Commands, controller: str, scheduler: str) -> None:
    flags = ["--minutes", "0.3", "--devices", "10", "--prompts", "8", "--max-new-tokens", "24", "--break-share", "0.01"]
    pair = ["--target", str(commands.folder / "target"), "--draft", str(commands.folder / "draft")]
    soak = commands.start("soak", *flags, *pair, "--controller", controller, "--scheduler", scheduler)
    output, told = soak.communicate(timeout=240)
    assert soak.returncode == 0, output + told
    counts = dict(part.rsplit(" ", 1) for part in output.splitlines()[0].split(", "))
    assert counts["wrong"] == counts["lost"] == counts["failed batches"] == "0"
    assert int(counts["answers"]) > 10
    assert int(counts["reconnects"]) > 0
