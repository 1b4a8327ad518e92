"""Soak test: many devices at a server's limits, every answer checked, connections broken now and then, memory watched.

    wisp-gym soak --minutes 30 --devices 50

The server is a process of its own; it holds about half of the keys and values that the devices want, and a tenth of them wait
for a session. The command fails when an answer is wrong or lost, or when memory, threads or files of either process grow.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wisp_gym.cli import Parser, between, output_file, whole
from wisp_gym.errors import InputError, require
from wisp_gym.files import read_text, write_json
from wisp_gym.process import readable

PROGRAM = "wisp-gym soak"
# `wisp-gym`, ended when this process is gone.
FOLLOWING = """
from wisp_gym.__main__ import console
from wisp_gym.process import follow_parent
follow_parent()
console()
"""
TIE_LOGITS = 1e-3  # where the target's two best tokens are this close, rounding may choose either
GROWTH_SHARE, GROWTH_MIB = 0.05, 16.0  # allowed over the second half: what an allocator keeps comes and goes


@dataclass(frozen=True)
class Case:
    """A prompt, the target's own greedy answer, and how far its best token is ahead at each place (logits)."""

    prompt: list[int]
    tokens: list[int]
    margins: list[float]


@dataclass
class Tally:
    """What all devices together have seen."""

    answers: int = 0
    tokens: int = 0
    rounds: int = 0
    reconnects: int = 0
    refusals: int = 0
    ties: int = 0
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, case: Case, answer: Any) -> None:
        """An answer has come."""
        pairs = zip(answer.tokens, case.tokens, strict=False)
        place = next((n for n, (given, wanted) in enumerate(pairs) if given != wanted), None)
        with self.lock:
            self.answers, self.tokens = self.answers + 1, self.tokens + len(answer.tokens)
            self.rounds, self.reconnects = self.rounds + answer.rounds, self.reconnects + answer.reconnects
            self.refusals += answer.refusals
            if place is not None and case.margins[place] < TIE_LOGITS:
                self.ties += 1
            elif place is not None or len(answer.tokens) != len(case.tokens):
                self.wrong.append(f"at token {place} of the prompt {case.prompt[:8]}…")


@dataclass(frozen=True)
class Sample:
    """One look at a process: seconds since the start, memory (MiB), threads, open files."""

    time_s: float
    memory_mib: float
    threads: int
    files: int


def look(pid: int, time_s: float) -> Sample:
    """A process as the system describes it (Linux)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines if ":" in line)
    memory_mib = int(status["VmRSS"].split()[0]) / 1024
    return Sample(time_s, memory_mib, int(status["Threads"]), len(os.listdir(f"/proc/{pid}/fd")))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The flags, checked."""
    parser = Parser(prog=PROGRAM, description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--minutes", type=between(0.05, 1e5), default=30.0, help="(default %(default)g)")
    add("--devices", type=whole(1, 10**4), default=50, help="(default %(default)s)")
    add("--target", metavar="FOLDER", help="with its tokenizer (default: the small pair's)")
    add("--draft", metavar="FOLDER", help="(default: the small pair's)")
    add("--prompts", type=whole(1, 10**5), default=32, help="different prompts (default %(default)s)")
    add("--max-new-tokens", type=whole(2, 10**5), default=48, help="of an answer (default %(default)s)")
    add("--controller", default="confidence:0.5,8", help="of the devices (default %(default)s)")
    add("--scheduler", default="fcfs", help="of the server: fcfs, or a bundle (default %(default)s)")
    add("--break-share", type=between(0, 1), default=0.002, metavar="SHARE",
        help="of the messages break their connection (default %(default)g)")  # fmt: skip
    add("--report", type=output_file(), metavar="FILE", help="write the figures and samples as JSON")
    add("--seed", type=whole(0, 2**32), default=0, help="(default %(default)s)")
    given = parser.parse_args(arguments)
    if not Path("/proc/self/status").exists():
        parser.error("memory is read from /proc, which this system does not have; allowed is Linux")
    return given


def cases(given: argparse.Namespace) -> list[Case]:
    """Prompts of random tokens, or the small pair's own, with the target's answers."""
    require("torch", "testbed")  # transformers would say the same in more words
    import numpy as np

    from wisp_gym.testbed.tokenizers import load_tokenizer
    from wisp_gym.testbed.torch_engine.models import default_pair, load_model

    if given.target is None:
        folder = default_pair()
        given.target, given.draft = str(folder / "target"), given.draft or str(folder / "draft")
        tokenizer = load_tokenizer(given.target, "--target")
        lines = read_text(folder / "prompts.jsonl").splitlines()[: given.prompts]
        prompts = [list(tokenizer(json.loads(line)["prompt"])["input_ids"]) for line in lines]
    else:
        size, rng = len(load_tokenizer(given.target, "--target")), np.random.default_rng(given.seed)
        prompts = [rng.integers(size, size=rng.integers(4, 48)).tolist() for _ in range(given.prompts)]
    model = load_model(given.target, "--target")
    return [greedy(model, ids, given.max_new_tokens) for ids in prompts]


def greedy(model: Any, ids: list[int], most: int) -> Case:
    """The target's own answer, one token at a time, without any of the testbed's code."""
    import torch
    from transformers import DynamicCache

    ends = model.generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [] if ends is None else [ends])
    tokens: list[int] = []
    margins: list[float] = []
    cache, fresh = DynamicCache(), torch.tensor([ids])
    with torch.inference_mode():
        while len(tokens) < most and not ends & set(tokens):
            logits = model(fresh, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0, -1]
            best = logits.topk(2).values
            tokens.append(int(logits.argmax()))
            margins.append(float(best[0] - best[1]))
            fresh = torch.tensor([tokens[-1:]])
    return Case(ids, tokens, margins)


