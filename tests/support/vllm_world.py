"""A small world of the testbed on vLLM for tests: a tiny target that vLLM runs, its own answers, devices that guess them."""

from __future__ import annotations

import copy
import json
import random
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from wisp_gym.testbed.drafting import Drafted
from wisp_gym.testbed.sampling import softmax
from wisp_gym.testbed.settings import Limits
from wisp_gym.testbed.vllm_engine.core import CoreSettings
from wisp_gym.testbed.vllm_engine.engine import VllmEngine

VOCABULARY = 64
BLOCK_TOKENS = 32
NOISE = 0.03  # of a draft model's weights, as a share of their spread
SLOW_SHARE = 0.02  # of tokens before which a slow device pauses
ROOMY = Limits(
    kv_tokens=8192,
    max_sessions=64,
    max_prompt_tokens=400,
    max_new_tokens=400,
    max_draft_tokens=8,
    prefill_chunk_tokens=64,
)
TIGHT = Limits(
    kv_tokens=384,
    max_sessions=16,
    max_prompt_tokens=200,
    max_new_tokens=100,
    max_draft_tokens=8,
    prefill_chunk_tokens=24,
)

# vLLM as it is, without drafts, in a process of its own: the answers that all others are compared with.
STOCK = """
import json, os, sys
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
from vllm import LLM, SamplingParams
folder, requests, out = sys.argv[1:]
llm = LLM(folder, dtype="float32", enforce_eager=True, max_model_len=800, max_num_seqs=64, skip_tokenizer_init=True,
          kv_cache_memory_bytes=1 << 28)
asked = json.load(open(requests))
sampling = [SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False) for _, tokens in asked]
found = llm.generate([{"prompt_token_ids": ids} for ids, _ in asked], sampling, use_tqdm=False)
json.dump([list(each.outputs[0].token_ids) for each in found], open(out, "w"))
"""


@lru_cache
def target_model() -> Any:
    """A two-layer Llama with random weights, whose heads are as wide as vLLM's kernels ask."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2, head_dim=32,
        num_key_value_heads=1, max_position_embeddings=1024, initializer_range=0.3, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def save_target(folder: Path) -> Path:
    """The target as a folder, with a tokenizer whose words are w0 … w63."""
    words = Tokenizer(WordLevel({f"w{token}": token for token in range(VOCABULARY)}, unk_token="w0"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    target_model().save_pretrained(folder)
    return folder


@torch.no_grad()
def save_draft(folder: Path) -> Path:
    """A draft model for the target: its weights with noise, so that some of what it drafts is accepted."""
    save_target(folder)
    drafting, generator = copy.deepcopy(target_model()), torch.Generator().manual_seed(1)
    for weights in drafting.parameters():
        weights += NOISE * weights.std() * torch.randn(weights.shape, generator=generator)
    drafting.save_pretrained(folder)
    return folder


@torch.no_grad()
def save_head(folder: Path) -> Path:
    """An EAGLE head for the target: its layers with noise, over the embedding of the newest token and some of the target's state.

    The head has no norm before its first layer, so that layer's queries, keys and values are scaled as the norm would.
    """
    model, generator = target_model(), torch.Generator().manual_seed(2)
    embedding, size = model.model.embed_tokens.weight, model.config.hidden_size
    weights = {
        name: part.clone()
        for name, part in model.model.named_parameters()
        if name.startswith("layers.") and name != "layers.0.input_layernorm.weight"
    }
    for name in "qkv":
        weights[f"layers.0.self_attn.{name}_proj.weight"] /= embedding.square().mean().sqrt()
    for part in weights.values():
        part += NOISE * part.std() * torch.randn(part.shape, generator=generator)
    state = NOISE * embedding.std() * torch.randn(size, size, generator=generator)
    weights["fc.weight"] = torch.cat([torch.eye(size), state], dim=1)
    save_file({**weights, "embed_tokens.weight": embedding.clone()}, folder / "model.safetensors")
    model.config.save_pretrained(folder)
    return folder


def start(folder: Path, limits: Limits, **more: Any) -> VllmEngine:
    """An engine on the target of a folder."""
    settings = CoreSettings(str(folder), threads=1, limits=limits, more={"block_size": BLOCK_TOKENS, **more})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of vLLM and of what it imports are not ours
        return VllmEngine(settings)


def prompts(count: int, seed: int = 0, least: int = 4, most: int = 100) -> list[list[int]]:
    """Random prompts of random lengths; every fourth begins as the one before it does, as those of one system do."""
    drawn = random.Random(seed)
    made: list[list[int]] = []
    for place in range(count):
        ids = [drawn.randrange(VOCABULARY) for _ in range(drawn.randint(least, most))]
        made.append([*made[-1][: len(made[-1]) // 2], *ids][:most] if place % 4 == 3 else ids)
    return made


def stock_answers(folder: Path, work: Path, asked: Sequence[tuple[Sequence[int], int]]) -> list[list[int]]:
    """vLLM's own greedy answers to prompts, so many tokens each."""
    requests, out = work / "requests.json", work / "answers.json"
    requests.write_text(json.dumps([[list(ids), tokens] for ids, tokens in asked]))
    command = [sys.executable, "-c", STOCK, str(folder), str(requests), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found: list[list[int]] = json.loads(out.read_text())
    return found


@torch.inference_mode()
def greedy(context: Sequence[int], tokens: int) -> list[int]:
    """The target's own answer, by transformers."""
    rows = torch.tensor([list(context)])
    found = target_model().generate(
        rows, attention_mask=torch.ones_like(rows), max_new_tokens=tokens, do_sample=False, pad_token_id=0
    )
    answer: list[int] = found[0, len(context) :].tolist()
    return answer


class Guess:
    """A draft model that knows the answers and is right now and then; it may be slow.

    Args:
        answers: by prompt. right: share of its tokens. slow_s: pause before a token now and then.
    """

    def __init__(self, answers: dict[tuple[int, ...], list[int]], right: float, seed: int, slow_s: float = 0.0) -> None:
        self.answers, self.right, self.slow_s, self.drawn = answers, right, slow_s, random.Random(seed)

    def draft(self, context: Sequence[int], position: int, temperature: float, seed: int) -> Drafted:
        del temperature, seed
        if self.slow_s and self.drawn.random() < SLOW_SHARE:
            time.sleep(self.slow_s)
        true = self.answers[tuple(context[: len(context) - position])][position]
        token = true if self.drawn.random() < self.right else (true + 1) % VOCABULARY
        return Drafted(token, None, np.array([self.right, 1.0, 0.5, 1.0]))


@torch.inference_mode()
def laws_after(context: Sequence[int], tokens: Sequence[int], temperature: float) -> np.ndarray:
    """(len(tokens), V) exact probabilities of each token, given the context and the ones before it, in double precision."""
    ids = torch.tensor([[*context, *tokens]])
    logits = target_model()(ids).logits[0, len(context) - 1 : -1]
    return softmax(logits.numpy(), temperature)


def chi_square(observed: np.ndarray, expected: np.ndarray) -> tuple[float, int, float]:
    """Statistic, degrees of freedom and p of counts."""
    statistic, degrees = float(((observed - expected) ** 2 / expected).sum()), len(observed) - 1
    return statistic, degrees, float(torch.special.gammaincc(torch.tensor(degrees / 2), torch.tensor(statistic / 2)))
