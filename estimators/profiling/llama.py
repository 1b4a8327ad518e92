"""Measure the batch time of transformers' own Llama on a CPU, over a grid of batch size, new and cached tokens.

    python -m estimators.profiling llama --threads 1 --out profile.csv

A second opinion beside `estimators.profiling.batches`, by a model that others wrote; any size runs on any machine.

Weights are random and made in place: time depends on the shape of the model alone. Keys and values of the cached
tokens lie in a static cache of exactly the length needed, as a serving engine's would (a growing cache would be copied
at every batch, and attention over unused room would be timed as well). Configurations are measured in random order, so
that a machine that warms up or slows down does not lean on one of the columns. Cold prompts (`--cold`) have nothing
cached.
"""

from __future__ import annotations

import math
import statistics
from argparse import Namespace
from collections.abc import Callable, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from estimators.profiling.grid import Batch
from estimators.profiling.machine import processor
from wisp_gym.cli import MAX_SEED, Parser, table, whole, whole_numbers
from wisp_gym.errors import InputError
from wisp_gym.files import check_writable, write_csv

if TYPE_CHECKING:  # torch and transformers take seconds to import: --help and wrong flags do without
    from transformers import LlamaForCausalLM

WARM_UP = 2  # runs of each configuration that are not timed
DTYPES = ("float32", "bfloat16", "float16")
LONGEST = 65536  # tokens of one sequence
MOST = 1 << 20  # of every size


def grid(given: Namespace) -> list[Batch]:
    """Return all batches, of equal requests, in random order: the grid, and cold prompts in the smallest batches."""
    warm = list(product(given.batch, given.new, given.cached))
    cold = list(product(sorted(given.batch)[:2], given.cold, [0]))
    every = [Batch("equal", (n,) * b, (c,) * b) for b, n, c in dict.fromkeys(warm + cold)]
    return [every[i] for i in np.random.default_rng(given.seed).permutation(len(every))]


def build(given: Namespace) -> LlamaForCausalLM:
    """Return the model in evaluation mode, with random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=given.vocab,
        hidden_size=given.hidden,
        intermediate_size=given.intermediate,
        num_hidden_layers=given.layers,
        num_attention_heads=given.heads,
        num_key_value_heads=given.kv_heads,
        head_dim=given.head_dim or given.hidden // given.heads,
        max_position_embeddings=LONGEST,
        dtype=given.dtype,
    )
    torch.manual_seed(given.seed)
    torch.set_default_dtype(getattr(torch, given.dtype))
    try:
        return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(torch.float32)


def prepare(model: LlamaForCausalLM, batch: Batch) -> Callable[[], Any]:
    """Return a function that runs one batch of equal requests; its cache starts full of the cached tokens again."""
    import torch
    from transformers import StaticCache

    requests, new, cached, shape = len(batch.new), batch.new[0], batch.cached[0], model.config
    heads, head_dim = int(shape.num_key_value_heads or 0), int(shape.head_dim or 0)
    ids = torch.randint(shape.vocab_size, (requests, new), device=model.device)
    cache: Any = StaticCache(config=shape, max_cache_len=cached + new)
    cache.early_initialization(requests, heads, head_dim, model.dtype, model.device)
    for layer in cache.layers:  # written once: untouched zero pages would be read from one page of memory
        layer.keys.normal_()
        layer.values.normal_()

    def once() -> Any:
        for layer in cache.layers:
            layer.cumulative_length.fill_(cached)
        return model(ids, past_key_values=cache, use_cache=True)

    return once


def profile(given: Namespace) -> list[dict[str, Any]]:
    """Measure every configuration and return one row each.

    Raises:
        InputError: the model or a configuration does not fit the memory.
    """
    import torch
    import transformers

    from estimators.profiling.timing import keep_memory, timed

    if given.threads:
        torch.set_num_threads(given.threads)
    about = {"device": processor(), "threads": torch.get_num_threads(), "dtype": given.dtype,
             "torch": torch.__version__, "transformers": transformers.__version__}  # fmt: skip
    keep_memory()
    rows, now = [], "the model"
    try:
        with torch.inference_mode():
            model = build(given)
            for batch in tqdm(grid(given), unit="configuration", disable=None):
                requests, new, cached = len(batch.new), batch.new[0], batch.cached[0]
                now = f"batch {requests}, {new} new and {cached} cached tokens"
                found = timed(prepare(model, batch), "cpu", given.repeats, warm_up=WARM_UP)
                each = {"batch": requests, "new_each": new, "cached_each": cached, **batch.features()}
                times = {"seconds": f"{found.seconds:.6g}", "spread_s": f"{found.spread_s:.6g}"}
                rows.append({**each, **times, **about})
    except (torch.OutOfMemoryError, MemoryError):
        raise InputError(f"{now} does not fit the memory; give smaller values") from None
    return sorted(rows, key=lambda row: (row["batch"], row["new_each"], row["cached_each"]))


def describe(given: Namespace) -> str:
    """Return the comment that stands before the CSV's header."""
    shape = (f"{given.layers} layers, hidden {given.hidden}, {given.heads} heads, {given.kv_heads} key-value heads, "
             f"intermediate {given.intermediate}, vocabulary {given.vocab}")  # fmt: skip
    return (
        f"Llama-type model with random weights: {shape}.\n"
        f"seconds: median of {given.repeats} runs after {WARM_UP} to warm up; spread_s: half the interquartile range.\n"
        "new_each, cached_each: tokens per request; new_tokens, pairs, cached_tokens: sums over the batch."
    )


