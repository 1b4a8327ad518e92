"""The testbed's core without a network: ragged batches, sampling, memory, checked messages, what commands import."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("grpc")
pytest.importorskip("transformers")

from scipy.stats import chisquare
from transformers import MistralConfig, MistralForCausalLM

from tests.support.testbed_world import (
    TOKENIZER,
    VOCABULARY,
    draft_model,
    gpt2,
    llama,
    prompt,
    target_model,
)
from traces import model_pair
from wisp_gym.errors import InputError
from wisp_gym.testbed.draft import DraftModel
from wisp_gym.testbed.drafting import statistics
from wisp_gym.testbed.messages import Model, Refused, check_round, laws_of
from wisp_gym.testbed.prompts import read_prompts
from wisp_gym.testbed.sampling import (
    ACCEPT,
    DRAFT,
    REPLACE,
    Law,
    draw,
    law_of,
    softmax,
    uniform,
    verify_greedy,
    verify_sampled,
)
from wisp_gym.testbed.settings import Limits
from wisp_gym.testbed.torch_engine import models
from wisp_gym.testbed.torch_engine.kv_cache import KvMemory, SessionCache, blocks
from wisp_gym.testbed.torch_engine.target import MOST_PADDING, ModelError, Row, Target, groups
from wisp_gym.testbed.wire_pb2 import FromDevice, Refusal, Round, Start
from wisp_gym.testbed.wire_pb2 import Law as WireLaw

ROOT = Path(__file__).resolve().parents[2]
MODEL = Model(VOCABULARY, 1024, TOKENIZER)


def row(cache: SessionCache, context: list[int], drafted: list[int] | None = None) -> Row:
    return Row(cache, context, drafted or [])


@torch.inference_mode()
def plain_logits(model: Any, ids: list[int], last: int) -> torch.Tensor:
    """(last, V) logits of one row without any cache."""
    return model(torch.tensor([ids]), use_cache=False).logits[0, -last:]


@pytest.mark.parametrize("packs", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("model", [target_model(), gpt2()], ids=["llama", "gpt2"])
def test_ragged_batches_are_those_of_single_rows(model: Any, packs: bool) -> None:
    rng, target = np.random.default_rng(0), Target(model, packs)
    contexts = [rng.integers(VOCABULARY, size=n).tolist() for n in (1, 40, 7, 90, 3, 65)]
    caches = [SessionCache() for _ in contexts]
    for turn in range(6):
        taking = [b for b in range(len(contexts)) if rng.random() < 0.7] or [0]
        if turn == 3:
            caches[3].crop(0)  # evicted: it is computed again beside the others
        drafts = {b: rng.integers(VOCABULARY, size=rng.integers(6)).tolist() for b in taking}
        rows = target.logits([row(caches[b], contexts[b], drafts[b]) for b in taking])
        for b, logits in zip(taking, rows, strict=True):
            plain = plain_logits(model, contexts[b] + drafts[b], len(drafts[b]) + 1)
            torch.testing.assert_close(logits, plain, rtol=1e-4, atol=1e-4)
            accepted = int(rng.integers(len(drafts[b]) + 1))
            caches[b].crop(len(contexts[b]) + accepted)
            contexts[b] = [*contexts[b], *drafts[b][:accepted], int(rng.integers(VOCABULARY))]
            assert caches[b].length == len(contexts[b]) - 1


def test_a_model_that_forgets_is_refused() -> None:
    config = MistralConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, sliding_window=4, initializer_range=0.3,
    )  # fmt: skip
    with pytest.raises(ModelError, match="not those of single rows"):
        Target(MistralForCausalLM(config).eval())


def test_models_are_packed_where_all_their_layers_see_the_whole_context() -> None:
    assert Target(target_model()).packs
    assert Target(gpt2()).packs


@pytest.mark.parametrize("model", [target_model(), gpt2()], ids=["llama", "gpt2"])
def test_a_packing_model_stays_what_it_was_for_everyone_else(model: Any) -> None:
    rng = np.random.default_rng(3)
    ids = torch.tensor(rng.integers(VOCABULARY, size=(2, 9)))
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 1], [1] * 9])
    model.set_attn_implementation("eager")
    want = model(ids, attention_mask=mask).logits[:, 2:]
    target = Target(model, packs=True)
    torch.testing.assert_close(model(ids, attention_mask=mask).logits[:, 2:], want, rtol=1e-4, atol=1e-4)

    contexts = [rng.integers(VOCABULARY, size=n).tolist() for n in (30, 4, 17)]
    alone = [plain_logits(model, context, 1) for context in contexts]
    with ThreadPoolExecutor(1) as pool:  # another thread generates with the model while it verifies
        others = [pool.submit(plain_logits, model, contexts[turn % 3], 1) for turn in range(60)]
        for _ in range(40):
            for logits, plain in zip(target.logits([row(SessionCache(), c) for c in contexts]), alone, strict=True):
                torch.testing.assert_close(logits, plain, rtol=1e-4, atol=1e-4)
    for turn, other in enumerate(others):
        torch.testing.assert_close(other.result(), alone[turn % 3], rtol=1e-4, atol=1e-4)


def test_a_prompt_does_not_stretch_short_rounds() -> None:
    lengths = [100, 3, 5, 4, 1, 90, 60]
    found = groups(lengths)
    assert sorted(b for group in found for b in group) == list(range(len(lengths)))
    assert all(max(lengths[b] for b in g) <= MOST_PADDING * min(lengths[b] for b in g) for g in found)
    assert len(found) == 3


def test_the_draft_reads_on_from_any_context() -> None:
    model, rng = draft_model(), np.random.default_rng(2)
    draft, context = DraftModel(model), prompt(0)
    for _ in range(30):
        got = draft.draft(context, 0, 0.0, 0)
        logits = plain_logits(model, context, 1)
        assert got.token == int(logits.argmax())
        law = model_pair.distribution(logits, 0.0)
        theirs = model_pair.statistics(logits, law, torch.tensor([got.token]))[0].numpy()
        np.testing.assert_allclose(got.statistics, theirs, rtol=1e-4, atol=1e-5)
        keep = int(rng.integers(1, len(context) + 1))  # a rejection: some of the context was not to be
        context = [*context[:keep], *rng.integers(VOCABULARY, size=3).tolist()]


def test_statistics_hold_where_probabilities_vanish() -> None:
    logits = np.array([0.0, 2000.0, -2000.0])
    np.testing.assert_allclose(statistics(logits, softmax(logits, 1.0), 1)[:3], [1.0, 0.0, 1.0])


def test_greedy_rounds_commit_what_agrees_and_one_more() -> None:
    assert verify_greedy([5, 6, 7], [5, 6]) == [5, 6, 7]
    assert verify_greedy([5, 6, 7], [5, 9]) == [5, 6]
    assert verify_greedy([5, 6, 7], [9, 6]) == [5]
    assert verify_greedy([5], []) == [5]


def test_chance_is_uniform_and_independent() -> None:
    numbers = np.array([[uniform(seed, purpose, 3) for purpose in (DRAFT, ACCEPT, REPLACE)] for seed in range(4000)])
    along = np.array([uniform(5, ACCEPT, n) for n in range(4000)])
    for row in (*numbers.T, along):
        assert chisquare(np.histogram(row, 20, (0, 1))[0]).pvalue > 1e-4
    assert np.abs(np.corrcoef(numbers.T) - np.eye(3)).max() < 0.06
    assert abs(np.corrcoef(along[1:], along[:-1])[0, 1]) < 0.06
    assert len({uniform(seed, DRAFT, 0) for seed in (2**64 - 1, 2**64 - 2, 2**63, 2**53, 2**53 + 1)}) == 5


@pytest.mark.parametrize("support", [0, 3, 1])
def test_sampled_rounds_have_the_targets_law_whatever_the_draft_was_cut_to(support: int) -> None:
    rng = np.random.default_rng(support)
    p, q = rng.dirichlet(np.ones(6), 3), rng.dirichlet(np.ones(6), 2)
    laws = [law_of(row, support) for row in q]
    first, second = np.zeros(6), np.zeros(6)
    for seed in range(2500):
        drafted = [draw(law.row(6), uniform(seed, DRAFT, 10 + j)) for j, law in enumerate(laws)]
        committed = verify_sampled(p, laws, drafted, seed, 10)
        first[committed[0]] += 1
        if len(committed) > 1:
            second[committed[1]] += 1
    assert chisquare(first, p[0] * first.sum()).pvalue > 1e-4
    # Given that the first was accepted, the second has the target's law too.
    assert chisquare(second, p[1] * second.sum()).pvalue > 1e-4


def test_answers_of_the_pair_are_drawn_from_the_target_alone() -> None:
    """Joint law of the first three tokens of whole sessions, drafted, packed, verified in batches, against the exact one."""
    vocabulary, temperature, start = 6, 0.8, [1, 4, 2]
    target, small = Target(llama(3, vocabulary)), llama(4, vocabulary)
    draft = DraftModel(small, support=4)
    forward = lru_cache(lambda context: DraftModel._next_logits(draft, context))
    draft._next_logits = lambda context: forward(tuple(context))  # type: ignore[method-assign]
    answers = sampled_answers(target, draft, start, range(1200), temperature)
    exact = exact_law(target.model, start, vocabulary, temperature)
    seen = np.zeros_like(exact)
    np.add.at(seen, tuple(np.array(answers).T), 1)
    cells = exact * len(answers) >= 5
    observed, expected = [*seen[cells], seen[~cells].sum()], [*exact[cells], exact[~cells].sum()]
    assert cells.sum() > 20
    assert chisquare(observed, np.array(expected) * len(answers)).pvalue > 1e-4


def sampled_answers(
    target: Target, draft: DraftModel, start: list[int], seeds: range, temperature: float
) -> list[list[int]]:
    """Three tokens for each seed, in rounds of at most two drafted tokens."""
    answers: list[list[int]] = [[] for _ in seeds]
    caches = [SessionCache() for _ in seeds]
    while open_ones := [i for i, answer in enumerate(answers) if len(answer) < 3]:
        for chunk in (open_ones[i : i + 64] for i in range(0, len(open_ones), 64)):
            jobs = []
            for i in chunk:
                tokens, laws, position = [], [], len(answers[i])
                for _ in range(min(2, 3 - position - 1)):
                    got = draft.draft([*start, *answers[i], *tokens], position + len(tokens), temperature, seeds[i])
                    tokens.append(got.token)
                    assert got.law is not None
                    laws.append(WireLaw(tokens=got.law.tokens.tolist(), weights=got.law.weights.tolist()))
                message = Round(tokens=tokens, laws=laws)
                unpacked = laws_of(message, temperature, target.vocabulary)
                jobs.append(Row(caches[i], [*start, *answers[i]], tokens, unpacked, temperature, seeds[i], position))
            for i, committed in zip(chunk, target.verify(jobs), strict=True):
                answers[i] += committed
    return answers


def exact_law(model: Any, start: list[int], vocabulary: int, temperature: float) -> np.ndarray:
    """(V, V, V) probabilities of the next three tokens."""
    pairs = [[a, b] for a in range(vocabulary) for b in range(vocabulary)]
    with torch.inference_mode():
        logits = model(torch.tensor([start + pair for pair in pairs])).logits[:, len(start) - 1 :].double().numpy()
    law = softmax(logits, temperature)  # (V², 3, V)
    first = law[0, 0]
    second = law[::vocabulary, 1]  # (V, V), the same for every b
    third = law[:, 2].reshape(vocabulary, vocabulary, vocabulary)
    return first[:, None, None] * second[:, :, None] * third


def filled(tokens: int) -> SessionCache:
    cache = SessionCache()
    cache.append(0, torch.zeros(1, tokens, 2), torch.zeros(1, tokens, 2))
    cache.grown(tokens)
    return cache


def test_memory_evicts_whole_sessions_least_recently_verified_first() -> None:
    memory = KvMemory(320)
    for key in "abcd":
        memory.caches[key] = filled(60)
    assert memory.used_tokens == 4 * blocks(60) == 256
    memory.cache("a")  # verified again: now b is the oldest
    memory.reserve({"c"}, [190])
    assert list(memory.caches) == ["c", "d", "a"]
    assert memory.evictions == 1
    memory.reserve({"c"}, [320])
    assert list(memory.caches) == ["c"]
    assert memory.cached_tokens("b") == 0
    assert memory.cache("b").length == 0


def test_a_cache_grows_by_blocks_and_keeps_what_it_holds() -> None:
    cache, rows = SessionCache(), torch.randn(2, 150, 3)
    for start in range(0, 150, 7):
        part = rows[:, start : start + 7]
        cache.append(0, part, -part)
        cache.grown(part.shape[1])
        cache.append(0, part, part)  # a rejected draft: written, not grown
    assert cache.layers[0][0].shape[1] == blocks(157)
    torch.testing.assert_close(cache.layers[0][0][:, :150], rows)
    torch.testing.assert_close(cache.layers[0][1][:, :150], -rows)
    cache.crop(9)
    assert cache.length == 9


def good_round(**more: Any) -> Round:
    start = Start(version=1, tokenizer=TOKENIZER, prompt=[1, 2, 3], max_new_tokens=8, temperature=1.0)
    message = Round(session=b"s" * 16, round=1, position=0, start=start, expected_tokens=1.0)
    for name, value in more.items():
        (message.start if hasattr(start, name) else message).MergeFrom(
            Start(**{name: value}) if hasattr(start, name) else Round(**{name: value})
        )
    return message


HOSTILE = {
    "session: 3 bytes": {"session": b"abc"},
    "draft: 17 tokens": {"tokens": [1] * 17},
    "draft: token 64": {"tokens": [64]},
    "survivals: 1 of 2": {"tokens": [1, 2], "survivals": [0.5]},
    "survivals: nan": {"tokens": [1], "survivals": [float("nan")]},
    "expected_tokens: inf": {"expected_tokens": float("inf")},
    "round_age_s: -1": {"round_age_s": -1.0},
    "one_way_delay_s: nan": {"one_way_delay_s": float("nan")},
    "version: 2": {"version": 2},
    "tokenizer: not that": {"tokenizer": b"another"},
    "at most 4000000000": {"max_new_tokens": 4_000_000_000},
    "prompt: 4099 tokens": {"prompt": [1] * 4096},
    "prompt and answer: 2003": {"max_new_tokens": 2000},
    "committed: 1 tokens at position 0": {"committed": [1]},
    "committed: token 99": {"committed": [99], "position": 1},
    "temperature: inf": {"temperature": float("inf")},
    "slo_tokens_per_s: -2": {"slo_tokens_per_s": -2.0},
}


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_message_is_one_line(text: str) -> None:
    check_round(good_round(), Limits(), MODEL)
    with pytest.raises(Refused, match=re.escape(text)) as caught:
        check_round(good_round(**HOSTILE[text]), Limits(), MODEL)
    assert caught.value.reason == Refusal.INVALID
    assert "\n" not in caught.value.text


BAD_LAWS = {
    "laws: 0, allowed are 1": [],
    "drafted token 5 has probability 0": [WireLaw(tokens=[4, 6], weights=[1, 1])],
    "token 5 has probability": [WireLaw(weights=[1, 1, 1])],
    "1 weights of 2": [WireLaw(tokens=[4, 5], weights=[1])],
    "65 weights": [WireLaw(weights=[1] * 65)],
    "rise strictly": [WireLaw(tokens=[5, 5], weights=[1, 1])],
    "below 64": [WireLaw(tokens=[5, 4_000_000_000], weights=[1, 1])],
    "finite": [WireLaw(tokens=[5], weights=[float("nan")])],
    "not negative": [WireLaw(tokens=[5, 6], weights=[1, -1])],
    "not all 0": [WireLaw(tokens=[5], weights=[0])],
}


@pytest.mark.parametrize("text", BAD_LAWS)
def test_a_law_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(Refused, match=re.escape(text)):
        laws_of(Round(tokens=[5], laws=BAD_LAWS[text]), 1.0, VOCABULARY)
    law = laws_of(Round(tokens=[5], laws=[WireLaw(tokens=[4, 5], weights=[1, 3])]), 1.0, VOCABULARY)[0]
    assert law.row(VOCABULARY)[5] == 0.75
    assert laws_of(Round(tokens=[5]), 0.0, VOCABULARY) == []
    assert Law(np.zeros(0, np.int64), np.ones(4, np.float32)).row(6).tolist() == [0.25] * 4 + [0] * 2


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_that_is_checked_or_none(data: bytes) -> None:
    from google.protobuf.message import DecodeError

    try:
        message = FromDevice.FromString(data)
    except DecodeError:
        return
    try:
        check_round(message.round, Limits(), MODEL)
    except Refused:
        return
    assert not message.round.HasField("start")  # nothing random has a version and this tokenizer


def test_the_messages_are_generated_from_their_definition(tmp_path: Path) -> None:
    tools = pytest.importorskip("grpc_tools.protoc")
    name = "wisp_gym/testbed/wire.proto"
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi")]
    assert tools.main(["protoc", f"-I{ROOT}", *outputs, name]) == 0
    for made in (tmp_path / name).parent.iterdir():
        assert made.read_text() == (ROOT / name).with_name(made.name).read_text()


def test_the_default_pair_is_trained_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def train(command: list[str]) -> tuple[int, str]:
        commands.append(command)
        if len(commands) > 1:
            (tmp_path / "pair").mkdir()
            (tmp_path / "pair" / "recipe.json").write_text("{}")
        return 130 if len(commands) == 1 else 0, ""

    monkeypatch.setenv("WISP_GYM_CACHE", str(tmp_path))
    monkeypatch.setattr(models, "call", train)
    with pytest.raises(InputError, match="was not trained"):
        models.default_pair()
    assert models.default_pair() == models.default_pair() == tmp_path / "pair"
    assert len(commands) == 2
    assert commands[1][3:] == ["--out", str(tmp_path / "pair")]
    assert commands[1][2].endswith("traces.train_pair")
    assert importlib.util.find_spec(commands[1][2]) is not None


@pytest.mark.parametrize("command", ["server", "device", "soak"])
def test_help_and_wrong_flags_do_without_torch(command: str) -> None:
    code = f"""
import sys
from wisp_gym.testbed import {command}
for flags in (["--help"], ["--listne", "x"]):
    try:
        {command}.parse(flags)
    except SystemExit as end:
        print(end.code)
print([name for name in ("torch", "transformers", "grpc") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-3:] == ["0", "2", "[]"] or done.stdout.split()[-3:] == ["0", "2", "[]"]
    assert "unknown flag '--listne'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_pretrained_pair_in_the_hub_s_cache_is_taken_before_the_small_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = tmp_path / "small"
    monkeypatch.setattr(models, "default_pair", lambda: small)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert models.default_models() == (str(small / "target"), str(small / "draft"), small / "prompts.jsonl")
    for name in (models.TARGET, models.DRAFT):
        assert models.default_models().target == str(small / "target")  # half a pair is none
        folder = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text("0123")
        (folder / "snapshots" / "0123").mkdir(parents=True)
        (folder / "snapshots" / "0123" / "model.safetensors").touch()
    target, draft, prompts = models.default_models()
    assert (target, draft) == (models.TARGET, models.DRAFT)
    assert len(list(read_prompts(prompts))) == 104
