"""The devices of `agents.sim2real`: the testbed's own, at an edge device's drafting speed and behind a shaped network.

Tokens and statistics come from the real draft model. It is computed within the time that the shaped device takes for a token, so
many devices share a core without slowing each other; a token whose computation takes longer is counted (`Deployed.late_share`).
Delays are shaped in the device: a message leaves it after a log-normal delay, a reply waits as long before it is looked at. What gRPC
and the processes add comes on top, and is measured with it.
"""

import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from agents.sim2real.server import BatchRow, Served, batch_row
from agents.sim2real.stream_server import StepRow, Streamed
from wisp_gym.cli import progress
from wisp_gym.engine import draws
from wisp_gym.errors import InputError
from wisp_gym.files import read_text, write_json, write_text
from wisp_gym.process import readable
from wisp_gym.testbed.client import Device, DeviceSettings, Request
from wisp_gym.testbed.connection import Link, open_channel
from wisp_gym.testbed.controlling import Controller
from wisp_gym.testbed.draft import DraftModel
from wisp_gym.testbed.drafting import Drafted

START_S = 120.0  # in which a server must be listening
SWITCH_S = 5e-4  # the interpreter's switch of threads: its default, 5 ms, is a tenth of a token


class Shape(NamedTuple):
    """What is shaped: time of a drafted token, median and log-normal spread of a one-way delay."""

    draft_token_s: float
    one_way_s: float
    jitter: float


class RoundRow(NamedTuple):
    """A round, or a request's prompt (position 0), from the last reply to the next, on the devices' clock.

    Of a server that drafts for itself nothing is sent but prompts: of the other rounds `sent_s` is when their tokens left it.
    """

    device: int
    request: int
    position: int
    begun_s: float
    sent_s: float
    received_s: float
    held_s: float
    drafted: int
    accepted: int
    committed: int


@dataclass
class Deployed:
    """What a deployment did.

    Attributes:
        start_s, end_s: on the clock of all rows. rounds, batches: as they ended; of a server that drafts for itself, steps instead.
        tokens, late: drafted, and slower than paced.
        fallbacks: decisions that a bundle did not take. faults: of devices. cpu_share: of one core that all devices needed.
    """

    start_s: float
    end_s: float
    rounds: list[RoundRow] = field(default_factory=list)
    batches: list[BatchRow] = field(default_factory=list)
    steps: list[StepRow] = field(default_factory=list)
    tokens: int = 0
    late: int = 0
    fallbacks: int = 0
    faults: list[str] = field(default_factory=list)
    cpu_share: float = 0.0

    @property
    def ran(self) -> Sequence[BatchRow | StepRow]:
        """What the server ran."""
        return self.batches or self.steps

    @property
    def late_share(self) -> float:
        """Share of the drafted tokens whose computation took longer than the shaped device takes."""
        return self.late / max(self.tokens, 1)


class Over(Exception):
    """The run has ended."""


class PacedDraft:
    """A draft model whose tokens take the time of the shaped device."""

    def __init__(self, model: DraftModel, token_s: float) -> None:
        self.model, self.token_s = model, token_s
        self.tokens = self.late = 0

    def draft(self, context: Sequence[int], position: int, temperature: float, seed: int) -> Drafted:
        """The next token, `token_s` after the call."""
        until_s = time.monotonic() + self.token_s
        drafted = self.model.draft(context, position, temperature, seed)
        left_s = until_s - time.monotonic()
        self.tokens, self.late = self.tokens + 1, self.late + (left_s < 0.0)
        time.sleep(max(left_s, 0.0))
        return drafted


@dataclass
class Delays:
    """The shaped delays of a device's last round and of the last reply."""

    up_s: float = 0.0
    down_s: float = 0.0


class ShapedLink(Link):
    """A stream whose rounds and replies take a log-normal time longer; `delays` says how long the last ones took."""

    def __init__(self, channel: Any, shape: Shape, rng: random.Random, delays: Delays) -> None:
        super().__init__(channel)
        self.shape, self.rng, self.delays = shape, rng, delays

    def delay_s(self) -> float:
        """One message's."""
        return self.shape.one_way_s * self.rng.lognormvariate(0.0, self.shape.jitter)

    def send(self, message: Any) -> None:
        """The device waits for the reply anyhow, so the delay may pass here; nothing waits for a session's end."""
        if message.WhichOneof("message") == "round":
            self.delays.up_s = self.delay_s()
            time.sleep(self.delays.up_s)
        super().send(message)

    def receive(self, timeout_s: float) -> Any:
        """The next message, later."""
        message = super().receive(timeout_s)
        self.delays.down_s = self.delay_s()
        time.sleep(self.delays.down_s)
        return message


