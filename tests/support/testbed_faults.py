"""Faults of devices and links for tests of the testbed, and its two commands as processes."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc

from tests.support.testbed_world import TOKENIZER, World, prompt
from wisp_gym.testbed.connection import Link, LinkBroken
from wisp_gym.testbed.draft import DraftModel
from wisp_gym.testbed.drafting import Drafted
from wisp_gym.testbed.wire_pb2 import FromDevice, FromServer, Round, Start

ROOT = Path(__file__).resolve().parents[2]


class Killed(Exception):
    """A device is gone."""


class Fatal(Link):
    """Kills its device while a round is at the server, whose reply will never be read."""

    def __init__(self, channel: grpc.Channel, rounds: int) -> None:
        super().__init__(channel)
        self.left = rounds

    def receive(self, timeout_s: float) -> FromServer:
        self.left -= 1
        if not self.left:
            raise Killed
        return super().receive(timeout_s)


class Unreliable(Link):
    """Loses and doubles replies, both in a fixed rhythm."""

    count = itertools.count(1)

    def receive(self, timeout_s: float) -> FromServer:
        kept = getattr(self, "kept", [])
        if kept:
            return kept.pop()
        message = super().receive(timeout_s)
        n = next(self.count)
        if n % 7 == 3:
            raise LinkBroken("this reply is lost")
        if n % 3 == 0:
            self.kept = [message]
        return message


class Doubling(Link):
    """Sends every round twice."""

    def send(self, message: FromDevice) -> None:
        super().send(message)
        super().send(message)


class SlowDraft(DraftModel):
    """Drafts nothing until it is told to hurry."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.hurry = threading.Event()

    def draft(self, context: Any, position: int, temperature: float, seed: int) -> Drafted:
        self.hurry.wait(120.0)
        return super().draft(context, position, temperature, seed)


def raw(world: World, *messages: bytes) -> grpc.StatusCode:
    """How a stream of raw bytes ends."""
    call = world.channel().stream_stream("/wisp_gym.testbed.v1.Verification/Serve")(iter(messages), timeout=20)
    try:
        for _ in call:
            pass
    except grpc.RpcError:
        pass
    return call.code()


def hostile() -> Iterator[bytes]:
    """Messages that no device sends."""
    start = Start(version=1, tokenizer=TOKENIZER, prompt=prompt(0), max_new_tokens=10)
    good = Round(session=b"x" * 16, round=1, start=start)
    yield b"\xff" * 64  # no protobuf
    yield b""
    yield FromDevice(round=Round()).SerializeToString()
    yield FromDevice(round=Round(session=b"y" * 16, round=1, position=4_000_000_000, start=start)).SerializeToString()
    for change in (
        Round(tokens=[1 << 31]),
        Round(round_age_s=float("nan")),
        Round(start=Start(max_new_tokens=1 << 31)),
    ):
        bad = Round()
        bad.CopyFrom(good)
        bad.MergeFrom(change)
        yield FromDevice(round=bad).SerializeToString()
    bad = Round(session=b"z" * 16, round=1, start=start)
    bad.start.temperature = 1.0
    yield FromDevice(round=bad).SerializeToString() + b"\x0a\x02\x1a\xff"  # broken off in the middle
    yield FromDevice(round=Round(session=b"s" * 16, round=1, start=start, tokens=[1] * 12)).SerializeToString()


def refusal(world: World, message: Round) -> int:
    """Why a round that comes on a connection of its own is refused."""
    link = Link(world.channel())
    link.send(FromDevice(round=message))
    reason = link.receive(10).refusal.reason
    link.close()
    return int(reason)


class Commands:
    """The two commands, run as processes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.processes = folder, list[subprocess.Popen[str]]()

    def start(self, name: str, *flags: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "wisp_gym", name, *flags]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self.processes.append(process)
        return process

    def server(
        self, port: int = 0, scheduler: str = "fcfs", *more: str
    ) -> tuple[subprocess.Popen[str], int, Callable[[str], float]]:
        """A server that listens: the process, its port, and how to read a metric."""
        flags = ("--listen", f"127.0.0.1:{port}", "--metrics", "127.0.0.1:0", "--target", str(self.folder / "target"))
        process = self.start("server", *flags, "--threads", "1", "--grace-s", "5", "--scheduler", scheduler, *more)
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(2)]
        found = [re.search(r":(\d+)", line) for line in lines]
        assert all(found), lines
        ports = [int(match.group(1)) for match in found if match]

        def metric(name: str) -> float:
            with urllib.request.urlopen(f"http://127.0.0.1:{ports[1]}/metrics", timeout=5) as reply:
                text = reply.read().decode()
            return float(dict(line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")[name])

        return process, ports[0], metric

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()
