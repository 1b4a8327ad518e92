"""A device on llama.cpp drafts what the same weights draft in torch, and tells the same of its tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("llama_cpp", reason="no llama-cpp-python is installed")
pytest.importorskip("gguf", reason="no gguf is installed")

from tests.support.gguf_files import write_gguf
from tests.support.testbed_world import (
    TOKENIZER,
    VOCABULARY,
    World,
    answer_all,
    draft_model,
    prompt,
    right,
    save_pair,
    text_of,
)
from wisp_gym.errors import InputError
from wisp_gym.testbed import device as command
from wisp_gym.testbed.client import Request
from wisp_gym.testbed.draft import DraftModel
from wisp_gym.testbed.llama_cpp_draft import LlamaCppDraft


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny draft model as a GGUF file."""
    return write_gguf(draft_model(), tmp_path_factory.mktemp("gguf") / "draft.gguf")


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_tokens_laws_and_statistics_are_those_of_torch(weights: Path, temperature: float) -> None:
    theirs, ours, rng = (
        DraftModel(draft_model(), support=8),
        LlamaCppDraft(weights, support=8),
        np.random.default_rng(0),
    )
    context = prompt(0)
    for position in range(60):
        wanted, got = (each.draft(context, position, temperature, 7) for each in (theirs, ours))
        assert got.token == wanted.token
        np.testing.assert_allclose(got.statistics, wanted.statistics, atol=5e-3)  # its cache is in half precision
        assert (got.law is None) == (temperature == 0.0)
        context = [*context, got.token]
        if rng.random() < 0.3:  # a rejection: some of the context was not to be
            keep = int(rng.integers(1, len(context) + 1))
            context = [*context[:keep], *rng.integers(VOCABULARY, size=2).tolist()]


def test_a_vocabulary_that_the_target_lacks_is_left_out(weights: Path) -> None:
    drafted = [LlamaCppDraft(weights, 5).draft(prompt(k), 0, 0.0, 0).token for k in range(8)]
    assert max(drafted) < 5


def test_what_cannot_be_read_is_told_in_one_line(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "none.gguf").write_bytes(b"nothing")
    (tmp_path / "half.gguf").write_bytes(weights.read_bytes()[:200])
    for name, message in (
        ("missing.gguf", "no such file"),
        ("none.gguf", "no GGUF file"),
        ("half.gguf", "llama.cpp refuses it"),
    ):
        with pytest.raises(InputError, match=message):
            LlamaCppDraft(tmp_path / name)
    with pytest.raises(InputError, match="context: 20 tokens, allowed are 16"):
        LlamaCppDraft(weights, context_tokens=16).draft(prompt(0, 20), 0, 0.0, 0)


def test_answers_are_the_targets_own(weights: Path) -> None:
    requests = [Request(prompt(k), 30) for k in range(6)]
    with World() as world:
        devices = [world.device(draft=LlamaCppDraft(weights)) for _ in range(2)]
        answers = answer_all(devices, requests)
    assert [answer.tokens for answer in answers] == [right(request) for request in requests]
    assert 0 < sum(answer.accepted for answer in answers) < sum(answer.drafted for answer in answers)


def test_the_command_takes_a_file_and_its_folders_tokenizer(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_pair(tmp_path)
    (tmp_path / "draft" / "draft.gguf").write_bytes(weights.read_bytes())
    monkeypatch.setattr("wisp_gym.testbed.tokenizers.tokenizer_digest", lambda tokenizer: TOKENIZER)
    with World() as world:
        flags = ["--server", f"127.0.0.1:{world.port}", "--prompt", text_of(prompt(3)), "--max-new-tokens", "12"]
        runtime = ["--runtime", "llama-cpp", "--draft", str(tmp_path / "draft" / "draft.gguf")]
        assert command.main([*flags, *runtime]) == 0
    assert capsys.readouterr().out == text_of(right(Request(prompt(3), 12))) + "\n"
    with pytest.raises(SystemExit):
        command.main([*flags, "--runtime", "llama-cpp"])
    assert "--draft: needed with --runtime llama-cpp" in capsys.readouterr().err