def parse(arguments: Sequence[str] | None) -> Namespace:
    """Return the flags, checked."""
    parser = Parser(
        prog="python -m estimators.profiling llama", description="Measure batch times of a Llama-type transformer."
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="CSV to write")
    sizes = {"layers": 4, "hidden": 512, "heads": 8, "kv-heads": 4, "intermediate": 1536, "vocab": 8192, "repeats": 5}
    for name, default in sizes.items():
        some = whole(2 if name == "repeats" else 1, MOST)
        parser.add_argument(f"--{name}", type=some, default=default, help=f"(default {default})")
    parser.add_argument("--head-dim", type=whole(0, MOST), default=0, help="0: hidden / heads (default)")
    batches: dict[str, tuple[int, list[int], str]] = {
        "batch": (1, [1, 2, 4, 8, 16, 32], "requests, with commas between"),
        "new": (1, [1, 2, 4, 6, 9, 13], "new tokens per request"),
        "cached": (0, [64, 192, 384, 640, 1024], "cached tokens per request"),
        "cold": (1, [64, 128, 256, 512], "prompts with nothing cached"),
    }
    for name, (least, values, what) in batches.items():
        parser.add_argument(f"--{name}", type=whole_numbers(least), default=values, help=what)
    parser.add_argument("--threads", type=whole(0, MOST), default=0, help="of the CPU; 0: torch's choice (default)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument(
        "--seed", type=whole(0, MAX_SEED), default=0, help="of the weights and of the order (default 0)"
    )
    given = parser.parse_args(arguments)
    check(given)
    return given


def check(given: Namespace) -> None:
    """Raise `InputError` where flags do not fit each other."""
    if given.hidden % given.heads and not given.head_dim:
        raise InputError(f"--hidden {given.hidden} is no multiple of --heads {given.heads}; give --head-dim")
    if given.heads % given.kv_heads:
        wrong = f"--heads {given.heads} is no multiple of --kv-heads {given.kv_heads}"
        raise InputError(f"{wrong}, as it must be; {math.gcd(given.heads, given.kv_heads)} would do")
    longest = max(given.cached) + max(*given.new, *given.cold)
    if longest > LONGEST:
        raise InputError(f"a sequence of {longest} tokens: at most {LONGEST} is allowed")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write the CSV, and print its range."""
    given = parse(arguments)
    check_writable(given.out)
    rows = profile(given)
    write_csv(given.out, rows, describe(given))
    seconds = sorted(float(row["seconds"]) for row in rows)
    print(table(["measured", "ms"], [[name, f"{1e3 * value:.2f}"] for name, value in
          (("shortest", seconds[0]), ("median", statistics.median(seconds)), ("longest", seconds[-1]))]))  # fmt: skip
    print(f"{len(rows)} configurations written to {given.out}")
