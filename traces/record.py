"""Record a speculation trace from a draft and a target model.

    python -m traces.record --draft pair/draft --target pair/target --prompts pair/prompts.jsonl --out trace.npz

Any two causal language models of one tokenizer will do, by a name on the hub or by a folder. The target answers each
prompt greedily; at every position of its answer the draft proposes K tokens greedily from the true prefix. With
`--temperature T` both sample at T, and the target's probability of accepting each proposed token is recorded too.

Requests are recorded one by one (on a GPU the target had better answer several prompts at once: `--answers`), and
pieces of `PIECE_REQUESTS` or more are kept in `FILE.parts` until all are there: an interrupted run continues with the
first missing piece, and its file has the bytes of an uninterrupted one (on the same machine, threads and libraries).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wisp_gym.cli import OutOfTime, Parser, between, deadline, run, whole
from wisp_gym.errors import InputError
from wisp_gym.files import read_text
from wisp_gym.interrupts import leaves
from wisp_gym.process import program
from wisp_gym.traces.speculation import (
    MAX_DRAFT_TOKENS,
    SpeculationTrace,
    concatenate,
    read_speculation_trace,
    write_speculation_trace,
)

if TYPE_CHECKING:  # torch and transformers take seconds to import: --help and wrong flags do without
    from .model_pair import Pair

PIECE_REQUESTS = 8
MAX_PROMPTS_BYTES = 1 << 28


@dataclass(frozen=True)
class Prompt:
    """One prompt: its place in the file, counted from 0, and its text."""

    id: int
    text: str


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a file: JSON objects with `prompt`, one a line (`.jsonl`), else one prompt a line.

    Raises:
        InputError: names the file and the line.
    """
    try:
        if path.stat().st_size > MAX_PROMPTS_BYTES:
            raise InputError(f"{path}: {path.stat().st_size} bytes; allowed: at most {MAX_PROMPTS_BYTES}")
        lines = read_text(path).splitlines()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    texts = [_prompt(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not texts:
        raise InputError(f"{path}: holds no prompt; allowed: at least one")
    return [Prompt(i, text) for i, text in enumerate(texts)]


def _prompt(path: Path, number: int, line: str) -> str:
    if path.suffix != ".jsonl":
        return line
    try:
        text = json.loads(line)["prompt"]
        if not isinstance(text, str) or not text.strip():
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(f"{path}: line {number}: {line[:40]!r}; allowed: an object with prompt, a text") from None
    return text


def record_piece(pair: Pair, prompts: Sequence[Prompt], header: dict[str, Any], given: Namespace) -> SpeculationTrace:
    """The trace of some prompts."""
    from .model_pair import answers, record_request

    every = [tokens_of(pair, prompt, given) for prompt in prompts]
    outputs: list[list[int] | None] = [None] * len(prompts)
    if given.answers > 1:
        outputs = [*answers(pair, every, [prompt.id for prompt in prompts], given)]
    one_by_one = []
    for prompt, ids, output in zip(prompts, every, outputs, strict=True):
        rows = record_request(pair, ids, prompt.id, given, output)
        about = (np.array([prompt.id]), np.array([len(ids)]), np.array([0, len(rows["accepted_run"])]))
        one_by_one.append(SpeculationTrace(*about, **rows, header=header))
    return concatenate(one_by_one)


def tokens_of(pair: Pair, prompt: Prompt, given: Namespace) -> list[int]:
    """The tokens of a prompt.

    Raises:
        InputError: it has none, or with answer and draft more than the models take.
    """
    ids = pair.encode(prompt.text, given.chat)
    if not ids:
        raise InputError(f"{given.prompts}: prompt {prompt.id}: no token; allowed: at least one")
    needed = len(ids) + given.max_new_tokens + given.draft_tokens
    if needed > pair.max_tokens:
        raise InputError(f"{given.prompts}: prompt {prompt.id}: {len(ids)} tokens, with answer and draft {needed}; "
                         f"allowed: {pair.max_tokens}, the models' longest sequence")  # fmt: skip
    return ids


def pieces(pair: Pair, prompts: list[Prompt], header: dict[str, Any], given: Namespace) -> Iterator[SpeculationTrace]:
    """The trace piece by piece: read where an earlier run has written it, else recorded and written.

    Raises:
        InputError: a piece was recorded with other settings.
    """
    from tqdm import tqdm

    folder = _parts(given.out)
    folder.mkdir(exist_ok=True)
    with tqdm(total=len(prompts), unit="request", disable=None) as bar:
        size = max(PIECE_REQUESTS, given.answers)
        for start in range(0, len(prompts), size):
            path = folder / f"{start:07d}.npz"
            if not path.exists():
                if time.monotonic() > given.ends:
                    raise OutOfTime(f"{given.out}: {len(prompts) - start} of {len(prompts)} requests are left")
                piece = record_piece(pair, prompts[start : start + size], header, given)
                write_speculation_trace(piece, path)
            piece = read_speculation_trace(path)
            if piece.header.get("settings") != header["settings"]:
                raise InputError(f"{folder}: recorded with other settings; choose another --out or remove it")
            bar.update(len(piece))
            yield piece


def _parts(out: Path) -> Path:
    return out.with_name(f"{out.name}.parts")


def header_of(pair: Pair, given: Namespace) -> dict[str, Any]:
    """What the file says of its making; `settings` is all that the numbers depend on."""
    import torch
    import transformers

    recipe = json.loads(read_text(given.recipe)) if given.recipe else None
    settings = {
        "draft": pair.describe("draft"), "target": pair.describe("target"),
        "prompts_sha256": hashlib.sha256(given.prompts.read_bytes()).hexdigest(),
        **{name: getattr(given, name) for name in ("draft_tokens", "max_new_tokens", "seed", "dtype")},
        "temperature": given.temperature,
        **({"answers": given.answers} if given.answers > 1 else {}),
        **({"chat": True} if given.chat else {}),
    }  # fmt: skip
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return {"temperature": given.temperature, "settings": settings, "versions": versions, "recipe": recipe}


def record(given: Namespace) -> SpeculationTrace:
    """Record what is missing, write the whole trace, remove the pieces."""
    from .model_pair import Pair

    prompts = read_prompts(given.prompts)
    pair = Pair.load(given.draft, given.target, given.device, given.dtype)
    trace = concatenate(list(pieces(pair, prompts, header_of(pair, given), given)))
    write_speculation_trace(trace, given.out)
    shutil.rmtree(_parts(given.out))
    return trace


def parse(arguments: Sequence[str] | None) -> Namespace:
    """The flags, checked."""
    parser = Parser(prog="python -m traces.record", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--draft", required=True, metavar="MODEL", help="name on the hub, or a folder")
    parser.add_argument("--target", required=True, metavar="MODEL", help="name on the hub, or a folder")
    parser.add_argument("--prompts", type=Path, required=True, metavar="FILE", help="text, or JSON lines with `prompt`")
    parser.add_argument("--chat", action="store_true", help="prompts are what a user says: apply the chat template")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="NPZ to write")
    parser.add_argument("--recipe", type=Path, metavar="FILE", help="JSON to keep in the header (of train_pair, say)")
    parser.add_argument(
        "--draft-tokens",
        type=whole(1, MAX_DRAFT_TOKENS),
        default=8,
        help="K, drafted at each position (default %(default)s)",
    )
    parser.add_argument(
        "--max-new-tokens", type=whole(1, 10**6), default=100, help="of an answer (default %(default)s)"
    )
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    parser.add_argument(
        "--batch", type=whole(1, 65_536), default=32, help="positions drafted at once (default %(default)s)"
    )
    parser.add_argument(
        "--answers", type=whole(1, 65_536), default=1, help="prompts answered at once (default %(default)s)"
    )
    parser.add_argument(
        "--minutes", type=between(0, 1e6), default=0, help="stop after so many, to go on later; 0: never (default)"
    )
    parser.add_argument("--threads", type=whole(1, 1024), default=1, help="of the CPU (default %(default)s)")
    parser.add_argument("--seed", type=whole(0, 2**63), default=0, help="of the sampling (default %(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of the weights")
    given = parser.parse_args(arguments)
    if not (given.temperature == 0 or 0.01 <= given.temperature <= 100):
        parser.error(f"--temperature {given.temperature}: allowed 0, or 0.01 to 100")
    given.ends = deadline(given.minutes)
    _check_files(parser, given)
    return given


def _check_files(parser: Parser, given: Namespace) -> None:
    if not given.prompts.is_file():
        parser.error(f"--prompts {given.prompts}: no such file")
    if given.out.is_dir() or not given.out.parent.is_dir():
        parser.error(f"--out {given.out}: allowed is a file in a folder that exists")
    if given.recipe:
        try:
            json.loads(read_text(given.recipe))
        except (OSError, ValueError) as error:
            parser.error(f"--recipe {given.recipe}: cannot be read as JSON ({error})")


@leaves("the same command continues")
def main(arguments: Sequence[str] | None = None) -> None:
    """Record a trace as the command line says."""
    given = parse(arguments)
    import torch

    if given.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch sees no CUDA device; allowed here: cpu")
    torch.set_num_threads(given.threads)
    trace = record(given)
    positions, mean = len(trace.accepted_run), trace.accepted_run.mean()
    print(f"{given.out}: {len(trace)} requests, {positions} positions, mean accepted run {mean:.2f}")


if __name__ == "__main__":
    program(lambda: run(main, "python -m traces.record"))
