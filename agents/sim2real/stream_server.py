"""The server of co-located cells: vLLM drafts for itself, a rule sets how much, and tokens are streamed to devices.

    python -m agents.sim2real stream server.json

The file says what to serve (`Streamed`). A connection carries one request at a time, a line of JSON: the prompt's tokens, and how many an
answer may have. Each step that gives it tokens is answered by a line (`Sent`). The engine runs in this process, so that its steps can be
noted; at its end it writes them (`StepRow`).

Nothing compiled of ours may be imported before vLLM has started (`wisp_gym.testbed.vllm_steering.bench_engine`).
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from agents.sim2real.yardstick import Yardstick
from wisp_gym.cli import Parser
from wisp_gym.files import read_text, write_json
from wisp_gym.process import follow_parent

WANDERING = ""  # in place of a rule: lengths drawn anew for each step, as a profile wants them
LOOK_S = 0.1  # between looks whether the end has come, while no request is open


@dataclass(frozen=True)
class Streamed:
    """What a server is started with.

    Attributes:
        target, draft: folders or names of the models. dtype: of the weights. cores: on which the process runs.
        lengths: a rule of the server's drafts, or WANDERING. longest: tokens that the engine can draft. accepted: share of drafts
            that is believed to be accepted before any were.
        kv_tokens: of memory. max_requests: in a step. step_tokens: that a step may run. max_tokens: of the longest sequence.
        end_tokens: that end an answer. steps: file to write.
    """

    target: str
    draft: str
    dtype: str
    cores: list[int]
    lengths: str
    longest: int
    accepted: float
    kv_tokens: int
    max_requests: int
    step_tokens: int
    max_tokens: int
    end_tokens: list[int]
    steps: str


class Ask(NamedTuple):
    """A request that has come: from where, its prompt, most tokens of its answer, and when."""

    connection: socket.socket
    prompt: list[int]
    tokens: int
    arrived_s: float


class Sent(NamedTuple):
    """What a step has given to a request: when that came and the tokens left, how many, how many drafts it verified and accepted."""

    arrived_s: float
    sent_s: float
    committed: int
    drafted: int
    accepted: int
    ended: bool


class StepRow(NamedTuple):
    """A step that ran.

    Attributes:
        end_s, seconds: when its drafts were there, and since it was begun. yardstick_s: 0 if not taken. requests: in it.
        new_tokens … length: as in `wisp_gym.testbed.vllm_steering.step_times.Step`.
    """

    end_s: float
    seconds: float
    yardstick_s: float
    requests: int
    new_tokens: int
    pairs: float
    cached_tokens: int
    decoding: int
    context: int
    length: int


def read_steps(path: Path) -> tuple[list[StepRow], int]:
    """The steps that a server wrote, and how many of them its rule did not decide."""
    found = json.loads(read_text(path))
    return [StepRow(*row) for row in found["steps"]], int(found["fallbacks"])


# --- connections -----------------------------------------------------------------------------------------------------


def listen(asked: queue.Queue[Ask]) -> str:
    """Take requests on a free port; its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=accept, args=(listener, asked), daemon=True).start()
    host, port = listener.getsockname()
    return f"{host}:{port}"


def accept(listener: socket.socket, asked: queue.Queue[Ask]) -> None:
    """Open connections, one thread each."""
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=receive, args=(connection, asked), daemon=True).start()


def receive(connection: socket.socket, asked: queue.Queue[Ask]) -> None:
    """The requests of a connection, until it is closed."""
    with connection.makefile("r", encoding="utf-8") as lines:
        for line in lines:
            prompt, tokens = json.loads(line)
            asked.put(Ask(connection, prompt, tokens, time.monotonic()))


# --- vLLM ------------------------------------------------------------------------------------------------------------


def start(given: Streamed) -> Any:
    """A `vllm.LLMEngine` in this process that drafts with the draft model and is steered."""
    from wisp_gym.testbed.vllm_steering import bench_engine

    drafting = {"method": "draft_model", "model": given.draft, "num_speculative_tokens": given.longest}
    rule = {"lengths": given.lengths or f"colocated:{given.longest}", "accepted": given.accepted}
    arguments = {
        "model": given.target,
        "dtype": given.dtype,
        "max_model_len": given.max_tokens,
        "max_num_seqs": given.max_requests,
        "max_num_batched_tokens": max(given.step_tokens, given.max_tokens),
        "speculative_config": drafting,
        "additional_config": {"wisp_gym": rule},
    }
    return bench_engine.start(bench_engine.Settings(arguments, len(given.cores), given.kv_tokens))


