"""Answers of a server on vLLM are, token for token, those of vLLM without drafts: whatever devices draft, and whatever memory does."""

from __future__ import annotations

import random
import threading
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from tests.support.testbed_faults import Fatal, Killed
from tests.support.testbed_world import World, answer_all, scheduled
from tests.support.vllm_world import ROOMY, TIGHT, Guess, prompts, stock_answers
from wisp_gym.testbed.client import Request
from wisp_gym.testbed.connection import Link
from wisp_gym.testbed.controlling import ConfidenceStop, FixedLength

ANSWERS, TOKENS = 520, 24


@pytest.fixture(scope="module")
def asked(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, ...], list[int]]:
    """Prompts and vLLM's own answers."""
    ids = prompts(ANSWERS)
    found = stock_answers(folder, tmp_path_factory.mktemp("stock"), [(each, TOKENS) for each in ids])
    return {tuple(each): answer for each, answer in zip(ids, found, strict=True)}


def serve(
    world: World, asked: dict[tuple[int, ...], list[int]], count: int, devices: int, slow_s: float = 0.0
) -> list[Any]:
    """The answers of devices that are right more or less often; each answer is compared."""
    guesses = [Guess(asked, (0.0, 0.5, 0.8, 1.0)[i % 4], i, slow_s if i % 4 == 1 else 0.0) for i in range(devices)]
    made = [world.device(FixedLength((0, 3, 8, 5)[i % 4]), draft=guess) for i, guess in enumerate(guesses)]
    requests = [Request(ids, TOKENS, slo_tokens_per_s=4.0, ttft_s=1.0) for ids in list(asked)[:count]]
    answers = answer_all(made, requests)
    assert [answer.tokens for answer in answers] == list(asked.values())[:count]
    return answers


def test_five_hundred_answers_under_preemption_are_vllms_own(
    tight: Any, asked: dict[tuple[int, ...], list[int]], record_property: Any
) -> None:
    """Twelve blocks for sixteen devices, chunks of 24 tokens, slow devices that are forgotten, and a policy that composes."""
    limits = TIGHT.__class__(**{**TIGHT.__dict__, "idle_s": 0.2})
    with World(engine=tight, scheduler=scheduled("batching-v1"), limits=limits) as world:
        answers = serve(world, asked, 500, 16, slow_s=0.5)
        evictions = world.count("wisp_evictions_total")
        figures = {
            "answers": len(answers), "rounds": sum(a.rounds for a in answers), "accepted": sum(a.accepted for a in answers),
            "drafted": sum(a.drafted for a in answers), "evictions": evictions, "refusals": sum(a.refusals for a in answers),
            "fallbacks": world.count("wisp_scheduler_fallbacks_total", reason="replaced"),
        }  # fmt: skip
        print(figures)
        assert evictions > 500
        assert world.count("wisp_failed_batches_total") == 0
        assert figures["fallbacks"] == 0
        assert world.count("wisp_refusals_total", reason="UNKNOWN_SESSION") > 0  # forgotten, and built again
        assert 0 < figures["accepted"] < figures["drafted"]
        assert world.server.verifier.scheduler.decisions > 0


@pytest.mark.parametrize("name", ["fcfs", "joint-v1"])
def test_every_scheduler_is_served(roomy: Any, asked: dict[tuple[int, ...], list[int]], name: str) -> None:
    with World(engine=roomy, scheduler=scheduled(name), limits=ROOMY) as world:
        serve(world, asked, 40, 8)
        assert world.count("wisp_evictions_total") == 0
        assert world.count("wisp_answers_total") == 40
        assert world.count("wisp_batch_rounds_count") > 0
        assert not world.server.verifier.scheduler.fallbacks


def test_what_devices_are_told_is_that_of_the_torch_engine(roomy: Any, asked: dict[tuple[int, ...], list[int]]) -> None:
    """Prices and suggestions, times and counts: the server is the same, so the reply is."""

    class Listening(Link):
        def receive(self, timeout_s: float) -> Any:
            message = super().receive(timeout_s)
            replies.append(message.reply)
            return message

    replies: list[Any] = []

    with World(engine=roomy, scheduler=scheduled("joint-v1"), limits=ROOMY) as world:
        scheduler = world.server.verifier.scheduler
        scheduler.suggested_tokens = lambda name: 5  # type: ignore[method-assign]
        channel = world.channel()
        ids = next(iter(asked))
        device = world.device(ConfidenceStop(0.4, 8), lambda: Listening(channel), Guess(asked, 0.8, 1))
        answer = device.answer(Request(ids, TOKENS, slo_tokens_per_s=4.0))
        assert answer.tokens == asked[ids]
        assert {reply.state.suggested_tokens for reply in replies} == {5}
        assert all(reply.state.mean_batch_s > 0 for reply in replies)
        assert {reply.state.price for reply in replies} >= {scheduler.price}
        assert sum(reply.accepted for reply in replies) == answer.accepted > 0


def test_devices_that_break_off_leave_the_others_right(tight: Any, asked: dict[tuple[int, ...], list[int]]) -> None:
    """Half of the devices are killed mid-round, some for good; what they left is taken up again or forgotten."""
    limits = TIGHT.__class__(**{**TIGHT.__dict__, "orphan_s": 0.2})
    drawn = random.Random(5)
    with World(engine=tight, limits=limits) as world:
        channel = world.channel()
        ids = list(asked)[:48]

        def broken(place: int) -> None:
            request = Request(ids[place], TOKENS)
            device = world.device(FixedLength(4), lambda: Fatal(channel, rounds), Guess(asked, 0.7, place))
            rounds = drawn.randint(2, 6)
            try:
                answer = device.answer(request)
            except Killed:
                device.close()
                if place % 2:
                    return
                answer = world.device(FixedLength(3), draft=Guess(asked, 0.5, place)).answer(request)
            assert answer.tokens == asked[ids[place]]
            whole.append(place)

        whole: list[int] = []
        threads = [threading.Thread(target=list, args=(map(broken, range(start, 24, 4)),)) for start in (0, 1, 2, 3)]
        for thread in threads:
            thread.start()
        quick = [world.device(FixedLength(3), draft=Guess(asked, 0.8, i)) for i in range(4)]
        answers = answer_all(quick, [Request(each, TOKENS) for each in ids[24:]])
        for thread in threads:
            thread.join(60)
        assert [answer.tokens for answer in answers] == [asked[each] for each in ids[24:]]
        assert len(whole) >= 12
        assert world.count("wisp_failed_batches_total") == 0
