"""Edge device of speculative decoding: drafts with a small model, has its drafts verified by a server, prints the answers.

    wisp-gym device --server 127.0.0.1:50051 --prompt "def main():"

Without --draft it drafts with the pretrained pair's draft where that is there, else with the small pair's, trained once, and without
prompts it takes the pair's own.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wisp_gym.cli import Parser, between, whole
from wisp_gym.errors import require
from wisp_gym.testbed.prompts import read_prompts
from wisp_gym.testbed.settings import SESSION_ID_BYTES

if TYPE_CHECKING:  # torch takes seconds to import: --help and wrong flags do without
    from wisp_gym.testbed.client import Answer, Device, Request
    from wisp_gym.testbed.drafting import Drafting

PROGRAM = "wisp-gym device"
TORCH, LLAMA_CPP = "torch", "llama-cpp"
MAX_DRAFT_TOKENS = 32  # as the documented observation counts


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The flags, checked."""
    parser = Parser(prog=PROGRAM, description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--server", default="127.0.0.1:50051", metavar="HOST:PORT", help="(default %(default)s)")
    add(
        "--draft",
        metavar="MODEL",
        help="name or folder of a transformers model (default: of the pretrained pair if it is there, else of the small one), or a GGUF file",
    )
    add("--runtime", choices=(TORCH, LLAMA_CPP), default=TORCH, help="what runs the draft; llama-cpp reads a GGUF file "
        "(default %(default)s)")  # fmt: skip
    add(
        "--tokenizer",
        metavar="MODEL",
        help="of a GGUF draft: name or folder of a transformers model (default: the file's folder)",
    )
    add(
        "--context-tokens",
        type=whole(16, 1 << 20),
        default=4096,
        help="of a GGUF draft's longest context (default %(default)s)",
    )
    add("--device", default="cpu", help="cpu or cuda[:N] (default %(default)s)")
    add("--dtype", choices=("float32", "float64", "bfloat16", "float16"), default="float32", help="of the weights")
    add("--threads", type=whole(0, 1024), default=1, help="of the CPU (default %(default)s; 0: torch's choice)")
    add("--prompt", action="append", default=[], help="a prompt; may be given several times")
    add("--prompts", type=Path, metavar="FILE", help="prompts as JSON lines with the key 'prompt'")
    add("--requests", type=whole(1, 10**9), metavar="N", help="at most so many of the prompts")
    add("--controller", default="confidence:0.5", help="fixed:K, confidence:C[,K], or a bundle: a shipped policy or rule "
        "(speculation-v1, wisp), a file, a run's folder (default %(default)s)")  # fmt: skip
    add("--predictor", metavar="FILE", help="rejection predictor: a file, or one that is shipped")
    add("--max-draft-tokens", type=whole(1, MAX_DRAFT_TOKENS), default=8, help="of a round (default %(default)s)")
    add("--max-new-tokens", type=whole(1, 10**6), default=64, help="of an answer (default %(default)s)")
    add("--temperature", type=between(0, 100), default=0.0, help="0: greedy (default %(default)g)")
    add("--seed", type=whole(0, 2**63), default=0, help="of all draws (default %(default)s)")
    add("--support", type=whole(0, 10**7), default=64,
        help="above temperature 0, draw from so many likeliest tokens; 0: all (default %(default)s)")  # fmt: skip
    add("--slo-tokens-per-s", type=between(0, 1e4), default=0.0, help="speed of the service class; 0: none")
    add("--ttft-s", type=between(0, 3600), default=0.0, help="wanted time to the first token; 0: none")
    add("--name", help="of this device: started again with it, answers that were cut off go on (default: a random one)")
    add("--report", type=Path, metavar="FILE", help="append each answer's counts and times as a JSON line")
    add("--tls", action="store_true", help="TLS, with the system's authorities unless --tls-ca")
    add("--tls-ca", type=Path, metavar="FILE", help="PEM of the authority that signed the server's certificate")
    add("--tls-certificate", type=Path, metavar="FILE", help="PEM of this device, with --tls-key, if the server asks")
    add("--tls-key", type=Path, metavar="FILE")
    add("--tls-name", default="", help="name in the server's certificate, where it is not the host")
    add("--token", type=Path, metavar="FILE", help="holds the access token")
    add("--reply-timeout-s", type=between(0.1, 3600), default=10.0, help="then the connection is opened anew")
    add("--give-up-s", type=between(0.1, 1e6), default=120.0, help="without a token, a request is given up")
    given = parser.parse_args(arguments)
    if bool(given.tls_certificate) != bool(given.tls_key):
        parser.error("--tls-certificate and --tls-key belong together")
    if given.runtime == LLAMA_CPP and not given.draft:
        parser.error("--draft: needed with --runtime llama-cpp, a GGUF file")
    return given


def prompts(given: argparse.Namespace) -> Iterator[str]:
    """The prompts of the flags, or those that go with the default pair.

    Raises:
        InputError: a file that cannot be read, or a line that is no prompt.
    """
    yield from given.prompt
    if given.prompts:
        yield from read_prompts(given.prompts)
    elif not given.prompt:
        from wisp_gym.testbed.torch_engine.models import default_models

        yield from read_prompts(default_models().prompts)


def build(given: argparse.Namespace) -> tuple[Device, Any]:
    """The device of the flags and its tokenizer, the draft model loaded."""
    if given.runtime == TORCH:
        require("torch", "testbed")  # transformers would say the same in more words
    from wisp_gym.rules.rejection_predictor import load_predictor
    from wisp_gym.testbed.client import Device, DeviceSettings
    from wisp_gym.testbed.connection import Link, open_channel
    from wisp_gym.testbed.controlling import find_controller
    from wisp_gym.testbed.security import channel_credentials, read_token
    from wisp_gym.testbed.tokenizers import tokenizer_digest

    predictor = load_predictor(given.predictor) if given.predictor else None
    controller = find_controller(given.controller, given.slo_tokens_per_s, given.ttft_s)()
    token = read_token(given.token) if given.token else None
    tls = given.tls or given.tls_ca or given.tls_key
    credentials = channel_credentials(given.tls_ca, given.tls_certificate, given.tls_key) if tls else None
    draft, tokenizer = in_llama_cpp(given) if given.runtime == LLAMA_CPP else in_torch(given)
    channel = open_channel(given.server, credentials, 64 << 20, given.tls_name)
    limits = (given.max_draft_tokens, predictor, given.reply_timeout_s, given.give_up_s)
    settings = DeviceSettings(tokenizer_digest(tokenizer), *limits)
    return Device(lambda: Link(channel, token), draft, controller, settings), tokenizer


def in_torch(given: argparse.Namespace) -> tuple[Drafting, Any]:
    """The draft model of transformers, and its tokenizer."""
    import torch

    from wisp_gym.testbed.draft import DraftModel
    from wisp_gym.testbed.tokenizers import load_tokenizer
    from wisp_gym.testbed.torch_engine.models import default_models, load_model

    if given.threads:
        torch.set_num_threads(given.threads)
    name = given.draft or default_models().draft
    tokenizer = load_tokenizer(name, "--draft")
    model = load_model(name, "--draft", given.device, given.dtype)
    return DraftModel(model, min(model.config.vocab_size, len(tokenizer)), given.support), tokenizer


def in_llama_cpp(given: argparse.Namespace) -> tuple[Drafting, Any]:
    """The draft model of a GGUF file, and the tokenizer that its prompts are read by. Needs no torch."""
    from wisp_gym.testbed.llama_cpp_draft import LlamaCppDraft
    from wisp_gym.testbed.tokenizers import load_tokenizer

    tokenizer = load_tokenizer(given.tokenizer or str(Path(given.draft).resolve().parent), "--tokenizer")
    threads = given.threads or os.cpu_count() or 1
    return LlamaCppDraft(given.draft, len(tokenizer), given.support, given.context_tokens, threads), tokenizer


def request_of(given: argparse.Namespace, ids: list[int], place: int) -> Request:
    """The request of the prompt at a place; a named device's session depends on its name, the place and what is asked."""
    from wisp_gym.testbed.client import Request

    fixed = (ids, given.max_new_tokens, given.temperature, given.seed + place, given.slo_tokens_per_s, given.ttft_s)
    if given.name is None:
        return Request(*fixed)
    digest = hashlib.sha256(json.dumps([given.name, place, *fixed]).encode()).digest()
    return Request(*fixed, session=digest[:SESSION_ID_BYTES])


def report(path: Path | None, place: int, answer: Answer) -> None:
    """Append an answer's counts to the report."""
    if path is not None:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**asdict(answer), "request": place}) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Answer the prompts one after another."""
    given = parse(arguments)
    device, tokenizer = build(given)
    from wisp_gym.testbed.client import GaveUp
    from wisp_gym.testbed.connection import NotWelcome

    try:
        for place, prompt in enumerate(prompts(given)):
            if given.requests is not None and place >= given.requests:
                break
            answer = device.answer(request_of(given, list(tokenizer(prompt)["input_ids"]), place))
            print(tokenizer.decode(answer.tokens, skip_special_tokens=True), flush=True)
            speed = len(answer.tokens) / max(answer.seconds, 1e-9)
            print(f"[{len(answer.tokens)} tokens, {speed:.1f} a second, {answer.rounds} rounds, "
                  f"{answer.accepted} of {answer.drafted} drafted tokens accepted]", file=sys.stderr)  # fmt: skip
            report(given.report, place, answer)
    except (GaveUp, NotWelcome) as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 1
    finally:
        device.close(finish=True)
    return 0
