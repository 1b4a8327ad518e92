"""What the host does for each verified message, beside the model: CPU time on this machine, by the number of requests.

    python -m estimators.profiling host                    # the testbed's server; vLLM too, where it is installed

Three ways of serving, each of B requests at a time:

- `testbed message`: this project's server over gRPC, with an engine that takes no time: take a round, schedule it, answer it.
- `vLLM, new request`: a round as a request of its own, whose context is in vLLM's prefix cache: admit it, find its blocks,
  schedule it, sample, end it.
- `vLLM, running sequence`: a step of a sequence that stays in the engine, as in centralized serving.

vLLM runs a model of one layer; its forward pass is taken off. The slope over B is what a request costs, the rest what a batch costs.
"""

import argparse
import asyncio
import importlib.util
import os
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from multiprocessing import get_context
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from wisp_gym.cli import Parser, aligned, output_file, whole, write_rows
from wisp_gym.errors import InputError

PROGRAM = "python -m estimators.profiling host"
SIZES = (1, 2, 4, 8, 16, 32, 64)  # requests at a time
DRAFTED = 4  # tokens of a round
CONTEXT = 320  # tokens in the cache: 20 of vLLM's blocks of 16
VOCABULARY = 1000
STEPS = 40  # of running sequences
COEFFICIENTS = {"launch_s": 0.01, "new_token_s": 5e-4, "pair_s": 1e-7, "cached_token_s": 1e-6}
Row = dict[str, Any]


def fitted(way: str, sizes: Sequence[int], seconds: Sequence[float]) -> Row:
    """A request's and a batch's share of the CPU time of batches, by least squares on relative errors."""
    weight = 1.0 / np.asarray(seconds)
    left = np.column_stack([np.ones(len(sizes)), sizes]) * weight[:, None]
    (batch_s, request_s), *_ = np.linalg.lstsq(left, np.ones(len(sizes)), rcond=None)
    misfit = float(np.max(np.abs(left @ [batch_s, request_s] - 1.0)))
    return {"way": way, "request_ms": 1e3 * request_s, "batch_ms": 1e3 * batch_s, "largest_error": misfit}


# --- the testbed's server --------------------------------------------------------------------------------------------


class NoModel:
    """An engine that accepts every draft at once (`wisp_gym.testbed.engine.Engine`)."""

    vocabulary, max_tokens, end_tokens = VOCABULARY, 1 << 16, frozenset[int]()
    kv_capacity_tokens, block_tokens, samples, kv_used_tokens = 1 << 22, 16, False, 0

    def cached_tokens(self, key: Any) -> int:
        """All but the last token of whatever is asked for: nothing is left to compute."""
        return self._kept.get(key, 0)

    def __init__(self) -> None:
        self._kept: dict[Any, int] = {}

    def reserve(self, tokens: Mapping[Any, int]) -> int:
        """There is always room."""
        del tokens
        return 0

    def verify(self, jobs: Sequence[Any]) -> list[list[int]]:
        """Commit what was drafted, and a token more."""
        self._kept |= {job.key: job.chunk_end or len(job.context) + len(job.drafted) for job in jobs}
        return [[*job.drafted, 0] for job in jobs]

    def forget(self, key: Any) -> None:
        """A session has ended."""
        self._kept.pop(key, None)

    def first_coefficients(self) -> dict[str, float]:
        """Any."""
        return COEFFICIENTS

    def close(self) -> None:
        """Nothing is held."""


def serve(pipe: Any) -> None:
    """The server's process: tells its port, then its CPU seconds and verified rounds whenever it is asked."""
    from wisp_gym.testbed.service import Server

    async def run() -> None:
        server = Server(cast(Any, NoModel()), bytes(32))
        pipe.send(await server.start("127.0.0.1", 0))
        while await asyncio.to_thread(pipe.recv):
            pipe.send(time.process_time())
        await server.stop()

    asyncio.run(run())


def testbed_rounds(port: int, devices: int, tokens: int) -> int:
    """Answer one request on each device, all at a time; the rounds that this took."""
    from wisp_gym.testbed.client import Device, DeviceSettings, Request
    from wisp_gym.testbed.connection import Link, open_channel
    from wisp_gym.testbed.controlling import FixedLength
    from wisp_gym.testbed.drafting import Drafted

    draft = SimpleNamespace(draft=lambda *_: Drafted(1, None, np.array([0.9, 0.1, 0.8, 3.0])))
    channels = [open_channel(f"127.0.0.1:{port}", None, 16 << 20) for _ in range(devices)]
    made = [Device(lambda c=c: Link(c), draft, FixedLength(DRAFTED), DeviceSettings(bytes(32))) for c in channels]  # type: ignore[misc]
    rounds = [0] * devices

    def work(k: int) -> None:
        rounds[k] = made[k].answer(Request([1] * CONTEXT, tokens)).rounds

    threads = [threading.Thread(target=work, args=(k,)) for k in range(devices)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for device, channel in zip(made, channels, strict=True):
        device.close()
        channel.close()
    return sum(rounds)


def testbed(tokens: int) -> Row:
    """CPU time of the server's process for a round, with as many devices as come at a time; batches form as they may."""
    context = get_context("spawn")
    pipe, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs,), daemon=True)
    process.start()
    port = pipe.recv()

    def cpu_s() -> float:
        pipe.send(True)
        return float(pipe.recv())

    testbed_rounds(port, 2, tokens)  # warm
    each = []
    for devices in (8, 16, 32):
        before_s = cpu_s()
        rounds = testbed_rounds(port, devices, tokens)
        each.append((cpu_s() - before_s) / rounds)
    pipe.send(False)
    process.join(10)
    spread = max(each) / min(each) - 1.0
    return {
        "way": "testbed message",
        "request_ms": 1e3 * float(np.median(each)),
        "batch_ms": None,
        "largest_error": spread,
    }


