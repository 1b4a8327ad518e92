"""The verification server of `agents.sim2real`: the testbed's own, with a note of every batch that it ran.

    python -m agents.sim2real server server.json

The file says what to serve (`Served`). The process keeps to the cores that it is given, prints `listening on HOST:PORT`, and at its
end writes a line for each batch: its end and duration on the server's clock, the time inside the model, the yardstick's, and its
members.
"""

from __future__ import annotations

import asyncio
import copy
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from agents.sim2real.settings import VLLM
from agents.sim2real.yardstick import Yardstick
from wisp_gym.cli import Parser
from wisp_gym.errors import InputError
from wisp_gym.files import read_text, write_text
from wisp_gym.process import follow_parent

if TYPE_CHECKING:  # torch takes seconds to import
    from wisp_gym.serving import Batch, Request, Scheduler
    from wisp_gym.testbed.engine import Job
    from wisp_gym.testbed.service import Server
    from wisp_gym.testbed.settings import Limits

FCFS = "fcfs"


@dataclass(frozen=True)
class Served:
    """What a server is started with.

    Attributes:
        engine: TORCH or VLLM. target: name or folder of the model.
        layers: to which it is deepened (0: as it is). intermediate: width of the MLPs of the
            layers added (0: as the others'). device, dtype: of the weights. cores: on which the process runs.
        scheduler: a bundle's file, or fcfs. limits: of the testbed's `Limits` by name. coefficients: the estimator's first ones
            (empty: measured at the start). batches: file to write.
    """

    engine: str
    target: str
    layers: int
    intermediate: int
    device: str
    dtype: str
    cores: list[int]
    scheduler: str
    limits: dict[str, int]
    coefficients: dict[str, float]
    batches: str


class MemberRow(NamedTuple):
    """A member of a batch."""

    arrived_s: float
    new_tokens: int
    cached_tokens: int
    drafted_tokens: int
    prompt: bool


class BatchRow(NamedTuple):
    """A batch that ran. seconds: from its launch to its end as the loop saw it; pass_s: inside the model; yardstick_s: 0 if not taken."""

    end_s: float
    seconds: float
    pass_s: float
    yardstick_s: float
    members: list[MemberRow]

    @property
    def requests(self) -> int:
        """In it."""
        return len(self.members)


def read_batches(path: Path) -> list[BatchRow]:
    """The batches that a server wrote."""
    return [batch_row(json.loads(line)) for line in read_text(path).splitlines()]


def batch_row(row: Sequence[Any]) -> BatchRow:
    """A row as JSON has it."""
    return BatchRow(row[0], row[1], row[2], row[3], [MemberRow(*member) for member in row[4]])


def noting(kind: type[Any], yardstick: Yardstick) -> type[Any]:
    """An engine of a kind that notes how long its last pass took (`pass_s`), and now and then the yardstick after it."""

    class Timed(kind):  # type: ignore[misc]
        pass_s = yardstick_s = 0.0

        def verify(self, jobs: Sequence[Job]) -> list[list[int]]:
            begun_s = time.perf_counter()
            committed: list[list[int]] = super().verify(jobs)
            self.pass_s = time.perf_counter() - begun_s
            self.yardstick_s = yardstick.seconds()
            return committed

    return Timed


def note_batches(scheduler: Scheduler, engine: Any) -> list[BatchRow]:
    """The rows of all batches that a scheduler will hear of, as they end."""
    rows: list[BatchRow] = []
    queue: list[Request] = []
    compose, finished = scheduler.compose, scheduler.finished

    def composing(requests: Sequence[Request], now_s: float, kv_used_tokens: int = 0) -> Batch:
        queue[:] = requests
        return compose(requests, now_s, kv_used_tokens)

    def ended(batch: Batch, seconds: float, committed_tokens: int = 0) -> bool:
        members = [
            MemberRow(r.arrived_s, new, r.cached_tokens, r.draft_tokens, not r.committed_tokens)
            for r, new in zip([queue[place] for place in batch.members], batch.new_tokens, strict=True)
        ]
        rows.append(BatchRow(time.monotonic(), seconds, engine.pass_s, engine.yardstick_s, members))
        return finished(batch, seconds, committed_tokens)

    scheduler.compose, scheduler.finished = composing, ended  # type: ignore[method-assign, assignment]
    return rows


