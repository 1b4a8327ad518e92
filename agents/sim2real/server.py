"""The verification server of `agents.sim2real`: the testbed's own, with a note of every batch that it ran.

    python -m agents.sim2real server server.json

The file says what to serve (`Served`). The process keeps to the cores that it is given, prints `listening on HOST:PORT`, and at its
end writes a line for each batch: its end and duration on the server's clock, the time inside the model, the yardstick's, and its
members.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from agents.sim2real.yardstick import Yardstick
from wisp_gym.cli import Parser
from wisp_gym.errors import InputError
from wisp_gym.files import write_text

if TYPE_CHECKING:  # torch takes seconds to import
    from wisp_gym.testbed.scheduling import VerificationTime, WaitingRound
    from wisp_gym.testbed.torch_engine.target import Job

FCFS = "fcfs"


@dataclass(frozen=True)
class Served:
    """What a server is started with.

    Attributes:
        target: name or folder of the model. layers: to which it is deepened (0: as it is). intermediate: width of the MLPs of the
            layers added (0: as the others'). device, dtype: of the weights. cores: on which the process runs.
        scheduler: a bundle's file, or fcfs. limits: of the testbed's `Limits` by name. coefficients: the estimator's first ones
            (empty: measured at the start). batches: file to write.
    """

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
    """A member of a batch, as the testbed's `WaitingRound` has it."""

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


def read_batches(path: Path) -> list[BatchRow]:
    """The batches that a server wrote."""
    return [batch_row(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def batch_row(row: Sequence[Any]) -> BatchRow:
    """A row as JSON has it."""
    return BatchRow(row[0], row[1], row[2], row[3], [MemberRow(*member) for member in row[4]])


class Timed:
    """A target that notes how long its last pass took, and now and then the yardstick after it."""

    def __init__(self, target: Any) -> None:
        self.target, self.yardstick = target, Yardstick(target.model)
        self.pass_s = self.yardstick_s = 0.0
        self.vocabulary, self.max_tokens, self.end_tokens = target.vocabulary, target.max_tokens, target.end_tokens

    def verify(self, jobs: Sequence[Job]) -> list[list[int]]:
        """The tokens that each round commits."""
        begun_s = time.perf_counter()
        committed: list[list[int]] = self.target.verify(jobs)
        self.pass_s = time.perf_counter() - begun_s
        self.yardstick_s = self.yardstick.seconds()
        return committed


class Noted:
    """Predicts by another, and keeps what is observed."""

    def __init__(self, inner: VerificationTime, target: Timed) -> None:
        self.inner, self.target = inner, target
        self.rows: list[BatchRow] = []

    def predict_s(self, rounds: Sequence[WaitingRound]) -> float:
        """Seconds of a batch of these rounds."""
        return self.inner.predict_s(rounds)

    def observe(self, rounds: Sequence[WaitingRound], seconds: float) -> None:
        """A batch has ended just now."""
        members = [MemberRow(r.arrived_s, r.new_tokens, r.cached_tokens, r.drafted_tokens, r.prompt) for r in rounds]
        self.rows.append(BatchRow(time.monotonic(), seconds, self.target.pass_s, self.target.yardstick_s, members))
        self.inner.observe(rounds, seconds)


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
        raise InputError(
            f"--target-layers {layers}: the target has {have}; allowed are Llama-type models and more layers"
        )
    for place in range(len(inner.layers), layers):
        layer = copy.deepcopy(inner.layers[place - 1])
        layer.self_attn.layer_idx = place
        if intermediate:
            for name, sizes in (("gate_proj", (1, 0)), ("up_proj", (1, 0)), ("down_proj", (0, 1))):
                old = getattr(layer.mlp, name)
                width = (
                    old.weight.shape[1] if sizes[0] else intermediate,
                    intermediate if sizes[0] else old.weight.shape[0],
                )
                new = torch.nn.Linear(*width, bias=False, dtype=old.weight.dtype, device=old.weight.device)
                setattr(layer.mlp, name, new.eval())
        for weight in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
            weight.data.zero_()
        inner.layers.append(layer)
    model.config.num_hidden_layers = layers
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[0]] * layers
    return model


def build(given: Served) -> tuple[Any, Noted]:
    """The server and its notes."""
    from wisp_gym.serving import load_bundle
    from wisp_gym.testbed.scheduling import BundleScheduler, LearnedTime
    from wisp_gym.testbed.service import Server
    from wisp_gym.testbed.settings import Limits
    from wisp_gym.testbed.torch_engine.models import load_model, load_tokenizer, tokenizer_digest
    from wisp_gym.testbed.torch_engine.target import Target, first_coefficients

    model = load_model(given.target, "--target", given.device, given.dtype)
    target = Timed(Target(deepened(model, given.layers, given.intermediate) if given.layers else model))
    digest, limits = tokenizer_digest(load_tokenizer(given.target, "--target")), Limits(**given.limits)
    first = given.coefficients or first_coefficients(target.target)
    if given.scheduler == FCFS:
        noted = Noted(LearnedTime(first), target)
        return Server(target, digest, limits, verification_time=noted), noted
    scheduler = BundleScheduler(load_bundle(given.scheduler), first, limits)
    noted = Noted(scheduler, target)
    return Server(target, digest, limits, None, scheduler, noted), noted


def write_settings(path: Path, given: Served) -> None:
    """The file that the server is started with."""
    write_text(path, json.dumps(asdict(given), indent=2) + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM."""
    parser = Parser(prog="python -m agents.sim2real server", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("settings", type=Path, metavar="FILE", help="JSON of a `Served`")
    given = Served(**json.loads(parser.parse_args(arguments).settings.read_text(encoding="utf-8")))
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, given.cores)
    import torch

    from wisp_gym.testbed.server import serve

    torch.set_num_threads(len(given.cores))
    server, noted = build(given)
    asyncio.run(serve(server, argparse.Namespace(listen=("127.0.0.1", 0), metrics=None, grace_s=0.0), None))
    write_text(given.batches, "".join(json.dumps(row) + "\n" for row in noted.rows))
