"""Speculation traces from what others have recorded: independent runs, without statistics.

    python -m traces.convert specdecode gsm8k.jsonl.gz --source eagle --out eagle-gsm8k.npz
    python -m traces.convert vllm-log server.log --out mine.npz

*SpecDecode-Bench* (arXiv 2601.11580): JSON lines, one answer each, with lists `eagle` and `ngram`: the tokens that a round of
that source commits if it begins at each position. Nothing is lost but what a run has beyond `--draft-tokens`. Each round of
a search in the text (`ngram`) is taken to draft: where it finds no match, its run is 0.

*vLLM's log*: the lines `SpecDecoding metrics: …`, which give for every ten seconds the drafted tokens and the share of rounds
that accept at least 1, 2 … k of them. Which rounds those are is not known: each line becomes an answer of `--answer-tokens`
positions, whose runs have the line's shares as nearly as whole positions can, in an order drawn by `--seed`. So acceptance
by place in the round and its change from line to line are the server's, while memory within an answer and its length are
not. The log has no prompts; their length is `--prompt-tokens`.
"""

import gzip
import json
import re
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wisp_gym.cli import MAX_SEED, Parser, output_file, run, whole
from wisp_gym.errors import InputError
from wisp_gym.process import program
from wisp_gym.traces.requests import TraceError
from wisp_gym.traces.speculation import (
    INDEPENDENT,
    MAX_DRAFT_TOKENS,
    MAX_PROMPT_TOKENS,
    SpeculationTrace,
    write_speculation_trace,
)

SOURCES = ("eagle", "ngram")
MAX_BYTES = 1 << 30  # of a file, unpacked
LOG_LINE = re.compile(
    r"SpecDecoding metrics: .*Accepted: (\d+) tokens, Drafted: (\d+) tokens, Per-position acceptance rate: ([\d., ]+\d)"
)
PROGRAM = "python -m traces.convert"


def made(
    runs: Sequence[NDArray[np.int64]], prompts: Sequence[int], draft_tokens: int, about: dict[str, Any]
) -> SpeculationTrace:
    """The trace of answers with these runs, each cut at K and at the answer's end."""
    lengths = np.array([len(run) for run in runs])
    whole_run = np.concatenate(runs)
    to_the_end = np.concatenate([np.arange(n, 0, -1) for n in lengths])
    header = {"temperature": 0.0, "runs": INDEPENDENT, "draft_tokens": draft_tokens, **about}
    return SpeculationTrace(
        np.arange(len(runs)), np.array(prompts), np.concatenate([[0], np.cumsum(lengths)]),
        np.minimum(np.minimum(whole_run, draft_tokens), to_the_end), None, None, header,
    )  # fmt: skip


