"""The text that a small pair of models is trained on: the running Python's own standard library.

Every machine has it, in source code and documentation strings; its licence is PSF-2.0. A larger pair wants more text:
other folders of Python files can be given, such as installed packages. A tenth of its files, chosen by
a hash of their names, is held out of training, and prompts are cut from those alone.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wisp_gym.errors import InputError

if TYPE_CHECKING:  # takes seconds to import
    from transformers import PreTrainedTokenizerFast

END = "<|endoftext|>"
LICENCE = "PSF-2.0 (Python Software Foundation License; Python's own standard library)"
# Tests and tables of characters are no prose and no ordinary code; `config-*` and `site-packages` are not the library's.
LEFT_OUT = {"test", "tests", "idle_test", "encodings", "turtledemo", "site-packages", "dist-packages", "__pycache__"}
HELD_OUT_ONE_IN = 10
PROMPT_CHARS = (150, 500)  # about 50 to 170 tokens


def library_files(folder: Path) -> list[Path]:
    """The Python files below `folder`, sorted by name; tests, tables of characters and installed packages left out."""
    files = (path for path in folder.rglob("*.py") if path.is_file())
    kept = [path for path in files if not LEFT_OUT & set(path.relative_to(folder).parts)]
    if not kept:
        raise InputError(f"--text {folder}: no Python file there")
    return sorted(kept)


def is_held_out(path: Path, folder: Path) -> bool:
    """Whether a file is kept from training: a hash of its name decides, so that every machine agrees."""
    return zlib.crc32(path.relative_to(folder).as_posix().encode()) % HELD_OUT_ONE_IN == 0


def split_text(folders: Sequence[Path]) -> tuple[list[str], list[str]]:
    """Texts to train on and texts held out, one a file, folder by folder."""
    texts: tuple[list[str], list[str]] = ([], [])
    for folder in folders:
        for path in library_files(folder):
            texts[is_held_out(path, folder)].append(path.read_text(encoding="utf-8", errors="ignore"))
    if not all(texts):
        raise InputError(f"--text {folders[0]}: too few files to hold one in {HELD_OUT_ONE_IN} out")
    return texts


def train_tokenizer(texts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of `vocabulary` tokens: every text can be written in it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)


def tokens_of(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> np.ndarray:
    """(n,) int64 tokens of all texts, each followed by the end token."""
    end = tokenizer.convert_tokens_to_ids(END)
    encoded = tokenizer.backend_tokenizer.encode_batch(texts)
    return np.concatenate([np.array([*one.ids, end], np.int64) for one in encoded])


def cut_prompts(texts: list[str], count: int, seed: int) -> Iterator[str]:
    """`count` pieces of the texts that start at the beginning of a line, of lengths even in `PROMPT_CHARS`."""
    rng = np.random.default_rng([seed, 1 << 20])
    long = [text for text in texts if len(text) > 2 * PROMPT_CHARS[1]]
    if not long:
        raise InputError(f"--text: no held-out file has {2 * PROMPT_CHARS[1]} characters to cut prompts from")
    for _ in range(count):
        text = long[rng.integers(len(long))]
        start = text.rfind("\n", 0, int(rng.integers(len(text) - PROMPT_CHARS[1]))) + 1
        yield text[start : start + int(rng.integers(*PROMPT_CHARS))]
