"""What the scheduler in vLLM does of what it is ordered: chunks, drafts, memory; and that nothing stands still."""

from __future__ import annotations

import time
from typing import Any

import pytest

pytest.importorskip("vllm")
psutil = pytest.importorskip("psutil")

from tests.support.vllm_world import BLOCK_TOKENS, VOCABULARY, greedy, prompts
from wisp_gym.testbed.engine import Job
from wisp_gym.testbed.vllm_engine.core import Core


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The reports of all orders."""
    reports: list[Any] = []
    order = Core.order

    def kept(self: Core, rounds: Any) -> Any:
        reports.append(order(self, rounds))
        return reports[-1]

    monkeypatch.setattr(Core, "order", kept)
    return reports


def ran(report: Any) -> list[int]:
    """Tokens that each step of an order ran."""
    return [sum(step.values()) for step in report.steps]


@pytest.mark.parametrize("length", [1, 2, BLOCK_TOKENS, BLOCK_TOKENS + 1, 2 * BLOCK_TOKENS + 1, 90])
@pytest.mark.parametrize("chunk", [1, 31, 32, 33, 1000])
def test_chunks_are_as_long_as_they_are_ordered(roomy: Any, watched: list[Any], length: int, chunk: int) -> None:
    """Also those that stop one token short of the context, which once were held for ever."""
    context, key = prompts(1, 7 * length + chunk, length, length)[0], ("chunks", length, chunk)
    want = greedy(context, 4)
    for end in range(chunk, length, chunk):
        before = roomy.cached_tokens(key)
        assert roomy.verify([Job(key, context, chunk_end=end)]) == [[]]
        least = min(end, length - 1)
        assert roomy.cached_tokens(key) == least or roomy.cached_tokens(key) > end  # the prefix cache may have more
        assert not before or ran(watched[-1]) == [least - before] or roomy.cached_tokens(key) > end
    assert roomy.verify([Job(key, context, position=0)]) == [want[:1]]
    assert roomy.verify([Job(key, [*context, want[0]], [want[1], want[2], (want[3] + 1) % VOCABULARY])]) == [want[1:]]
    assert ran(watched[-1]) == [4]
    assert roomy.cached_tokens(key) == length + 3


def test_a_chunk_may_end_with_the_context_and_nothing_is_sampled(roomy: Any, watched: list[Any]) -> None:
    context = prompts(1, 3, 40, 40)[0]
    assert roomy.verify([Job("all", context, chunk_end=40)]) == [[]]
    assert roomy.cached_tokens("all") == 39
    assert roomy.verify([Job("all", context, chunk_end=40)]) == [[]]
    assert ran(watched[-1]) == []
    assert roomy.verify([Job("all", context)]) == [greedy(context, 1)]


def test_rounds_run_together_and_the_others_are_held(roomy: Any, watched: list[Any]) -> None:
    contexts = prompts(6, 11, 20, 60)
    first = roomy.verify([Job(i, context) for i, context in enumerate(contexts)])
    assert first == [greedy(context, 1) for context in contexts]
    after = [[*context, *tokens] for context, tokens in zip(contexts, first, strict=True)]
    drafts = {i: greedy(after[i], 3) for i in (1, 4)}
    assert roomy.verify([Job(i, after[i], drafts[i][:2]) for i in (4, 1)]) == [drafts[4], drafts[1]]
    assert [sorted(step.values()) for step in watched[-1].steps] == [[3, 3]]
    assert [roomy.cached_tokens(i) for i in range(6)] == [len(after[i]) + (2 if i in drafts else -1) for i in range(6)]


@pytest.mark.parametrize("rest", [-1, 0, 1, 2])
def test_an_evicted_session_comes_back_by_the_prefix_cache(roomy: Any, watched: list[Any], rest: int) -> None:
    """Whatever the prefix cache has, up to all but the last token, drafts are verified and chunks are cut."""
    length = 2 * BLOCK_TOKENS + rest
    context = prompts(1, 20 + rest, length - 1, length - 1)[0]
    want = greedy(context, 5)
    assert roomy.verify([Job("mine", context)]) == [want[:1]]
    roomy.reserve({})
    for i, other in enumerate(prompts(64, 30 + rest, 4, 8)):  # all places, while there is memory to spare
        roomy.verify([Job(i, other)])
    assert roomy.cached_tokens("mine") == 0
    assert roomy.reserve({}) == 1
    assert roomy.verify([Job("mine", [*context, want[0]], want[1:4])]) == [want[1:]]
    blocks = (length - 2) // BLOCK_TOKENS if rest < 2 else 2  # one less where all but the last token is there
    assert ran(watched[-1]) == [length - 1 - BLOCK_TOKENS * min(blocks, 2), 4]
    assert roomy.cached_tokens("mine") == length + 3


def test_more_sessions_than_places_take_turns(tight: Any, watched: list[Any]) -> None:
    """Held sessions keep a place among `max_num_seqs`; those that are ordered get it."""
    contexts = prompts(40, 50, 4, 8)
    first = [tight.verify([Job(i, context)])[0] for i, context in enumerate(contexts)]
    assert first == [greedy(context, 1) for context in contexts]
    assert tight.reserve({}) >= 40 - 16
    again = [tight.verify([Job(i, [*contexts[i], *first[i]])])[0] for i in range(40)]
    assert again == [greedy([*context, *tokens], 1) for context, tokens in zip(contexts, first, strict=True)]


def test_what_does_not_fit_at_once_runs_in_turn(tight: Any, watched: list[Any]) -> None:
    """Six blocks each, of twelve: those that are done make room for the others, and nothing is lost."""
    contexts = prompts(4, 60, 180, 180)
    assert tight.verify([Job(i, context) for i, context in enumerate(contexts)]) == [
        greedy(each, 1) for each in contexts
    ]
    assert len(watched[-1].steps) >= 2
    assert len(watched[-1].evicted) >= 2
    assert not watched[-1].unfinished
    assert watched[-1].used_tokens <= tight.kv_capacity_tokens == 384


def test_memory_is_told_in_blocks_and_freed(roomy: Any, watched: list[Any]) -> None:
    before = roomy.kv_used_tokens
    contexts = prompts(2, 70, 40, 40)
    roomy.verify([Job(i, context) for i, context in enumerate(contexts)])
    assert roomy.kv_used_tokens - before == 4 * BLOCK_TOKENS
    roomy.forget(0)
    assert roomy.kv_used_tokens - before == 2 * BLOCK_TOKENS
    roomy.verify([Job(1, [*contexts[1], *greedy(contexts[1], 1)])])
    assert watched[-1].used_tokens - before == 2 * BLOCK_TOKENS
    assert roomy.kv_capacity_tokens == 8192


def test_an_engine_whose_sessions_are_all_held_sleeps(roomy: Any, watched: list[Any]) -> None:
    roomy.verify([Job(i, context) for i, context in enumerate(prompts(8, 80))])
    time.sleep(0.2)
    children = psutil.Process().children(recursive=True)
    core = next(child for child in children if any("EngineCore" in word for word in [child.name(), *child.cmdline()]))
    before = core.cpu_times()
    time.sleep(2.0)
    after = core.cpu_times()
    assert after.user + after.system - before.user - before.system < 0.2