# --- SpecDecode-Bench ------------------------------------------------------------------------------------------------


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines of a text file, packed by gzip or not.

    Raises:
        InputError: it cannot be read, or is larger than `MAX_BYTES`.
    """
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if packed else path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise InputError(f"{path}: more than {MAX_BYTES} bytes unpacked, the most that is read")
        yield from enumerate(text.decode().splitlines(), 1)
    except (OSError, EOFError, ValueError) as error:
        raise InputError(f"cannot read {path}: {' '.join(str(error).split())}") from None


def committed(row: Any, source: str, place: str) -> tuple[NDArray[np.int64], int]:
    """Accepted runs of an answer and its prompt's tokens.

    Raises:
        InputError: no such lists, or values that cannot be.
    """
    given = row.get(source) if isinstance(row, dict) else None
    prompt = row.get("prompt_tokens") if isinstance(row, dict) else None
    if not isinstance(given, list) or not all(type(tokens) is int and tokens >= 1 for tokens in given):
        raise InputError(
            f"{place}: {source!r} is needed, a list of tokens committed from each position, each at least 1"
        )
    if type(prompt) is not int or not 1 <= prompt <= MAX_PROMPT_TOKENS:
        raise InputError(f"{place}: prompt_tokens given {prompt!r}, allowed: 1 to {MAX_PROMPT_TOKENS}")
    return np.array(given, dtype=np.int64) - 1, prompt


def specdecode(path: Path, source: str, draft_tokens: int) -> SpeculationTrace:
    """The trace of one source of a SpecDecode-Bench file; answers without a position are left out.

    Raises:
        InputError: a line that is not of this format; no answer.
    """
    answers = []
    for number, text in lines_of(path):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError):
            raise InputError(f"{path}, line {number}: not JSON") from None
        answers.append(committed(row, source, f"{path}, line {number}"))
    answers = [(runs, prompt) for runs, prompt in answers if len(runs)]
    if not answers:
        raise InputError(f"{path}: no answer of {source!r} in it")
    about = {"recipe": {"from": "SpecDecode-Bench", "file": path.name, "source": source}}
    return made([runs for runs, _ in answers], [prompt for _, prompt in answers], draft_tokens, about)


# --- vLLM's log ------------------------------------------------------------------------------------------------------


def survivals(path: Path) -> list[NDArray[np.float64]]:
    """Of each line of a log, the share of rounds that accept at least 1, 2 … k tokens; lines without drafts are left out.

    Raises:
        InputError: no such line, or lines of different lengths k.
    """
    found = []
    for number, text in lines_of(path):
        if (match := LOG_LINE.search(text)) and int(match[2]):
            shares = np.array([float(share) for share in match[3].replace(",", " ").split()])
            if shares.max() > 1.0 or (np.diff(shares) > 0).any():
                raise InputError(f"{path}, line {number}: rates {match[3]}; allowed: shares up to 1 that do not rise")
            found.append(shares)
    lengths = {len(shares) for shares in found}
    if len(lengths) != 1:
        kinds = (
            f"lines of {sorted(lengths)} drafted tokens" if found else "no line 'SpecDecoding metrics: …' with drafts"
        )
        raise InputError(f"{path}: {kinds}; allowed: lines of vLLM's log, all with one number of drafts")
    return found


def runs_of(shares: NDArray[np.float64], positions: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """(positions,) runs of which the shares ≥ 1 … k are those given, to the nearest position, in a drawn order."""
    places = (np.arange(positions) + 0.5) / positions
    return rng.permutation((places[:, None] < shares).sum(axis=1))


def vllm_log(path: Path, answer_tokens: int, prompt_tokens: int, seed: int) -> SpeculationTrace:
    """The trace of a server's log, one answer a line; K is the server's number of drafts. Raises as `survivals`."""
    shares, rng = survivals(path), np.random.default_rng(seed)
    k = len(shares[0])
    about = {"recipe": {"from": "vLLM's SpecDecoding metrics", "file": path.name, "seed": seed, "order": "drawn"}}
    runs = [runs_of(line, answer_tokens, rng) for line in shares]
    return made(runs, [prompt_tokens] * len(runs), k, about)


# --- command ---------------------------------------------------------------------------------------------------------


def parse(arguments: Sequence[str] | None) -> Namespace:
    """Return the flags."""
    parser = Parser(prog=PROGRAM, description=(__doc__ or "").splitlines()[0])
    parser.add_argument("format", choices=("specdecode", "vllm-log"), help="what the file is")
    parser.add_argument("file", type=Path, help="packed by gzip or not")
    parser.add_argument("--out", type=output_file(".npz"), required=True, metavar="FILE", help="the trace")
    parser.add_argument("--source", choices=SOURCES, default="eagle", help="specdecode: whose drafts (default eagle)")
    drafts = whole(1, MAX_DRAFT_TOKENS)
    parser.add_argument("--draft-tokens", type=drafts, default=8, help="specdecode: K, longer runs are cut (default 8)")
    tokens, prompt = whole(1, 100_000), whole(1, MAX_PROMPT_TOKENS)
    parser.add_argument("--answer-tokens", type=tokens, default=256, help="vllm-log: of each answer (default 256)")
    parser.add_argument("--prompt-tokens", type=prompt, default=256, help="vllm-log: of each prompt (default 256)")
    parser.add_argument("--seed", type=whole(0, MAX_SEED), default=0, help="vllm-log: of the order (default 0)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Convert, write, and say what was made."""
    given = parse(arguments)
    try:
        if given.format == "specdecode":
            trace = specdecode(given.file, given.source, given.draft_tokens)
        else:
            trace = vllm_log(given.file, given.answer_tokens, given.prompt_tokens, given.seed)
        write_speculation_trace(trace, given.out)
    except TraceError as error:
        raise InputError(str(error)) from None
    print(
        f"{len(trace)} answers, {len(trace.accepted_run)} positions, {trace.draft_tokens} tokens at each; wrote {given.out.name}"
    )


if __name__ == "__main__":
    program(lambda: run(main, PROGRAM))
