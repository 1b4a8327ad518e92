"""Verification server of edge-cloud speculative decoding: verifies the drafts of many devices with a target model.

    wisp-gym server --listen 127.0.0.1:50051

Without --target it serves the pretrained pair's target where that is there, else the small pair's, trained once. SIGTERM or
Ctrl-C: no new sessions, then the end.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import logging
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wisp_gym.cli import Parser, address, between, whole
from wisp_gym.errors import InputError
from wisp_gym.interrupts import Interrupt, heard
from wisp_gym.testbed.settings import BLOCK_TOKENS, Limits

if TYPE_CHECKING:  # torch takes seconds to import: --help and wrong flags do without
    from wisp_gym.testbed.engine import Engine
    from wisp_gym.testbed.service import Server

PROGRAM = "wisp-gym server"
TORCH, VLLM = "torch", "vllm"
Address = tuple[str, int]
LIMIT_RANGES: dict[str, tuple[float, float, str]] = {
    "kv_tokens": (BLOCK_TOKENS, 1e9, "tokens whose keys and values stay in memory"),
    "admit_share": (0, 1, "of memory up to which prompts may begin; 0: any"),
    "max_sessions": (1, 1e5, "open sessions"),
    "max_sessions_per_connection": (1, 1e4, "open sessions of one connection"),
    "max_waiting": (1, 1e5, "rounds that may wait; beyond it devices must come again"),
    "max_batch_rounds": (1, 1e4, "rounds of a batch"),
    "prefill_chunk_tokens": (0, 1e9, "uncached context that a batch computes; 0: any"),
    "max_prompt_tokens": (1, 1e6, "of a request"),
    "max_new_tokens": (1, 1e6, "of an answer"),
    "max_draft_tokens": (0, 256, "of a round"),
    "max_message_bytes": (1024, 1 << 30, "longest message that is read"),
    "orphan_s": (0, 1e6, "that a session outlives its connection"),
    "idle_s": (1, 1e6, "that a silent session is kept"),
    "stalled_s": (0.1, 1e6, "that replies may stay unread"),
    "retry_after_s": (0.001, 60, "that refused devices are told to wait at least"),
}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The flags, checked; `limits` is a `Limits`."""
    parser = Parser(prog=PROGRAM, description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--listen", type=address, default=("127.0.0.1", 50051), metavar="HOST:PORT",
        help="port 0: the system chooses (default 127.0.0.1:50051)")  # fmt: skip
    add("--engine", choices=(TORCH, VLLM), default=TORCH, help="what runs the target (default %(default)s)")
    add(
        "--target",
        "--model",
        metavar="MODEL",
        help="name or folder of a transformers model (default: of the pretrained pair if it is there, else of the small one)",
    )
    add("--device", default="cpu", help="cpu or cuda[:N] (default %(default)s); vLLM runs where its wheel was made for")
    add("--dtype", choices=("float32", "float64", "bfloat16", "float16"), default="float32", help="of the weights")
    add("--threads", type=whole(0, 1024), default=0, help="of the CPU (default 0: the engine's choice)")
    add_vllm(parser)
    add("--scheduler", default="fcfs", help="fcfs, or a bundle: a shipped policy or rule "
        "(batching-v1, joint-v1, wisp), a file, a run's folder (default %(default)s)")  # fmt: skip
    add("--metrics", type=address, metavar="HOST:PORT", help="serve Prometheus metrics there")
    add("--tls-certificate", type=Path, metavar="FILE", help="PEM; with --tls-key turns TLS on")
    add("--tls-key", type=Path, metavar="FILE")
    add("--tls-client-ca", type=Path, metavar="FILE", help="devices must show a certificate signed by it")
    add("--tokens", type=Path, metavar="FILE", help="lines 'NAME TOKEN' of those who may connect")
    add("--insecure", action="store_true", help="allow a public address without TLS")
    add("--grace-s", type=between(0, 1e5), default=30.0, help="to end the open answers in (default %(default)g)")
    for field in dataclasses.fields(Limits):
        low, high, meaning = LIMIT_RANGES[field.name]
        kind = whole(int(low), int(high)) if isinstance(field.default, int) else between(low, high)
        flag = f"--{field.name.replace('_', '-')}"
        add(flag, type=kind, default=field.default, help=f"{meaning} (default %(default)s)")
    given = parser.parse_args(arguments)
    given.limits = Limits(**{field.name: getattr(given, field.name) for field in dataclasses.fields(Limits)})
    if bool(given.tls_certificate) != bool(given.tls_key) or (given.tls_client_ca and not given.tls_key):
        parser.error("--tls-certificate and --tls-key belong together; --tls-client-ca needs both")
    if given.engine == VLLM and given.device != "cpu":
        parser.error("--device: vLLM runs where its wheel was made for; allowed with --engine vllm is none")
    if given.engine == VLLM and given.dtype == "float64":
        parser.error("--dtype: given float64, allowed with --engine vllm are float32, bfloat16, float16")
    if given.engine == TORCH and given.vllm:
        parser.error("--vllm: allowed with --engine vllm alone")
    return given


def add_vllm(parser: argparse.ArgumentParser) -> None:
    """Add the flag for what vLLM is told besides."""
    words = "further arguments of vllm.EngineArgs, by their names"
    parser.add_argument("--vllm", type=json_object, default={}, metavar="JSON", help=words)