def wander(scheduler: Any) -> None:
    """Draw each step's length, from none to the longest: what a step verifies and what it drafts then do not go together."""
    from wisp_gym.testbed.vllm_steering.steerer import Steerer

    drawn = random.Random(0)

    class Wandering(Steerer):
        def length(self, names: Sequence[str], context: int, other_tokens: int) -> int:
            return drawn.randint(0, self.longest) if names else 0

    scheduler.steer(Wandering(scheduler.steerer.settings, scheduler.num_spec_tokens))


class Stream:
    """Requests on their way through an engine.

    Args:
        engine: as `start` makes it. end_tokens: that end an answer. yardstick: timed between steps.

    Attributes:
        rows: of the steps so far.
    """

    def __init__(self, engine: Any, end_tokens: Sequence[int], yardstick: Yardstick) -> None:
        from wisp_gym.testbed.vllm_steering.bench_engine import scheduler_of

        self.engine, self.scheduler, self.yardstick = engine, scheduler_of(engine), yardstick
        self.end_tokens, self.open = list(end_tokens), dict[str, Ask]()
        self.rows: list[StepRow] = []
        self.asked = 0

    def run(self, asked: queue.Queue[Ask], ended: threading.Event) -> None:
        """Step as long as requests are open, until the end."""
        while not ended.is_set():
            self.take(asked)
            if self.open:
                self.step()

    def take(self, asked: queue.Queue[Ask]) -> None:
        """Begin the requests that have come; where none is open, wait for one a little."""
        try:
            while True:
                self.begin(asked.get(timeout=0.0 if self.open else LOOK_S))
        except queue.Empty:
            pass

    def begin(self, ask: Ask) -> None:
        """Hand a request to vLLM."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        name, self.asked = str(self.asked), self.asked + 1
        sampling = SamplingParams(
            temperature=0.0, max_tokens=ask.tokens, ignore_eos=True, stop_token_ids=self.end_tokens, detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )  # fmt: skip
        self.open[name] = ask
        self.engine.add_request(name, {"prompt_token_ids": ask.prompt}, sampling)

    def step(self) -> None:
        """One step; its tokens leave."""
        outputs = self.engine.step()
        ran = self.scheduler.step
        if ran is None:  # nothing could run
            return
        # vLLM lengthens names by a dash and a random word.
        rounds = {each.name.rpartition("-")[0]: each for each in ran.rounds}
        for output in outputs:
            self.send(output, rounds.get(output.request_id))
        row = (ran.ended_s, ran.ended_s - ran.begun_s, self.yardstick.seconds(), ran.requests)
        self.rows.append(StepRow(*row, *ran.step))

    def send(self, output: Any, verified: Any) -> None:
        """The tokens of a request, to where it came from; a device that has left loses them."""
        name, tokens = output.request_id, output.outputs[0].token_ids
        ask = self.open.pop(name) if output.finished else self.open[name]
        drafted, accepted = (verified.drafted, verified.accepted) if verified else (0, 0)
        sent = Sent(ask.arrived_s, time.monotonic(), len(tokens), drafted, accepted, bool(output.finished))
        with contextlib.suppress(OSError):
            ask.connection.sendall((json.dumps(sent) + "\n").encode())


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM, or until the process that started it is gone."""
    follow_parent()
    parser = Parser(prog="python -m agents.sim2real stream", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("settings", type=Path, metavar="FILE", help="JSON of a `Streamed`")
    given = Streamed(**json.loads(read_text(parser.parse_args(arguments).settings)))
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, given.cores)
    engine = start(given)
    stream = Stream(engine, given.end_tokens, yardstick(given))
    if given.lengths == WANDERING:
        wander(stream.scheduler)
    ended, asked = threading.Event(), queue.Queue[Ask]()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    print(f"listening on {listen(asked)}", flush=True)
    stream.run(asked, ended)
    write_json(Path(given.steps), {"fallbacks": stream.scheduler.steerer.fallbacks, "steps": stream.rows})
    engine.engine_core.shutdown()
    sys.stderr.flush()
    os._exit(0)  # threads of vLLM would keep the process


def yardstick(given: Streamed) -> Yardstick:
    """Of the target; it runs here between steps, while vLLM waits."""
    import torch

    from wisp_gym.testbed.torch_engine.models import load_model

    torch.set_num_threads(len(given.cores))
    return Yardstick(load_model(given.target, "--target", dtype=given.dtype))