class ServerProcess:
    """The server, in a process of its own, with its limits at what the devices need."""

    def __init__(self, given: argparse.Namespace, work: list[Case]) -> None:
        from wisp_gym.testbed.settings import BLOCK_TOKENS

        longest = max(len(case.prompt) + given.max_new_tokens for case in work)
        kv_tokens = max(given.devices * longest // 2, longest + BLOCK_TOKENS)
        command = [sys.executable, "-c", FOLLOWING, "server", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0",
                   "--target", given.target, "--scheduler", given.scheduler, "--threads", "1", "--kv-tokens", str(kv_tokens),
                   "--max-sessions", str(max(given.devices * 9 // 10, 1)), "--grace-s", "5"]  # fmt: skip
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, **readable())
        assert self.process.stdout is not None
        self.address = self._told("listening on ")
        self.metrics_url = self._told("metrics on ")

    def _told(self, beginning: str) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.startswith(beginning):
            raise InputError(f"the server did not start: {line.strip() or 'see above'}")
        return line.removeprefix(beginning).strip()

    def metric(self, name: str) -> float:
        """A metric's value now."""
        with urllib.request.urlopen(self.metrics_url, timeout=10) as reply:
            lines = reply.read().decode().splitlines()
        return next((float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"{name} ")), 0.0)

    def stop(self) -> int:
        """Ask it to end; its exit code, that of a killed process when it does not."""
        self.process.terminate()
        try:
            return self.process.wait(120)  # a busy machine takes its time
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)
            return self.process.wait(10)


def serve_one(
    given: argparse.Namespace, place: int, address: str, draft: Any, work: list[Case], tally: Tally, end_s: float
) -> None:
    """One device, answering prompts until the end; now and then its connection breaks."""
    from wisp_gym.testbed.client import Device, DeviceSettings, GaveUp, Request
    from wisp_gym.testbed.connection import Link, NotWelcome, open_channel
    from wisp_gym.testbed.controlling import find_controller
    from wisp_gym.testbed.tokenizers import load_tokenizer, tokenizer_digest

    rng, channel = random.Random(given.seed * 100_003 + place), open_channel(address, None, 16 << 20)

    class Breaking(Link):
        def send(self, message: Any) -> None:
            super().send(message)
            if rng.random() < given.break_share:
                self._call.cancel()

    digest = tokenizer_digest(load_tokenizer(given.target, "--target"))
    settings = DeviceSettings(digest, reply_timeout_s=30.0, give_up_s=900.0)
    device = Device(lambda: Breaking(channel), draft, find_controller(given.controller)(), settings)
    while time.monotonic() < end_s:
        case = rng.choice(work)
        try:
            tally.add(case, device.answer(Request(case.prompt, given.max_new_tokens)))
        except (GaveUp, NotWelcome) as error:
            with tally.lock:
                tally.lost.append(str(error))
    device.close(finish=True)
    channel.close()


def watch(pids: dict[str, int], seconds: float, tally: Tally) -> dict[str, list[Sample]]:
    """Samples of the processes, about a hundred of them."""
    from tqdm import tqdm

    started_s, samples = time.monotonic(), {name: list[Sample]() for name in pids}
    with tqdm(total=round(seconds), unit="s", disable=None) as bar:
        while (elapsed_s := time.monotonic() - started_s) < seconds:
            for name, pid in pids.items():
                samples[name].append(look(pid, elapsed_s))
            bar.set_postfix(answers=tally.answers, wrong=len(tally.wrong), refresh=False)
            bar.update(round(elapsed_s) - bar.n)
            time.sleep(min(max(seconds / 100, 0.2), 10.0))
    return samples


def slope_mib_per_minute(samples: Sequence[Sample]) -> float:
    """Least-squares slope of memory over the second half of the samples."""
    import numpy as np

    late = samples[len(samples) // 2 :]
    times, memory = np.array([(sample.time_s, sample.memory_mib) for sample in late]).T
    return float(np.polyfit(times / 60.0, memory, 1)[0]) if len(late) > 1 else 0.0


def growth(name: str, samples: Sequence[Sample]) -> tuple[str, bool]:
    """A line that says how a process grew over the second half, and whether that is too much."""
    middle, last = samples[len(samples) // 2], samples[-1]
    slope, minutes = slope_mib_per_minute(samples), (last.time_s - middle.time_s) / 60.0
    allowed = max(GROWTH_SHARE * middle.memory_mib, GROWTH_MIB)
    grown = slope * minutes > allowed or last.files > middle.files + 50 or last.threads > middle.threads + 50
    line = (f"{name:<8} {samples[0].memory_mib:8.1f} {middle.memory_mib:8.1f} {last.memory_mib:8.1f} MiB  {slope:+8.2f} MiB/min  "
            f"threads {middle.threads} → {last.threads}, files {middle.files} → {last.files}")  # fmt: skip
    return line, grown


def work_devices(
    given: argparse.Namespace, work: list[Case], server: ServerProcess, tally: Tally
) -> dict[str, list[Sample]]:
    """Run all devices for the given time; samples of both processes."""
    import torch

    from wisp_gym.testbed.draft import DraftModel
    from wisp_gym.testbed.tokenizers import load_tokenizer
    from wisp_gym.testbed.torch_engine.models import load_model

    torch.set_num_threads(1)
    model, words = load_model(given.draft, "--draft"), len(load_tokenizer(given.draft, "--draft"))
    seconds = 60.0 * given.minutes
    end_s = time.monotonic() + seconds
    threads = []
    for place in range(given.devices):
        draft = DraftModel(model, min(words, model.config.vocab_size))  # shares the weights, has a cache of its own
        arguments = (given, place, server.address, draft, work, tally, end_s)
        threads.append(threading.Thread(target=serve_one, args=arguments, daemon=True))
        threads[-1].start()
    samples = watch({"server": server.process.pid, "devices": os.getpid()}, seconds, tally)
    for thread in threads:
        thread.join(1000.0)
        if thread.is_alive():
            tally.lost.append("a device did not end")
    return samples


def summary(
    tally: Tally, server: ServerProcess, samples: dict[str, list[Sample]], seconds: float
) -> tuple[str, dict[str, Any], bool]:
    """What came of it, as text and as numbers, and whether it was good."""
    found: dict[str, Any] = {
        "answers": tally.answers, "tokens": tally.tokens, "tokens_per_s": round(tally.tokens / seconds, 1), "rounds": tally.rounds,
        "wrong": len(tally.wrong), "lost": len(tally.lost), "ties": tally.ties, "reconnects": tally.reconnects,
        "refusals": tally.refusals, "evictions": int(server.metric("wisp_evictions_total")),
        "failed_batches": int(server.metric("wisp_failed_batches_total")), "utilisation": round(server.metric("wisp_utilisation"), 2),
    }  # fmt: skip
    lines = [", ".join(f"{name.replace('_', ' ')} {value}" for name, value in found.items())]
    lines += ["memory at the start, in the middle, at the end, and its slope over the second half:"]
    told = {name: growth(name, rows) for name, rows in samples.items()}
    lines += [line for line, _ in told.values()]
    lines += [f"WRONG {text}" for text in tally.wrong[:5]] + [f"LOST {text}" for text in tally.lost[:5]]
    lines += [f"GROWS: {name}" for name, (_, grown) in told.items() if grown]
    found["slope_mib_per_minute"] = {name: round(slope_mib_per_minute(rows), 3) for name, rows in samples.items()}
    good = not (tally.wrong or tally.lost or found["failed_batches"] or any(grown for _, grown in told.values()))
    return "\n".join(lines), found, good and tally.answers > 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Soak, and say what came of it."""
    given = parse(arguments)
    if bool(given.target) != bool(given.draft) and given.target:
        raise InputError("--target needs a --draft of the same vocabulary")
    work = cases(given)
    server, tally = ServerProcess(given, work), Tally()
    try:
        samples = work_devices(given, work, server, tally)
        text, found, good = summary(tally, server, samples, 60.0 * given.minutes)
    finally:
        code = server.stop()
    if given.report is not None:
        rows = {name: [vars(sample) for sample in samples[name]] for name in samples}
        write_json(given.report, {**found, "samples": rows})
    print(text)
    if code:
        print(f"the server ended with exit code {code}", file=sys.stderr)
    return 0 if good and not code else 1