def json_object(text: str) -> dict[str, Any]:
    """A JSON object of the command line."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"no JSON ({error})") from None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError("allowed is a JSON object, as in '{\"tensor_parallel_size\": 2}'")
    return found


def torch_engine(given: argparse.Namespace, name: str) -> Engine:
    """The engine in torch, its model loaded."""
    import torch

    from wisp_gym.testbed.torch_engine.engine import TorchEngine
    from wisp_gym.testbed.torch_engine.models import load_model
    from wisp_gym.testbed.torch_engine.target import Target

    if given.threads:
        torch.set_num_threads(given.threads)
    return TorchEngine(Target(load_model(name, "--target", given.device, given.dtype)), given.limits.kv_tokens)


def vllm_engine(given: argparse.Namespace, name: str) -> Engine:
    """The engine on vLLM, its processes started."""
    from wisp_gym.testbed.vllm_engine.core import CoreSettings
    from wisp_gym.testbed.vllm_engine.engine import VllmEngine
    from wisp_gym.testbed.vllm_engine.sampling_fix import why_not

    engine = VllmEngine(CoreSettings(name, given.dtype, given.threads, given.limits, more=given.vllm))
    if not engine.samples:
        print(f"{PROGRAM}: temperatures above 0 are refused: {why_not()}", file=sys.stderr)
    return engine


ENGINES = {TORCH: torch_engine, VLLM: vllm_engine}


def build(given: argparse.Namespace) -> Server:
    """The server of the flags, its model loaded."""
    from wisp_gym.testbed.scheduling import find_bundle, make_scheduler
    from wisp_gym.testbed.security import AccessTokens
    from wisp_gym.testbed.service import Server, ServerSettings
    from wisp_gym.testbed.tokenizers import load_tokenizer, tokenizer_digest
    from wisp_gym.testbed.torch_engine.models import default_models

    if given.engine == VLLM:
        from wisp_gym.testbed.vllm_engine.version import check_version

        check_version()  # before a model is looked for
    tokens = AccessTokens.read(given.tokens) if given.tokens else None
    bundle = find_bundle(given.scheduler)
    name = given.target or default_models().target
    digest = tokenizer_digest(load_tokenizer(name, "--target"))
    engine = ENGINES[given.engine](given, name)
    scheduler = make_scheduler(bundle, engine, given.limits)
    return Server(engine, digest, scheduler, ServerSettings(given.limits, tokens))


def free(flag: str, address: Address) -> None:
    """Refuse an address that is not ours, or taken.

    Raises:
        InputError: names the flag and the system's reason.
    """
    try:
        host, port = address[0].strip("[]"), address[1]
        for family, kind, _, _, found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            with socket.socket(family, kind) as tried:
                tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do after a restart
                tried.bind(found)
    except OSError as error:
        reason = f"cannot be bound ({error.strerror}); allowed is a free port of this machine, 0: any"
        raise InputError(f"{flag} {address[0]}:{address[1]}: {reason}") from None


def credentials(given: argparse.Namespace) -> Any:
    """TLS of the flags, or None; a public address without it must be asked for.

    Raises:
        InputError: a public address in the clear without --insecure.
    """
    from wisp_gym.testbed.security import is_loopback, server_credentials

    if given.tls_key:
        return server_credentials(given.tls_certificate, given.tls_key, given.tls_client_ca)
    if not given.insecure and not is_loopback(given.listen[0]):
        raise InputError(f"--listen {given.listen[0]}: prompts and tokens would travel in the clear; allowed are "
                         "--tls-certificate with --tls-key, a loopback address, or --insecure")  # fmt: skip
    return None


async def serve(
    server: Server, listen: Address, tls: Any = None, metrics: Address | None = None, grace_s: float = 0.0
) -> None:
    """Serve until a signal comes, then drain and stop; a second signal ends the wait.

    Args:
        listen, metrics: host and port of the service and of its metrics (None: no metrics). tls: server credentials of grpc.
        grace_s: in which open answers may end.

    Raises:
        InputError: the address cannot be bound.
    """
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    told = Interrupt()
    for number in heard():
        loop.add_signal_handler(number, lambda: None if told.is_echo() else stopped.set())
    try:
        port = await server.start(*listen, tls)
    except RuntimeError:  # gRPC does not say why
        raise InputError(f"--listen {listen[0]}:{listen[1]}: cannot be bound") from None
    print(f"listening on {listen[0]}:{port}", flush=True)
    if metrics:
        print(f"metrics on http://{metrics[0]}:{server.serve_metrics(*metrics)}/metrics", flush=True)
    await stopped.wait()
    print("draining", flush=True)
    stopped.clear()
    drained, again = asyncio.create_task(server.drain(grace_s)), asyncio.create_task(stopped.wait())
    await asyncio.wait([drained, again], return_when=asyncio.FIRST_COMPLETED)
    for task in (drained, again):
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await server.stop()


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until told to stop."""
    given = parse(arguments)
    for flag, where in (("--listen", given.listen), ("--metrics", given.metrics)):
        if where:
            free(flag, where)  # before a model is loaded
    tls = credentials(given)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    server = build(given)
    with contextlib.closing(server.verifier.engine):
        asyncio.run(serve(server, given.listen, tls, given.metrics, given.grace_s))