# --- vLLM ------------------------------------------------------------------------------------------------------------


def tiny_engine(folder: str) -> Any:
    """vLLM's engine in this process with a model of one layer and random weights."""
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    from transformers import LlamaConfig, LlamaForCausalLM
    from vllm import EngineArgs, LLMEngine

    config = LlamaConfig(vocab_size=VOCABULARY, hidden_size=64, intermediate_size=64, num_hidden_layers=1,
                         num_attention_heads=1, num_key_value_heads=1, max_position_embeddings=1024)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return LLMEngine.from_engine_args(EngineArgs(
        model=folder, dtype="float32", enforce_eager=True, max_model_len=1024, max_num_seqs=256, max_num_batched_tokens=1 << 15,
        skip_tokenizer_init=True, kv_cache_memory_bytes=1 << 28, enable_prefix_caching=True, async_scheduling=False,
    ))  # fmt: skip


class HostClock:
    """CPU time of an engine's steps without its model's forward pass."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.forward_s, self.number = engine, 0.0, 0
        worker = engine.engine_core.engine_core.model_executor.driver_worker
        model = getattr(worker, "worker", worker).model_runner.model
        inner = model.forward

        def forward(*given: Any, **named: Any) -> Any:
            begun_s = time.process_time()
            found = inner(*given, **named)
            self.forward_s += time.process_time() - begun_s
            return found

        model.forward = forward

    def ask(self, prompts: Iterable[list[int]], tokens: int) -> None:
        """Hand requests to the engine."""
        from vllm import SamplingParams

        for prompt in prompts:
            self.number += 1
            sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
            self.engine.add_request(str(self.number), {"prompt_token_ids": prompt}, sampling)

    def step_s(self, prompts: Sequence[list[int]] = (), tokens: int = 1) -> float:
        """Host seconds of a step, asking included: the mean until all is answered."""
        self.forward_s, begun_s, steps = 0.0, time.process_time(), 0
        self.ask(prompts, tokens)
        while self.engine.has_unfinished_requests():
            self.engine.step()
            steps += 1
        return (time.process_time() - begun_s - self.forward_s) / steps


def vllm(repeats: int) -> list[Row]:
    """Host time of vLLM for a new request on a cached context, and for a running sequence.

    In a process of its own: on a processor vLLM looks into every loaded module when its worker starts, and fails on llvmlite's.
    """
    context = get_context("spawn")
    pipe, theirs = context.Pipe(False)
    process = context.Process(target=measure_vllm, args=(theirs, repeats), daemon=True)
    process.start()
    theirs.close()
    try:
        found: list[Row] = pipe.recv()
    except EOFError:
        raise InputError("vLLM's process has ended; what it said stands above") from None
    process.kill()
    return found


def measure_vllm(pipe: Any, repeats: int) -> None:
    """vLLM's process."""
    with tempfile.TemporaryDirectory() as folder:
        clock, rng = HostClock(tiny_engine(folder)), np.random.default_rng(0)
    new, running = [], []
    for size in (8, *SIZES):  # the first is to warm up
        contexts = [rng.integers(VOCABULARY, size=CONTEXT).tolist() for _ in range(size)]
        clock.step_s(contexts)
        rounds = ([c + rng.integers(VOCABULARY, size=DRAFTED + 1).tolist() for c in contexts] for _ in range(repeats))
        new.append(float(np.median([clock.step_s(prompts) for prompts in rounds])))
        clock.ask(contexts, STEPS)
        clock.engine.step()
        running.append(clock.step_s())
    named = {"vLLM, new request": new, "vLLM, running sequence": running}
    pipe.send([fitted(way, SIZES, seconds[1:]) for way, seconds in named.items()])


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The flags."""
    parser = Parser(prog=PROGRAM, description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--repeats", type=whole(1, 1000), default=9, help="of each batch of new requests (default %(default)s)"
    )
    parser.add_argument(
        "--tokens", type=whole(16, 2048), default=512, help="of each answer of the testbed (default %(default)s)"
    )
    parser.add_argument("--json", type=output_file(), metavar="FILE", help="write the rows as JSON")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    given = parse(arguments)
    rows = [testbed(given.tokens)]
    if importlib.util.find_spec("vllm"):
        rows += vllm(given.repeats)
    write_rows(rows, given.json)
    cells = [
        [r["way"], f"{r['request_ms']:.3f}", "-" if r["batch_ms"] is None else f"{r['batch_ms']:.2f}", f"{100 * r['largest_error']:.0f} %"]
        for r in rows
    ]  # fmt: skip
    print(aligned([["host time of", "a request, ms", "a batch, ms", "largest error"]], cells))