class Watched:
    """A controller that notes the rounds, and is told the delay of each way as the engine's devices are: here clocks do agree."""

    def __init__(self, inner: Controller, device: int, rows: list[RoundRow], end_s: float, delays: Delays) -> None:
        self.inner, self.device, self.rows, self.end_s, self.delays = inner, device, rows, end_s, delays
        self.request, self.position, self.tokens = -1, 0, 0
        self.begun_s = self.sent_s = 0.0
        self.delay_mean_s = inner.delay_mean_s

    def begin_request(self, arrival_s: float, prompt_tokens: int, output_tokens: int) -> None:
        """A request has come."""
        self.request, self.position, self.tokens = self.request + 1, 0, 0
        self.begun_s = arrival_s
        self.inner.begin_request(arrival_s, prompt_tokens, output_tokens)

    def begin_round(self, now_s: float, draft_token_s: float | None = None) -> None:
        """Drafting begins."""
        self.tokens = 0
        self.inner.begin_round(now_s, draft_token_s)

    def wants_more(self, now_s: float) -> bool:
        """Draft one more token."""
        return self.inner.wants_more(now_s)

    def drafted(self, token: Any, now_s: float) -> None:
        """A token has been drafted."""
        self.tokens += 1
        self.inner.drafted(token, now_s)

    def sent(self, now_s: float) -> None:
        """The round leaves."""
        self.sent_s = now_s
        self.inner.sent(now_s)

    def receive(self, reply: Any, now_s: float, uplink_s: float | None = None, downlink_s: float | None = None) -> None:
        """The reply has come."""
        if now_s >= self.end_s:
            raise Over
        row = (self.device, self.request, self.position, self.begun_s, self.sent_s, now_s, reply.held_s, self.tokens)
        self.rows.append(RoundRow(*row, reply.accepted_tokens, reply.committed_tokens))
        self.begun_s, self.position = now_s, self.position + reply.committed_tokens
        rest_s = max(now_s - self.sent_s - reply.held_s - self.delays.up_s - self.delays.down_s, 0.0) / 2.0
        self.inner.receive(reply, now_s, self.delays.up_s + rest_s, self.delays.down_s + rest_s)
        self.delay_mean_s = self.inner.delay_mean_s


class ServerProcess:
    """A server that runs in a process of its own; what it complains of is in the folder's server.log.

    Args:
        served: what it serves. folder: of the deployment. python: the interpreter that runs it, of an environment with its engine.
        program: of `agents.sim2real`.

    Raises:
        InputError: it did not start.
    """

    def __init__(self, served: Served | Streamed, folder: Path, python: str, program: str) -> None:
        write_json(folder / "server.json", asdict(served))
        command = [python, "-m", "agents.sim2real", program, str(folder / "server.json")]
        with (folder / "server.log").open("wb") as log:
            try:
                self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, **readable())
            except OSError as error:
                raise InputError(f"--server-python {python}: cannot be started ({error.strerror})") from None
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().removeprefix("listening on ").strip()
        if not self.address:
            with self.process:  # closes its output
                self.process.wait(START_S)
            said = read_text(folder / "server.log").splitlines() or ["it says nothing"]
            raise InputError(f"the server did not start: {said[-1].partition(f' {program}: ')[2] or said[-1]}")

    def stop(self) -> None:
        """End it; it has written what it ran."""
        with self.process:  # closes its output
            self.process.terminate()
            self.process.wait(START_S)


def answer_of(seed: int, device: int, request: int, answers: int) -> int:
    """Which recorded answer the engine gives to a request of a device in the world of a seed (`engine.trace_source.begin_walk`)."""
    return int(first_draw(seed, draws.ANSWER, device, request) * answers)


def start_of(seed: int, device: int, window_s: float) -> float:
    """When a device's first request comes in the engine's world of a seed (`engine.session.first_arrival_s`)."""
    return window_s * first_draw(seed, draws.ARRIVAL, device, 0)


