"""vLLM's own speculation, steered: answers stay vLLM's, with few blocks of memory and whatever sets the lengths."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm")

from tests.support.vllm_world import BLOCK_TOKENS, VOCABULARY, chi_square, laws_after, prompts, save_draft, save_head
from wisp_gym.errors import InputError
from wisp_gym.testbed.vllm_steering.bench_engine import BenchEngine, Plan, Played, Settings, same

LONGEST, TOKENS, CONCURRENCY, LAW_TOKENS, BINS = 4, 24, 10, 4_800, 32
FEW, ROOMY = 10 * BLOCK_TOKENS, 256 * BLOCK_TOKENS  # tokens of memory: for a few sessions, and for all
TABLE = [[1, 1, 4], [2, 4, 2], [5, 16, 1]]
RULES = ["colocated:3", "turbospec", "throughput(1,2,4)", "survival", "ema"]
KINDS = ["off", "draft_model", "ngram", "eagle"]


@pytest.fixture(scope="module")
def engines(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, BenchEngine]]:
    """vLLM without speculation, with a draft model, an EAGLE head, and a search in the text that was given a table; all start at once."""
    draft, head = save_draft(tmp_path_factory.mktemp("draft")), save_head(tmp_path_factory.mktemp("head"))
    drafting: dict[str, Any] = {
        "draft_model": {"method": "draft_model", "model": str(draft), "num_speculative_tokens": LONGEST},
        "eagle": {"method": "eagle", "model": str(head), "num_speculative_tokens": LONGEST},
        "ngram": {
            "method": "ngram", "prompt_lookup_max": 3, "prompt_lookup_min": 1, "num_speculative_tokens": LONGEST,
            "num_speculative_tokens_per_batch_size": TABLE,
        },
    }  # fmt: skip
    plain = {
        "model": str(folder),
        "dtype": "float32",
        "max_model_len": 256,
        "max_num_seqs": 16,
        "block_size": BLOCK_TOKENS,
    }
    found = {
        kind: BenchEngine(
            Settings(
                plain if kind == "off" else {**plain, "speculative_config": drafting[kind]},
                1,
                ROOMY if kind == "off" else FEW,
            )
        )
        for kind in KINDS
    }
    for engine in found.values():
        engine.wait()
    yield found
    for engine in found.values():
        engine.close()


@pytest.fixture(scope="module")
def asked() -> list[list[int]]:
    """Random prompts, and some that say the same again and again, in which a search finds something."""
    return [*prompts(9, 5), *([*each, *each, *each] for each in prompts(3, 6, 8, 20))]


@pytest.fixture(scope="module")
def right(engines: dict[str, BenchEngine], asked: list[list[int]]) -> list[list[int]]:
    """vLLM's own answers, without speculation."""
    return engines["off"].play(Plan("vllm", asked, TOKENS, CONCURRENCY)).answers


@pytest.mark.parametrize("kind", KINDS[1:])
def test_greedy_answers_are_vllms_own(
    engines: dict[str, BenchEngine], asked: list[list[int]], right: list[list[int]], kind: str
) -> None:
    """In few blocks of memory, so that requests are preempted and come back."""
    found: dict[str, Played] = {}
    for lengths in ["vllm", *RULES]:
        found[lengths] = engines[kind].play(Plan(lengths, asked, TOKENS, CONCURRENCY))
        assert same(found[lengths].answers, right) == len(asked), lengths
        assert found[lengths].fallbacks == 0
    print({name: played._replace(answers=[], timed=()) for name, played in found.items()})
    assert sum(played.preemptions for played in found.values()) > 5
    assert all(found[name].drafted for name in ("vllm", "colocated:3", "survival", "ema"))
    assert sum(played.accepted for played in found.values()) > 50
    assert found["survival"].drafted != found["colocated:3"].drafted


@pytest.mark.parametrize("kind", ["draft_model", "eagle"])
def test_each_step_drafts_as_many_tokens_as_the_rule_says(
    engines: dict[str, BenchEngine], asked: list[list[int]], kind: str
) -> None:
    """One request alone: the first step verifies nothing, and near the answer's end there is no room for all."""
    for length in range(LONGEST + 1):
        played = engines[kind].play(Plan(f"colocated:{length}", asked[:1], TOKENS, 1))
        asked_for = length * (played.steps - 1)
        assert asked_for - sum(range(length + 1)) <= played.drafted <= asked_for, length


def test_vllms_own_table_is_read_and_comes_back(engines: dict[str, BenchEngine], asked: list[list[int]]) -> None:
    """A table in the speculative configuration is vLLM's, and lengths that were set meanwhile leave no trace."""
    engine, alone = engines["ngram"], asked[-2:]
    first = engine.play(Plan("vllm", alone, TOKENS, 1))
    assert engine.play(Plan("vllm:0", alone, TOKENS, 1)).drafted == 0
    longest = engine.play(Plan("vllm:4", alone, TOKENS, 1))
    again = engine.play(Plan("vllm", alone, TOKENS, 1))
    assert again.drafted == first.drafted == longest.drafted > 0  # four tokens at batch size 1
    short = engine.play(Plan("table:[[1, 16, 1]]", alone, TOKENS, 1))
    assert 0 < short.drafted < first.drafted


@pytest.mark.parametrize("kind", ["draft_model", "eagle"])
def test_the_law_at_temperature_one_is_the_targets(engines: dict[str, BenchEngine], kind: str) -> None:
    """With the guarded fix, and lengths that follow each request's own acceptance."""
    ids = prompts(LAW_TOKENS // 80, 9, 8, 40)
    played = engines[kind].play(Plan("survival", ids, 80, 16, temperature=1.0))
    generator, found = np.random.default_rng(3), []
    for prompt, answer in zip(ids, played.answers, strict=True):
        for token, law in zip(answer, laws_after(prompt, answer, 1.0), strict=True):
            found.append(law[:token].sum() + generator.random() * law[token])
    counts = np.bincount((np.array(found) * BINS).astype(int).clip(0, BINS - 1), minlength=BINS)
    statistic, degrees, p = chi_square(counts, np.full(BINS, len(found) / BINS))
    print(
        f"{len(found)} tokens, chi-square {statistic:.1f}, {degrees} degrees, p {p:.3f}; {played.accepted} of {played.drafted} accepted"
    )
    assert len(found) == LAW_TOKENS
    assert 0 < max(token for answer in played.answers for token in answer) < VOCABULARY
    assert p > 1e-3
    assert 0 < played.accepted < played.drafted


def test_an_engine_that_does_not_start_is_one_line(folder: Path) -> None:
    engine = BenchEngine(Settings({"model": str(folder), "dtype": "int3"}, 1, 1024))
    with pytest.raises(InputError, match="vLLM does not start") as error:
        engine.wait()
    assert "\n" not in str(error.value)
    engine.close()
