"""How three engines take a table: option, form, what it may hold. Read in their sources and pages, which are named.

| engine | a range of batch sizes is given by | beyond the last | drafts nothing |
|---|---|---|---|
| vLLM | its first and last size | the last length goes on | length 0 |
| SGLang | its first size | the last length goes on | candidate 0 |
| TensorRT-LLM | its last size | no drafts | length 0, or beyond the last size |
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from wisp_gym.errors import InputError
from wisp_gym.serving.tables.lengths import Range


@dataclass(frozen=True)
class Engine:
    """One engine's table.

    Attributes:
        option: where the engine reads it. documented: the version, and where its form is documented.
        endings: of the file. text: the file's text, from the ranges.
    """

    option: str
    documented: str
    endings: tuple[str, ...]
    text: Callable[[Sequence[Range]], str]


def longest(found: Sequence[Range]) -> int:
    """The longest length of a table, in tokens."""
    return max(one.length for one in found)


def vllm(found: Sequence[Range]) -> str:
    """JSON for `--speculative-config`, beside method and model: ranges `[first, last, K]`, from 1 on, none over another."""
    rows = ",\n    ".join(f"[{one.low}, {one.high}, {one.length}]" for one in found)
    fields = f'"num_speculative_tokens": {longest(found)},\n  "num_speculative_tokens_per_batch_size"'
    return f"{{\n  {fields}: [\n    {rows}\n  ]\n}}\n"


def sglang(found: Sequence[Range]) -> str:
    """JSON for `--speculative-adaptive-config`: first batch size → one candidate, which leaves its own policy no choice."""
    rows = {"strategy": "ema"} | {str(one.low): {"candidate_steps": [one.length]} for one in found}
    lines = ",\n  ".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in rows.items())
    return f"{{\n  {lines}\n}}\n"


def tensorrt_llm(found: Sequence[Range]) -> str:
    """YAML for the LLM API's options: `max_draft_len`, and last batch size → length; it drafts nothing beyond the last.

    Raises:
        InputError: the first range has not the longest length, as the engine asks.
    """
    if found[0].length != longest(found):
        more = next(one for one in found if one.length > found[0].length)
        reason = f"{found[0].length} tokens at batch size 1 and {more.length} at {more.low}"
        raise InputError(f"table: solved {reason}, allowed for tensorrt-llm is the longest length at batch size 1")
    drafting = found[:-1] if found[-1].length == 0 else found
    rows = "".join(f"    {one.high}: {one.length}\n" for one in drafting)
    return f"speculative_config:\n  max_draft_len: {longest(found)}\n  draft_len_schedule:\n{rows}"


ENGINES = {
    "vllm": Engine(
        "speculative_config.num_speculative_tokens_per_batch_size",
        "vLLM 0.32.0: its page Dynamic Speculative Decoding, and vllm/v1/spec_decode/dynamic/utils.py",
        (".json",),
        vllm,
    ),
    "sglang": Engine(
        "--speculative-adaptive-config",
        "SGLang, commit 015c872628e3: python/sglang/srt/speculative/adaptive_spec_params.py (EAGLE and EAGLE3, topk 1)",
        (".json",),
        sglang,
    ),
    "tensorrt-llm": Engine(
        "speculative_config.draft_len_schedule",
        "TensorRT-LLM 1.3.0rc29, pull request 10860; earlier releases read a key as the first batch size, not the last",
        (".yaml", ".yml"),
        tensorrt_llm,
    ),
}