def first_draw(seed: int, cause: int, device: int, request: int) -> float:
    """The first number of a stream of the engine's, 0 to 1."""
    key = np.uint64(draws.stream_key(seed, cause, device, request))  # compiled code hands it over as a plain integer
    return float(draws.uniform(key, 0))


@dataclass(frozen=True)
class Fleet:
    """Devices that are to run.

    Attributes:
        n: devices. seconds: from their start. seed: of the engine's world whose prompts they are given. start_window_s: over which first
            requests are spread. max_draft_tokens, max_new_tokens: of a round and of an answer. shape: of drafting and network.
        prompts: tokens, one list for each recorded answer. controller: makes one for a device. slo: speed and first-token target of
            each device.
    """

    n: int
    seconds: float
    seed: int
    start_window_s: float
    max_draft_tokens: int
    max_new_tokens: int
    shape: Shape
    prompts: Sequence[Sequence[int]]
    controller: Callable[[int], Controller]
    slo: Sequence[tuple[float, float]]


class Running:
    """A fleet on its way, one thread a device.

    Args:
        fleet: what runs. address: of the server. model: the draft. digest: of the vocabulary.
    """

    def __init__(self, fleet: Fleet, address: str, model: Any, vocabulary: int, digest: bytes) -> None:
        self.fleet, self.address, self.digest = fleet, address, digest
        self.start_s = time.monotonic() + 0.5
        self.out = Deployed(self.start_s, self.start_s + fleet.seconds)
        self.drafts = [PacedDraft(DraftModel(model, vocabulary), fleet.shape.draft_token_s) for _ in range(fleet.n)]
        self.inner = [fleet.controller(place) for place in range(fleet.n)]
        self.threads = [threading.Thread(target=self.work, args=(place,), daemon=True) for place in range(fleet.n)]

    def work(self, place: int) -> None:
        """One device, prompt after prompt, until the end."""
        fleet, out = self.fleet, self.out
        channel = open_channel(self.address, None, 16 << 20)
        rng, delays = random.Random(fleet.seed * 1_000_003 + place), Delays()
        watched = Watched(self.inner[place], place, out.rounds, out.end_s, delays)
        settings = DeviceSettings(self.digest, fleet.max_draft_tokens, reply_timeout_s=60.0)
        device = Device(lambda: ShapedLink(channel, fleet.shape, rng, delays), self.drafts[place], watched, settings)
        speed, ttft_s = fleet.slo[place]
        time.sleep(max(self.start_s + start_of(fleet.seed, place, fleet.start_window_s) - time.monotonic(), 0.0))
        try:
            while True:
                prompt = fleet.prompts[answer_of(fleet.seed, place, watched.request + 1, len(fleet.prompts))]
                device.answer(Request(prompt, fleet.max_new_tokens, slo_tokens_per_s=speed, ttft_s=ttft_s))
        except Over:
            pass
        except Exception as error:
            out.faults.append(f"device {place}: {type(error).__name__}: {error}")
        device.close()
        channel.close()

    def run(self, name: str) -> Deployed:
        """Run to the end, with a progress bar of this name."""
        switch_s, cpu_s = sys.getswitchinterval(), time.process_time()
        sys.setswitchinterval(SWITCH_S)
        for thread in self.threads:
            thread.start()
        with progress(round(self.fleet.seconds), "s", desc=name) as bar:
            while (left_s := self.out.end_s - time.monotonic()) > 0:
                time.sleep(min(left_s, 1.0))
                bar.update()
        self.out.cpu_share = (time.process_time() - cpu_s) / self.fleet.seconds
        for thread in self.threads:
            thread.join(START_S)
        sys.setswitchinterval(switch_s)
        self.out.tokens, self.out.late = (sum(getattr(d, key) for d in self.drafts) for key in ("tokens", "late"))
        self.out.fallbacks = sum(sum(getattr(c, "fallbacks", {}).values()) for c in self.inner)
        return self.out


def write_deployed(path: Path, deployed: Deployed) -> None:
    """Everything, as JSON."""
    write_text(path, json.dumps(vars(deployed)) + "\n")


def read_deployed(path: Path) -> Deployed:
    """What `write_deployed` wrote."""
    found = Deployed(**json.loads(read_text(path)))
    found.rounds = [RoundRow(*row) for row in found.rounds]
    found.batches = [batch_row(row) for row in found.batches]
    found.steps = [StepRow(*row) for row in found.steps]
    return found
