"""Tokenizers of transformers by name or folder, and how two are told apart. Needs no torch."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer
from transformers.utils import logging

from wisp_gym.errors import InputError


def load_tokenizer(name: str, flag: str) -> Any:
    """The tokenizer of a model."""
    return loaded(AutoTokenizer, name, flag)


def tokenizer_digest(tokenizer: Any) -> bytes:
    """SHA-256 of a vocabulary: a draft of another one is refused before it does harm."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).digest()


def loaded(kind: Any, name: str, flag: str, **options: Any) -> Any:
    """What a class of transformers reads of a name on the hub or a folder.

    Raises:
        InputError: it cannot be loaded; one line.
    """
    logging.disable_progress_bar()
    if name.startswith((".", "/", "~")) and not Path(name).is_dir():
        raise InputError(f"{flag} {name}: no such folder")
    try:
        return kind.from_pretrained(name, **options)
    except (OSError, ValueError, KeyError) as error:  # what transformers raises for unknown names and bad folders
        raise InputError(f"{flag} {name}: cannot be loaded ({str(error).splitlines()[0][:160]})") from None
