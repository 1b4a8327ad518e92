"""A small world of the testbed for tests: a tiny pair of models, a server in a thread, devices on loopback."""

from __future__ import annotations

import asyncio
import copy
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import grpc
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from wisp_gym.serving import Scheduler
from wisp_gym.testbed.client import Answer, Device, DeviceSettings, Request
from wisp_gym.testbed.connection import Link, open_channel
from wisp_gym.testbed.controlling import ConfidenceStop, Controller, FixedLength
from wisp_gym.testbed.draft import DraftModel
from wisp_gym.testbed.engine import Engine
from wisp_gym.testbed.scheduling import FCFS, find_bundle, make_scheduler
from wisp_gym.testbed.service import Server, ServerSettings
from wisp_gym.testbed.settings import Limits
from wisp_gym.testbed.torch_engine.engine import TorchEngine
from wisp_gym.testbed.torch_engine.target import Target

VOCABULARY = 64
TOKENIZER = b"tokenizer" + bytes(23)
COEFFICIENTS = {
    "launch_s": 0.01,
    "new_token_s": 5e-4,
    "pair_s": 1e-7,
    "cached_token_s": 1e-6,
}  # the first batches correct them


def llama(seed: int = 0, vocabulary: int = VOCABULARY) -> Any:
    """A two-layer Llama with random weights, wide enough apart that no two logits tie; its answers do not end early."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024, initializer_range=0.3, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def gpt2() -> Any:
    """A two-layer GPT-2: absolute positions."""
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=2, n_positions=256, bos_token_id=None, eos_token_id=None
    )
    return GPT2LMHeadModel(config).eval()


@lru_cache
def target_model() -> Any:
    return llama()


@lru_cache
def draft_model() -> Any:
    """The target with noise on its weights: a draft that is right about half of the time."""
    model, noise = copy.deepcopy(target_model()), torch.Generator().manual_seed(7)
    for weight in model.parameters():
        weight.data += 0.25 * weight.std() * torch.randn(weight.shape, generator=noise)
    return model


def prompt(number: int, length: int = 12) -> list[int]:
    generator = torch.Generator().manual_seed(1000 + number)
    return torch.randint(VOCABULARY, (length,), generator=generator).tolist()


@lru_cache
@torch.inference_mode()
def greedy(ids: tuple[int, ...], tokens: int) -> list[int]:
    """The target's own greedy answer, by transformers."""
    rows = torch.tensor([ids])
    mask = torch.ones_like(rows)  # else every 0 of the prompt is taken for padding
    output = target_model().generate(rows, attention_mask=mask, max_new_tokens=tokens, do_sample=False, pad_token_id=0)
    return output[0, len(ids) :].tolist()


def right(request: Request) -> list[int]:
    return greedy(tuple(request.prompt), request.max_new_tokens)


def scheduled(name: str = FCFS) -> Callable[[Engine, Limits], Scheduler]:
    """Makes the scheduler of a name for a world."""
    return lambda engine, limits: make_scheduler(find_bundle(name), engine, limits, COEFFICIENTS)


class World:
    """A server in a thread of its own, and the devices that talk to it.

    Args:
        target: in place of the small model. port, credentials: to listen with. settings: keywords of `ServerSettings`.
        scheduler: makes one for the engine and the limits; None: first come first served.
        engine: in place of one in torch; whoever made it closes it.
    """

    def __init__(
        self, target: Any = None, port: int = 0, credentials: grpc.ServerCredentials | None = None,
        scheduler: Callable[[Engine, Limits], Scheduler] | None = None, engine: Engine | None = None, **settings: Any,
    ) -> None:  # fmt: skip
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.channels: list[grpc.Channel] = []
        self.devices: list[Device] = []

        async def start() -> int:
            told = ServerSettings(**settings)
            self.engine: Any = engine or TorchEngine(target or Target(target_model()), told.limits.kv_tokens)
            made = (scheduler or scheduled())(self.engine, told.limits)
            self.server = Server(self.engine, TOKENIZER, made, told)
            return await self.server.start("127.0.0.1", port, credentials)

        self.port = self.run(start())

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """What a coroutine gives in the server's thread."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    def count(self, name: str, **labels: str) -> float:
        """A metric's value."""
        return self.server.metrics.registry.get_sample_value(name, labels) or 0.0

    def channel(self, credentials: grpc.ChannelCredentials | None = None, host: str = "127.0.0.1") -> grpc.Channel:
        self.channels.append(open_channel(f"{host}:{self.port}", credentials, 16 << 20))
        return self.channels[-1]

    def device(
        self, controller: Controller | None = None, connect: Callable[[], Link] | None = None,
        draft: Any = None, **more: Any,
    ) -> Device:  # fmt: skip
        channel = self.channel() if connect is None else None
        made = Device(
            connect or (lambda: Link(channel)), draft or DraftModel(draft_model()), controller or FixedLength(4),
            DeviceSettings(**{"tokenizer": TOKENIZER, "reply_timeout_s": 5.0, "give_up_s": 30.0, **more}),
        )  # fmt: skip
        self.devices.append(made)
        return made

    def stop(self) -> None:
        """Stop the server; its port is free then."""
        self.run(self.server.stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        for device in self.devices:
            device.close()
        for channel in self.channels:
            channel.close()
        if not self.loop.is_closed():
            self.stop()


def answer_all(devices: Sequence[Device], requests: Sequence[Request]) -> list[Answer]:
    """The answers of requests, each device in a thread of its own, request i by device i modulo their number."""
    answers: list[Answer | BaseException] = [Answer() for _ in requests]

    def work(place: int) -> None:
        for i in range(place, len(requests), len(devices)):
            try:
                answers[i] = devices[place].answer(requests[i])
            except BaseException as error:
                answers[i] = error

    threads = [threading.Thread(target=work, args=(place,)) for place in range(len(devices))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    failed = [answer for answer in answers if isinstance(answer, BaseException)]
    if failed:
        raise failed[0]
    return answers  # type: ignore[return-value]


def controllers() -> list[Controller]:
    return [FixedLength(4), ConfidenceStop(0.4, 8), FixedLength(0), FixedLength(8)]


def save_pair(folder: Path) -> None:
    """The tiny pair as folders `target` and `draft`, with a tokenizer whose words are w0 … w63."""
    words = Tokenizer(WordLevel({f"w{token}": token for token in range(VOCABULARY)}, unk_token="w0"))
    words.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    for name, model in (("target", target_model()), ("draft", draft_model())):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def text_of(tokens: Sequence[int]) -> str:
    return " ".join(f"w{token}" for token in tokens)


def wait_for(condition: Any, seconds: float = 10.0) -> bool:
    """Whether something comes true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return False


class SlowTarget:
    """The target, each batch taking a while longer."""

    def __init__(self, seconds: float) -> None:
        self._target, self.seconds = Target(target_model()), seconds
        self.vocabulary, self.max_tokens, self.end_tokens = (
            self._target.vocabulary,
            self._target.max_tokens,
            self._target.end_tokens,
        )

    def verify(self, jobs: Any) -> list[list[int]]:
        time.sleep(self.seconds)
        return self._target.verify(jobs)
