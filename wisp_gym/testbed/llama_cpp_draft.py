"""A draft model in llama.cpp: GGUF weights, quantised ones too, on the processor of an edge device.

Tokens, law and statistics are those of the model in torch (`draft`): only the logits are llama.cpp's. Needs no torch.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wisp_gym.errors import InputError, require
from wisp_gym.testbed.drafting import Drafting, common_prefix

MAGIC = b"GGUF"


class LlamaCppDraft(Drafting):
    """A GGUF model that drafts for one session at a time, with the keys and values of what it has read.

    Args:
        path: the file. vocabulary, support: as `draft.DraftModel`'s. context_tokens: of the longest context. threads: of the processor.

    Raises:
        InputError: llama-cpp-python is missing, or cannot read the file; one line.
    """

    def __init__(
        self,
        path: str | Path,
        vocabulary: int | None = None,
        support: int = 64,
        context_tokens: int = 4096,
        threads: int = 1,
    ) -> None:
        self.llama = opened(Path(path), context_tokens, threads)
        self.context_tokens, self.support, self._read = context_tokens, support, list[int]()
        self.vocabulary = min(vocabulary or self.llama.n_vocab(), self.llama.n_vocab())

    def _next_logits(self, context: Sequence[int]) -> NDArray[np.float64]:
        """(V,) logits; only what differs from the last context is computed."""
        if len(context) > self.context_tokens:
            raise InputError(f"context: {len(context)} tokens, allowed are {self.context_tokens}")
        known = min(common_prefix(self._read, context), len(context) - 1)
        self.llama.n_tokens, self._read = known, list(context[:known])  # what lies behind is written over
        self.llama.eval(list(context[known:]))
        self._read = list(context)
        return last_logits(self.llama)[: self.vocabulary].astype(np.float64)


def opened(path: Path, context_tokens: int, threads: int) -> Any:
    """The model of a file, silent."""
    require("llama_cpp", "llama-cpp")
    import llama_cpp

    if not path.is_file():
        raise InputError(f"--draft {path}: no such file")
    with path.open("rb") as file:
        begins = file.read(len(MAGIC))
    if begins != MAGIC:
        raise InputError(f"--draft {path}: no GGUF file")
    try:
        return llama_cpp.Llama(
            str(path), n_ctx=context_tokens, n_threads=threads, n_threads_batch=threads, n_gpu_layers=0, verbose=False
        )
    except (ValueError, RuntimeError, OSError) as error:
        raise InputError(f"--draft {path}: llama.cpp refuses it: {str(error).splitlines()[0][:160]}") from None


def last_logits(llama: Any) -> NDArray[np.float32]:
    """(V,) logits of the last token that was read, as llama.cpp holds them."""
    import llama_cpp

    held = llama_cpp.llama_get_logits_ith(llama.ctx, -1)
    return np.ctypeslib.as_array(ctypes.cast(held, ctypes.POINTER(ctypes.c_float)), (llama.n_vocab(),)).copy()