def deepened(model: Any, layers: int, intermediate: int) -> Any:
    """The model with layers added that compute as all others do and change nothing: their output projections are zero.

    Block expansion begins so (LLaMA Pro, arXiv 2401.02415): a target as slow as a larger one, with the tokens of the small one.

    Raises:
        InputError: a model of another build than Llama's, or fewer layers than it has.
    """
    import torch

    inner: Any = getattr(model, "model", None)
    known = inner is not None and hasattr(inner, "layers") and hasattr(inner.layers[-1].mlp, "down_proj")
    if not known or layers < len(inner.layers):
        have = len(inner.layers) if known else "another build than Llama's"
        allowed = "allowed are Llama-type models and more layers"
        raise InputError(f"--target-layers {layers}: the target has {have}; {allowed}")
    for place in range(len(inner.layers), layers):
        layer = copy.deepcopy(inner.layers[place - 1])
        layer.self_attn.layer_idx = place
        if intermediate:
            for name in ("gate_proj", "up_proj", "down_proj"):
                old = getattr(layer.mlp, name).weight
                inputs, outputs = (intermediate, old.shape[0]) if name == "down_proj" else (old.shape[1], intermediate)
                new = torch.nn.Linear(inputs, outputs, bias=False, dtype=old.dtype, device=old.device)
                setattr(layer.mlp, name, new.eval())
        for weight in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
            weight.data.zero_()
        inner.layers.append(layer)
    model.config.num_hidden_layers = layers
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[0]] * layers
    return model


def in_torch(given: Served, limits: Limits) -> Any:
    """The engine in torch."""
    from wisp_gym.testbed.torch_engine.engine import TorchEngine
    from wisp_gym.testbed.torch_engine.models import load_model
    from wisp_gym.testbed.torch_engine.target import Target

    model = load_model(given.target, "--target", given.device, given.dtype)
    target = Target(deepened(model, given.layers, given.intermediate) if given.layers else model)
    return noting(TorchEngine, Yardstick(target.model))(target, limits.kv_tokens)


def in_vllm(given: Served, limits: Limits) -> Any:
    """The engine on vLLM, whose target is a folder and deep already; the yardstick runs here, while vLLM waits for the next order."""
    from wisp_gym.testbed.torch_engine.models import load_model
    from wisp_gym.testbed.vllm_engine.core import CoreSettings
    from wisp_gym.testbed.vllm_engine.engine import VllmEngine

    yardstick = Yardstick(load_model(given.target, "--target", given.device, given.dtype))
    return noting(VllmEngine, yardstick)(CoreSettings(given.target, given.dtype, len(given.cores), limits))


def build(given: Served) -> tuple[Server, list[BatchRow]]:
    """The server and its notes."""
    from wisp_gym.testbed.scheduling import find_bundle, make_scheduler
    from wisp_gym.testbed.service import Server, ServerSettings
    from wisp_gym.testbed.settings import Limits
    from wisp_gym.testbed.tokenizers import load_tokenizer, tokenizer_digest

    limits = Limits(**given.limits)
    engine = (in_vllm if given.engine == VLLM else in_torch)(given, limits)
    scheduler = make_scheduler(find_bundle(given.scheduler), engine, limits, given.coefficients)
    rows = note_batches(scheduler, engine)
    digest = tokenizer_digest(load_tokenizer(given.target, "--target"))
    return Server(engine, digest, scheduler, ServerSettings(limits)), rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM, or until the process that started it is gone."""
    follow_parent()
    parser = Parser(prog="python -m agents.sim2real server", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("settings", type=Path, metavar="FILE", help="JSON of a `Served`")
    given = Served(**json.loads(read_text(parser.parse_args(arguments).settings)))
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, given.cores)
    import torch

    from wisp_gym.testbed.server import serve

    torch.set_num_threads(len(given.cores))
    server, rows = build(given)
    asyncio.run(serve(server, ("127.0.0.1", 0)))
    write_text(given.batches, "".join(json.dumps(row) + "\n" for row in rows))
